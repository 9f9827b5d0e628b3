/**
 * A disk is laid over another one: what was written to it, by sectors, comes over the other's data, and the disk is that
 * volume from then on (XAPI's VDI.compose, the end of a storage migration; docs/adr/0027).
 *
 *     asked ──both are nobody's──▶ caretakers' sessions of both here ──laid over, durable──▶ one transaction ──▶ answered
 *               │                                      │                                        │
 *            refused            cut: nothing counts, it begins anew with the next question    the keys and names are swapped
 *
 * Must always hold:
 * - the keys are swapped only while both volumes are still this work's own: the records name the sessions in which it was done
 *   as their owners, and the transaction compares them. Whoever has opened one of them in between makes it begin anew;
 * - of the disk's keys, volumes and names nothing is half swapped;
 * - asked again after it was done it answers so, also when the parent is gone for good;
 * - what passes is waited out: XAPI asks once, takes a failure for success, and its guest has no disk then.
 */
import { setTimeout as delay } from "node:timers/promises";

import { hostName } from "../model/cluster.ts";
import type { SessionId } from "../model/ids.ts";
import { checkCompose, isUntouched, noLayer } from "../model/vdi.ts";
import type { Want } from "../model/volume-record.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { renderWant } from "../wire/record.ts";
import type * as sr from "../wire/sr-api.ts";
import { renderVdi } from "../wire/sr-json.ts";
import type { Compare, Entry, Op } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { refuseComposing, told, untilNotComposed } from "./composing.ts";
import type { MemberContext } from "./context.ts";
import { volumeOf } from "./facts.ts";
import { CHANGING_HANDS, inCaretaker, isPassing } from "./owner-work.ts";
import { findVdi, openHosts, type VdiFacts, wholeDisk } from "./sr-facts.ts";
import { dropHelper, dropHelpers, refuseRead } from "./vdi-helpers.ts";
import { showVdi } from "./vdis.ts";
import { changeVolume } from "./volumes.ts";

/** Who waits longer is told that it goes on. */
const PATIENCE_MS = 30_000;
/** At the disks' pace. */
const LAY_MS = 24 * 3600 * 1000;
/** A session ends in the middle, or a block can't be read: it begins anew. */
const TRIES = 5;
/** Nobody asks again, and a guest waits: the store without a majority, weftd that is started anew, another host at work are waited for. */
const PASSING_MS = 5 * 60 * 1000;

/** What is written to the disk from now on is told by sectors. E-VDI-08 for one that was opened before. */
export async function layerVdi(context: MemberContext, uuid: string): Promise<sr.VdiAnswer> {
  const { mirror, daemon } = context;
  await mirror.sync();
  const facts = wholeDisk(findVdi(mirror, uuid));
  const { vdi, extra } = facts;
  if (extra?.layer === true) return showVdi(context, uuid);
  if (!isUntouched(vdi, facts)) throw WeftError.fromFinding(noLayer(vdi, "it was opened before"));
  try {
    await daemon.client.call("volume.layer", { volume: vdi.volume });
  } catch (error) {
    // Opened in the same moment.
    if (!isWeftError(error, "E-VOL-23")) throw error;
    throw WeftError.fromFinding(noLayer(vdi, "it was opened before"));
  }
  return showVdi(context, uuid);
}

/** Answers with the disk when it is both. E-AGENT-04 where that takes longer: it goes on, and is asked for again. */
export async function composeVdi(
  context: MemberContext,
  uuid: string,
  parent: string,
): Promise<sr.VdiAnswer> {
  const { composing, log } = context;
  const running = composing.get(uuid);
  if (running !== undefined && running.parent !== parent)
    throw new WeftError({
      code: "E-VDI-04",
      message: `The virtual disk ${uuid} is being laid over another one, ${running.parent}.`,
      facts: { vdi: uuid, parent: running.parent },
      safe: "Nothing was changed.",
    });
  const work = running?.work ?? begin(context, uuid, parent);
  // Whoever does not wait any more hears of it in the log.
  work.catch((error: unknown) => log.info({ vdi: uuid, parent, reason: reasonOf(error) }, "not composed"));
  const patience = new AbortController();
  const late = delay(PATIENCE_MS, undefined, { signal: patience.signal }).then(() => {
    throw goesOn(uuid, parent);
  });
  late.catch(() => undefined);
  try {
    await Promise.race([work, late]);
  } finally {
    patience.abort();
  }
  return showVdi(context, uuid);
}

