/**
 * `weft why VOLUME`: four questions answered in sentences. Is my data safe? Who is affected? What is it doing? When is
 * it done? And what can I do.
 *
 * Must always hold:
 * - "safe" is said only for what the record proves: completed writes are on every in-sync copy (architecture.md,
 *   safety rule 1); a copy on a silent host is said to be there, not to answer;
 * - no sentence blames a volume for an outage of the store.
 */
import { hostName } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import { formatDuration } from "./duration.ts";
import type { Finding, Remedy } from "./finding.ts";
import type { HostId } from "./ids.ts";
import { jobLine } from "./job.ts";
import type { JobState } from "./job.ts";
import type { Health, Rebuild } from "./redundancy.ts";
import { insync } from "./volume-record.ts";
import type { VolumeRecord, Want } from "./volume-record.ts";

export type WhyInput = {
  readonly want: Want;
  readonly record: VolumeRecord | null;
  readonly cluster: Cluster;
  /** The owner has no guest. */
  readonly ownerIsCaretaker: boolean;
  readonly storeUp: boolean;
  readonly health: Health;
  readonly rebuild: Rebuild;
  /** The resync under way, if any. */
  readonly job: JobState | null;
  /** It is being taken back to this snapshot, and how far that is, if its owner says so; null: it is not. */
  readonly reverting: { readonly ref: string; readonly progress: string | null } | null;
  /** Why it can't have snapshots, as far as is known; null: it can. */
  readonly noSnapshots: Finding | null;
};

export type Why = {
  readonly safe: string;
  readonly affected: string;
  readonly doing: string;
  readonly done: string;
  /** Beside the four: what it can't do as it is. */
  readonly besides: readonly string[];
  readonly do: readonly Remedy[];
};

export function explain(input: WhyInput, now: number): Why {
  return {
    safe: safeSentence(input),
    affected: affectedSentence(input),
    doing: doingSentence(input, now),
    done: doneSentence(input, now),
    besides: input.noSnapshots === null ? [] : [`${input.noSnapshots.code}: ${input.noSnapshots.message}`],
    do: [...remedies(input), ...(input.noSnapshots?.do ?? [])],
  };
}

/** The four sentences, in order, and what else is to be said. */
export function whySentences(why: Why): readonly string[] {
  return [why.safe, why.affected, why.doing, why.done, ...why.besides];
}

function safeSentence({ want, record, cluster, health }: WhyInput): string {
  const copies = record === null ? [] : insync(record).map((member) => member.host);
  const where = names(copies, cluster);
  switch (health.kind) {
    case "healthy":
      return copies.length === 1
        ? `Data is safe on one copy, on ${where}. That is all that was asked for: a lost disk there loses the volume.`
        : `Data is safe: ${copies.length} copies have every completed write, on ${where}.`;
    case "degraded":
      return `Data is safe on ${health.have} of ${health.wanted} copies. ${lossSentence(health.have)}`;
    case "paused":
      return [
        `Data is safe: every completed write is on ${where}.`,
        ...(health.have < health.minIsr
          ? [`Only ${health.have} of them answers, min-isr is ${health.minIsr}.`]
          : []),
      ].join(" ");
    case "unavailable":
      return `Nothing is lost as long as the disks of ${where} are whole: ${copies.length === 1 ? "that copy has" : "those copies have"} every completed write.`;
    case "creating":
      return `"${want.name}" holds no data yet.`;
    case "deleted":
      return "Data is kept in the trash for 24 h after the deletion.";
  }
}

function lossSentence(have: number): string {
  return have === 1 ? "One more failure would stop the volume." : `It goes on after ${have - 1} more.`;
}

function affectedSentence({ record, cluster, health, reverting, ownerIsCaretaker }: WhyInput): string {
  const owner = record?.owner ?? null;
  const guest = owner === null || ownerIsCaretaker ? null : `the guest on ${hostName(cluster, owner.host)}`;
  if (reverting !== null && guest === null && health.kind !== "unavailable")
    return "Whoever attaches it: reads and writes wait until it is done.";
  switch (health.kind) {
    case "healthy":
    case "degraded":
      return guest === null ? "Nobody: it is not attached." : `Nobody: ${guest} goes on.`;
    case "paused":
      if (guest === null) return "Whoever attaches it: writes will wait.";
      return health.because === null
        ? `Writes of ${guest} wait; they do not fail.`
        : `Writes of ${guest} wait and do not fail. Its session ${health.because}.`;
    case "unavailable":
      return guest === null
        ? "Nobody now: it is not attached, and can't be."
        : `Reads and writes of ${guest} wait.`;
    case "creating":
    case "deleted":
      return "Nobody.";
  }
}

