/**
 * What is made of virtual disks: snapshots, clones, what changed between them; and disks that are taken back.
 *
 * Must always hold:
 * - a snapshot's key is there before it is asked for, so that one whose maker was cut short is found and named;
 * - a snapshot that is taken for a moment is known by its name and goes again, by whom it was taken for or by
 *   vdi-keeper.ts;
 * - a clone is a disk of its source's repository, in one transaction with the wish for its volume.
 */
import { setTimeout as delay } from "node:timers/promises";

import { CHANGED_GRAIN, type ChangedPage, joinPages } from "../model/changed-blocks.ts";
import type { SnapshotId, VolumeId } from "../model/ids.ts";
import { checkRevert } from "../model/revert.ts";
import { diskOf, snapshotDiskOf, takenOtherwise, type Vdi, vdiName, wrongKind } from "../model/vdi.ts";
import { decided, isWeftError, WeftError } from "../wire/errors.ts";
import type * as sr from "../wire/sr-api.ts";
import { renderVdi } from "../wire/sr-json.ts";
import { keys } from "../wire/store-keys.ts";
import { changedBlocks } from "./changed-blocks.ts";
import type { MemberContext } from "./context.ts";
import { findSnapshot } from "./find.ts";
import { CHANGING_HANDS, isPassing } from "./owner-work.ts";
import { revertVolume } from "./revert.ts";
import { createSnapshot, destroyData } from "./snapshots.ts";
import { findSr, findVdi, type VdiFacts, vdiOf, vdiOfVolume, whole, wholeDisk } from "./sr-facts.ts";
import { inSr, usableSr } from "./srs.ts";
import { dropHelper, helperIdOf, newSnapshotId, refuseRead, withHelper } from "./vdi-helpers.ts";
import { makeVolume, showVdi, takenBy } from "./vdis.ts";
import { changeVolume } from "./volumes.ts";

/** XAPI's command has a minute. */
const REVERT_MS = 20_000;

/** Answers with the snapshot, when all copies have it. */
export async function snapshotVdi(
  context: MemberContext,
  uuid: string,
  { uuid: asked, label, description }: sr.VdiCopyRequest,
  by: string,
): Promise<sr.VdiAnswer> {
  const { mirror } = context;
  await mirror.sync();
  const { vdi } = wholeDisk(findVdi(mirror, uuid));
  const before = takenBy(mirror, asked, vdi.sr);
  if (before !== null && (before.vdi.snapshot === null || before.vdi.volume !== vdi.volume))
    throw WeftError.fromFinding(takenOtherwise(asked, `"${before.vdi.label}" is no snapshot of this disk`));
  if (before?.stage === "whole") return showVdi(context, asked);
  const now = new Date().toISOString();
  const given = {
    uuid: asked,
    sr: vdi.sr,
    label: label ?? vdi.label,
    description: description ?? vdi.description,
    type: vdi.type,
    cbt: vdi.cbt,
    managed: vdi.managed,
    snapshotOf: vdi.uuid,
    snapshotTime: now,
    createdAt: now,
  };
  if (before === null) await putKey(context, snapshotDiskOf(given, vdi.volume));
  try {
    await createSnapshot(context, vdi.volume, { name: vdiName(asked), id: asked, by });
  } catch (error) {
    // What may have been taken all the same keeps its key: it is found, or the key goes by itself.
    if (isWeftError(error) && error.status !== 503) await dropKey(context, asked);
    throw error;
  }
  return showVdi(context, asked);
}

async function putKey(context: MemberContext, vdi: Vdi): Promise<void> {
  const { mirror, store } = context;
  const key = keys.vdi(vdi.uuid);
  await usableSr(context, vdi.sr);
  for (;;) {
    const compare = inSr(findSr(mirror, vdi.sr));
    const put = { kind: "put" as const, key, value: renderVdi(vdi, null) };
    const outcome = await store.txn([compare, { key, modRevision: 0n }], [put]);
    await mirror.sync();
    if (outcome.kind === "succeeded" || mirror.get(key) !== null) return;
  }
}

async function dropKey({ mirror, store }: MemberContext, uuid: string): Promise<void> {
  await mirror.sync();
  const found = vdiOf(mirror, uuid);
  if (found === null || found.snapshot !== null) return;
  const { key, modRevision } = found.entry;
  await store.txn([{ key, modRevision }], [{ kind: "delete", key }]);
}

/** Of a snapshot; or of a disk, by a snapshot of our own that goes again. Answers with the clone. */
export async function cloneVdi(
  context: MemberContext,
  uuid: string,
  { uuid: asked, label, description }: sr.VdiCopyRequest,
): Promise<sr.VdiAnswer> {
  const { mirror } = context;
  await mirror.sync();
  const source = whole(findVdi(mirror, uuid));
  const { vdi } = source;
  const helper = vdi.snapshot === null ? helperIdOf("clone", asked) : null;
  const from = vdi.snapshot ?? helper;
  const before = takenBy(mirror, asked, vdi.sr);
  if (before !== null && before.want?.createdFrom?.snapshot !== from)
    throw WeftError.fromFinding(takenOtherwise(asked, `"${before.vdi.label}" is no clone of this disk`));
  const given = {
    uuid: asked,
    sr: vdi.sr,
    label: label ?? vdi.label,
    description: description ?? vdi.description,
    type: vdi.type,
    createdAt: new Date().toISOString(),
  };
  await usableSr(context, vdi.sr);
  const make = async (): Promise<void> =>
    makeVolume(context, diskOf(given), { size: null, copies: null, from });
  if (helper === null || before?.stage === "whole") await make();
  else await withHelper(context, source, { helper: "clone", name: asked, id: helper }, make);
  return showVdi(context, asked);
}

