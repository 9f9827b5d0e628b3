/**
 * What can be refused before weftd is asked: attach, detach, delete and resize, by what the store says.
 *
 * Must always hold:
 * - a refusal rests on the record, never on who seems alive: weftd asks the copies themselves (protocol.md R16);
 * - whatever passes here can still be refused by weftd, whose swap decides.
 */
import { hostName } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import type { Decision, Finding } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import type { HostId } from "./ids.ts";
import { headDeleted } from "./headless.ts";
import { ATTACHED_PER_HOST_MAX, poolReserveBytes } from "./limits.ts";
import { checkSize, formatSize, formatSizeExact } from "./size.ts";
import { insync } from "./volume-record.ts";
import type { VolumeRecord, Want } from "./volume-record.ts";

type Known = {
  readonly want: Want;
  readonly record: VolumeRecord | null;
  readonly cluster: Cluster;
  /** The owner is a session without a guest: it makes way. */
  readonly ownerIsCaretaker: boolean;
};

export type AttachInput = Known & {
  readonly here: HostId;
  /** Sessions with a guest on this host. */
  readonly attachedHere: number;
  readonly steal: boolean;
};

export function checkAttach(input: AttachInput): Decision<null> {
  const { want, record, cluster, here } = input;
  const notThere = checkThere(input);
  if (notThere !== null) return refused(notThere);
  const owner = record?.owner ?? null;
  const isOpen = owner !== null && !input.ownerIsCaretaker;
  if (isOpen && owner.host === here) return ok(null);
  if (isOpen && !input.steal) return refused(openFinding(want, cluster, owner.host, "Not attached."));
  if (input.attachedHere >= ATTACHED_PER_HOST_MAX) {
    return refused(
      finding(
        "E-VOL-04",
        `${input.attachedHere} volumes are attached on ${hostName(cluster, here)}, the limit. Not attached.`,
        {
          facts: { host: here, limit: ATTACHED_PER_HOST_MAX },
        },
      ),
    );
  }
  return ok(null);
}

export function checkDelete(input: Known): Decision<null> {
  const { want, record, cluster } = input;
  const notThere = checkThere(input);
  // A volume that is still being made can be given up.
  if (notThere !== null && notThere.code !== "E-VOL-14") return refused(notThere);
  const owner = record?.owner ?? null;
  if (owner === null || input.ownerIsCaretaker) return ok(null);
  return refused(openFinding(want, cluster, owner.host, "Not deleted."));
}

/** Of one that lives on in its snapshots. E-VOL-14 while it is being taken back to one of them. */
export function checkDeleteHead(input: Known): Decision<null> {
  const { want, record } = input;
  const allowed = checkDelete(input);
  if (allowed.kind === "refused" || record === null || record.reverting === null) return allowed;
  return refused(
    finding("E-VOL-14", `"${want.name}" is being taken back to a snapshot. Not deleted.`, {
      facts: { volume: want.volume },
      safe: "Nothing was changed.",
      do: [{ why: "When that is done it may go", command: `weft volume show ${want.name} --watch` }],
    }),
  );
}

export function checkDetach({
  want,
  record,
  cluster,
  here,
}: Known & { readonly here: HostId }): Decision<null> {
  const owner = record?.owner ?? null;
  if (owner?.host === here) return ok(null);
  const where = owner === null ? "It is not open anywhere" : `It is open on ${hostName(cluster, owner.host)}`;
  return refused(
    finding("E-VOL-13", `"${want.name}" is not attached on ${hostName(cluster, here)}. ${where}.`, {
      facts: { volume: want.volume, host: here },
    }),
  );
}

export type ResizeInput = Known & {
  readonly sizeBytes: bigint;
  /** The volume's name, typed by who wants to lose what lies beyond the new end; null: nothing may be lost. */
  readonly loseData: string | null;
};

/**
 * What becomes of a volume that shall have this size, by what its record says it has. A growth goes on while a guest
 * uses the volume; a shrink needs it closed, and its name. E-ARG-02 and E-VOL-02 for what is no size, E-VOL-12 where it
 * would shrink and is open, E-VOL-15 without the name, E-ARG-04 with another one, E-POOL-06 where a copy has no room.
 */
