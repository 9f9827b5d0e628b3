/**
 * The life of a volume, from desire to fact, as one machine that every agent runs alike.
 *
 *     making ──all replicas made──▶ recording ──record seen──▶ live ◀──────restore──────┐
 *        │                                                      │ want.deletedAt         │
 *        └──want deleted──▶ clearing ──tombstone──▶ trashed     ▼                        │
 *                              ▲                             deleting ──tombstone──▶ trashed
 *                              └──────────────── 24 h, or trash emptied ─────────────────┘
 *
 * With snapshots its head alone may be deleted (headless.ts): it stays live without one, and is deleted like any other when the
 * last snapshot is gone.
 *
 * After each event the facts are brought up to date, the effects that they call for are computed anew, and those not
 * asked for in the last 15 s are emitted. Every effect is idempotent and names the host that performs it, so agents
 * need not talk to each other, and one that restarts begins with nothing but the facts.
 *
 * Must always hold:
 * - replicas are durable before the record is made (protocol.md 4.2, "Creation"); a clone begins with the copies that are
 *   made of its snapshot, and the others join it;
 * - a replica is added before one is removed; never the last in-sync one, never below min_isr (4.18);
 * - a volume grows to what is wanted; it never shrinks because less is wanted: that is asked for itself, once (R18);
 * - what writes need follows what is wanted: lowered at once, raised when enough copies are in sync (policy.ts);
 * - the last copy that has a snapshot stays until that is deleted, or another one has it;
 * - nothing is trashed because a fact is *missing*: only for a tombstone, a record that is past the rid, or a place
 *   that was given up before its replica became a member, which weftd lets go 24 h later (R15);
 * - a record that vanished is not made anew: that is for `weft store repair` (R11);
 * - a tombstone stays until every replica has confirmed that it is gone; what was made of a volume that never had a record
 *   goes by a tombstone, too;
 * - a copy that takes long to be made finds its wish, also where that was given up meanwhile.
 */
import { isAlive } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import { caretakerWork, chooseCaretaker } from "./caretaker.ts";
import { formatDuration } from "./duration.ts";
import { headEffects, isHeadGone, isHeadReleaseDue, releaseAt } from "./headless.ts";
import type { HeadEffect } from "./headless.ts";
import { byText } from "./ids.ts";
import type { HostId, PoolId, Rid, SessionId } from "./ids.ts";
import { ASK_AGAIN_MS, GIVEN_UP_MS, TRASH_MS } from "./limits.ts";
import { policyStep } from "./policy.ts";
import type { Policy } from "./policy.ts";
import { formatSizeExact } from "./size.ts";
import { lastHeld } from "./snapshot.ts";
import type { Snapshot } from "./snapshot.ts";
import { missing } from "./volume-making.ts";
import { insync, isOver, memberOf } from "./volume-record.ts";
import type { Made, Place, VolumeRecord, Want } from "./volume-record.ts";

export type VolumePhase =
  | "unknown"
  | "making"
  | "recording"
  | "live"
  | "deleting"
  | "trashed"
  | "clearing"
  | "gone";

export type VolumeState = {
  readonly want: Want | null;
  readonly made: readonly Made[];
  readonly record: VolumeRecord | null;
  /** All of them, those that are not shown among them. */
  readonly snapshots: readonly Snapshot[];
  /** There was a record and it is gone without a deletion: the store lost it, or is not ours (protocol.md R11). */
  readonly vanished: boolean;
  /** The owner's session when it has no guest, on whatever host: the record says so. */
  readonly caretaker: SessionId | null;
  /** Asked for by the operator: do not wait for the 24 h. */
  readonly emptyNow: boolean;
  /** When each effect was last emitted, by its line. */
  readonly asked: ReadonlyMap<string, number>;
};

export type VolumeEvent =
  | { readonly kind: "want"; readonly want: Want | null }
  | { readonly kind: "made"; readonly made: readonly Made[] }
  | { readonly kind: "record"; readonly record: VolumeRecord | null }
  | { readonly kind: "snapshots"; readonly snapshots: readonly Snapshot[] }
  | { readonly kind: "caretaker"; readonly session: SessionId | null }
  | { readonly kind: "empty-trash" }
  /** Hosts came or went, or a deadline passed. */
  | { readonly kind: "tick" };