/** E-VDI-03 for what is no snapshot with changed blocks: only these are of use without their data. */
export async function destroyVdiData(context: MemberContext, uuid: string): Promise<sr.VdiAnswer> {
  await context.mirror.sync();
  const { vdi } = whole(findVdi(context.mirror, uuid));
  if (vdi.snapshot === null || !vdi.cbt)
    throw WeftError.fromFinding(wrongKind(vdi, "a snapshot for which changed blocks are tracked"));
  await destroyData(context, vdi.snapshot);
  return showVdi(context, uuid);
}

/** A snapshot of the volume that this disk is, or is a snapshot of; E-VDI-03 where the UUID is of no such. */
function takenOf(
  { mirror }: MemberContext,
  { vdi }: VdiFacts,
  uuid: string,
  which: "this disk" | "the same disk",
): SnapshotId {
  const { vdi: found } = whole(findVdi(mirror, uuid));
  if (found.snapshot !== null && found.volume === vdi.volume) return found.snapshot;
  throw WeftError.fromFinding(wrongKind(vdi, `a snapshot of ${which}, which "${found.label}" is not`));
}

/**
 * In place and in its size of then, while no guest has it. What was taken of the disk as it was goes with that: a reset at boot does not go back
 * behind the revert, and nobody reads what was there before it.
 */
export async function revertVdi(
  context: MemberContext,
  uuid: string,
  snapshot: string,
): Promise<sr.VdiAnswer> {
  await context.mirror.sync();
  const facts = wholeDisk(findVdi(context.mirror, uuid));
  const id = takenOf(context, facts, snapshot, "this disk");
  refuseRead(context, facts);
  if (await sizeAsThen(context, facts, id)) await revertSized(context, id, facts);
  else await revert(context, id, facts);
  return showVdi(context, uuid);
}

/** One that has the size of then already is half on its way: what passes is waited out, and who is told of a failure is told that too. */
async function revertSized(context: MemberContext, id: SnapshotId, facts: VdiFacts): Promise<void> {
  const endMs = performance.now() + REVERT_MS;
  for (;;) {
    try {
      await revert(context, id, facts);
      return;
    } catch (error) {
      if (!isWeftError(error)) throw error;
      if (!isPassing(error) || performance.now() >= endMs)
        throw new WeftError({
          ...error.toBody(),
          message: `${error.message} The disk has the size that it had in the snapshot already, and nothing beyond it.`,
          safe: "The snapshot has all that the disk was then: ask again.",
          cause: error,
        });
      context.log.info(
        { vdi: facts.vdi.uuid, code: error.code },
        "a revert that was begun is asked for again",
      );
    }
    await delay(CHANGING_HANDS.againMs);
  }
}

/** True: it has another size since. What lies beyond it goes with the revert in any case: so whatever else stands against that is said before. */
async function sizeAsThen(
  context: MemberContext,
  { vdi, want, record, extra }: VdiFacts,
  id: SnapshotId,
): Promise<boolean> {
  const { snapshot } = findSnapshot(context.mirror, id);
  const size = snapshot.sizeBytes;
  if (want === null || record === null || record.sizeBytes === size) return false;
  const known = {
    want,
    cluster: context.view.cluster(),
    ownerIsCaretaker: extra?.caretaker ?? false,
    snapshot,
  };
  decided(checkRevert({ ...known, record: { ...record, sizeBytes: size } }));
  await changeVolume(context, vdi.volume, { size, loseData: want.name });
  return true;
}

/** The same, asked of a volume: it may be a disk. */
export async function revertAny(context: MemberContext, ref: string): Promise<VolumeId> {
  const { mirror } = context;
  await mirror.sync();
  const vdi = vdiOfVolume(mirror, findSnapshot(mirror, ref).volume.want);
  const found = vdi === null ? null : vdiOf(mirror, vdi.uuid);
  return revert(context, ref, found === null || found.stage === "gone" ? null : found);
}

async function revert(context: MemberContext, ref: string, disk: VdiFacts | null): Promise<VolumeId> {
  if (disk !== null) refuseRead(context, disk);
  const volume = await revertVolume(context, ref);
  if (disk === null) return volume;
  await dropHelper(context, disk.vdi.uuid, "resetTo");
  await dropHelper(context, disk.vdi.uuid, "reader");
  return volume;
}

/** All blocks that differ between an older snapshot of a disk and a later one, or the disk as it is now. */
export async function changedVdi(
  context: MemberContext,
  uuid: string,
  since: string,
): Promise<sr.VdiChangedAnswer> {
  await context.mirror.sync();
  const facts = whole(findVdi(context.mirror, uuid));
  const { vdi } = facts;
  const snapshot = takenOf(context, facts, since, "the same disk");
  if (vdi.snapshot !== null) return allChanged(context, vdi.snapshot, snapshot);
  const id = newSnapshotId();
  const work = async (): Promise<sr.VdiChangedAnswer> => allChanged(context, id, snapshot);
  return withHelper(context, facts, { helper: "changed", name: id, id }, work);
}

async function allChanged(
  context: MemberContext,
  snapshot: SnapshotId,
  since: SnapshotId,
): Promise<sr.VdiChangedAnswer> {
  const pages: ChangedPage[] = [];
  let size = 0n;
  let offset = 0n;
  do {
    const page = await changedBlocks(context, snapshot, { since, offset, len: null });
    const { grain, len } = page;
    if (len <= 0n) throw new Error(`the changed blocks of ${snapshot} end at ${offset}`);
    pages.push({ bitmap: Buffer.from(page.bitmap, "base64"), grain, offset, len });
    size = page.size;
    offset += len;
  } while (offset < size);
  const bitmap = Buffer.from(joinPages(size, pages)).toString("base64");
  return { size, granularity: CHANGED_GRAIN, bitmap };
}
