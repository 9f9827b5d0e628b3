/**
 * Who opens a detached volume to bring its copies level: a session without a guest (protocol.md 4.1).
 *
 * Must always hold:
 * - only when nobody owns the volume, or a caretaker whose host went away does, and only when there is work that needs
 *   an owner; a guest's session is never taken over here;
 * - the lowest host id among the hosts that answer and have an in-sync copy, so that two agents choose alike; the
 *   store's swap decides if they do not;
 * - no in-sync copy on a host that answers: nobody; a stale copy is never opened (R16).
 */
import { hostById, hostName, isAlive } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import { byText } from "./ids.ts";
import type { HostId } from "./ids.ts";
import { DEGRADED_OPEN_MS } from "./limits.ts";
import { policyStep } from "./policy.ts";
import { isUnfinished } from "./snapshot.ts";
import type { Snapshot } from "./snapshot.ts";
import { insync, isOver, memberOf } from "./volume-record.ts";
import type { Made, VolumeRecord, Want } from "./volume-record.ts";

export type CaretakerWork =
  | "resync"
  | "add"
  | "remove"
  | "demote"
  | "grow"
  | "policy"
  | "scrub"
  /** Whoever opens a volume that is being taken back ends that first. */
  | "revert"
  /** What only a deleted head has is given back. */
  | "release"
  | "snapshots";

export type Caretaker = { readonly host: HostId; readonly work: readonly CaretakerWork[] };

export type CaretakerInput = {
  readonly want: Want;
  readonly made: readonly Made[];
  readonly record: VolumeRecord;
  readonly cluster: Cluster;
  readonly ownerIsCaretaker: boolean;
  readonly snapshots: readonly Snapshot[];
  /** What only the deleted head has is to be given back, or is being. */
  readonly isReleaseDue: boolean;
};

export function chooseCaretaker(input: CaretakerInput, now: number): Caretaker | null {
  const { record, cluster } = input;
  if (record.deletedAtMs !== null || input.want.deletedAtMs !== null) return null;
  const { owner } = record;
  if (owner !== null && !(input.ownerIsCaretaker && isLongAway(cluster, owner.host, now))) return null;
  const work = caretakerWork(input, now);
  if (work.length === 0) return null;
  const [host] = insync(record)
    .map((member) => member.host)
    .filter((candidate) => isAlive(cluster, candidate))
    .toSorted(byText);
  return host === undefined ? null : { host, work };
}

/** What there is to do; empty: the caretaker that is open closes. */
export function caretakerWork(
  { want, made, record, cluster, snapshots, isReleaseDue }: CaretakerInput,
  now: number,
): readonly CaretakerWork[] {
  const work = new Set<CaretakerWork>();
  for (const member of record.replicas) {
    const isBehind = member.state === "STALE" || member.state === "JOINING";
    if (isBehind && isAlive(cluster, member.host) && isWanted(want, member.rid)) work.add("resync");
    if (member.state === "REMOVING") work.add("remove");
  }
  for (const place of want.placements) {
    const isMember = memberOf(record, place.rid) !== null;
    const isMade = made.some(({ rid }) => rid === place.rid);
    if (isMember && place.remove) work.add("remove");
    // A lost member is taken out of the set only when its replacement is there to be filled: an open that only
    // demotes would make a clean volume depend on one copy for nothing.
    if (!isMember && !place.remove && isMade && !isOver(record, place.rid) && isAlive(cluster, place.host)) {
      work.add("add");
      if (insync(record).some((member) => isLongAway(cluster, member.host, now))) work.add("demote");
    }
  }
  if (want.sizeBytes > record.sizeBytes && record.head === null) work.add("grow");
  if (policyStep(want, record) !== null) work.add("policy");
  if (want.scrub !== null) work.add("scrub");
  if (record.reverting !== null) work.add("revert");
  if (isReleaseDue) work.add("release");
  if (isUnfinished(snapshots, record, cluster)) work.add("snapshots");
  return [...work];
}

function isWanted(want: Want, rid: number): boolean {
  return want.placements.some((place) => place.rid === rid && !place.remove);
}

function isLongAway(cluster: Cluster, host: HostId, now: number): boolean {
  const found = hostById(cluster, host);
  if (found === null) return true;
  return found.liveness.kind === "away" && now - found.liveness.sinceMs >= DEGRADED_OPEN_MS;
}

/** `caretaker h1: resync, add` */
export function caretakerLine(caretaker: Caretaker | null, cluster: Cluster): string {
  return caretaker === null
    ? "no caretaker"
    : `caretaker ${hostName(cluster, caretaker.host)}: ${caretaker.work.join(", ")}`;
}
