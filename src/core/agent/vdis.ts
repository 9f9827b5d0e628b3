/**
 * Virtual disks: made, taken in, changed and deleted, as XAPI's door asks it.
 *
 * Must always hold:
 * - a disk's key comes in one transaction with the wish for its volume, so that nothing of it is half there; who was cut
 *   short asks again by the same UUID and finds it;
 * - the key of a disk in the trash stays, so that a volume that is restored is the disk that it was;
 * - the answer is as the store has it after the change.
 */
import { parseVolumeId } from "../model/ids.ts";
import {
  diskOf,
  snapshotDiskOf,
  stillMade,
  takenOtherwise,
  type Vdi,
  vdiName,
  wholeBlocks,
  wrongKind,
} from "../model/vdi.ts";
import { checkDelete, checkResize } from "../model/volume-check.ts";
import { decided, isWeftError, WeftError } from "../wire/errors.ts";
import type * as sr from "../wire/sr-api.ts";
import { renderVdi } from "../wire/sr-json.ts";
import { keys } from "../wire/store-keys.ts";
import { freeEnded } from "./activation.ts";
import type { MemberContext } from "./context.ts";
import { createVolume } from "./create-volume.ts";
import { volumeOf } from "./facts.ts";
import { deletionOf, findSnapshot } from "./find.ts";
import type { Mirror } from "./mirror.ts";
import { findSr, findVdi, vdiAnswer, type VdiFacts, vdiOf, vdiOfVolume } from "./sr-facts.ts";
import { inSr, usableSr } from "./srs.ts";
import { changeKey, deleteIfThere, dropHelper, dropHelpers, refuseRead } from "./vdi-helpers.ts";
import { resetVdi } from "./vdi-reset.ts";
import { changeVolume, deleteVolume } from "./volumes.ts";

export async function showVdi(context: MemberContext, uuid: string): Promise<sr.VdiAnswer> {
  await context.mirror.sync();
  return vdiAnswer(context, findVdi(context.mirror, uuid));
}

/** The same UUID again answers with the disk that is there; E-VDI-02 where that is another one. */
export async function createVdi(
  context: MemberContext,
  srUuid: string,
  request: sr.VdiCreateRequest,
): Promise<sr.VdiAnswer> {
  const { mirror } = context;
  const { uuid, ...fields } = request;
  const size = wholeBlocks(request.size);
  await mirror.sync();
  const { copies } = await usableSr(context, srUuid);
  const before = takenBy(mirror, uuid, srUuid);
  if (before !== null && before.want !== null && before.want.sizeBytes !== size)
    throw WeftError.fromFinding(
      takenOtherwise(uuid, `"${before.vdi.label}" has ${before.want.sizeBytes} bytes, not ${size}`),
    );
  const { size: _, ...rest } = fields;
  const vdi = diskOf({ uuid, sr: srUuid, createdAt: new Date().toISOString(), ...rest });
  const { want } = volumeOf(mirror, vdi.volume);
  const owner = before === null && want !== null ? vdiOfVolume(mirror, want) : null;
  if (owner !== null)
    throw WeftError.fromFinding(takenOtherwise(uuid, `the disk "${owner.label}" was composed of it`));
  // It is whole, and its volume is another than the one that this would ask for.
  if (before !== null && before.vdi.composedFrom !== null) return showVdi(context, uuid);
  await makeVolume(context, vdi, { size, copies, from: null });
  return showVdi(context, uuid);
}

/** The disk's volume and its key, together. */
export async function makeVolume(
  context: MemberContext,
  vdi: Vdi,
  {
    size,
    copies,
    from,
  }: { readonly size: bigint | null; readonly copies: number | null; readonly from: string | null },
): Promise<void> {
  const { mirror } = context;
  const { uuid, volume } = vdi;
  const request = {
    name: vdiName(uuid),
    size,
    from,
    copies,
    minIsr: null,
    hosts: null,
    spread: null,
    thick: false,
    createdBy: vdiName(uuid),
  };
  const write = (): ReturnType<typeof inKeys> => inKeys(mirror, vdi);
  try {
    await createVolume(context, request, { id: volume, write });
  } catch (error) {
    if (!isWeftError(error, "E-VOL-01")) throw error;
    throw WeftError.fromFinding(takenOtherwise(uuid, `a volume, or one in the trash, has it`));
  }
}

