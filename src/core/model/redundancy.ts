/**
 * How well a volume is protected, and when a lost copy is made anew.
 *
 * Must always hold:
 * - health is read from the record; liveness only colours it, because the record is the only judge of who is in sync;
 * - what an owner that answers keeps in sync although it could drop it is there, whatever its lease says: the lease is
 *   the agent's, and an agent that is down costs no copy;
 * - no new copy during a store outage, and the delay begins anew when the store returns (protocol.md 4.13, 6);
 * - a copy that only needs a resync is never replaced: its host is back;
 * - a superfluous copy goes only when all that are wanted are in sync without it: lost ones first, then the youngest;
 * - at most one new copy at a time.
 */
import { hostById, hostName, isAlive } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import { formatDuration } from "./duration.ts";
import type { Finding } from "./finding.ts";
import type { HostId, PoolId, Rid } from "./ids.ts";
import { REBUILD_AFTER_MS, REBUILD_LAST_COPY_MS } from "./limits.ts";
import { placeCopies, roomOf } from "./placement.ts";
import { insync, memberOf } from "./volume-record.ts";
import type { Member, Place, VolumeRecord, Want } from "./volume-record.ts";

export type Health =
  | { readonly kind: "healthy" }
  /** Goes on with fewer copies than wanted. */
  | { readonly kind: "degraded"; readonly have: number; readonly wanted: number }
  /** Writes wait: in-sync members answer, but fewer than min_isr, or its session says for what (`because`). */
  | {
      readonly kind: "paused";
      readonly have: number;
      readonly minIsr: number;
      readonly because: string | null;
    }
  /** No in-sync member answers: WAITING_FOR these hosts. */
  | { readonly kind: "unavailable"; readonly waitingFor: readonly HostId[] }
  | { readonly kind: "creating" }
  | { readonly kind: "deleted" };

/** `pause`: why its session waits, by its own word. */
export function healthOf(
  want: Want,
  record: VolumeRecord | null,
  cluster: Cluster,
  pause: string | null = null,
): Health {
  if (want.deletedAtMs !== null || (record !== null && record.deletedAtMs !== null))
    return { kind: "deleted" };
  if (record === null) return { kind: "creating" };
  const members = insync(record);
  // "unknown" counts as answering: during a store outage volumes go on, and nothing is claimed against them.
  const answering = members.filter((member) => {
    const host = hostById(cluster, member.host);
    return isProven(member, record, cluster) || (host !== null && host.liveness.kind !== "away");
  });
  if (answering.length === 0)
    return { kind: "unavailable", waitingFor: members.map((member) => member.host) };
  if (answering.length < record.minIsr || pause !== null) {
    return { kind: "paused", have: answering.length, minIsr: record.minIsr, because: pause };
  }
  return answering.length < want.copies
    ? { kind: "degraded", have: answering.length, wanted: want.copies }
    : { kind: "healthy" };
}

export type Rebuild =
  | { readonly kind: "none" }
  /** All that is missing is on its way: made, joining or resyncing. */
  | { readonly kind: "under-way"; readonly rids: readonly Rid[] }
  /** A copy is lost; it may still come back by itself until `atMs`. */
  | { readonly kind: "wait"; readonly lost: Rid; readonly atMs: number }
  | { readonly kind: "store-outage" }
  /** No in-sync copy answers that a new one could be made from. */
  | { readonly kind: "no-source" }
  /** More copies than wanted, all that are wanted in sync without this one. */
  | { readonly kind: "drop"; readonly rid: Rid }
  | { readonly kind: "place"; readonly instead: Rid | null; readonly host: HostId; readonly pool: PoolId }
  | { readonly kind: "no-place"; readonly finding: Finding };

export type RebuildInput = {
  readonly want: Want;
  readonly record: VolumeRecord;
  readonly cluster: Cluster;
  readonly store: { readonly kind: "up" | "down"; readonly sinceMs: number };
  /** Test clusters and labs shorten it; the last-copy delay never exceeds it. */
  readonly rebuildAfterMs?: number;
};

