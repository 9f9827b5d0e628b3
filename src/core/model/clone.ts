/**
 * Volumes that begin as a snapshot of another one: where their copies are made, and what stands against it.
 *
 * Must always hold:
 * - a copy is made of the snapshot only in a pool that has it, for it shares its blocks; the others join the volume;
 * - it begins with one such copy at least: nothing else knows what the snapshot has.
 */
import { hostName, isAlive } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import { finding, ok, refused } from "./finding.ts";
import type { Decision, Finding } from "./finding.ts";
import type { HostId } from "./ids.ts";
import { placeCopies, placeSome } from "./placement.ts";
import type { Spot } from "./placement.ts";
import { formatSize, formatSizeExact } from "./size.ts";
import { holders } from "./snapshot.ts";
import type { Snapshot } from "./snapshot.ts";
import type { Spread } from "./spread.ts";
import type { VolumeRecord } from "./volume-record.ts";

/** Of which snapshot; `ref` is what people call it: `db@before-upgrade`. */
export type Source = { readonly ref: string; readonly snapshot: Snapshot; readonly record: VolumeRecord };

export type CloneRequest = {
  readonly name: string;
  readonly copies: number;
  /** Only these hosts, in this order of preference; null: any. */
  readonly only: readonly HostId[] | null;
  readonly spread: Spread;
};

/** `spots`: the first `made` are made of the snapshot. */
export type ClonePlaces = { readonly spots: readonly Spot[]; readonly made: number };

export function placeClone(cluster: Cluster, source: Source, request: CloneRequest): Decision<ClonePlaces> {
  const { copies } = request;
  const having = holders(source.snapshot, source.record).map(({ pool }) => pool);
  const pools = cluster.pools.filter(({ id, noSnapshots }) => having.includes(id) && noSnapshots === null);
  const how = { ...request, taken: [], pool: null, beside: [], roomBytes: 0n };
  const made = placeSome({ ...cluster, pools }, how);
  if (made.length === 0) return refused(noneHasIt(cluster, source, request));
  if (made.length === copies) return ok({ spots: made, made: made.length });
  const taken = made.map(({ host }) => host);
  const rest = placeCopies(cluster, { ...how, copies: copies - made.length, taken, beside: taken });
  return rest.kind === "refused" ? rest : ok({ spots: [...made, ...rest.value], made: made.length });
}

/** E-SNAP-17: it has its snapshot's size, and can grow when it is there. */
export function checkCloneSize(name: string, { ref, snapshot }: Source, size: bigint | null): Finding | null {
  const { sizeBytes } = snapshot;
  if (size === null || size === sizeBytes) return null;
  return finding(
    "E-SNAP-17",
    `"${name}" shall have ${formatSize(size)}, and ${ref} has ${formatSize(sizeBytes)}: a clone begins with its snapshot's size.`,
    {
      facts: { snapshot: snapshot.id, size: `${sizeBytes}`, asked: `${size}` },
      safe: "Nothing was made.",
      do: [
        { why: "Make it without a size", command: `weft volume create ${name} --from ${ref}` },
        ...(size > sizeBytes
          ? [{ why: "Then it grows", command: `weft volume resize ${name} ${formatSizeExact(size)}` }]
          : []),
      ],
    },
  );
}

function noneHasIt(cluster: Cluster, source: Source, { name, only, spread }: CloneRequest): Finding {
  const { ref, snapshot, record } = source;
  const having = holders(snapshot, record);
  const reasons = having.map(({ host, pool: id }) => {
    const pool = cluster.pools.find((one) => one.id === id);
    return `${hostName(cluster, host)}: ${whyNot(cluster, host, pool, only)}`;
  });
  const because = reasons.length === 0 ? "no copy of its volume has it any more" : reasons.join("; ");
  const apart = spread === "host" ? "" : `, apart by ${spread}`;
  return finding(
    "E-SNAP-12",
    `"${name}" can't be made of ${ref}${apart}: a clone needs a pool that has the snapshot (${because}).`,
    {
      facts: { snapshot: snapshot.id, copies: having.length },
      safe: "Nothing was made.",
      do: [
        { why: "See which copies have it", command: `weft snapshot show ${ref}` },
        { why: "See which pools serve", command: "weft pool list" },
      ],
    },
  );
}

function whyNot(
  cluster: Cluster,
  host: HostId,
  pool: Cluster["pools"][number] | undefined,
  only: readonly HostId[] | null,
): string {
  if (only !== null && !only.includes(host)) return "has it, and is not among the hosts named";
  if (!isAlive(cluster, host)) return "not answering";
  if (pool === undefined || !pool.serving) return "its pool does not serve";
  return pool.noSnapshots ?? "no room, or not where copies may be";
}
