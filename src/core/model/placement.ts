/**
 * Where copies go: pools on distinct hosts, chosen the same way by whoever computes it.
 *
 * Must always hold:
 * - no two copies of a volume on one host, and none that share what its rule says they must not (spread.ts);
 * - only pools that serve, on hosts that are alive, with more free space than the reserve;
 * - the same cluster gives the same places: most uncommitted space first, then host id, then pool id;
 * - a refusal says how many places there are and why each other host is none.
 */
import { hostById } from "./cluster.ts";
import type { Cluster, Host, Pool } from "./cluster.ts";
import type { Decision, Finding } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import { byText } from "./ids.ts";
import type { HostId, PoolId } from "./ids.ts";
import { COPIES_MAX, poolReserveBytes } from "./limits.ts";
import { formatSize } from "./size.ts";
import { spreadKey } from "./spread.ts";
import type { Spread } from "./spread.ts";

export type Spot = { readonly host: HostId; readonly pool: PoolId };

export type PlacementRequest = {
  readonly name: string;
  readonly copies: number;
  /** Hosts that have a copy already. */
  readonly taken: readonly HostId[];
  /** Only these, in this order of preference; null: any host. */
  readonly only: readonly HostId[] | null;
  /** Only this pool; null: any. */
  readonly pool: PoolId | null;
  readonly spread: Spread;
  /** Hosts of the copies that stay: what the rule is about, new ones must not share with them. */
  readonly beside: readonly HostId[];
  /** That a copy takes at once: `roomOf` its volume. */
  readonly roomBytes: bigint;
};

/** Of a thick copy: its sidecar and names beside each 64 MiB. */
const SEGMENT_BYTES = 64n << 20n;
const SEGMENT_ROOM_BYTES = 144n << 10n;

type Place = { readonly host: Host; readonly pool: Pool };

/** Places for `copies` further copies. */
export function placeCopies(cluster: Cluster, request: PlacementRequest): Decision<readonly Spot[]> {
  const { copies, taken } = request;
  if (copies < 1 || copies + taken.length > COPIES_MAX) {
    return refused(
      finding(
        taken.length === 0 ? "E-VOL-08" : "E-REPL-04",
        `${copies + taken.length} copies of "${request.name}" wanted, a volume has 1 to ${COPIES_MAX}.`,
        { facts: { copies: copies + taken.length, limit: COPIES_MAX } },
      ),
    );
  }
  const candidates = candidatesOf(cluster, request);
  const places = placesOf(cluster, request, candidates);
  if (places.length < copies) return refused(tooFew(cluster, request, candidates, places));
  return ok(spotsOf(places, copies));
}

/** As many as there are, at most `copies`. */
export function placeSome(cluster: Cluster, request: PlacementRequest): readonly Spot[] {
  return spotsOf(placesOf(cluster, request, candidatesOf(cluster, request)), request.copies);
}

function candidatesOf({ hosts }: Cluster, { only }: PlacementRequest): readonly Host[] {
  return hosts.filter(({ id }) => only === null || only.includes(id));
}

function placesOf(
  cluster: Cluster,
  request: PlacementRequest,
  candidates: readonly Host[],
): readonly Place[] {
  const { taken, only, pool: named, spread } = request;
  const usable = candidates.flatMap((host) => {
    const pool = taken.includes(host.id) ? null : bestPool(cluster, host, named, request.roomBytes);
    return pool === null ? [] : [{ host, pool }];
  });
  usable.sort(only === null ? compare : (a, b) => only.indexOf(a.host.id) - only.indexOf(b.host.id));
  return spreadOut(usable, spread, keysOf(cluster, request));
}

function spotsOf(places: readonly Place[], copies: number): readonly Spot[] {
  return places.slice(0, copies).map(({ host, pool }) => ({ host: host.id, pool: pool.id }));
}

/** Two copies when two hosts that the rule lets have one have a pool, else one: operations.md 3. */
export function defaultCopies(cluster: Cluster, spread: Spread): number {
  const usable = cluster.hosts.flatMap((host) => {
    const pool = bestPool(cluster, host, null, 0n);
    return pool === null ? [] : [{ host, pool }];
  });
  return Math.max(1, Math.min(2, spreadOut(usable, spread, []).length));
}

/** The first ones that share nothing; with one label a host there is no better choice of more. */
function spreadOut(
  usable: readonly Place[],
  spread: Spread,
  beside: readonly (string | null)[],
): readonly Place[] {
  const seen = new Set<string | null>([null, ...beside]);
  return usable.filter(({ host }) => {
    const key = spreadKey(host, spread);
    const isFirst = !seen.has(key);
    seen.add(key);
    return isFirst;
  });
}

function keysOf(
  cluster: Cluster,
  { beside, spread }: Pick<PlacementRequest, "beside" | "spread">,
): readonly (string | null)[] {
  const hosts = beside.flatMap((id) => hostById(cluster, id) ?? []);
  // Of the host itself there may be a copy that leaves: whether it is taken is said apart.
  return spread === "host" ? [] : hosts.map((host) => spreadKey(host, spread));
}

function bestPool(cluster: Cluster, host: Host, named: PoolId | null, roomBytes: bigint): Pool | null {
  if (host.liveness.kind !== "alive") return null;
  const usable = cluster.pools.filter(
    (pool) =>
      pool.host === host.id &&
      (named === null || pool.id === named) &&
      pool.serving &&
      canHold(pool, roomBytes) &&
      hasRoom(pool, roomBytes),
  );
  usable.sort((a, b) => compare({ host, pool: a }, { host, pool: b }));
  return usable[0] ?? null;
}

/** What is thick needs a pool that can reserve its room. */
function canHold({ canReserve }: Pool, roomBytes: bigint): boolean {
  return roomBytes === 0n || canReserve;
}

