/**
 * `why` and `progress` of one volume: the model's sentences, and how far a resync is.
 *
 * Must always hold: what the daemon of this host says is passed on unchanged; without it the answer is still given.
 */
import { z } from "zod";

import { type Cluster, hostName } from "../model/cluster.ts";
import type { Finding } from "../model/finding.ts";
import type { JobState } from "../model/job.ts";
import { cannotHave, unablePool } from "../model/snapshot.ts";
import { formatSize } from "../model/size.ts";
import { explain, type WhyInput, whySentences } from "../model/why.ts";
import type * as api from "../wire/agent-api.ts";
import { isWeftError } from "../wire/errors.ts";
import { u32, u64 } from "../wire/json-types.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { findVolume, type WantedVolume } from "./find.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import { lostGuests } from "./lost-guests.ts";
import { healthIn } from "./pause-keeper.ts";
import { revertingAnswer } from "./revert.ts";
import { readValue } from "./store-value.ts";

const progressJson = z.object({ host: z.string(), rid: u32, copied: u64, total: u64 });

export async function whyAnswer(context: MemberContext, ref: string): Promise<api.WhyAnswer> {
  const { mirror, view, placer, daemon, host } = context;
  const volume = findVolume(mirror, ref, "headless too");
  const { id, want, record, extra } = volume;
  const cluster = view.cluster();
  const health = healthIn(context, volume);
  const now = Date.now();
  const why = explain(
    {
      want,
      record,
      cluster,
      ownerIsCaretaker: extra?.caretaker ?? false,
      storeUp: view.storeUp,
      health,
      rebuild: placer.rebuildOf(volume, now),
      job: jobOf(context, volume),
      reverting: revertOf(revertingAnswer(mirror, volume, cluster), want.name),
      noSnapshots: noSnapshotsOf(volume, cluster),
    },
    now,
  );
  const isHere =
    record?.owner?.host === host || record?.replicas.some((member) => member.host === host) === true;
  const lost = await lostGuests(context, id);
  return {
    volume: id,
    name: want.name,
    health: volume.unreadable === null ? health.kind : "unreadable",
    because: [
      ...whySentences(why),
      ...(volume.unreadable === null ? [] : [volume.unreadable.message]),
      ...lost.map(({ message }) => message),
    ],
    do: [...why.do, ...lost.flatMap((one) => one.do)].map(advice),
    daemon: isHere ? await daemonWhy(daemon, id) : null,
  };
}

function revertOf(reverting: api.RevertingAnswer | null, name: string): WhyInput["reverting"] {
  if (reverting === null) return null;
  const ref = `${name}@${reverting.name ?? reverting.snapshot.slice(0, 8)}`;
  if (reverting.progress === null) return { ref, progress: null };
  const { hostName: host, doneBytes, totalBytes, waitsFor } = reverting.progress;
  const far =
    totalBytes === null
      ? "it is looked up what has changed"
      : `${formatSize(doneBytes)} of ${formatSize(totalBytes)} are brought back`;
  return { ref, progress: `${far}, by ${host}${waitsFor === null ? "" : `; waits for ${waitsFor}`}` };
}

function noSnapshotsOf({ want, record }: WantedVolume, cluster: Cluster): Finding | null {
  const unable = record === null || want.deletedAtMs !== null ? null : unablePool(record, cluster);
  return unable === null ? null : cannotHave(want, cluster, unable);
}

async function daemonWhy(daemon: LocalDaemon, volume: string): Promise<Record<string, unknown> | null> {
  try {
    return { ...(await daemon.client.call("why", { volume }, 3000)) };
  } catch (error) {
    if (isWeftError(error)) return { error: error.code, message: error.message };
    throw error;
  }
}

export function progressAnswer(context: MemberContext, ref: string): api.ProgressAnswer {
  const { mirror, view, placer } = context;
  const volume = findVolume(mirror, ref, "headless too");
  const { record } = volume;
  const cluster = view.cluster();
  const health = healthIn(context, volume);
  const progress = progressOf(context, volume);
  const rebuild = placer.rebuildOf(volume, Date.now());
  const waitingFor: string[] = [];
  if (health.kind === "unavailable")
    waitingFor.push(...health.waitingFor.map((id) => `${hostName(cluster, id)} to answer`));
  if (health.kind === "paused" && health.because !== null) waitingFor.push(health.because);
  if (rebuild.kind === "wait") waitingFor.push(`copy ${rebuild.lost} to come back`);
  if (rebuild.kind === "no-place") waitingFor.push(rebuild.finding.message);
  const joining = record?.replicas.find(({ rid }) => rid === progress?.rid);
  return {
    volume: volume.id,
    health: volume.unreadable === null ? health.kind : "unreadable",
    workedOnBy: record === null || record.owner === null ? null : hostName(cluster, record.owner.host),
    resync:
      progress === null
        ? null
        : {
            rid: progress.rid,
            hostName: joining === undefined ? "" : hostName(cluster, joining.host),
            copiedBytes: progress.copied,
            totalBytes: progress.total,
          },
    reverting: revertingAnswer(mirror, volume, cluster),
    waitingFor,
  };
}

function progressOf({ mirror }: MemberContext, { id }: WantedVolume): z.output<typeof progressJson> | null {
  const entry = mirror.get(keys.progress(id));
  return entry === null ? null : readValue(progressJson, entry.value);
}

function jobOf(context: MemberContext, volume: WantedVolume): JobState | null {
  const progress = progressOf(context, volume);
  if (progress === null) return null;
  return {
    kind: "running",
    startedMs: Date.now(),
    copied: progress.copied,
    total: progress.total,
    samples: [],
  };
}

function advice(remedy: Finding["do"][number]): { why: string; command: string | null } {
  return { why: remedy.why, command: remedy.command };
}
