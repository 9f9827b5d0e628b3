/**
 * XAPI's commands by which a host gets a disk and gives it back (design xapi.md 1.10, 3.6).
 *
 *     epoch_begin ─▶ attach (bookkeeping; on two hosts at once) ─▶ activate (the volume is this host's alone)
 *     epoch_end ◀─ detach ◀─────────────────────────────────────── deactivate (drained, sealed, nobody's)
 *
 * Must always hold:
 * - a volume changes hands in activate and deactivate, and nowhere else;
 * - a guest's device is made after the volume was got, and is gone before it is given up;
 * - deactivate and detach end what is there in whatever state, also of a disk that is no more: after an activate that failed
 *   XAPI calls detach alone.
 */
import { isWeftError, reasonOf } from "../core/wire/errors.ts";
import type { VdiActivated, VdiAnswer } from "../core/wire/sr-api.ts";
import { type Command, type Commands, flagArg, type SmContext, srOf, vdiOf } from "./call.ts";
import type { DatapathVdi } from "./datapath/datapath.ts";
import { faultCodes, SmFault } from "./faults.ts";
import { dropMarkIfPersisting } from "./reset-mark.ts";
import { hostsByLiveness } from "./xapi-records.ts";

/** A handover between hosts takes that long at most; who has the volume still after it has not begun to give it up. */
const AT_ONCE_MS = 1000;
/** So long an owner elsewhere is waited for in all (design xapi.md 9.2). */
const HANDOVER_MS = 30_000;

/**
 * A guest boots: of a disk that is reset on boot everything goes that was written since. Its last guest may have ended with
 * its host: then the disk is taken from there first, as an activation would.
 */
const epochBegin: Command = async (context) => {
  if (context.call.onBoot !== "reset") return null;
  const vdi = await found(context);
  if (vdi.readOnly) return null;
  try {
    await context.agent.resetVdi(vdi.uuid);
  } catch (error) {
    // It can't go back while another host has it, nor be marked while that one's agent is away.
    if (!isWeftError(error, "E-VOL-12") && !isWeftError(error, "E-HOST-09")) throw error;
    await opened(context, vdi.uuid, true);
    await context.agent.resetVdi(vdi.uuid);
  }
  return null;
};

const epochEnd: Command = async () => null;

const attach: Command = async (context) => {
  const { call, datapath } = context;
  const writable = flagArg(call, 0, "writable");
  refuseUnusable(await found(context), writable);
  const { params, paramsNbd, xenstoreData } = await datapath.attach({ ...diskOf(context), writable });
  return {
    // Without the member XAPI goes by the socket; an empty one would be a path to it.
    ...(params === null ? {} : { params }),
    params_nbd: paramsNbd,
    o_direct: true,
    // Why reads are not cached in dom0.
    o_direct_reason: "SR_NOT_SUPPORTED",
    xenstore_data: xenstoreData,
  };
};

const activate: Command = async (context) => {
  const { call, datapath } = context;
  const writable = flagArg(call, 0, "writable");
  const vdi = await found(context);
  refuseUnusable(vdi, writable);
  // What is written from now on must stay.
  if (writable) await dropMarkIfPersisting(context, vdi);
  const { path: exportPath, ...open } = await opened(context, vdi.uuid, writable);
  try {
    await datapath.activate({ ...diskOf(context), ...open, writable, exportPath });
  } catch (error) {
    await givenUp(context);
    throw error;
  }
  return null;
};

/**
 * No device was made of it: it is nobody's again, so that the host that its guest migrates from has it back at once, and needs
 * not wait for XAPI's detach. A guest that has it here keeps it.
 */
async function givenUp(context: SmContext): Promise<void> {
  const { datapath, log } = context;
  const disk = diskOf(context);
  try {
    const users = await datapath.users();
    if (users.some(({ vdi, connected }) => vdi === disk.vdi && connected)) return;
    await datapath.deactivate(disk);
    await closed(context);
  } catch (error) {
    log.warn(
      { ...disk, reason: reasonOf(error) },
      "a disk that was not activated stays open until its detach",
    );
  }
}

const deactivate: Command = async (context) => {
  await context.datapath.deactivate(diskOf(context));
  await closed(context);
  return null;
};

const detach: Command = async (context) => {
  const { datapath } = context;
  const disk = diskOf(context);
  await datapath.deactivate(disk);
  await closed(context);
  await datapath.detach(disk);
  return null;
};

export const plugCommands: Commands = {
  vdi_epoch_begin: epochBegin,
  vdi_epoch_end: epochEnd,
  vdi_attach: attach,
  vdi_activate: activate,
  vdi_deactivate: deactivate,
  vdi_detach: detach,
};

/** The volume on this host. What XAPI knows of dead hosts is asked for only where somebody else has it. */
async function opened(context: SmContext, uuid: string, writable: boolean): Promise<VdiActivated> {
  const { agent } = context;
  try {
    return await agent.activateVdi(uuid, { writable, deadHosts: [], waitMs: AT_ONCE_MS });
  } catch (error) {
    if (!isWeftError(error, "E-VDI-04")) throw error;
  }
  const deadHosts = await hostsThatAreDead(context);
  return agent.activateVdi(uuid, { writable, deadHosts, waitMs: HANDOVER_MS - AT_ONCE_MS });
}

async function closed({ agent, call }: SmContext): Promise<void> {
  try {
    await agent.deactivateVdi(vdiOf(call).uuid);
  } catch (error) {
    if (!isWeftError(error, "E-VDI-01")) throw error;
  }
}

/** Those that XAPI says are. Where it doesn't answer there are none: then the owner is waited for. */
async function hostsThatAreDead({ xapi, log }: SmContext): Promise<string[]> {
  try {
    const hosts = await hostsByLiveness(xapi);
    return hosts.filter(({ live }) => !live).map(({ uuid }) => uuid);
  } catch (error) {
    log.warn({ reason: reasonOf(error) }, "XAPI does not say which hosts are dead");
    return [];
  }
}

/** In the SR that XAPI says it is in. */
async function found({ agent, call }: SmContext): Promise<VdiAnswer> {
  const sr = srOf(call);
  const vdi = await agent.vdi(vdiOf(call).uuid);
  if (vdi.sr === sr.uuid) return vdi;
  throw new SmFault(faultCodes.vdiMissing, `The disk ${vdi.uuid} is in the SR ${vdi.sr}, not in ${sr.uuid}.`);
}

function diskOf({ call }: SmContext): DatapathVdi {
  return { sr: srOf(call).uuid, vdi: vdiOf(call).uuid };
}

function refuseUnusable(
  { uuid, dataDestroyed, readOnly, whole, isSnapshot }: VdiAnswer,
  writable: boolean,
): void {
  if (dataDestroyed)
    throw new SmFault(
      faultCodes.vdiUnavailable,
      `The data of the snapshot ${uuid} was destroyed; it only tells what has changed since.`,
      "read a snapshot that has its data: xe vdi-list type=user",
    );
  if (!whole)
    throw new SmFault(
      faultCodes.vdiUnavailable,
      `The disk ${uuid} is still being made.`,
      "try again in a moment; weft status says what it waits for",
    );
  if (writable && readOnly)
    throw new SmFault(
      faultCodes.vdiUnavailable,
      `The disk ${uuid} is ${isSnapshot ? "a snapshot" : "read-only"} and can't be attached for writing.`,
      isSnapshot ? "make a disk of it: xe vdi-clone uuid=…" : "attach it read-only: xe vbd-create mode=RO …",
    );
}