function goesOn(uuid: string, parent: string): WeftError {
  return new WeftError({
    code: "E-AGENT-04",
    message: `The virtual disk ${uuid} is being laid over ${parent}, which takes longer than ${PATIENCE_MS / 1000} s. It goes on.`,
    facts: { vdi: uuid, parent },
    do: [{ why: "See what weftd does", command: "journalctl -u weftd" }],
  });
}

function begin(context: MemberContext, uuid: string, parent: string): Promise<void> {
  const { composing } = context;
  const work = compose(context, uuid, parent).finally(() => composing.delete(uuid));
  composing.set(uuid, { parent, work });
  return work;
}

async function compose(context: MemberContext, uuid: string, parent: string): Promise<void> {
  const { log } = context;
  let cuts = 0;
  let sinceMs: number | null = null;
  for (;;) {
    try {
      await tryOnce(context, uuid, parent);
      return;
    } catch (error) {
      const isCut = isWeftError(error, "E-VOL-22");
      if (!isCut && !isPassing(error)) throw error;
      const nowMs = performance.now();
      cuts += isCut ? 1 : 0;
      sinceMs = isCut ? null : (sinceMs ?? nowMs);
      if (cuts === TRIES || (sinceMs !== null && nowMs - sinceMs >= PASSING_MS))
        throw cut(uuid, parent, error);
      log.warn({ vdi: uuid, parent, reason: reasonOf(error) }, "composing begins anew");
    }
    await delay(CHANGING_HANDS.againMs);
  }
}

async function tryOnce(context: MemberContext, uuid: string, parent: string): Promise<void> {
  const { mirror, log } = context;
  await mirror.sync();
  await untilNotComposed(context, [uuid, parent], PASSING_MS);
  if (isDone(context, uuid, parent)) return;
  checked(context, uuid, parent);
  await told(context, [uuid, parent], () => once(context, uuid, parent));
  log.info({ vdi: uuid, parent }, "a disk is laid over its parent");
}

function cut(uuid: string, parent: string, cause: unknown): WeftError {
  return new WeftError({
    code: "E-VDI-07",
    message: `The virtual disk ${uuid} was not laid over ${parent} to the end: ${reasonOf(cause)}`,
    facts: { vdi: uuid, parent },
    safe: "The disk is as it was. What was laid over its parent already is laid there again.",
    cause,
  });
}

function isDone({ mirror }: MemberContext, uuid: string, parent: string): boolean {
  return findVdi(mirror, uuid).vdi.composedFrom === parent;
}

type Both = { readonly leaf: VdiFacts; readonly parent: VdiFacts };

/** E-VDI-01, E-VDI-03, E-VDI-04, E-VDI-05, E-VDI-08. */
function checked(context: MemberContext, uuid: string, parentUuid: string): Both {
  const { mirror } = context;
  const leaf = wholeDisk(findVdi(mirror, uuid));
  const parent = wholeDisk(findVdi(mirror, parentUuid));
  const of = ({ vdi, record, extra }: VdiFacts): Parameters<typeof checkCompose>[0] => ({
    vdi,
    sizeBytes: record?.sizeBytes ?? 0n,
    isLayer: extra?.layer === true,
  });
  const wrong = checkCompose(of(leaf), of(parent));
  if (wrong !== null) throw WeftError.fromFinding(wrong);
  for (const facts of [leaf, parent]) {
    refuseComposing(context, facts.vdi.uuid);
    refuseRead(context, facts);
    refuseOpen(context, facts);
  }
  return { leaf, parent };
}

async function once(context: MemberContext, uuid: string, parentUuid: string): Promise<void> {
  const { mirror, daemon } = context;
  for (const each of [uuid, parentUuid]) {
    await dropHelper(context, each, "resetTo");
    await dropHelper(context, each, "reader");
  }
  await mirror.sync();
  const { leaf, parent } = checked(context, uuid, parentUuid);
  const [from, onto] = [leaf.vdi.volume, parent.vdi.volume];
  await dropHelpers(context, from);
  const size = leaf.record?.sizeBytes ?? 0n;
  if (parent.record !== null && parent.record.sizeBytes < size)
    await changeVolume(context, onto, { size, loseData: null });
  await inCaretaker(context, from, () =>
    inCaretaker(context, onto, async () => {
      const sessions = { leaf: await sessionOf(context, from), parent: await sessionOf(context, onto) };
      await daemon.client.call("session.lay", { from, onto }, LAY_MS);
      await swap(context, { uuid, parentUuid, sessions });
    }),
  );
  await mirror.sync();
}