export function checkResize(input: ResizeInput): Decision<"same" | "grow" | "shrink"> {
  const { want, record, cluster, sizeBytes, loseData } = input;
  const size = checkSize(sizeBytes);
  if (size.kind === "refused") return size;
  const notThere = checkThere(input);
  if (notThere !== null || record === null) return notThere === null ? ok("same") : refused(notThere);
  if (sizeBytes === record.sizeBytes) return ok("same");
  if (sizeBytes > record.sizeBytes) {
    const full = withoutRoom(record, cluster);
    return full === null ? ok("grow") : refused(noRoomToGrow(want, cluster, full));
  }
  const { owner } = record;
  if (owner !== null && input.ownerIsCaretaker) return refused(isMadeLevel(want, cluster, owner.host));
  if (owner !== null)
    return refused(
      openFinding(want, cluster, owner.host, "It shrinks only while nobody uses it. Not changed."),
    );
  if (loseData === null) return refused(wouldLose(want, record, sizeBytes));
  return loseData === want.name ? ok("shrink") : refused(otherName(want, loseData));
}

/** The first in-sync copy's pool that takes nothing more; null: each has room. */
function withoutRoom(record: VolumeRecord, { pools }: Cluster): Cluster["pools"][number] | null {
  return (
    insync(record)
      .flatMap((member) => pools.find(({ id }) => id === member.pool) ?? [])
      .find((pool) => pool.serving && pool.freeBytes <= poolReserveBytes(pool.totalBytes)) ?? null
  );
}

function noRoomToGrow({ name, volume }: Want, cluster: Cluster, pool: Cluster["pools"][number]): Finding {
  const [free, total] = [formatSize(pool.freeBytes), formatSize(pool.totalBytes)];
  return finding(
    "E-POOL-06",
    `"${name}" has a copy in a pool on ${hostName(cluster, pool.host)} that takes nothing more: ${free} of ${total} free.`,
    {
      facts: { volume, host: pool.host, pool: pool.id, free: `${pool.freeBytes}` },
      safe: "Nothing was changed.",
      do: [{ why: "Make room", command: "weft trash empty" }],
    },
  );
}

function isMadeLevel({ name, volume }: Want, cluster: Cluster, host: HostId): Finding {
  return finding(
    "E-VOL-14",
    `"${name}" is at work: ${hostName(cluster, host)} makes its copies level. It shrinks when that is done.`,
    {
      facts: { volume, host },
      safe: "Nothing was changed.",
      do: [{ why: "See how far it is", command: `weft volume show ${name} --watch` }],
    },
  );
}

function wouldLose({ name, volume }: Want, { sizeBytes: has }: VolumeRecord, to: bigint): Finding {
  const exact = formatSizeExact(to);
  return finding(
    "E-VOL-15",
    `"${name}" would lose everything beyond ${exact}: it has ${formatSize(has)}. Not changed.`,
    {
      facts: { volume, size: `${has}`, asked: `${to}` },
      safe: "Nothing was changed.",
      do: [
        {
          why: "Shrink it all the same, detached",
          command: `weft volume resize ${name} ${exact} --lose-data ${name}`,
        },
      ],
    },
  );
}

function otherName({ name, volume }: Want, given: string): Finding {
  return finding("E-ARG-04", `The volume is "${name}", and "${given}" was given as what may lose data.`, {
    facts: { volume, given },
    safe: "Nothing was changed.",
  });
}

function checkThere({ want, record }: Known): Finding | null {
  if (want.deletedAtMs !== null || (record !== null && record.deletedAtMs !== null)) {
    return finding("E-VOL-11", `"${want.name}" is in the trash.`, {
      facts: { volume: want.volume },
      do: [{ why: "Bring it back", command: `weft trash restore ${want.name}` }],
    });
  }
  if (want.headDeletedAtMs !== null || (record !== null && record.head !== null)) return headDeleted(want);
  if (record !== null) return null;
  return finding("E-VOL-14", `"${want.name}" is still being made.`, {
    facts: { volume: want.volume },
    do: [{ why: "See how far it is", command: `weft volume show ${want.name}` }],
  });
}

function openFinding(want: Want, cluster: Cluster, host: HostId, verdict: string): Finding {
  const name = hostName(cluster, host);
  return finding("E-VOL-12", `"${want.name}" is open on ${name}. ${verdict}`, {
    facts: { volume: want.volume, host },
    safe: "Its session there is not disturbed.",
    do: [
      { why: `Detach it, on ${name}`, command: `weft detach ${want.name}` },
      { why: `Or, when ${name} is dead`, command: `weft steal ${want.name}` },
    ],
  });
}