/** What a transaction compares and writes that makes the disk's key. */
function inKeys(
  mirror: Mirror,
  vdi: Vdi,
): {
  readonly compares: readonly { readonly key: string; readonly modRevision: bigint }[];
  readonly ops: readonly { readonly kind: "put"; readonly key: string; readonly value: string }[];
} {
  const compare = inSr(findSr(mirror, vdi.sr));
  const key = keys.vdi(vdi.uuid);
  return {
    compares: [compare, { key, modRevision: mirror.get(key)?.modRevision ?? 0n }],
    ops: [{ kind: "put", key, value: renderVdi(vdi, null) }],
  };
}

/** The disk that has this UUID in this repository; null: none has it. E-VDI-02 where it is another repository's, or gone. */
export function takenBy(mirror: Mirror, uuid: string, srUuid: string): VdiFacts | null {
  const found = vdiOf(mirror, uuid);
  if (found === null) return null;
  if (found.stage === "gone") {
    // What was given up before it was a volume is in nobody's way for long; a retry finds out why it was.
    if ((found.want?.refused ?? null) !== null) return found;
    throw WeftError.fromFinding(takenOtherwise(uuid, `"${found.vdi.label}" had it, which was deleted`));
  }
  if (found.vdi.sr === srUuid) return found;
  throw WeftError.fromFinding(takenOtherwise(uuid, `it is a disk of the repository ${found.vdi.sr}`));
}

/** A volume that was made elsewhere, or a snapshot of one, becomes a disk. E-VDI-01 where there is none. */
export async function introduceVdi(
  context: MemberContext,
  srUuid: string,
  { uuid, label }: sr.VdiIntroduceRequest,
): Promise<sr.VdiAnswer> {
  const { mirror, store } = context;
  for (;;) {
    await mirror.sync();
    await usableSr(context, srUuid);
    if (isOfSr(mirror, uuid, srUuid)) return showVdi(context, uuid);
    const vdi = foundElsewhere(mirror, uuid, srUuid, label);
    if (vdi === null) {
      findVdi(mirror, uuid);
      throw WeftError.fromFinding(takenOtherwise(uuid, "it is a disk of another repository"));
    }
    const { compares, ops } = inKeys(mirror, vdi);
    const outcome = await store.txn(compares, ops);
    if (outcome.kind === "succeeded") return showVdi(context, uuid);
  }
}

function isOfSr(mirror: Mirror, uuid: string, srUuid: string): boolean {
  const found = vdiOf(mirror, uuid);
  return found !== null && found.stage !== "gone" && found.vdi.sr === srUuid;
}

/** Null: there is none that is no disk yet. One whose repository is gone is nobody's. */
function foundElsewhere(mirror: Mirror, uuid: string, srUuid: string, label: string | null): Vdi | null {
  const known = vdiOf(mirror, uuid);
  if (known !== null && known.stage === "gone") return null;
  if (known !== null && mirror.get(keys.sr(known.vdi.sr)) !== null) return null;
  if (known !== null) return { ...known.vdi, sr: srUuid, settled: false, label: label ?? known.vdi.label };
  const createdAt = new Date().toISOString();
  const id = parseVolumeId(uuid);
  const { want, record } = id === null ? { want: null, record: null } : volumeOf(mirror, id);
  // The one that a composed disk was laid over is that disk's.
  const isFree = want !== null && vdiOfVolume(mirror, want) === null;
  const isThere = isFree && deletionOf(want) === null && want.refused === null;
  if (isThere && record !== null) return diskOf({ uuid, sr: srUuid, createdAt, label: label ?? want.name });
  try {
    const { volume, snapshot } = findSnapshot(mirror, uuid);
    const given = {
      uuid,
      sr: srUuid,
      createdAt,
      label: label ?? snapshot.name,
      snapshotOf: volume.id,
      snapshotTime: new Date(snapshot.createdMs).toISOString(),
    };
    return snapshotDiskOf(given, volume.id);
  } catch (error) {
    if (isWeftError(error, "E-SNAP-09") || isWeftError(error, "E-ARG-02")) return null;
    throw error;
  }
}

