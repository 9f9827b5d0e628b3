/**
 * A change of where a volume's copies are, thought through before anything is done: the next `want`, the steps that lead
 * there, what moves, and what is at stake meanwhile.
 *
 *     ease what writes need ──▶ add ──▶ wait until all that stay are in sync ──▶ ask more of writes ──▶ remove
 *
 * Must always hold:
 * - what is added comes first, what is removed goes when everything that stays is in sync (`mayRemove`), whatever the
 *   change: at no step are fewer copies in sync than the lesser of before and wanted, and never none (protocol.md 4.18);
 * - a copy that is in sync stays rather than one that is not, the one where the guest runs rather than another;
 * - a plan that leads nowhere (no place, min_isr above the copies) is refused, and nothing is changed.
 */
import { hostById, hostName, isAlive } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import { formatDuration } from "./duration.ts";
import type { Decision, Finding } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import type { HostId, PoolId, Rid } from "./ids.ts";
import { COPIES_MAX, COPY_BYTES_PER_SECOND, poolReserveBytes } from "./limits.ts";
import { placeCopies, roomOf } from "./placement.ts";
import type { Spot } from "./placement.ts";
import { deletedFinding, withPlace } from "./replica-change.ts";
import { formatSize } from "./size.ts";
import { spreadKey } from "./spread.ts";
import type { Spread } from "./spread.ts";
import { policyStep } from "./policy.ts";
import type { Policy } from "./policy.ts";
import { insync, isOver, memberOf } from "./volume-record.ts";
import type { Place, VolumeRecord, Want } from "./volume-record.ts";

export type PlaceChange =
  /** `minIsr` null: as it is. */
  | { readonly kind: "copies"; readonly copies: number; readonly minIsr: number | null }
  | { readonly kind: "spread"; readonly spread: Spread }
  /** `pool` null: the one with most room there. */
  | {
      readonly kind: "move";
      readonly from: HostId;
      readonly to: HostId;
      readonly pool: PoolId | null;
    };

export type PlanStep =
  | { readonly kind: "policy"; readonly policy: Policy }
  | { readonly kind: "add"; readonly place: Place; readonly bytes: bigint }
  /** One that was on its way out. */
  | { readonly kind: "keep"; readonly place: Place }
  /** Until these are in sync; the steps after it wait. */
  | { readonly kind: "wait"; readonly rids: readonly Rid[] }
  | { readonly kind: "remove"; readonly place: Place };

export type Plan = {
  readonly want: Want;
  readonly steps: readonly PlanStep[];
  /** What is copied at most: a volume is thin, and what was never written is not. */
  readonly bytes: bigint;
  /** Copies in sync on hosts that answer: now, at the least while it is done, and in the end. */
  readonly inSync: { readonly now: number; readonly least: number; readonly after: number };
  /** Sentences, the gravest first. */
  readonly risks: readonly string[];
};

export type PlanInput = {
  readonly want: Want;
  readonly record: VolumeRecord;
  readonly cluster: Cluster;
  readonly ownerIsCaretaker: boolean;
};

export function planChange(input: PlanInput, change: PlaceChange): Decision<Plan> {
  const { want, record } = input;
  const gone = deletedFinding(want, record);
  if (gone !== null) return gone;
  const next = nextWant(input, change);
  return next.kind === "refused" ? next : ok(planTo(input, next.value));
}

/** About how long copying takes, when nothing else is to be done. */
export function copyingMs(bytes: bigint): number {
  return Number((bytes * 1000n) / COPY_BYTES_PER_SECOND);
}

function nextWant(input: PlanInput, change: PlaceChange): Decision<Want> {
  switch (change.kind) {
    case "copies":
      return withCopies(input, change.copies, change.minIsr ?? input.want.minIsr);
    case "spread":
      return spreadAnew(input, change.spread);
    case "move":
      return moved(input, change);
  }
}

