/**
 * XAPI's commands about changed blocks (design xapi.md 2.4), by which backups read only what is new.
 *
 * Must always hold: what a volume's copies know of changed blocks doesn't depend on whether XAPI has asked for it; the flag
 * is XAPI's, kept for it. A snapshot's data is destroyed only where the flag says that somebody wants what stays.
 */
import { argOf, type Command, type Commands, shown, vdiOf } from "./call.ts";
import { faultCodes, SmFault } from "./faults.ts";
import { dropMarkIfPersisting } from "./reset-mark.ts";
import { tellVdiSizes, uuidOfVdi } from "./vdi-record.ts";

/** XAPI notes the flag itself when this has worked. */
const setTo =
  (cbt: boolean): Command =>
  async (context) => {
    const { call, agent } = context;
    const vdi = await agent.vdi(vdiOf(call).uuid);
    await dropMarkIfPersisting(context, vdi);
    if (vdi.cbt !== cbt) await agent.changeVdi(vdi.uuid, { cbt });
    return null;
  };

/** XAPI has called it `cbt_metadata` already; the store does when its data is gone. */
const destroyData: Command = async (context) => {
  const { call, agent } = context;
  const { ref, uuid } = vdiOf(call);
  const { snapshot, cbt } = await agent.vdi(uuid);
  if (snapshot === null || !cbt)
    throw new SmFault(
      faultCodes.cbtFailed,
      `The data of ${uuid} is not destroyed: ${snapshot === null ? "it is no snapshot" : "changed blocks are not tracked for it"}.`,
      "only a snapshot that was taken while changed blocks were tracked can do without its data: xe vdi-enable-cbt uuid=…",
    );
  await agent.destroyVdiData(uuid);
  await tellVdiSizes(context, ref, await agent.changeVdi(uuid, { type: "cbt_metadata" }));
  return null;
};

/** The call is about the older one. One bit for 64 KiB, the highest bit of each byte first, to the end of the other. */
const listChanged: Command = async (context) => {
  const { call, agent } = context;
  const { uuid: since } = vdiOf(call);
  const ref = argOf(call, 0, "vdi_to");
  const uuid = await uuidOfVdi(context, ref);
  if (uuid === null)
    throw new SmFault(faultCodes.vdiMissing, `The VDI to compare with, ${shown(ref)}, is not known to XAPI.`);
  const { bitmap } = await agent.changedVdiBlocks(uuid, since);
  return bitmap;
};

export const cbtCommands: Commands = {
  vdi_enable_cbt: setTo(true),
  vdi_disable_cbt: setTo(false),
  vdi_data_destroy: destroyData,
  vdi_list_changed_blocks: listChanged,
};
