/**
 * What is done to a device: formatted, mounted, unmounted, erased.
 *
 * Must always hold: whoever calls has judged the device; each of these fails where the kernel says that another has it.
 */
import { constants, mkdir, rmdir } from "node:fs/promises";

import { edgesAt, withDevice } from "./disks.ts";
import { needTool } from "./tool.ts";

/** Of a large and slow disk. */
const FORMAT_MS = 300_000;
/** A log that is replayed. */
const MOUNT_MS = 300_000;
const ERASE_MS = 60_000;
/** weftd's threads let go of a pool's files within this; asked this often. */
const UNMOUNT_MS = 5000;
const UNMOUNT_PAUSE_MS = 50;

/**
 * Kernel 4.19 (XCP-ng) mounts no `bigtime` and no `inobtcount`; `rmapbt` makes every reflink two to three times dearer. Not
 * discarded (`-K`): that takes minutes on some disks. Without `-f`, so that mkfs refuses too if anything is there after all.
 */
export async function formatDevice(path: string, id: string): Promise<void> {
  const features = `reflink=1,bigtime=0,inobtcount=0,rmapbt=0,uuid=${id}`;
  await needTool("mkfs.xfs", ["-q", "-K", "-m", features, "-L", labelOf(id), path], FORMAT_MS);
}

/** Of at most 12 characters. */
export function labelOf(id: string): string {
  return `weft-${id.slice(0, 6)}`;
}

export async function mountDevice(path: string, at: string): Promise<void> {
  await mkdir(at, { recursive: true, mode: 0o700 });
  await needTool("mount", ["-t", "xfs", "-o", "noatime,nodev,nosuid,noexec", path, at], MOUNT_MS);
}

/** For a look at what is on it. */
export async function mountToRead(path: string, at: string): Promise<void> {
  await mkdir(at, { recursive: true, mode: 0o700 });
  await needTool("mount", ["-t", "xfs", "-o", "ro,nodev,nosuid,noexec", path, at], MOUNT_MS);
}

/** Tried for a few seconds: the kernel ends with files a moment after who had them open. */
export async function unmountDevice(at: string): Promise<void> {
  const end = performance.now() + UNMOUNT_MS;
  for (;;) {
    try {
      await needTool("umount", [at], MOUNT_MS);
      await rmdir(at).catch(() => undefined);
      return;
    } catch (error) {
      if (performance.now() > end) throw error;
      await new Promise((resolve) => setTimeout(resolve, UNMOUNT_PAUSE_MS));
    }
  }
}

/** The mount point of a pool that is nowhere any more. */
export async function removeMountPoint(at: string): Promise<void> {
  await rmdir(at).catch(() => undefined);
}

/** Every signature that is known, on the partitions first; then the places where signatures stand. */
export async function eraseDevice(
  path: string,
  sizeBytes: bigint,
  partitions: readonly string[],
): Promise<void> {
  for (const device of [...partitions, path])
    await needTool("wipefs", ["--all", "--quiet", device], ERASE_MS);
  await clearEdges(path, sizeBytes);
}

/** Zeroes in the first and last MiB, on stable media. */
export async function clearEdges(path: string, sizeBytes: bigint): Promise<void> {
  await withDevice(path, constants.O_RDWR | constants.O_EXCL, async (device) => {
    const [first = 0, last = 0] = edgesAt(sizeBytes);
    const zeroes = new Uint8Array(Math.min(1 << 20, Number(sizeBytes)));
    // The end first: what begins the device says what it is, until it is gone.
    for (const at of [last, first]) await device.write(zeroes, 0, zeroes.length, at);
    await device.sync();
  });
}