/** What is named. A size is a growth, also under a guest; E-VOL-15 for a smaller one. */
export async function changeVdi(
  context: MemberContext,
  uuid: string,
  { size, ...changes }: sr.VdiChange,
): Promise<sr.VdiAnswer> {
  const { mirror } = context;
  await mirror.sync();
  const { vdi } = findVdi(mirror, uuid);
  if (size !== undefined) await growVdi(context, uuid, wholeBlocks(size));
  if (changes.readOnly === false && vdi.snapshot !== null)
    throw WeftError.fromFinding(wrongKind(vdi, "a disk: a snapshot is never written"));
  const given = Object.fromEntries(Object.entries(changes).filter(([, value]) => value !== undefined));
  const isOpened = changes.readOnly === false;
  if (isOpened) refuseRead(context, findVdi(mirror, uuid));
  // In one swap: what was read of it while nobody wrote it is never read again.
  const reader = isOpened ? { reader: null } : {};
  if (Object.keys(given).length > 0)
    await changeKey(context, uuid, (now) => ({ ...now, ...given, ...reader }));
  if (isOpened && vdi.reader !== null) await deleteIfThere(context, vdi.reader);
  return showVdi(context, uuid);
}

async function growVdi(context: MemberContext, uuid: string, size: bigint): Promise<void> {
  const facts = findVdi(context.mirror, uuid);
  const { vdi, want, record, extra, stage } = facts;
  if (vdi.snapshot !== null) throw WeftError.fromFinding(wrongKind(vdi, "a disk, not a snapshot"));
  if (stage === "making") throw WeftError.fromFinding(stillMade(vdi));
  if (want === null || want.sizeBytes === size) return;
  const known = {
    want,
    record,
    cluster: context.view.cluster(),
    ownerIsCaretaker: extra?.caretaker ?? false,
  };
  decided(checkResize({ ...known, sizeBytes: size, loseData: null }));
  // A disk that is reset at boot goes back now: it can't after it has grown. Who is cut short leaves no mark of the old size.
  if (vdi.resetTo !== null) {
    await resetVdi(context, uuid, null).catch((error: unknown) => {
      throw isWeftError(error, "E-VOL-12") ? resetUnderGuest(vdi, error) : error;
    });
    await resetVdi(context, uuid, false);
  }
  await dropHelper(context, uuid, "reader");
  await changeVolume(context, vdi.volume, { size, loseData: null });
  if (vdi.resetTo !== null) await resetVdi(context, uuid, true);
}

function resetUnderGuest({ uuid, label }: Vdi, cause: WeftError): WeftError {
  return new WeftError({
    ...cause.toBody(),
    message: `The virtual disk "${label}" (${uuid}) goes back at each boot of its guest, which has it open: it grows while that is shut down.`,
    do: [{ why: "Shut the VM down first; or let its disk persist from now on", command: null }],
    cause,
  });
}

/** Into the trash, with its volume; a snapshot goes at once. One that is gone is no error. */
export async function deleteVdi(context: MemberContext, uuid: string): Promise<void> {
  const { mirror, store, view } = context;
  await mirror.sync();
  const found = vdiOf(mirror, uuid);
  if (found === null) return;
  const { vdi, entry } = found;
  if (vdi.snapshot !== null) {
    await deleteIfThere(context, vdi.snapshot);
    await store.txn(
      [{ key: entry.key, modRevision: entry.modRevision }],
      [{ kind: "delete", key: entry.key }],
    );
    await mirror.sync();
    return;
  }
  if (found.stage === "gone") return;
  refuseRead(context, found);
  if (found.stage === "whole") {
    await freeEnded(context, found);
    const { want, record, extra } = volumeOf(mirror, vdi.volume);
    if (want !== null)
      decided(
        checkDelete({ want, record, cluster: view.cluster(), ownerIsCaretaker: extra?.caretaker ?? false }),
      );
    await dropHelpers(context, vdi.volume);
  }
  // The disk goes, and lives on in the snapshots that XAPI has of it.
  await deleteVolume(context, vdi.volume, { keepSnapshots: true });
}