export type VolumeEffect =
  | { readonly kind: "make-replica"; readonly host: HostId; readonly rid: Rid; readonly pool: PoolId }
  | { readonly kind: "create-record"; readonly host: HostId }
  /** The volume will never be: so that the copies that were made of it may go. */
  | { readonly kind: "create-tombstone"; readonly host: HostId }
  | { readonly kind: "add-member"; readonly host: HostId; readonly place: Place }
  | { readonly kind: "remove-member"; readonly host: HostId; readonly rid: Rid }
  | { readonly kind: "grow"; readonly host: HostId; readonly sizeBytes: bigint }
  | { readonly kind: "set-policy"; readonly host: HostId; readonly policy: Policy }
  /** `steal`: from a caretaker whose host is away; there is no guest that it could hurt. */
  | { readonly kind: "open-caretaker"; readonly host: HostId; readonly steal: boolean }
  /** Its work is done, or the volume is to be deleted. */
  | { readonly kind: "close-caretaker"; readonly host: HostId }
  | { readonly kind: "delete-record"; readonly host: HostId }
  | { readonly kind: "restore-record"; readonly host: HostId }
  | HeadEffect
  | { readonly kind: "trash-replica"; readonly host: HostId; readonly rid: Rid; readonly pool: PoolId }
  | { readonly kind: "untrash-replica"; readonly host: HostId; readonly rid: Rid; readonly pool: PoolId }
  | { readonly kind: "empty-trash"; readonly host: HostId; readonly rid: Rid; readonly pool: PoolId }
  /** By the agent that holds the placing lease. */
  | { readonly kind: "drop-place"; readonly rid: Rid }
  | { readonly kind: "forget"; readonly name: string };

export function initialVolume(): VolumeState {
  return {
    want: null,
    made: [],
    record: null,
    snapshots: [],
    vanished: false,
    caretaker: null,
    emptyNow: false,
    asked: new Map(),
  };
}

/** `cluster` is what is known of hosts at `now`: a hint that chooses who does something, never whether it is safe. */
export function stepVolume(
  state: VolumeState,
  event: VolumeEvent,
  now: number,
  cluster: Cluster,
): readonly [VolumeState, readonly VolumeEffect[]] {
  const facts = apply(state, event);
  const due = dueEffects(facts, now, cluster);
  const asked = new Map<string, number>();
  const effects: VolumeEffect[] = [];
  for (const effect of due) {
    const line = effectLine(effect);
    const before = state.asked.get(line);
    if (before !== undefined && now - before < ASK_AGAIN_MS) {
      asked.set(line, before);
    } else {
      asked.set(line, now);
      effects.push(effect);
    }
  }
  return [{ ...facts, asked }, effects];
}

export function phaseOf({ want, made, record, vanished, emptyNow }: VolumeState, now: number): VolumePhase {
  if (want === null) return record === null && made.length === 0 ? "gone" : "unknown";
  if (record === null) {
    if (want.deletedAtMs !== null) return made.length === 0 ? "gone" : "clearing";
    if (vanished) return "unknown";
    return missing(want, made).length > 0 ? "making" : "recording";
  }
  if (record.deletedAtMs === null) return want.deletedAtMs === null ? "live" : "deleting";
  if (want.deletedAtMs === null) return "trashed";
  // Nobody restores what never was, or what is gone.
  const isNever = want.refused !== null || isHeadGone(record);
  const isOver = emptyNow || isNever || now >= record.deletedAtMs + TRASH_MS;
  return isOver ? "clearing" : "trashed";
}

/** When something is due without any event; null: nothing is. */
export function wakeAt(state: VolumeState, now: number): number | null {
  const deletedAt = state.record?.deletedAtMs ?? null;
  const trash = deletedAt === null || phaseOf(state, now) !== "trashed" ? [] : [deletedAt + TRASH_MS];
  const release = state.record === null ? null : releaseAt(state.record, now);
  const late = lateUntil(state);
  const times = [...state.asked.values()]
    .map((at) => at + ASK_AGAIN_MS)
    .concat(trash, release ?? [], late !== null && late > now ? [late] : []);
  return times.length === 0 ? null : Math.min(...times);
}

/** Until when a copy of a volume that was given up may be made still; null: it isn't given up, or all came soon. */
function lateUntil({ want, record }: VolumeState): number | null {
  if (want === null || want.deletedAtMs === null) return null;
  const isSlow = want.thick || want.createdFrom !== null;
  const comesLate = want.refused !== null || (record === null && isSlow);
  return comesLate ? want.deletedAtMs + GIVEN_UP_MS : null;
}

function apply(state: VolumeState, event: VolumeEvent): VolumeState {
  switch (event.kind) {
    case "want":
      return { ...state, want: event.want, emptyNow: state.emptyNow && !isWhole(event.want) };
    case "made":
      return { ...state, made: event.made };
    case "record":
      // Watches repeat and reorder nothing, but a fresh read may overtake one: the higher (epoch, rev) is the later.
      if (isOlder(event.record, state.record)) return state;
      return {
        ...state,
        record: event.record,
        vanished: event.record === null && (state.vanished || state.record !== null),
      };
    case "snapshots":
      return { ...state, snapshots: event.snapshots };
    case "caretaker":
      return { ...state, caretaker: event.session };
    case "empty-trash":
      return { ...state, emptyNow: true };
    case "tick":
      return state;
  }
}

