/**
 * Waits until a volume has all its copies in sync and is not being taken back to a snapshot, and shows how far it is.
 *
 * Must always hold:
 * - it ends when the volume is so, or can't become so by waiting (deleted, unreadable), or at ^C;
 * - ^C ends the showing only: the work goes on in the cluster.
 */
import { setTimeout as delay } from "node:timers/promises";

import { initialJob, jobLine, percentOf, stepJob } from "../core/model/job.ts";
import type { JobState } from "../core/model/job.ts";
import type { ProgressAnswer, VolumeAnswer } from "../core/wire/agent-api.ts";
import { WeftError } from "../core/wire/errors.ts";
import type { Context } from "./context.ts";

/** Fast enough to look alive, slow enough not to load the agent. */
const PERIOD_MS = 500;

/** `places`: until its copies are where they are wanted, too, and nothing else is. */
export async function watchVolume(
  context: Context,
  ref: string,
  { places = false }: { readonly places?: boolean } = {},
): Promise<void> {
  const signal = context.interruption();
  let job: JobState = initialJob(Date.now());
  let shown = "";
  for (;;) {
    const answer = await context.client.progress(ref);
    const isLevel = answer.health === "healthy" && answer.reverting === null;
    if (isLevel && (!places || isInPlace(await context.client.volume(ref)))) return;
    if (answer.health === "deleted" || answer.health === "unreadable") {
      throw new WeftError({
        code: "E-VOL-11",
        message: `"${ref}" is ${answer.health}: there is nothing to wait for.`,
      });
    }
    job = stepProgress(job, answer);
    const line = progressLine(answer, job);
    const step = `${answer.health} ${job.kind} ${Math.floor(percentOf(job) / 10)} ${answer.waitingFor.join()}`;
    // A terminal replaces the line; a log gets one for each tenth.
    if (context.globals.quiet !== true && (context.console.isTerminal || step !== shown))
      context.console.progress(line);
    shown = step;
    await pause(signal);
  }
}

export function isInPlace({ replicas }: VolumeAnswer): boolean {
  return replicas.every(({ state, leaving }) => state === "INSYNC" && !leaving);
}

function stepProgress(job: JobState, answer: ProgressAnswer): JobState {
  const now = Date.now();
  if (answer.reverting !== null) {
    const { progress } = answer.reverting;
    if (progress === null || progress.totalBytes === null || progress.waitsFor !== null) {
      const forWhat =
        progress === null ? "somebody to go on with it" : (progress.waitsFor ?? "what has changed");
      return stepJob(job, { kind: "waiting", forWhat }, now)[0];
    }
    const { doneBytes: copied, totalBytes: total } = progress;
    return stepJob(job, { kind: "progress", copied, total }, now)[0];
  }
  if (answer.resync === null) {
    const forWhat = answer.waitingFor.join("; ") || "the resync to begin";
    return stepJob(job, { kind: "waiting", forWhat }, now)[0];
  }
  const { copiedBytes, totalBytes } = answer.resync;
  return stepJob(job, { kind: "progress", copied: copiedBytes, total: totalBytes }, now)[0];
}

function progressLine(answer: ProgressAnswer, job: JobState): string {
  if (answer.reverting !== null)
    return `taken back to ${answer.reverting.name ?? answer.reverting.snapshot}: ${jobLine(job)}`;
  const target = answer.resync === null ? "" : ` to ${answer.resync.hostName}`;
  return `${answer.health}${target}: ${jobLine(job)}`;
}

async function pause(signal: AbortSignal): Promise<void> {
  try {
    await delay(PERIOD_MS, undefined, { signal });
  } catch (cause) {
    throw new WeftError({
      code: "E-AGENT-04",
      message: "Not waited for the end; the resync goes on by itself.",
      cause,
    });
  }
}
