/**
 * Tells this host's guests' devices that their disks have grown, by whichever door and on whichever host that was asked.
 *
 *     a volume's record changes ─▶ is it a disk that a guest here has, and that its device knows as smaller? ─▶ the device is told
 *
 * Must always hold:
 * - nothing is asked for while no volume's record changes: the store's watch says when;
 * - a device that can't be told now is told later; one that doesn't take it is not asked again for that size: its guest sees it when
 *   the disk is activated next.
 */
import { isWeftError, reasonOf } from "../wire/errors.ts";
import { parseKey } from "../wire/store-keys.ts";
import { readable } from "./facts.ts";
import type { Log } from "./log.ts";
import type { Changed, Mirror } from "./mirror.ts";
import { Rounds } from "./rounds.ts";
import { vdiOf } from "./sr-facts.ts";

/** A guest's disk. */
export type GuestDisk = { readonly sr: string; readonly vdi: string };

/** How guests' devices are made on this host. */
export type DeviceSizes = {
  /** Disks that guests here have, with the sizes that their devices know, in bytes; null: not known, or it never grows. */
  readonly list: () => Promise<readonly { readonly vdi: string; readonly size: bigint | null }[]>;
  /** The disk has this size. False: its device takes no other while it serves its guest. What it throws is tried again. */
  readonly grow: (disk: GuestDisk, size: bigint) => Promise<boolean>;
};

export type SizeKeeperOptions = {
  readonly mirror: Mirror;
  readonly devices: DeviceSizes;
  readonly log: Log;
  /** Between two tries. */
  readonly againMs?: number;
};

const AGAIN_MS = 1000;
/** It is doubled up to this. */
const AGAIN_MS_MAX = 60_000;

export class SizeKeeper {
  readonly #options: SizeKeeperOptions;
  readonly #firstMs: number;
  readonly #rounds: Rounds;
  /** By disk: the size that its device did not take. */
  readonly #refused = new Map<string, bigint>();
  #forget: (() => void) | null = null;
  #timer: NodeJS.Timeout | null = null;
  #againMs: number;

  constructor(options: SizeKeeperOptions) {
    this.#options = options;
    this.#firstMs = options.againMs ?? AGAIN_MS;
    this.#againMs = this.#firstMs;
    this.#rounds = new Rounds("sizes", options.log, () => this.#look());
  }

  start(): void {
    this.#forget ??= this.#options.mirror.onChange((changed) => {
      if (isAboutRecords(changed)) this.#nudge();
    });
    // What grew while no agent ran.
    this.#nudge();
  }

  stop(): void {
    this.#forget?.();
    this.#forget = null;
    if (this.#timer !== null) clearTimeout(this.#timer);
  }

  #nudge(): void {
    if (this.#forget !== null) void this.#rounds.settle();
  }

  async #look(): Promise<void> {
    const { devices, log } = this.#options;
    let isDone = true;
    try {
      const disks = await devices.list();
      const here = new Set(disks.map(({ vdi }) => vdi));
      for (const vdi of this.#refused.keys()) if (!here.has(vdi)) this.#refused.delete(vdi);
      for (const disk of disks) isDone = (await this.#tell(disk)) && isDone;
    } catch (error) {
      isDone = false;
      log.debug({ reason: reasonOf(error) }, "which guests are here is asked again");
    }
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    if (isDone) {
      this.#againMs = this.#firstMs;
      return;
    }
    this.#timer = setTimeout(() => this.#nudge(), this.#againMs).unref();
    this.#againMs = Math.min(2 * this.#againMs, AGAIN_MS_MAX);
  }

  /** False: it is tried again. */
  async #tell({
    vdi,
    size: known,
  }: {
    readonly vdi: string;
    readonly size: bigint | null;
  }): Promise<boolean> {
    const { mirror, devices, log } = this.#options;
    const facts = readable(() => vdiOf(mirror, vdi));
    const size = facts?.vdi.snapshot === null ? (facts.record?.sizeBytes ?? null) : null;
    if (facts === null || size === null || known === null || known >= size) return true;
    if (this.#refused.get(vdi) === size) return true;
    const what = { vdi, bytes: String(size), knows: String(known) };
    try {
      const isTaken = await devices.grow({ sr: facts.vdi.sr, vdi }, size);
      if (!isTaken) this.#refused.set(vdi, size);
      log.info(
        what,
        isTaken
          ? "a guest's disk has grown"
          : "a guest's disk has grown; it sees that when it is activated next",
      );
      return true;
    } catch (error) {
      const reason = isWeftError(error) ? error.message : reasonOf(error);
      log.warn({ ...what, reason }, "a guest's disk has grown, and its device is told again");
      return false;
    }
  }
}

function isAboutRecords(changed: Changed): boolean {
  return changed === null || [...changed].some((key) => parseKey(key)?.kind === "state");
}
