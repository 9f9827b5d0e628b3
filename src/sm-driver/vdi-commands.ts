/**
 * XAPI's commands about disks: made, deleted, copied, resized, taken back, and kept in step with XAPI's records (design
 * xapi.md 1.6 to 1.8).
 *
 * Must always hold:
 * - XAPI's record is written before the answer, and only of what the store has whole;
 * - of what XAPI is told has failed nothing stays that it doesn't know; where it can't be taken away, it is unsettled in the
 *   store, and a scan finds it;
 * - each of them may be cut off anywhere, and the next try of the same finds what the first one did.
 */
import { parseUuid } from "../core/model/ids.ts";
import { keptConfig, SR_TEXT_MAX, wholeBlocks } from "../core/model/vdi.ts";
import { reasonOf } from "../core/wire/errors.ts";
import type { VdiAnswer } from "../core/wire/sr-api.ts";
import {
  argOf,
  type Command,
  type Commands,
  flagArg,
  shown,
  sizeArg,
  type SmContext,
  type SmValue,
  srOf,
  vdiOf,
} from "./call.ts";
import { cbtCommands } from "./cbt-commands.ts";
import { badRequest, faultCodes, SmFault } from "./faults.ts";
import { compose, makeLayer } from "./migration.ts";
import { mirrorOf, snapshotMirrored } from "./mirrored-snapshot.ts";
import { plugCommands } from "./plug-commands.ts";
import { dropMarkIfPersisting } from "./reset-mark.ts";
import { cut, vdiChanges } from "./vdi-changes.ts";
import {
  type Introduction,
  introductionOf,
  momentOf,
  refOf,
  tellSrSizes,
  tellVdiSizes,
  uuidOfVdi,
} from "./vdi-record.ts";
import { forgetVdi, introduceVdi, vdiRecord, vdiRef } from "./xapi-records.ts";

const create: Command = async (context) => {
  const { call, agent, newUuid } = context;
  const sr = srOf(call);
  const type = call.vdiType ?? "user";
  refuseShared(type);
  const words = {
    label: argOf(call, 1, "name_label"),
    description: argOf(call, 2, "name_description"),
    smConfig: Object.fromEntries(call.vdiSmConfig),
  };
  const asked = {
    size: sizeArg(call, 0, "virtual size"),
    label: cut(words.label, SR_TEXT_MAX.label),
    description: cut(words.description, SR_TEXT_MAX.description),
    type,
    isSnapshot: flagArg(call, 4, "is_a_snapshot"),
    snapshotTime: momentOf(argOf(call, 5, "snapshot_time")),
    snapshotOf: await uuidOfVdi(context, argOf(call, 6, "snapshot_of")),
    readOnly: flagArg(call, 7, "read_only"),
    smConfig: keptConfig(call.vdiSmConfig),
  };
  const known = { metadataOfPool: refOf(argOf(call, 3, "metadata_of_pool")), words };
  const make = (uuid: string): Promise<VdiAnswer> => agent.createVdi(sr.uuid, { uuid, ...asked });
  if (call.vdiUuid === null) return made(context, newUuid(), make, known);
  // XAPI names one only for its backup of the pool's metadata, which it looks for by that: asked again, it is the same.
  const uuid = parseUuid(call.vdiUuid);
  if (uuid === null) throw badRequest(`vdi_create: vdi_uuid is "${shown(call.vdiUuid)}", which is no UUID`);
  return told(context, await make(uuid), known);
};

/** The volume first: a record without one is forgotten by the next try or scan, a volume without a record by nobody. */
const remove: Command = async (context) => {
  const { call, agent, xapi } = context;
  const { ref, uuid } = vdiOf(call);
  await agent.deleteVdi(uuid);
  await forgetVdi(xapi, ref);
  await tellSrSizes(context);
  return null;
};