function withCopies(input: PlanInput, copies: number, minIsr: number): Decision<Want> {
  const { want, cluster } = input;
  if (copies < 1 || copies > COPIES_MAX) {
    return refused(
      finding("E-VOL-08", `${copies} copies of "${want.name}" wanted, a volume has 1 to ${COPIES_MAX}.`, {
        facts: { copies, limit: COPIES_MAX },
        safe: "Nothing was changed.",
      }),
    );
  }
  if (minIsr < 1 || minIsr > copies) return refused(minIsrAbove(want, minIsr, copies));
  const ranked = byWorth(input);
  const apart = keepApart(ranked, copies, cluster, want.spread);
  // Labels may have changed since they were placed: another number is no reason to move one. It is where the copy that it
  // shares something with was to leave, and is called back instead of it.
  const called = apart.filter(({ remove }) => remove);
  const wanted = ranked.filter(
    (place) =>
      !place.remove &&
      !apart.some(({ host }) => host === place.host) &&
      keepApart([...called, place], copies, cluster, want.spread).includes(place),
  );
  const rest = keepApart(wanted, copies, cluster, "host");
  const keep = [...apart, ...rest].slice(0, copies);
  return keepAndAdd(input, { ...want, copies, minIsr }, keep, null);
}

function spreadAnew(input: PlanInput, spread: Spread): Decision<Want> {
  const { want, cluster } = input;
  const keep = keepApart(byWorth(input), want.copies, cluster, spread);
  return keepAndAdd(input, { ...want, spread }, keep, null);
}

function moved(
  input: PlanInput,
  { from, to, pool }: Extract<PlaceChange, { readonly kind: "move" }>,
): Decision<Want> {
  const { want, record, cluster } = input;
  const stays = want.placements.filter((place) => !place.remove && !isOver(record, place.rid));
  const leaver = stays.find((place) => place.host === from);
  if (leaver === undefined) {
    const hosts = stays.map((place) => hostName(cluster, place.host));
    return refused(
      finding(
        "E-ARG-01",
        `"${want.name}" has no copy on ${hostName(cluster, from)}. It has some on: ${hosts.join(", ")}.`,
        { facts: { volume: want.volume, host: from }, safe: "Nothing was changed." },
      ),
    );
  }
  const there = want.placements.filter((place) => place.host === to);
  const isWithin = to === from && there.length === 1;
  if ((there.length > 0 && !isWithin) || leaver.pool === pool) {
    const where = leaver.pool === pool && to === from ? "in that pool" : `on ${hostName(cluster, to)}`;
    return refused(
      finding("E-REPL-02", `There is a copy of "${want.name}" ${where} already. Nothing was moved.`, {
        facts: { volume: want.volume, host: to },
      }),
    );
  }
  const keep = stays.filter((place) => place !== leaver);
  return keepAndAdd(input, want, keep, { host: to, pool, not: leaver.pool });
}

type Target = { readonly host: HostId; readonly pool: PoolId | null; readonly not: PoolId };

/** `keep` stay, what is missing is placed anew (at `target`), everything else is marked to go. */
function keepAndAdd(
  { want, record, cluster }: PlanInput,
  next: Want,
  keep: readonly Place[],
  target: Target | null,
): Decision<Want> {
  const kept = next.placements.map((place) => ({
    ...place,
    remove: !keep.some(({ rid }) => rid === place.rid),
  }));
  const missing = target === null ? next.copies - keep.length : 1;
  if (missing <= 0) return ok(unlessSame(want, { ...next, placements: kept }));
  const taken = want.placements.map((place) => place.host);
  const decision = placeCopies(
    // A copy may go to another pool of the same host, never beside itself.
    target === null ? cluster : without(cluster, target.not),
    {
      name: want.name,
      copies: missing,
      taken: target === null ? taken : taken.filter((host) => host !== target.host),
      only: target === null ? null : [target.host],
      pool: target?.pool ?? null,
      spread: next.spread,
      beside: keep.map((place) => place.host),
      roomBytes: roomOf(next),
    },
  );
  if (decision.kind === "refused") return decision;
  const start: Want = { ...next, placements: kept };
  return ok(decision.value.reduce((wanted: Want, spot: Spot) => withPlace(wanted, record, spot), start));
}

/** The very same, where nothing is changed. */
function unlessSame(want: Want, next: Want): Want {
  const isSame =
    want.copies === next.copies &&
    want.minIsr === next.minIsr &&
    want.spread === next.spread &&
    want.placements.every(({ remove }, index) => remove === next.placements[index]?.remove);
  return isSame ? want : next;
}

