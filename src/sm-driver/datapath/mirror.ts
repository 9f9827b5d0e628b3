/**
 * A tapdisk that writes all to a second place too, from a moment on at which its disk was taken: how XAPI moves a running VM's disk to
 * another storage repository.
 *
 *     pause ─▶ work (the snapshot) ─▶ unpause -2 nbd:NAME ─▶ stats: is it there?
 *
 * NAME is a connection that XAPI has handed to the tapdisk before; `null` ends it. What blktap does with it decides the rest
 * (drivers/tapdisk-vbd.c, block-nbd.c; tried with its tapdisk 4.0.8, and 3.55 has the same lines):
 * - from the first `-2` on it opens its own disk, too, as if that were the second place, at each time that it opens anew, and one that is
 *   `nbd:` then answers every read with zeroes. Named in a file (`x-chain:FILE`) it is opened as the file says. So who was told `-2`
 *   once is unpaused with the file's name alone, until it ends. That it was told it keeps also where it refuses (it was not paused), and
 *   then its name stays the one of before: so the file is there before the first `-2`, and counts, not the name that tap-ctl lists;
 * - where the second place is of another size it goes on without one, and says that all is well;
 * - where it can't be opened it goes on as well, and XAPI learns it from its stats.
 *
 * Must always hold:
 * - whatever fails, the guest goes on: nothing stays paused, and nothing is read from anywhere but its disk;
 * - who is told that it is mirrored has every write from the end of `work` on in both places, or in the tapdisk's stats that it failed.
 */
import { access, mkdir, rename, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";

import { faultCodes, SmFault } from "../faults.ts";
import type { TapCtl, Tapdisk } from "./tap-ctl.ts";

/** tapdisk's word for no second place. */
export const NO_MIRROR = "null";
const CHAIN = "x-chain:";

export type MirroredTapdisk = {
  readonly tapCtl: TapCtl;
  readonly tapdisk: Tapdisk;
  /** What it is opened as from now on: never `nbd:`. */
  readonly args: string;
  /** Ends with the tapdisk going on, at once or later. */
  readonly pause: () => Promise<void>;
  readonly wake: () => void;
};

/** What `work` answers; where that fails nothing is mirrored that was not before. */
export async function mirroredTapdisk<T>(
  { tapCtl, tapdisk, args, pause, wake }: MirroredTapdisk,
  mirror: string,
  work: () => Promise<T>,
): Promise<T> {
  await pause();
  const goOn = async (): Promise<void> => {
    await tapCtl.unpause({ ...tapdisk, args }).catch(wake);
  };
  let done: T;
  try {
    done = await work();
  } catch (error) {
    await goOn();
    throw error;
  }
  try {
    await tapCtl.unpause({ ...tapdisk, args }, mirror);
  } catch (error) {
    await goOn();
    throw error;
  }
  if (mirror !== NO_MIRROR) await refuseUnlessMirrored(tapCtl, tapdisk);
  return done;
}

async function refuseUnlessMirrored(tapCtl: TapCtl, tapdisk: Tapdisk): Promise<void> {
  const { images, nbd_mirror_failed: failed } = await tapCtl.stats(tapdisk);
  if (images.length > 1 && failed === 0) return;
  throw new SmFault(
    faultCodes.vdiSnapshot,
    failed === 0
      ? "The tapdisk goes on without a mirror: what it was to mirror to has not the size of its disk."
      : "The tapdisk could not open what it was to mirror to.",
    failed === 0
      ? "a disk that has grown under its guest is migrated after the VM's next start; the other SR may round sizes up: then migrate the VM while it is halted"
      : "the guest goes on; migrate it again",
  );
}

/** The name for a tapdisk of what is named in that file. */
export function chainOf(path: string): string {
  return `${CHAIN}${path}`;
}

/** The holder's socket that a tapdisk of these arguments has open, whichever way it is named; null: it has none. */
export function socketOf(args: string): string | null {
  if (args.startsWith("nbd:/")) return args.slice("nbd:".length);
  return args.startsWith(`${CHAIN}/`) ? args.slice(CHAIN.length).replace(/\.chain$/, ".sock") : null;
}

/**
 * A tapdisk that is paused goes on with what it mirrors, or without: by its chain's name from the moment on at which there is one. The only
 * way to unpause one that may have been told of a second place.
 */
export async function letGoOn(tapCtl: TapCtl, tapdisk: Tapdisk): Promise<void> {
  const chain = socketOf(tapdisk.args)?.replace(/\.sock$/, ".chain");
  const isChained = chain !== undefined && (await hasChain(chain));
  await tapCtl.unpause(isChained ? { ...tapdisk, args: chainOf(chain) } : tapdisk);
}

/** It mirrors, or may have been told to. */
export async function hasChain(path: string): Promise<boolean> {
  try {
    await access(path);
    return true;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return false;
    throw error;
  }
}

/** Of one disk; there whole, or not at all. */
export async function writeChain(path: string, image: string, writable: boolean): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(`${path}~`, `${image}${writable ? "" : " ro"}\n`);
  await rename(`${path}~`, path);
}

export async function removeChain(path: string): Promise<void> {
  await rm(path, { force: true });
}