/** Neither it nor its head is deleted. */
function isWhole(want: Want | null): boolean {
  return want !== null && want.deletedAtMs === null && want.headDeletedAtMs === null;
}

function isOlder(fresh: VolumeRecord | null, known: VolumeRecord | null): boolean {
  if (fresh === null || known === null || fresh.volume !== known.volume) return false;
  return fresh.epoch < known.epoch || (fresh.epoch === known.epoch && fresh.rev < known.rev);
}

function dueEffects(state: VolumeState, now: number, cluster: Cluster): readonly VolumeEffect[] {
  const { want, made, record } = state;
  if (want === null) return [];
  switch (phaseOf(state, now)) {
    case "unknown":
      return [];
    case "making":
      return missing(want, made).map((place) => makeReplica(place));
    case "recording":
      return byOneOf(cluster, want, (host) => ({ kind: "create-record", host }));
    case "live":
      return record === null ? [] : dueWhenLive(state, want, record, cluster, now);
    case "deleting":
      if (record === null) return [];
      return record.owner === null
        ? byOneOf(cluster, want, (host) => ({ kind: "delete-record", host }))
        : closeCaretaker(state, record);
    case "trashed":
      if (want.deletedAtMs === null) {
        // In this order: the record is live again only when its copies can be opened.
        return [
          ...made.map(({ host, rid, pool }) => ({ kind: "untrash-replica" as const, host, rid, pool })),
          ...byOneOf(cluster, want, (host) => ({ kind: "restore-record", host })),
        ];
      }
      return made.map(({ host, rid, pool }) => ({ kind: "trash-replica", host, rid, pool }));
    case "clearing":
      if (made.length === 0) return forget(state, want, now);
      // The record vanished: that is for `weft store repair`, and weftd keeps its copies (R15).
      if (record === null && state.vanished)
        return made.map(({ host, rid, pool }) => ({ kind: "trash-replica", host, rid, pool }));
      if (record === null) return byOneOf(cluster, want, (host) => ({ kind: "create-tombstone", host }));
      return made.map(({ host, rid, pool }) => ({ kind: "empty-trash", host, rid, pool }));
    case "gone":
      return forget(state, want, now);
  }
}

function dueWhenLive(
  state: VolumeState,
  want: Want,
  record: VolumeRecord,
  cluster: Cluster,
  now: number,
): readonly VolumeEffect[] {
  const { made, snapshots } = state;
  const effects: VolumeEffect[] = [];
  const ownerIsCaretaker = record.owner !== null && record.owner.session === state.caretaker;
  const isReleaseDue = isHeadReleaseDue(record, state.emptyNow, now);
  const input = { want, made, record, cluster, ownerIsCaretaker, snapshots, isReleaseDue };
  const ofHead = headEffects(input);
  if (ofHead !== "none") {
    if (record.owner !== null) return closeCaretaker(state, record);
    return byOneOf(cluster, want, (host) => ({ kind: ofHead, host }));
  }
  const caretaker = chooseCaretaker(input, now);
  const worker = record.owner?.host ?? null;
  for (const place of want.placements) {
    const isMade = made.some(({ rid }) => rid === place.rid);
    if (isOver(record, place.rid)) {
      effects.push(isMade ? trashReplica(place) : { kind: "drop-place", rid: place.rid });
    } else if (memberOf(record, place.rid) === null) {
      if (place.remove) effects.push(isMade ? trashReplica(place) : { kind: "drop-place", rid: place.rid });
      else if (!isMade) effects.push(makeReplica(place));
      else if (worker !== null && !isOvertaking(want, record, place, cluster))
        effects.push({ kind: "add-member", host: worker, place });
    } else if (worker !== null && mayRemove({ want, record, cluster, snapshots }, place)) {
      effects.push({ kind: "remove-member", host: worker, rid: place.rid });
    }
  }
  if (worker !== null && isReleaseDue && record.head?.data === "kept" && ownerIsCaretaker)
    effects.push({ kind: "release-head", host: worker });
  if (worker !== null && want.sizeBytes > record.sizeBytes && record.head === null)
    effects.push({ kind: "grow", host: worker, sizeBytes: want.sizeBytes });
  const policy = policyStep(want, record);
  if (worker !== null && policy !== null) effects.push({ kind: "set-policy", host: worker, policy });
  if (caretaker !== null) {
    effects.push({ kind: "open-caretaker", host: caretaker.host, steal: record.owner !== null });
  }
  if (caretakerWork(input, now).length === 0) effects.push(...closeCaretaker(state, record));
  return effects;
}