/** E-VDI-04 where a guest has it. */
function refuseOpen({ mirror, view }: MemberContext, facts: VdiFacts): void {
  const [host] = openHosts(mirror, facts);
  if (host === undefined) return;
  const { uuid: vdi, label } = facts.vdi;
  const name = hostName(view.cluster(), host);
  throw new WeftError({
    code: "E-VDI-04",
    message: `${name} has the virtual disk "${label}" (${vdi}) open. Not composed.`,
    facts: { vdi, host, since: null },
    safe: "Nothing was changed.",
    do: [{ why: `Unplug it on ${name} first`, command: null }],
  });
}

/** The caretaker's session of this host, in which the work is done. E-VOL-12 where it is a guest's by now. */
async function sessionOf({ daemon }: MemberContext, volume: string): Promise<SessionId> {
  const { session, caretaker } = await daemon.client.call("session.show", { volume });
  if (caretaker) return session as SessionId;
  throw new WeftError({
    code: "E-VOL-12",
    message: `A guest has opened the volume ${volume} here.`,
    facts: { volume },
  });
}

type Swap = {
  readonly uuid: string;
  readonly parentUuid: string;
  /** In which it was done. */
  readonly sessions: { readonly leaf: SessionId; readonly parent: SessionId };
};

/** The disk is the parent's volume from now on, and that volume has its name; the disk's own goes to the trash. */
async function swap(context: MemberContext, { uuid, parentUuid, sessions }: Swap): Promise<void> {
  const { mirror, store } = context;
  for (;;) {
    await mirror.sync();
    // An earlier try of which nobody heard.
    if (isDone(context, uuid, parentUuid)) return;
    const leaf = wholeDisk(findVdi(mirror, uuid));
    const parent = wholeDisk(findVdi(mirror, parentUuid));
    const before = ownVolume(context, leaf, sessions.leaf);
    const after = ownVolume(context, parent, sessions.parent);
    const names = [keys.name(before.want.name), keys.name(after.want.name)] as const;
    const compares: readonly Compare[] = [
      ...[leaf.entry, parent.entry, before.wantEntry, after.wantEntry, before.state, after.state].map(
        ({ key, modRevision }) => ({ key, modRevision }),
      ),
      ...names.map((key) => ({ key, modRevision: mirror.get(key)?.modRevision ?? 0n })),
    ];
    const { volume } = parent.vdi;
    const composed = {
      ...leaf.vdi,
      volume,
      composedFrom: parentUuid,
      layerOpened: false,
      resetTo: null,
    };
    const now = Date.now();
    // With snapshots, as the one that XAPI takes of it at the begin, it lives on in them.
    const hasSnapshots = (leaf.record?.snapshots ?? 0) > 0;
    const gone: Want = {
      ...before.want,
      name: after.want.name,
      ...(hasSnapshots ? { headDeletedAtMs: now } : { deletedAtMs: now }),
    };
    const ops: readonly Op[] = [
      { kind: "put", key: leaf.entry.key, value: renderVdi(composed, leaf.entry.value) },
      { kind: "delete", key: parent.entry.key },
      put(before.wantEntry, gone),
      put(after.wantEntry, { ...after.want, name: before.want.name }),
      { kind: "put", key: names[0], value: JSON.stringify({ volume }) },
      { kind: "delete", key: names[1] },
    ];
    const { kind } = await store.txn(compares, ops);
    if (kind === "succeeded") return;
  }
}

function put({ key, value }: Entry, want: Want): Op {
  return { kind: "put", key, value: renderWant(want, value) };
}

/** E-VOL-14 where somebody else has it by now, or reads it: what was laid over may not be all, or not what is read. */
function ownVolume(
  { mirror, host }: MemberContext,
  { vdi }: VdiFacts,
  session: SessionId,
): { readonly want: Want; readonly wantEntry: Entry; readonly state: Entry } {
  const { want, wantEntry, record } = volumeOf(mirror, vdi.volume);
  const state = mirror.get(keys.state(vdi.volume));
  const isOurs = record?.owner?.host === host && record.owner.session === session && vdi.reader === null;
  if (isOurs && want !== null && wantEntry !== null && state !== null) return { want, wantEntry, state };
  throw new WeftError({
    code: "E-VOL-14",
    message: `The volume of the virtual disk ${vdi.uuid} was opened by somebody else, or deleted.`,
    facts: { volume: vdi.volume },
  });
}