function doingSentence(
  { want, record, cluster, storeUp, health, rebuild, job, reverting }: WhyInput,
  now: number,
): string {
  if (!storeUp) return "The store is out of reach: nothing is changed until it is back.";
  if (reverting !== null) {
    const { ref, progress } = reverting;
    return `It is being taken back to ${ref}: ${progress ?? "nobody works on it now; whoever opens it next does"}.`;
  }
  if (job !== null && job.kind === "running") return `A copy is being made level: ${jobLine(job)}.`;
  switch (rebuild.kind) {
    case "wait":
      return `Copy ${rebuild.lost}${whereIs(record, rebuild.lost, cluster)} is away; it may come back. A new copy is made after that.`;
    case "under-way":
      return `Copy ${rebuild.rids.join(", ")} is on its way to be in sync.`;
    case "place":
      return `A new copy is being made on ${hostName(cluster, rebuild.host)}.`;
    case "no-place":
      return `A new copy is wanted, but has no place: ${rebuild.finding.message}`;
    case "store-outage":
      return "No new copy is made during a store outage.";
    case "drop":
      return `Copy ${rebuild.rid} is not needed any more and goes.`;
    case "no-source":
    case "none":
      return idleSentence(want, cluster, health, now);
  }
}

function idleSentence(want: Want, cluster: Cluster, health: Health, now: number): string {
  if (health.kind === "unavailable") {
    const since = cluster.hosts.flatMap(({ id, liveness }) =>
      liveness.kind === "away" && health.waitingFor.includes(id) ? [liveness.sinceMs] : [],
    );
    const away = since.length === 0 ? "" : `, away for ${formatDuration(now - Math.max(...since))}`;
    return `It waits for ${names(health.waitingFor, cluster)}${away}.`;
  }
  if (health.kind === "paused")
    return health.because === null
      ? "It waits for a further in-sync copy."
      : "Nothing is under way: it waits.";
  if (health.kind === "creating")
    return `Its ${want.copies === 1 ? "copy is" : `${want.copies} copies are`} being made.`;
  return "Nothing is under way, and nothing is needed.";
}

function doneSentence({ health, rebuild, job, reverting }: WhyInput, now: number): string {
  if (reverting !== null) return `Done when all that changed since ${reverting.ref} is brought back.`;
  if (job !== null && job.kind === "running") return `Done when the copy is level: ${jobLine(job)}.`;
  if (rebuild.kind === "wait") return `A new copy begins in ${formatDuration(rebuild.atMs - now)}.`;
  if (health.kind === "paused" && health.because !== null)
    return "By itself, when that is no more. Nothing times out.";
  if (health.kind === "unavailable") return "At once when one of these hosts is back. Nothing times out.";
  if (health.kind === "healthy" || health.kind === "deleted") return "It is done.";
  if (rebuild.kind === "no-place") return "As soon as there is a place, or the lost host is back.";
  return "That can't be said yet.";
}

function remedies({ want, cluster, health, rebuild, storeUp }: WhyInput): readonly Remedy[] {
  if (!storeUp) return [{ why: "See the store's members", command: "weft status" }];
  if (health.kind === "unavailable") {
    return health.waitingFor.map((host) => ({
      why: `Start ${hostName(cluster, host)}, or weft there`,
      command: `ssh ${hostName(cluster, host)} systemctl start weft`,
    }));
  }
  if (rebuild.kind === "no-place") return rebuild.finding.do;
  if (health.kind === "degraded" && rebuild.kind === "wait") {
    return [{ why: "Do not wait", command: `weft replica add ${want.name}` }];
  }
  return [];
}

function whereIs(record: VolumeRecord | null, rid: number, cluster: Cluster): string {
  const member = record?.replicas.find((candidate) => candidate.rid === rid);
  return member === undefined ? "" : ` on ${hostName(cluster, member.host)}`;
}

function names(hosts: readonly HostId[], cluster: Cluster): string {
  const all = hosts.map((host) => hostName(cluster, host));
  return all.length <= 1 ? (all[0] ?? "no host") : `${all.slice(0, -1).join(", ")} and ${all.at(-1)}`;
}