function hasRoom(pool: Pool, roomBytes: bigint): boolean {
  return pool.freeBytes > poolReserveBytes(pool.totalBytes) + roomBytes;
}

/** What each copy of a volume takes when it is made: nothing, or all that a thick one will ever need, with its checksums. */
export function roomOf({
  thick,
  sizeBytes,
}: {
  readonly thick: boolean;
  readonly sizeBytes: bigint;
}): bigint {
  return thick ? sizeBytes + (sizeBytes / SEGMENT_BYTES + 1n) * SEGMENT_ROOM_BYTES : 0n;
}

/** Volumes are thin: what fills a pool in the end is what was promised of it, not what is written today. */
function compare(a: Place, b: Place): number {
  const left = a.pool.totalBytes - a.pool.committedBytes;
  const right = b.pool.totalBytes - b.pool.committedBytes;
  if (left !== right) return left > right ? -1 : 1;
  return byText(a.host.id, b.host.id) || byText(a.pool.id, b.pool.id);
}

function tooFew(
  cluster: Cluster,
  request: PlacementRequest,
  candidates: readonly Host[],
  places: readonly Place[],
): Finding {
  const { name, copies, taken, only, spread } = request;
  const reasons = candidates
    .filter((host) => !places.some((place) => place.host.id === host.id))
    .map((host) => `${host.name}: ${whyNot(cluster, host, request, places)}`);
  const unknown = (only ?? []).length - candidates.length;
  if (unknown > 0) reasons.push(`${unknown} of the hosts named are not in the cluster`);
  const because = reasons.length === 0 ? "" : ` (${reasons.join("; ")})`;
  const found = `${places.length} ${places.length === 1 ? "host" : "hosts"}`;
  const noRoom =
    (places.length === 0 || request.roomBytes > 0n) &&
    candidates.some((host) => isFull(cluster, host, request.roomBytes) && !taken.includes(host.id));
  const isThin = candidates.some((host) => !taken.includes(host.id) && isOnlyThin(cluster, host, request));
  const code = isThin ? "E-POOL-12" : noRoom ? "E-POOL-06" : taken.length === 0 ? "E-VOL-03" : "E-REPL-01";
  return finding(
    code,
    `${copies} ${taken.length === 0 ? "" : "more "}${copies === 1 ? "copy" : "copies"} of "${name}" wanted, ` +
      `${found} with a usable pool found${because}.`,
    {
      facts: { copies, places: places.length },
      safe: "Nothing was changed.",
      do: [
        ...(code === "E-POOL-12" && taken.length === 0
          ? [{ why: "Let it grow as it is written", command: `weft volume create ${name} SIZE` }]
          : []),
        { why: "Add a pool, on that host", command: "weft pool add PATH" },
        ...(spread === "host"
          ? []
          : [{ why: `Say where hosts stand`, command: `weft host label HOST ${spread}=NAME` }]),
        ...(taken.length === 0 && places.length > 0
          ? [
              {
                why: "Or with fewer copies",
                command: `weft volume create ${name} SIZE --copies ${places.length}`,
              },
            ]
          : []),
      ],
    },
  );
}

/** `in rack a, as h1`; null: the rule lets it have a copy. */
function whyShared(cluster: Cluster, host: Host, spread: Spread, others: readonly HostId[]): string | null {
  if (spread === "host") return null;
  const key = spreadKey(host, spread);
  if (key === null) return `no ${spread} label`;
  const other = others
    .flatMap((id) => hostById(cluster, id) ?? [])
    .find((one) => one.id !== host.id && spreadKey(one, spread) === key);
  return other === undefined ? null : `in ${spread} ${key}, as ${other.name}`;
}

/** It has pools that serve, and what is thick can be in none of them. */
function isOnlyThin(
  cluster: Cluster,
  { id, liveness }: Host,
  { pool: named, roomBytes }: PlacementRequest,
): boolean {
  const pools = cluster.pools.filter(
    (pool) => pool.host === id && (named === null || pool.id === named) && pool.serving,
  );
  return liveness.kind === "alive" && pools.length > 0 && !pools.some((pool) => canHold(pool, roomBytes));
}

function isFull(cluster: Cluster, host: Host, roomBytes: bigint): boolean {
  const pools = cluster.pools.filter((pool) => pool.host === host.id && pool.serving);
  return (
    host.liveness.kind === "alive" && pools.length > 0 && !pools.some((pool) => hasRoom(pool, roomBytes))
  );
}

function whyNot(cluster: Cluster, host: Host, request: PlacementRequest, places: readonly Place[]): string {
  const { taken, spread, beside, pool: named } = request;
  if (taken.includes(host.id)) return "has a copy";
  if (host.liveness.kind !== "alive") return host.liveness.kind === "away" ? "not answering" : "not known";
  const shared = whyShared(cluster, host, spread, [...beside, ...places.map((place) => place.host.id)]);
  if (shared !== null) return shared;
  const pools = cluster.pools.filter(
    (pool) => pool.host === host.id && (named === null || pool.id === named),
  );
  if (pools.length === 0) return named === null ? "no pool" : `no pool ${named}`;
  const serving = pools.filter((pool) => pool.serving);
  if (serving.length === 0) return "its pool does not serve";
  const able = serving.filter((pool) => canHold(pool, request.roomBytes));
  const [first, ...rest] = able;
  if (first === undefined) return "its pool is on LVM's thin volumes, where no room can be reserved";
  const most = rest.reduce((best, pool) => (pool.freeBytes > best.freeBytes ? pool : best), first);
  const needs = request.roomBytes === 0n ? "" : ` for ${formatSize(request.roomBytes)}`;
  return `no room${needs}, ${formatSize(most.freeBytes)} of ${formatSize(most.totalBytes)} free`;
}
