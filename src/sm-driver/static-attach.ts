/**
 * What XAPI's high availability keeps of a VDI so that a host can attach it before XAPI, this agent or anything of ours but weftd
 * is up: the text of a call, that the stub answers by asking weftd itself (packaging/sm/WeftSR).
 *
 * Must always hold:
 * - the text has all that is needed then, and no secret: it lies in a file in /etc;
 * - a disk that all hosts write at once is refused: an ordinary volume has one owner, and HA would fence hosts for it.
 */
import type { Commands, SmContext } from "./call.ts";
import { srOf, vdiOf } from "./call.ts";
import { faultCodes, SmFault } from "./faults.ts";
import { renderCall } from "./xml.ts";

export const staticCommands: Commands = {
  vdi_generate_config: generateConfig,
};

async function generateConfig({ call, agent }: SmContext): Promise<string> {
  const { uuid: sr } = srOf(call);
  const { uuid: vdi } = vdiOf(call);
  const { type, volume } = await agent.vdi(vdi);
  if (type === "ha_statefile") {
    throw new SmFault(
      faultCodes.notImplemented,
      "A disk for HA's statefile is written by all hosts at once, which this storage does not offer yet.",
      "use another SR for HA's heartbeat",
    );
  }
  const command = "vdi_attach_from_config";
  return renderCall(command, [
    {
      device_config: Object.fromEntries(call.deviceConfig),
      sr_uuid: sr,
      vdi_uuid: vdi,
      sr_sm_config: {},
      command,
      // weftd knows volumes alone, and one that was composed is another than its own.
      vdi_path: volume,
    },
  ]);
}
