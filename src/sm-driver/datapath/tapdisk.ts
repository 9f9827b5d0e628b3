/**
 * A guest's disk by tapdisk over the holder's socket:
 *
 *     guest ─ blkif ─▶ tapdisk ─ NBD ─▶ weft-holder ─ NBD ─▶ weftd
 *
 * Must always hold:
 * - what is there is found again from `tap-ctl list` and the holder's list; there is no file that could say otherwise;
 * - a tapdisk whose connection is not the holder's of now is dead and goes: a disk that failed once stays failed;
 * - one that mirrors, or did once, is opened by its chain's name alone (mirror.ts), which stays until it ends;
 * - a tapdisk that was asked to pause is woken, also where that took too long: it pauses as soon as its last request is answered. One
 *   that goes on is left alone: whatever pauses it next lets it go on, and nobody else does meanwhile (turns.ts);
 * - a tapdisk that was paused is told the size that it knows, unless it is asked to take another (grow.ts): it would stay paused;
 * - a tapdisk is gone before its entry at the holder is, unless it doesn't end: then its requests are given up.
 */
import { basename, dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { isWeftError } from "../../core/wire/errors.ts";
import { type HolderClient, isNoHolder } from "../../core/wire/holder-client.ts";
import type { HolderEntry } from "../../core/wire/holder.gen.ts";
import type { Log } from "../call.ts";
import { faultCodes, SmFault } from "../faults.ts";
import type { Activation, Attached, Datapath, DatapathUser, DatapathVdi } from "./datapath.ts";
import { DiskLinks, isThere } from "./disk-links.ts";
import { growTapdisk, isOtherSize } from "./grow.ts";
import { chainOf, hasChain, letGoOn, mirroredTapdisk, removeChain, writeChain } from "./mirror.ts";
import { TapCtl, type Tapdisk } from "./tap-ctl.ts";
import { Turns } from "./turns.ts";

/** So often one is looked at that was to pause and did not; so long it is. */
const WAKE_MS = 1000;
const WAKE_FOR_MS = 600_000;
/** See {@link TapdiskOptions.closeSeconds}. */
const CLOSE_S = 10;

export type TapdiskOptions = {
  readonly runDir: string;
  /** Put before dom0's paths; empty: none. */
  readonly dom0Root: string;
  readonly holder: HolderClient;
  readonly log: Log;
  /** Disks are begun and ended in it: the holder is restarted while none is. */
  readonly turns?: Turns;
  /** What a tapdisk may take to answer what it has; after that its requests are given up. */
  readonly closeSeconds?: number;
  /** What a command of tap-ctl may take. */
  readonly commandMs?: number;
};

export class TapdiskDatapath implements Datapath {
  readonly #options: TapdiskOptions;
  readonly #tapCtl: TapCtl;
  readonly #links: DiskLinks;
  readonly #closeSeconds: number;
  /** By disk: the size that its tapdisk did not take. */
  readonly #refused = new Map<string, bigint>();
  readonly #turns: Turns;

  constructor(options: TapdiskOptions) {
    this.#options = options;
    this.#closeSeconds = options.closeSeconds ?? CLOSE_S;
    this.#turns = options.turns ?? new Turns();
    this.#tapCtl = new TapCtl(`${options.dom0Root}/usr/sbin/tap-ctl`, options.commandMs);
    this.#links = new DiskLinks(options.dom0Root);
  }

  async attach(vdi: DatapathVdi): Promise<Attached> {
    return this.#links.attached(vdi);
  }

  async activate(vdi: DatapathVdi & Activation): Promise<void> {
    return this.#turns.ofDisk(vdi.vdi, () => this.#activate(vdi));
  }

  async #activate(vdi: DatapathVdi & Activation): Promise<void> {
    const offer = {
      id: vdi.vdi,
      listen: this.#socket(vdi),
      volume: vdi.volume,
      session: vdi.session,
      snapshot: vdi.snapshot,
      writable: vdi.writable,
    };
    try {
      await this.#options.holder.call("open", offer);
    } catch (error) {
      if (!isWeftError(error, "E-HOLD-02")) throw error;
      // Offered in another way: what has it open is of an earlier activation.
      await this.#deactivate(vdi);
      await this.#options.holder.call("open", offer);
    }
    const [found, entry] = await Promise.all([this.#tapdisk(vdi), this.#entry(vdi)]);
    let tapdisk = found;
    if (tapdisk?.isPaused === true) await letGoOn(this.#tapCtl, tapdisk);
    else if (tapdisk !== null && entry?.connected !== true) {
      await this.#tapCtl.destroy(tapdisk, this.#closeSeconds);
      tapdisk = null;
    }
    if (tapdisk === null) {
      // It has been told nothing; what there is of one is of a tapdisk that ended.
      await removeChain(this.#chain(vdi));
      const toldNode = await this.#links.hasNodes();
      const { hasNode } = await this.#tapCtl.create(`nbd:${offer.listen}`, vdi.writable);
      tapdisk = await this.#tapdisk(vdi);
      // Blktap 4 where the kernel has blktap 3's module: what attach said isn't there. From now on hasNodes knows.
      if (toldNode && !hasNode) {
        await this.#deactivate(vdi);
        throw new SmFault(
          faultCodes.tapdiskFailed,
          "The tapdisks of this host have no block devices, which was not known when the disk was attached.",
          "the next try does it: start the VM again",
        );
      }
    }
    if (tapdisk === null)
      throw new SmFault(faultCodes.tapdiskFailed, "The tapdisk that was made is not there any more.");
    await this.#links.link(vdi, tapdisk);
  }

  async deactivate(vdi: DatapathVdi): Promise<void> {
    return this.#turns.shared(() => this.#deactivate(vdi));
  }

  async #deactivate(vdi: DatapathVdi): Promise<void> {
    const { log } = this.#options;
    const tapdisk = await this.#tapdisk(vdi);
    try {
      if (tapdisk !== null) await this.#tapCtl.destroy(tapdisk, this.#closeSeconds);
    } catch (error) {
      // It waits for answers that don't come: they are given up, and it sees its socket closed. No guest is told: XAPI
      // deactivates a disk whose device is unplugged; one that migrates asks again at its destination, and a VM that was
      // destroyed while weftd is away has to be cleaned up.
      log.warn({ vdi: vdi.vdi, error: String(error) }, "a tapdisk does not end; its requests are given up");
      await this.#close(vdi);
      const left = await this.#tapdisk(vdi);
      if (left !== null) await this.#tapCtl.destroy(left, this.#closeSeconds);
    }
    await this.#close(vdi);
    this.#refused.delete(vdi.vdi);
    await removeChain(this.#chain(vdi));
    await this.#links.unlink(vdi);
  }

  async detach(vdi: DatapathVdi): Promise<void> {
    await this.#links.unlink(vdi);
  }

  /** `isOffered`: not before the holder has it, which may itself be starting again. */
  async #wake(vdi: DatapathVdi, isOffered = false): Promise<void> {
    const { log } = this.#options;
    const end = performance.now() + WAKE_FOR_MS;
    let next: "before" | "now" = "before";
    const look = async (): Promise<boolean> => {
      try {
        return await this.#isAwake(vdi, isOffered);
      } catch (error) {
        log.warn({ vdi: vdi.vdi, error: String(error) }, "a tapdisk that may be paused is looked at again");
        if (!isOtherSize(error)) return false;
        // Somebody ended while it was asked to take another size, before or after it did.
        await this.#options.holder.call("tell_size", { id: vdi.vdi, size: next }).catch(() => undefined);
        next = next === "before" ? "now" : "before";
        return false;
      }
    };
    while (performance.now() < end) {
      await delay(WAKE_MS, undefined, { ref: false });
      if (await this.#turns.ofDisk(vdi.vdi, look)) return;
    }
  }

  /** False: it is to be looked at again. One that is asked to pause shows that until it is paused. */
  async #isAwake(vdi: DatapathVdi, isOffered: boolean): Promise<boolean> {
    const tapdisk = await this.#tapdisk(vdi);
    if (tapdisk === null || !(tapdisk.isPaused || tapdisk.isPausing)) return true;
    if (!tapdisk.isPaused || (isOffered && (await this.#entry(vdi)) === null)) return false;
    await letGoOn(this.#tapCtl, tapdisk);
    this.#options.log.info({ vdi: vdi.vdi }, "a tapdisk that paused late goes on");
    return true;
  }

  async pause(vdi: DatapathVdi): Promise<void> {
    const tapdisk = await this.#tapdisk(vdi);
    if (tapdisk === null || tapdisk.isPaused) return;
    try {
      await this.#tapCtl.pause(tapdisk);
    } catch (error) {
      // Nobody else would: its guest's disk would stand still for ever.
      void this.#wake(vdi);
      throw error;
    }
  }

  async unpause(vdi: DatapathVdi): Promise<void> {
    const tapdisk = await this.#tapdisk(vdi);
    if (tapdisk?.isPaused === true) await letGoOn(this.#tapCtl, tapdisk);
  }

  mirrored<T>(vdi: DatapathVdi, mirror: string, work: () => Promise<T>): Promise<T> {
    return this.#turns.ofDisk(vdi.vdi, () => this.#mirrored(vdi, mirror, work));
  }

  resized(vdi: DatapathVdi, size: bigint): Promise<boolean> {
    return this.#turns.ofDisk(vdi.vdi, () => this.#resized(vdi, size));
  }

  async #resized(vdi: DatapathVdi, size: bigint): Promise<boolean> {
    const { holder } = this.#options;
    const [tapdisk, entry] = await Promise.all([this.#tapdisk(vdi), this.#entry(vdi)]);
    if (tapdisk === null || entry === null) return true;
    const known = knownSize(entry);
    if (known !== null && known >= size) return true;
    if (known === null || this.#refused.get(vdi.vdi) === size) return false;
    // Opened with another size than what it mirrors to it would go on without that, and tell nobody.
    if (await hasChain(this.#chain(vdi))) return false;
    if (entry.away_ms !== null || tapdisk.isPaused)
      throw new SmFault(
        faultCodes.tapdiskFailed,
        tapdisk.isPaused
          ? "The guest's tapdisk is paused for something else."
          : `weftd has been away for ${entry.away_ms} ms: the guest's requests wait, and its tapdisk can't open anew.`,
        "it is told when that is over",
      );
    const isTaken = await growTapdisk({
      pause: () => this.pause(vdi),
      tell: async (which) => void (await holder.call("tell_size", { id: vdi.vdi, size: which })),
      unpause: () => letGoOn(this.#tapCtl, tapdisk),
      wake: () => void this.#wake(vdi),
    });
    if (!isTaken) this.#refused.set(vdi.vdi, size);
    return isTaken;
  }

  async #mirrored<T>(vdi: DatapathVdi, mirror: string, work: () => Promise<T>): Promise<T> {
    const [tapdisk, entry] = await Promise.all([this.#tapdisk(vdi), this.#entry(vdi)]);
    if (tapdisk === null || entry === null || !isWriting(entry))
      throw new SmFault(faultCodes.vdiSnapshot, `No tapdisk of this host writes to the disk ${vdi.vdi}.`);
    if (entry.away_ms !== null)
      throw new SmFault(
        faultCodes.tapdiskFailed,
        `weftd has been away for ${entry.away_ms} ms: the guest's requests wait, and its tapdisk can't pause.`,
        "systemctl status weft",
      );
    if (tapdisk.isPaused || tapdisk.isPausing)
      throw new SmFault(
        faultCodes.tapdiskFailed,
        "The guest's tapdisk is paused for something else.",
        "migrate the VM again when that is over",
      );
    const path = this.#chain(vdi);
    await writeChain(path, `nbd:${this.#socket(vdi)}`, entry.writable);
    const pause = (): Promise<void> => this.pause(vdi);
    const wake = (): void => void this.#wake(vdi);
    const parts = { tapCtl: this.#tapCtl, tapdisk, args: chainOf(path), pause, wake };
    return mirroredTapdisk(parts, mirror, work);
  }

  /** What somebody paused who has ended since goes on, once the holder has it. */
  async wakeAll(): Promise<void> {
    if (!(await isThere(this.#tapCtl.program))) return;
    const ours = join(this.#options.runDir, "tap");
    for (const { isPaused, isPausing, args } of await this.#tapCtl.list()) {
      const path = args.slice(args.indexOf(":") + 1);
      if (!(isPaused || isPausing) || dirname(path) !== ours) continue;
      const vdi = basename(path).replace(/\.(?:sock|chain)$/, "");
      this.#options.log.warn({ vdi }, "a tapdisk was left paused");
      void this.#wake({ sr: "", vdi }, true);
    }
  }

  async users(): Promise<readonly DatapathUser[]> {
    const entries = await this.#entries();
    return entries.map((entry) => ({
      vdi: entry.id,
      connected: entry.connected,
      writes: isWriting(entry),
      size: entry.lost === null ? knownSize(entry) : null,
    }));
  }

  async #entry({ vdi }: DatapathVdi): Promise<HolderEntry | null> {
    const entries = await this.#entries();
    return entries.find(({ id }) => id === vdi) ?? null;
  }

  /** None where no holder runs: what it offered has gone with it. */
  async #entries(): Promise<readonly HolderEntry[]> {
    try {
      return (await this.#options.holder.call("list", {})).entries;
    } catch (error) {
      if (isNoHolder(error)) return [];
      throw error;
    }
  }

  async #close({ vdi }: DatapathVdi): Promise<void> {
    try {
      await this.#options.holder.call("close", { id: vdi });
    } catch (error) {
      if (!isNoHolder(error)) throw error;
    }
  }

  async #tapdisk(vdi: DatapathVdi): Promise<Tapdisk | null> {
    const names = [`nbd:${this.#socket(vdi)}`, chainOf(this.#chain(vdi))];
    return (await this.#tapCtl.list()).find(({ args }) => names.includes(args)) ?? null;
  }

  #socket({ vdi }: DatapathVdi): string {
    return join(this.#options.runDir, "tap", `${vdi}.sock`);
  }

  #chain({ vdi }: DatapathVdi): string {
    return join(this.#options.runDir, "tap", `${vdi}.chain`);
  }
}

/** What only reads, or has lost its volume, has no write that a mirror would miss. */
function isWriting({ writable, snapshot, lost }: HolderEntry): boolean {
  return writable && snapshot === null && lost === null;
}

/** What its tapdisk knows, in bytes; null: not known, as of a holder of before; or it never grows. */
function knownSize({ snapshot, told_size: told }: HolderEntry): bigint | null {
  return snapshot !== null || typeof told !== "string" ? null : BigInt(told);
}