/** A volume that was made elsewhere becomes a disk: its id is what XAPI knows it by. */
const introduce: Command = async (context) => {
  const { call, agent } = context;
  const sr = srOf(call);
  const { newUuid: uuid, vdiLocation: location } = call;
  if (uuid === null || location === null)
    throw badRequest("vdi_introduce: the request has no new_uuid or vdi_location");
  if (uuid.toLowerCase() !== location.toLowerCase())
    throw new SmFault(
      faultCodes.badRequest,
      `A volume is introduced by its id, as uuid and as location; they are "${shown(uuid)}" and "${shown(location)}".`,
      "weft volume list --json has the ids: xe vdi-introduce uuid=ID location=ID …",
    );
  const vdi = await agent.introduceVdi(sr.uuid, { uuid: uuid.toLowerCase() });
  const smConfig = { ...vdi.smConfig, ...Object.fromEntries(call.vdiSmConfig) };
  const isSaid = call.vdiSmConfig.size > 0;
  const noted = isSaid
    ? await agent.changeVdi(vdi.uuid, { smConfig: keptConfig(Object.entries(smConfig)) })
    : vdi;
  return told(context, noted, { words: { smConfig } });
};

/** XAPI's record has changed: what the store keeps of it follows, for the day on which XAPI's database is lost. */
const update: Command = async (context) => {
  const { call, agent, xapi } = context;
  const { ref, uuid } = vdiOf(call);
  const [record, vdi] = await Promise.all([vdiRecord(xapi, ref), agent.vdi(uuid)]);
  const snapshotOf = record.isSnapshot ? await uuidOfVdi(context, record.snapshotOf) : null;
  const changes = vdiChanges(record, snapshotOf, vdi);
  if (Object.keys(changes).length > 0) await agent.changeVdi(uuid, changes);
  await dropMarkIfPersisting(context, vdi);
  return null;
};

const snapshot: Command = async (context) => {
  const { call, agent, newUuid } = context;
  const { ref, uuid } = vdiOf(call);
  const mirror = mirrorOf(call);
  const vdi = await agent.vdi(uuid);
  if (vdi.sharable)
    throw new SmFault(
      faultCodes.vdiSnapshot,
      `The disk ${uuid} is sharable, and XAPI takes no snapshots of such.`,
      "xe vdi-param-set uuid=… sharable=false",
    );
  await dropMarkIfPersisting(context, vdi);
  if (mirror === null) await makeLayer(context, vdi);
  const take = (of: string): Promise<VdiAnswer> => {
    if (mirror !== null) return snapshotMirrored(context, of, mirror);
    return vdi.snapshot === null ? agent.snapshotVdi(uuid, { uuid: of }) : snapshotAgain(context, uuid, of);
  };
  return made(context, newUuid(), take, { snapshotOf: ref });
};

/** What nobody writes looks the same for ever: a snapshot of a snapshot is a clone of it that XAPI knows for one. */
async function snapshotAgain({ agent }: SmContext, uuid: string, of: string): Promise<VdiAnswer> {
  await agent.cloneVdi(uuid, { uuid: of });
  const snapshotTime = new Date().toISOString();
  return agent.changeVdi(of, { isSnapshot: true, snapshotOf: uuid, snapshotTime });
}

const clone: Command = async (context) => {
  const { call, agent, newUuid } = context;
  const { uuid } = vdiOf(call);
  await dropMarkIfPersisting(context, await agent.vdi(uuid));
  return made(context, newUuid(), (of) => agent.cloneVdi(uuid, { uuid: of }));
};

/** Also of a disk that a guest has. */
const resize: Command = async (context) => {
  const { call, agent } = context;
  const { ref, uuid, location } = vdiOf(call);
  // As the store counts: the same again is no smaller than what the first one made.
  const size = wholeBlocks(sizeArg(call, 0, "new size"));
  const vdi = await agent.vdi(uuid);
  if (size < vdi.size)
    throw new SmFault(
      faultCodes.vdiSize,
      `The disk has ${vdi.size} bytes and can't shrink to ${size}.`,
      "make a smaller disk and copy what is on it in the guest",
    );
  // A disk that is marked goes back before it grows.
  await dropMarkIfPersisting(context, vdi);
  const grown = size === vdi.size ? vdi : await agent.changeVdi(uuid, { size });
  await tellVdiSizes(context, ref, grown);
  await tellSrSizes(context);
  if (grown.openOn !== null) await tellDevice(context, grown.size);
  return { uuid, location };
};