/** What the placing agent does about missing copies. */
export function decideRebuild(input: RebuildInput, now: number): Rebuild {
  const { want, record, cluster, store } = input;
  if (want.deletedAtMs !== null || record.deletedAtMs !== null) return { kind: "none" };
  const kept = want.placements.filter((place) => !place.remove);
  const lost: Member[] = [];
  const coming: Rid[] = [];
  const staying = new Set<Rid>();
  let present = 0;
  for (const place of kept) {
    const member = memberOf(record, place.rid);
    if (member === null) {
      // Placed and not a member yet. When its host is gone it will not become one.
      if (isAlive(cluster, place.host)) coming.push(place.rid);
    } else if (isLost(member, record, cluster)) lost.push(member);
    else if (member.state === "INSYNC") {
      present += 1;
      staying.add(member.rid);
    } else coming.push(member.rid);
  }
  for (const rid of coming) staying.add(rid);
  if (kept.length > want.copies && present >= want.copies) return drop(kept, lost, record);
  if (present + coming.length >= want.copies) {
    return coming.length === 0 ? { kind: "none" } : { kind: "under-way", rids: coming };
  }
  if (store.kind === "down") return { kind: "store-outage" };
  if (present === 0) return { kind: "no-source" };
  const first = lost.toSorted((a, b) => lostSince(a, cluster, now) - lostSince(b, cluster, now))[0];
  if (first !== undefined) {
    const after = input.rebuildAfterMs ?? REBUILD_AFTER_MS;
    // Quarantined content never counts again (R24): waiting long for it is waiting for nothing.
    const isUrgent = present <= 1 || lost.some((member) => member.state === "QUARANTINED");
    const delay = isUrgent ? Math.min(after, REBUILD_LAST_COPY_MS) : after;
    const sinceMs = Math.min(...lost.map((member) => lostSince(member, cluster, now)));
    const atMs = Math.max(sinceMs, store.sinceMs) + delay;
    if (now < atMs) return { kind: "wait", lost: first.rid, atMs };
  }
  if (coming.length > 0) return { kind: "under-way", rids: coming };
  const decision = placeCopies(cluster, {
    name: want.name,
    copies: 1,
    taken: want.placements.map((place) => place.host),
    only: null,
    pool: null,
    spread: want.spread,
    // Where a lost one was there may be the new one: the lost one goes.
    beside: kept.filter(({ rid }) => staying.has(rid)).map((place) => place.host),
    roomBytes: roomOf(want),
  });
  if (decision.kind === "refused") return { kind: "no-place", finding: decision.finding };
  const spot = decision.value[0];
  return spot === undefined ? { kind: "none" } : { kind: "place", instead: first?.rid ?? null, ...spot };
}

function drop(kept: readonly Place[], lost: readonly Member[], record: VolumeRecord): Rebuild {
  const rank = ({ rid }: Place): number => {
    if (lost.some((member) => member.rid === rid)) return 0;
    return memberOf(record, rid)?.state === "INSYNC" ? 2 : 1;
  };
  const [worst] = kept.toSorted((a, b) => rank(a) - rank(b) || b.rid - a.rid);
  return worst === undefined ? { kind: "none" } : { kind: "drop", rid: worst.rid };
}

/** Lost is not behind: a stale member whose host and pool are there gets a resync, never a replacement. */
function isLost(member: Member, record: VolumeRecord, cluster: Cluster): boolean {
  if (isProven(member, record, cluster)) return false;
  if (member.state === "QUARANTINED") return true;
  const host = hostById(cluster, member.host);
  if (host === null || host.liveness.kind === "away") return true;
  const pool = cluster.pools.find((candidate) => candidate.id === member.pool);
  return pool === undefined || (!pool.serving && host.liveness.kind === "alive");
}

/** With no more than min_isr left an owner can't drop a dead member, so there its being in sync proves nothing. */
function isProven(member: Member, record: VolumeRecord, cluster: Cluster): boolean {
  const { owner } = record;
  if (owner === null || member.state !== "INSYNC" || !isAlive(cluster, owner.host)) return false;
  return insync(record).length > Math.max(1, record.minIsr);
}

function lostSince(member: Member, cluster: Cluster, now: number): number {
  const host = hostById(cluster, member.host);
  const away = host?.liveness.kind === "away" ? host.liveness.sinceMs : null;
  return away ?? member.sinceMs ?? now;
}

/** `degraded 1/2; rebuild in 29 min of rid 1` */
export function redundancyLine(health: Health, rebuild: Rebuild, cluster: Cluster, now: number): string {
  return `${healthPart(health, cluster)}; ${rebuildPart(rebuild, cluster, now)}`;
}

function healthPart(health: Health, cluster: Cluster): string {
  switch (health.kind) {
    case "healthy":
    case "creating":
    case "deleted":
      return health.kind;
    case "degraded":
      return `degraded ${health.have}/${health.wanted}`;
    case "paused":
      return health.have < health.minIsr ? `paused ${health.have}<${health.minIsr}` : "paused";
    case "unavailable":
      return `unavailable, waiting for ${health.waitingFor.map((host) => hostName(cluster, host)).join(" ")}`;
  }
}

function rebuildPart(rebuild: Rebuild, cluster: Cluster, now: number): string {
  switch (rebuild.kind) {
    case "none":
      return "nothing to rebuild";
    case "under-way":
      return `rid ${rebuild.rids.join(" ")} under way`;
    case "wait":
      return `rebuild of rid ${rebuild.lost} in ${formatDuration(rebuild.atMs - now)}`;
    case "store-outage":
      return "no rebuild during a store outage";
    case "no-source":
      return "no source for a rebuild";
    case "drop":
      return `rid ${rebuild.rid} is one too many`;
    case "place":
      return `new copy on ${hostName(cluster, rebuild.host)}`;
    case "no-place":
      return `no place: ${rebuild.finding.code}`;
  }
}
