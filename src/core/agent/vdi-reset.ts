/**
 * Disks that go back at each boot of their guest (XAPI's on-boot reset).
 *
 * Must always hold: a disk that was given another size by weft's own command boots. What it was marked with has the size of before, and
 * isn't gone back to: what the disk is then is what later boots go back to. Nothing is lost by that, and nobody but its operator does it:
 * XAPI's resize takes a disk back first (vdis.ts).
 */
import type { SnapshotId } from "../model/ids.ts";
import { keys } from "../wire/store-keys.ts";
import { closeUnused } from "./activation.ts";
import type { MemberContext } from "./context.ts";
import { revertVolume } from "./revert.ts";
import { readSnapshot } from "./facts.ts";
import { findVdi, type VdiFacts, wholeDisk } from "./sr-facts.ts";
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
  else if (mark === null && resetTo !== null && canGoBack(context, facts, resetTo))
    await revertVolume(context, resetTo);
  else await nameHelper(context, facts, "resetTo");
}

function canGoBack(
  { mirror, log }: Pick<MemberContext, "mirror" | "log">,
  { vdi: { uuid, volume }, record }: VdiFacts,
  mark: SnapshotId,
): boolean {
  const entry = mirror.get(keys.snapshot(volume, mark));
  if (entry === null) return false;
  const [is, was] = [record?.sizeBytes, readSnapshot(entry).sizeBytes];
  if (is === was) return true;
  log.warn(
    { vdi: uuid, bytes: String(is), marked: String(was) },
    "a disk has another size than it goes back to, and is marked anew",
  );
  return false;
}
