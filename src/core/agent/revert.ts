/**
 * A volume is taken back to one of its snapshots: begun by this host's weftd in a session without a guest, ended by whoever
 * has the volume open.
 *
 *     asked ──checked──▶ a caretaker's session here ──the record is marked──▶ brought back ──the mark is off──▶ answered
 *                              │                              │
 *                           refused                    this host dies: the next who opens the volume ends it
 *
 * Must always hold:
 * - it is asked of weftd once: whoever asks again waits for the one under way, as the record says;
 * - a caretaker's session that works on it is not closed because nobody waits for the answer any more.
 */
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";

import { type Cluster, hostName } from "../model/cluster.ts";
import { parseHostId, type VolumeId } from "../model/ids.ts";
import { checkRevert } from "../model/revert.ts";
import type * as api from "../wire/agent-api.ts";
import type { SessionStatus } from "../wire/daemon.gen.ts";
import { decided, isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { u64 } from "../wire/json-types.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { snapshotsOf, type VolumeFacts, volumeOf } from "./facts.ts";
import { findSnapshot } from "./find.ts";
import type { Mirror } from "./mirror.ts";
import { CHANGING_HANDS, inCaretaker } from "./owner-work.ts";
import { readValue } from "./store-value.ts";
import { stillMade } from "./volumes.ts";

/** Who waits longer is told that it goes on. */
const PATIENCE_MS = 60_000;
/** What has changed is brought back at the disks' pace: a large volume takes hours. */
const ANSWER_MS = 7 * 24 * 3600 * 1000;
const PROGRESS_MS = 1000;
const PROGRESS_LEASE_SECONDS = 10;

/** Answers when the volume is as it was. E-AGENT-04 where that takes longer: it goes on. */
export async function revertVolume(context: MemberContext, ref: string): Promise<VolumeId> {
  const { mirror, log } = context;
  const { volume, snapshot, step } = await checked(context, ref);
  const { id, want } = volume;
  const label = `${want.name}@${snapshot.name}`;
  if (step === "wait") {
    await untilOver(mirror, id, goesOn(want.name, label, id));
    return id;
  }
  const asked = { volume: id, snapshot: snapshot.id };
  const work = inCaretaker(context, id, () => context.daemon.client.call("volume.revert", asked, ANSWER_MS));
  let isWaitedFor = true;
  work.catch((error: unknown) => {
    if (!isWaitedFor) log.warn({ volume: id, reason: reasonOf(error) }, `back to ${label}: not to its end`);
  });
  const patience = new AbortController();
  try {
    const late = delay(PATIENCE_MS, undefined, { signal: patience.signal }).then(() => {
      throw goesOn(want.name, label, id);
    });
    // One that is not needed any more ends unheard.
    late.catch(() => undefined);
    await Promise.race([work, late]);
  } catch (error) {
    throw explained(error, want.name, label);
  } finally {
    isWaitedFor = false;
    patience.abort();
  }
  await mirror.sync();
  return id;
}

type Checked = ReturnType<typeof findSnapshot> & { readonly step: "begin" | "wait" };

/** A caretaker that just closes is waited for. */
async function checked({ mirror, view }: MemberContext, ref: string): Promise<Checked> {
  const end = performance.now() + CHANGING_HANDS.forMs;
  for (;;) {
    await mirror.sync();
    const found = findSnapshot(mirror, ref);
    const { id, want, record, extra, unreadable } = found.volume;
    if (unreadable !== null) throw unreadable;
    if (record === null) throw stillMade(want.name, id);
    const { snapshot } = found;
    const ownerIsCaretaker = extra?.caretaker ?? false;
    const decision = checkRevert({ want, record, cluster: view.cluster(), ownerIsCaretaker, snapshot });
    const isBusy = decision.kind === "refused" && decision.finding.code === "E-VOL-14";
    if (!isBusy || performance.now() > end) return { ...found, step: decided(decision) };
    await delay(CHANGING_HANDS.againMs);
  }
}

/** Somebody is at it. */
async function untilOver(mirror: Mirror, volume: VolumeId, late: WeftError): Promise<void> {
  try {
    await mirror.until("The end of it", PATIENCE_MS, () =>
      volumeOf(mirror, volume).record?.reverting === null ? true : null,
    );
  } catch (error) {
    throw isWeftError(error, "E-AGENT-04") ? late : error;
  }
}

function goesOn(name: string, label: string, volume: VolumeId): WeftError {
  return new WeftError({
    code: "E-AGENT-04",
    message: `"${name}" is being taken back to ${label}, which takes longer than ${PATIENCE_MS / 1000} s. It goes on.`,
    facts: { volume },
    safe: "Who attaches the volume meanwhile waits until it is done.",
    do: [{ why: "See how far it is", command: `weft volume show ${name} --watch` }],
  });
}

/** weftd's refusal with the names that people know snapshots by. */
function explained(error: unknown, name: string, label: string): unknown {
  if (!isWeftError(error)) return error;
  const replaced = { why: "See to which one", command: `weft volume show ${name}` };
  switch (error.code) {
    case "E-SNAP-09":
      return new WeftError({
        ...error.toBody(),
        message: `${label} is gone, or being deleted.`,
        cause: error,
      });
    case "E-SNAP-20":
      return new WeftError({
        ...error.toBody(),
        message: `"${name}" is not taken back to ${label}: meanwhile somebody asked for another snapshot.`,
        do: [replaced],
        cause: error,
      });
    case "E-AGENT-05":
    case "E-SESS-01":
      return new WeftError({
        ...error.toBody(),
        message: `What came of "${name}" on its way back to ${label} is not known: ${error.message}`,
        safe: "If it was begun, whoever opens the volume next ends it before it serves.",
        do: [{ why: "Look whether it is under way", command: `weft volume show ${name}` }],
        cause: error,
      });
    default:
      return error;
  }
}

const progressJson = z.object({
  host: z.string(),
  done: u64,
  total: u64.nullable().default(null),
  waits: z.string().nullable().default(null),
});

/** For the volume's own answer; null: it is not being taken back. */
export function revertingAnswer(
  mirror: Mirror,
  { id, record }: Pick<VolumeFacts, "id" | "record">,
  cluster: Cluster,
): api.RevertingAnswer | null {
  const reverting = record?.reverting ?? null;
  if (reverting === null) return null;
  const { snapshot, sinceMs } = reverting;
  const entry = mirror.get(keys.revertProgress(id));
  const progress = entry === null ? null : readValue(progressJson, entry.value);
  const host = progress === null ? null : parseHostId(progress.host);
  return {
    snapshot,
    name: snapshotsOf(mirror, id).known.find((one) => one.id === snapshot)?.name ?? null,
    since: sinceMs === null ? null : new Date(sinceMs).toISOString(),
    progress:
      progress === null || host === null
        ? null
        : {
            hostName: hostName(cluster, host),
            doneBytes: progress.done,
            totalBytes: progress.total,
            waitsFor: progress.waits,
          },
  };
}

/** Tells the cluster how far the sessions of this host are with it: under a lease, for it is a hint. */
export class RevertProgress {
  readonly #store: StoreClient;
  readonly #host: string;
  readonly #toldAt = new Map<string, number>();

  constructor(store: StoreClient, host: string) {
    this.#store = store;
    this.#host = host;
  }

  /** What weftd says of a session here: often, and seldom about this. */
  async heard({ volume, reverting }: SessionStatus): Promise<void> {
    const last = this.#toldAt.get(volume);
    const now = performance.now();
    if (reverting === null) {
      if (last === undefined) return;
      this.#toldAt.delete(volume);
      await this.#store.delete(keys.revertProgress(volume));
      return;
    }
    if (last !== undefined && now - last < PROGRESS_MS) return;
    this.#toldAt.set(volume, now);
    const { done_bytes: done, total_bytes: total, waits } = reverting;
    const value = JSON.stringify({ host: this.#host, done, total, waits });
    const lease = await this.#store.grantLease(PROGRESS_LEASE_SECONDS);
    await this.#store.put(keys.revertProgress(volume), value, lease);
  }
}