function without(cluster: Cluster, pool: PoolId): Cluster {
  return { ...cluster, pools: cluster.pools.filter(({ id }) => id !== pool) };
}

/** The copies that there are, the one to keep longest first. */
function byWorth({ want, record, cluster }: PlanInput): readonly Place[] {
  const worth = ({ rid, host, remove }: Place): number => {
    const state = memberOf(record, rid)?.state ?? null;
    const answers = isAlive(cluster, host);
    if (state === "INSYNC")
      return (answers ? 0 : 8) + (remove ? 2 : 0) + (record.owner?.host === host ? 0 : 1);
    // Nobody can read it, or it is only wanted yet; one that leaves and isn't in sync is not called back.
    const isComing = state === "STALE" || state === "JOINING";
    return 16 + (answers ? 0 : 8) + (isComing ? 0 : 4) + (remove ? 32 : 0);
  };
  const there = want.placements.filter(
    (place) =>
      !isOver(record, place.rid) && !(place.remove && memberOf(record, place.rid)?.state !== "INSYNC"),
  );
  return there.toSorted((a, b) => worth(a) - worth(b) || a.rid - b.rid);
}

/** As many of them, in this order, as share nothing that the rule says they must not. */
function keepApart(
  ranked: readonly Place[],
  copies: number,
  cluster: Cluster,
  spread: Spread,
): readonly Place[] {
  const seen = new Set<string | null>([null]);
  const apart = ranked.filter((place) => {
    const host = hostById(cluster, place.host);
    // A host that is gone from the cluster shares nothing with anybody, and can't hold a label.
    const key = host === null ? (spread === "host" ? place.host : null) : spreadKey(host, spread);
    const isFirst = !seen.has(key);
    seen.add(key);
    return isFirst;
  });
  return apart.slice(0, copies);
}

/** From what is to what shall be. */
function planTo(input: PlanInput, next: Want): Plan {
  const { want, record, cluster } = input;
  const before = new Map(want.placements.map((place) => [place.rid, place]));
  const isNew = (place: Place): boolean => !before.has(place.rid);
  const added = next.placements.filter(isNew);
  const leaving = next.placements.filter((place) => place.remove && !isOver(record, place.rid));
  const called = next.placements.filter((place) => !place.remove && before.get(place.rid)?.remove === true);
  const staying = next.placements.filter((place) => !place.remove && !isOver(record, place.rid));
  const behind = staying.filter((place) => memberOf(record, place.rid)?.state !== "INSYNC");

  const first = policyStep(next, record);
  const eased: VolumeRecord = first === null ? record : { ...record, ...first };
  const last = policyStep(next, { ...eased, replicas: level(next, record) });
  const steps: readonly PlanStep[] = [
    ...(first === null ? [] : [{ kind: "policy", policy: first } as const]),
    ...added.map((place) => ({ kind: "add", place, bytes: record.sizeBytes }) as const),
    ...called.map((place) => ({ kind: "keep", place }) as const),
    ...(behind.length > 0 && (added.length > 0 || leaving.length > 0 || last !== null)
      ? [{ kind: "wait", rids: behind.map(({ rid }) => rid) } as const]
      : []),
    ...(last === null ? [] : [{ kind: "policy", policy: last } as const]),
    ...leaving.map((place) => ({ kind: "remove", place }) as const),
  ];
  const answering = insync(record).filter((member) => isAlive(cluster, member.host)).length;
  return {
    want: next,
    steps,
    bytes: record.sizeBytes * BigInt(added.length),
    inSync: { now: answering, least: Math.min(answering, staying.length), after: staying.length },
    risks: risksOf(input, next, { added, leaving, staying }),
  };
}

/** As the members will be when all that stay are in sync and nothing has gone yet. */
function level(next: Want, record: VolumeRecord): VolumeRecord["replicas"] {
  const staying = next.placements.filter((place) => !place.remove && !isOver(record, place.rid));
  const members = staying.map((place) => ({
    ...place,
    state: "INSYNC" as const,
    reason: null,
    sinceMs: null,
  }));
  return [...members, ...insync(record).filter(({ rid }) => !members.some((one) => one.rid === rid))];
}

type Parts = {
  readonly added: readonly Place[];
  readonly leaving: readonly Place[];
  readonly staying: readonly Place[];
};