function forget(state: VolumeState, { name }: Want, now: number): readonly VolumeEffect[] {
  return now < (lateUntil(state) ?? 0) ? [] : [{ kind: "forget", name }];
}

function closeCaretaker({ caretaker }: VolumeState, { owner }: VolumeRecord): readonly VolumeEffect[] {
  return owner === null || owner.session !== caretaker ? [] : [{ kind: "close-caretaker", host: owner.host }];
}

/** A number below the record's next one is never added: lower ones come first, but for those that can't come now. */
function isOvertaking(want: Want, record: VolumeRecord, place: Place, cluster: Cluster): boolean {
  return want.placements.some(
    ({ rid, host, pool, remove }) =>
      rid < place.rid &&
      !remove &&
      memberOf(record, rid) === null &&
      !isOver(record, rid) &&
      isAlive(cluster, host) &&
      cluster.pools.some(({ id, serving }) => id === pool && serving),
  );
}

/**
 * Whether a placement that shall go may go now: those that stay are in sync on hosts that answer, as many as are wanted, and
 * have every snapshot that it has.
 */
export function mayRemove(
  {
    want,
    record,
    cluster,
    snapshots,
  }: {
    readonly want: Want;
    readonly record: VolumeRecord;
    readonly cluster: Cluster;
    readonly snapshots: readonly Snapshot[];
  },
  place: Place,
): boolean {
  const member = memberOf(record, place.rid);
  if (!place.remove || member === null || member.state === "REMOVING") return false;
  if (lastHeld(snapshots, record, [place]) !== null) return false;
  const kept = want.placements.filter((candidate) => !candidate.remove);
  const safe = insync(record).filter(
    ({ rid, host }) => kept.some((candidate) => candidate.rid === rid) && isAlive(cluster, host),
  );
  // Fewer are kept than wanted while a place was given up and no other is found yet: then more than those stay.
  return safe.length === kept.length && safe.length >= Math.max(1, record.minIsr, want.copies);
}

function makeReplica({ host, rid, pool }: Place): VolumeEffect {
  return { kind: "make-replica", host, rid, pool };
}

function trashReplica({ host, rid, pool }: Place): VolumeEffect {
  return { kind: "trash-replica", host, rid, pool };
}

/** One of the hosts with a copy does what any could: the lowest that answers, of those whose copy stays if there is one. */
function byOneOf(
  cluster: Cluster,
  want: Want,
  effect: (host: HostId) => VolumeEffect,
): readonly VolumeEffect[] {
  const alive = want.placements
    .filter(({ host }) => isAlive(cluster, host))
    .toSorted((a, b) => Number(a.remove) - Number(b.remove) || byText(a.host, b.host));
  const [first] = alive;
  return first === undefined ? [] : [effect(first.host)];
}

/** `make-replica 2 on 1a2b3c4d` */
export function effectLine(effect: VolumeEffect): string {
  switch (effect.kind) {
    case "make-replica":
    case "remove-member":
    case "trash-replica":
    case "untrash-replica":
    case "empty-trash":
      return `${effect.kind} ${effect.rid} on ${effect.host.slice(0, 8)}`;
    case "add-member":
      return `add-member ${effect.place.rid} on ${effect.host.slice(0, 8)}`;
    case "grow":
      return `grow to ${formatSizeExact(effect.sizeBytes)} on ${effect.host.slice(0, 8)}`;
    case "set-policy": {
      const { copies, minIsr, spread } = effect.policy;
      return `set-policy ${minIsr}/${copies} apart by ${spread} on ${effect.host.slice(0, 8)}`;
    }
    case "create-record":
    case "create-tombstone":
    case "open-caretaker":
    case "close-caretaker":
    case "delete-record":
    case "restore-record":
    case "delete-head":
    case "restore-head":
    case "release-head":
    case "end-headless":
      return `${effect.kind} on ${effect.host.slice(0, 8)}`;
    case "drop-place":
      return `drop-place ${effect.rid}`;
    case "forget":
      return `forget ${effect.name}`;
  }
}

/** `live "db" 2 wanted, 2 made, e7.r12 …; asked: add-member 2 on 1a2b3c4d 3 s ago` */
export function volumeLine(state: VolumeState, now: number): string {
  const name = state.want === null ? "?" : `"${state.want.name}"`;
  const wanted = state.want?.placements.filter((place) => !place.remove).length ?? 0;
  const record = state.record === null ? "no record" : `e${state.record.epoch}.r${state.record.rev}`;
  const asked = [...state.asked].map(([line, at]) => `${line} ${formatDuration(now - at)} ago`);
  const tail = asked.length === 0 ? "" : `; asked: ${asked.join(", ")}`;
  return `${phaseOf(state, now)} ${name} ${wanted} wanted, ${state.made.length} made, ${record}${tail}`;
}
