/** Disks that go back at each boot of their guest (XAPI's on-boot reset). */
import { keys } from "../wire/store-keys.ts";
import { closeUnused } from "./activation.ts";
import type { MemberContext } from "./context.ts";
import { revertVolume } from "./revert.ts";
import { findVdi, wholeDisk } from "./sr-facts.ts";
import { dropHelper, nameHelper } from "./vdi-helpers.ts";

/**
 * What is written after a mark goes with the next reset. The mark is a snapshot that only the disk's key names; it is taken
 * before it is named, and the one before it goes after. What a guest here left open whose host was started anew is closed.
 */
export async function resetVdi(context: MemberContext, uuid: string, mark: boolean | null): Promise<void> {
  const { mirror } = context;
  await mirror.sync();
  const facts = wholeDisk(findVdi(mirror, uuid));
  const { resetTo } = facts.vdi;
  if (mark === null) await closeUnused(context, facts);
  if (mark === false) await dropHelper(context, uuid, "resetTo");
  else if (mark === null && resetTo !== null && mirror.get(keys.snapshot(facts.vdi.volume, resetTo)) !== null)
    await revertVolume(context, resetTo);
  else await nameHelper(context, facts, "resetTo");
}