function risksOf(input: PlanInput, next: Want, { added, leaving, staying }: Parts): readonly string[] {
  const { want, record, cluster, ownerIsCaretaker } = input;
  const named = (place: { readonly host: HostId }): string => hostName(cluster, place.host);
  const sources = insync(record).filter((member) => isAlive(cluster, member.host));
  const risks: string[] = [];
  const [only] = sources;
  const [left] = staying;
  if (only === undefined) {
    risks.push("No copy in sync is on a host that answers: nothing is copied or removed before one does.");
  } else if (sources.length === 1 && added.length > 0) {
    risks.push(
      `Until a new copy is in sync, ${named(only)} has the only one: if it fails, "${want.name}" waits.`,
    );
  }
  if (staying.length === 1 && left !== undefined) {
    risks.push(
      `With one copy a failure of ${named(left)} stops "${want.name}", and the loss of that disk loses its data.`,
    );
  }
  if (next.minIsr === next.copies && next.copies > 1) {
    risks.push(
      `With ${next.minIsr} of ${next.copies} copies needed for writes, they wait while any one is away.`,
    );
  }
  if (staying.length < next.copies && leaving.length > 0) {
    risks.push(
      `${staying.length} of ${next.copies} wanted copies have a place: nothing is removed before the others have one.`,
    );
  }
  for (const place of staying) {
    if (!isAlive(cluster, place.host) && (added.length > 0 || leaving.length > 0))
      risks.push(`${named(place)} does not answer: nothing is removed before it does.`);
  }
  for (const place of added) {
    const pool = cluster.pools.find(({ id }) => id === place.pool);
    if (pool === undefined) continue;
    const room = pool.freeBytes - poolReserveBytes(pool.totalBytes);
    if (room < record.sizeBytes) {
      risks.push(
        `The pool on ${named(place)} has room for ${formatSize(room < 0n ? 0n : room)}, the volume may hold ${formatSize(record.sizeBytes)}.`,
      );
    }
  }
  for (const place of sharing(staying, cluster, next.spread)) {
    risks.push(`${named(place)} shares its ${next.spread} with another copy, or has no such label.`);
  }
  const guest = ownerIsCaretaker ? null : (record.owner?.host ?? null);
  if (
    guest !== null &&
    leaving.some(({ host }) => host === guest) &&
    !staying.some(({ host }) => host === guest)
  )
    risks.push(`The guest runs on ${hostName(cluster, guest)}: it will read over the network.`);
  return risks;
}

function sharing(staying: readonly Place[], cluster: Cluster, spread: Spread): readonly Place[] {
  const apart = keepApart(staying, staying.length, cluster, spread);
  return spread === "host" ? [] : staying.filter((place) => !apart.includes(place));
}

function minIsrAbove(want: Want, minIsr: number, copies: number): Finding {
  const noun = copies === 1 ? "copy" : "copies";
  return finding(
    "E-VOL-06",
    `"${want.name}" shall have ${copies} ${noun}, so min-isr can't be ${minIsr}. Nothing was changed.`,
    {
      facts: { volume: want.volume, minIsr, copies },
      safe: "All copies are kept as they are.",
      do: [
        {
          why: "Ask less of writes, too",
          command: `weft volume copies ${want.name} ${copies} --min-isr ${copies}`,
        },
      ],
    },
  );
}

/** `add on h3 (at most 3 GiB); wait for 2; remove on h1` */
export function planLine({ steps }: Plan, cluster: Cluster): string {
  const lines = steps.map((step) => {
    switch (step.kind) {
      case "policy":
        return `${step.policy.copies} copies, ${step.policy.minIsr} for writes, apart by ${step.policy.spread}`;
      case "add": {
        const long = formatDuration(copyingMs(step.bytes));
        return `add ${step.place.rid} on ${hostName(cluster, step.place.host)} (at most ${formatSize(step.bytes)}, ${long})`;
      }
      case "keep":
        return `keep ${step.place.rid} on ${hostName(cluster, step.place.host)}`;
      case "wait":
        return `wait for ${step.rids.join(" ")}`;
      case "remove":
        return `remove ${step.place.rid} on ${hostName(cluster, step.place.host)}`;
    }
  });
  return lines.length === 0 ? "nothing to do" : lines.join("; ");
}
