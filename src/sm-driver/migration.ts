/**
 * XAPI moves a running VM's disk from one storage repository to another (its storage_smapiv1_migrate.ml), and what it asks of the SR
 * that the disk leaves, and of the one that it comes to:
 *
 *     to:    create leaf ─▶ snapshot it (a dummy) ─▶ attach, activate leaf ◀─ writes of the guest from now on
 *            create or clone parent ◀─ what the disk was ─▶ deactivate, detach leaf ─▶ compose(parent, leaf) ─▶ delete dummy
 *     from:  snapshot with mirror=nbd:NAME (mirrored-snapshot.ts) ─▶ read it ─▶ delete it ─▶ deactivate, detach, delete
 *            given up: snapshot with mirror=null, delete it
 *
 * Must always hold:
 * - leaf knows from before its first write which sectors were written: its dummy is taken of a disk that nobody has opened, and of no
 *   other one: the migration fails then, at its begin;
 * - a leaf that its parent was not laid under is half a disk, and nobody gets it (E-VDI-08 of the agent): XAPI goes on where compose
 *   fails, as if it had not;
 * - done again, each of them finds what the first one did.
 */
import type { VdiAnswer } from "../core/wire/sr-api.ts";
import { argOf, type Command, shown, type SmContext, vdiOf } from "./call.ts";
import { faultCodes, SmFault } from "./faults.ts";
import { tellSrSizes, tellVdiSizes, uuidOfVdi } from "./vdi-record.ts";
import { forgetVdi, vdiRef } from "./xapi-records.ts";

/** XAPI's key of a disk that is on its way. */
const BASE_MIRROR = "base_mirror";

/**
 * Of a disk that XAPI has just made to be written while what was before is copied elsewhere: that is when it snapshots it first. One that
 * can't be a layer any more is refused here, where the source has all of it and the guest is there.
 */
export async function makeLayer(
  { call, agent }: SmContext,
  {
    uuid,
    untouched,
    layer,
    composedFrom,
    snapshot,
  }: Pick<VdiAnswer, "uuid" | "untouched" | "layer" | "composedFrom" | "snapshot">,
): Promise<void> {
  if (!call.driverParams.has(BASE_MIRROR) || snapshot !== null || layer) return;
  // XAPI may not have come to taking its key away from one that was migrated.
  if (composedFrom !== null) return;
  if (untouched) {
    await agent.layerVdi(uuid);
    return;
  }
  throw new SmFault(
    faultCodes.vdiSnapshot,
    `The disk ${uuid} was opened before its first snapshot, and can't be the leaf of a migration: what is written to it from now on could not be told from what was there.`,
    `Nothing was lost: migrate the VM again. If no migration runs: xe vdi-param-remove uuid=${uuid} param-name=sm-config param-key=${BASE_MIRROR}`,
  );
}

/** The call is about the leaf, which stays; its argument is the parent, which becomes a part of it. */
export const compose: Command = async (context) => {
  const { call, agent, xapi } = context;
  const { ref, uuid } = vdiOf(call);
  const named = argOf(call, 0, "vdi1");
  const parent = await uuidOfVdi(context, named);
  const vdi = parent === null ? await composed(context, named) : await agent.composeVdi(uuid, parent);
  const parentRef = parent === null ? null : await vdiRef(xapi, parent);
  if (parentRef !== null) await forgetVdi(xapi, parentRef);
  await tellVdiSizes(context, ref, vdi);
  await tellSrSizes(context);
  return null;
};

/** The parent's record goes last: where it is gone all was done before. */
async function composed({ call, agent }: SmContext, named: string): Promise<VdiAnswer> {
  const vdi = await agent.vdi(vdiOf(call).uuid);
  if (vdi.composedFrom !== null) return vdi;
  throw new SmFault(faultCodes.vdiMissing, `vdi_compose: "${shown(named)}" is no VDI of XAPI's.`);
}