/** Of a guest here. On another host that one's agent tells it (core/agent/size-keeper.ts), as it does here where this fails. */
async function tellDevice(context: SmContext, size: bigint): Promise<void> {
  const { call, datapath, log } = context;
  const disk = { sr: srOf(call).uuid, vdi: vdiOf(call).uuid };
  try {
    const users = await datapath.users();
    if (users.some(({ vdi }) => vdi === disk.vdi)) await datapath.resized(disk, size);
  } catch (error) {
    log.warn({ ...disk, reason: reasonOf(error) }, "a disk has grown, and its guest's device is told later");
  }
}

/** The call is about the snapshot; its argument is the disk that becomes as it was then. */
const revert: Command = async (context) => {
  const { call, agent } = context;
  const { uuid: snapshotUuid } = vdiOf(call);
  const ref = argOf(call, 0, "vdi");
  const uuid = await uuidOfVdi(context, ref);
  if (uuid === null) throw badRequest(`vdi_revert: "${shown(ref)}" is no VDI of XAPI's`);
  const vdi = await agent.revertVdi(uuid, snapshotUuid);
  await tellVdiSizes(context, ref, vdi);
  await tellSrSizes(context);
  return null;
};

export const vdiCommands: Commands = {
  vdi_create: create,
  vdi_delete: remove,
  vdi_introduce: introduce,
  vdi_update: update,
  vdi_snapshot: snapshot,
  vdi_clone: clone,
  vdi_resize: resize,
  vdi_resize_online: resize,
  vdi_revert: revert,
  vdi_compose: compose,
  ...plugCommands,
  ...cbtCommands,
};

/** XAPI's refs that the call gives. */
type Known = Partial<Omit<Introduction, "srRef">>;

/** A new disk: made in the store, told to XAPI. Where either fails it goes again: XAPI's next try makes another one. */
async function made(
  context: SmContext,
  uuid: string,
  make: (uuid: string) => Promise<VdiAnswer>,
  known: Known = {},
): Promise<SmValue> {
  try {
    return await told(context, await make(uuid), known);
  } catch (error) {
    await takeAway(context, uuid);
    throw error;
  }
}

/** XAPI has its record, and the store knows that it has. */
async function told(
  context: SmContext,
  vdi: VdiAnswer,
  { snapshotOf = null, metadataOfPool = null, words = {} }: Known = {},
): Promise<SmValue> {
  const { call, agent, xapi, log } = context;
  const { uuid } = vdi;
  const origin = snapshotOf ?? (vdi.snapshotOf === null ? null : await vdiRef(xapi, vdi.snapshotOf));
  const introduction = introductionOf(vdi, {
    srRef: srOf(call).ref,
    snapshotOf: origin,
    metadataOfPool,
    words,
  });
  await introduceVdi(xapi, introduction);
  try {
    if (!vdi.settled) await agent.changeVdi(uuid, { settled: true });
  } catch (error) {
    log.warn({ vdi: uuid, reason: reasonOf(error) }, "XAPI knows of the disk, which the next scan notes");
  }
  await tellSrSizes(context);
  return { uuid, location: uuid };
}

/** As far as that can be done: what is left is unsettled, and a scan's. */
async function takeAway({ agent, xapi, log }: SmContext, uuid: string): Promise<void> {
  try {
    await agent.deleteVdi(uuid);
    // Whether XAPI took its record is not known where only its answer was lost.
    const ref = await vdiRef(xapi, uuid);
    if (ref !== null) await forgetVdi(xapi, ref);
  } catch (error) {
    log.warn({ vdi: uuid, reason: reasonOf(error) }, "a disk that was begun stays until the next scan");
  }
}

/** All hosts of a pool have it open for writing at once, which a volume never is. */
function refuseShared(type: string): void {
  if (type !== "ha_statefile") return;
  throw new SmFault(
    faultCodes.vdiCreate,
    "This SR can't hold HA's statefile: all hosts write it at once, and a volume has one writer.",
    "use another shared SR for the heartbeat: xe pool-ha-enable heartbeat-sr-uuids=…",
  );
}
