/**
 * The mark that a disk with on-boot reset goes back to at each boot, and when it is dropped.
 *
 * Must always hold: XAPI tells a driver nothing when a disk is to persist again. So a call that says of a disk that it persists ends
 * what an earlier reset has marked: a later reset begins with what the disk is then, also where no guest booted in between, since
 * XAPI clones a disk before it says that it is reset (`set_persistent` of its storage_smapiv1.ml), and calls it persistent there.
 */
import type { VdiAnswer } from "../core/wire/sr-api.ts";
import type { SmContext } from "./call.ts";

/** `vdi`: the call's, as it was looked at for this call. */
export async function dropMarkIfPersisting(
  { call, agent }: Pick<SmContext, "call" | "agent">,
  { uuid, resets }: Pick<VdiAnswer, "uuid" | "resets">,
): Promise<void> {
  if (call.onBoot === "persist" && resets) await agent.resetVdi(uuid, false);
}
