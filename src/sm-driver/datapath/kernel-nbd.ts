/**
 * A guest's disk by tapdisk over a block device of the kernel (`datapath=kernel-nbd`):
 *
 *     guest ─ blkif ─▶ tapdisk ─ aio ─▶ /dev/nbdN ─ NBD ─▶ weftd
 *
 * The kernel keeps what is not answered while weftd is away; the holder gives its device a new socket of an unbroken ownership, or
 * takes it away (native/weft-holder, devices.rs).
 *
 * Must always hold:
 * - what is there is found again from `tap-ctl list`, the holder's list (the kernel's own) and the disk's link;
 * - a tapdisk is of the device that is there now: numbers are not used again while anybody has an older device open;
 * - a tapdisk is gone before its device is, unless it doesn't end: then what it asked for fails.
 */
import { setTimeout as delay } from "node:timers/promises";

import { isWeftError } from "../../core/wire/errors.ts";
import { type HolderClient, isNoHolder } from "../../core/wire/holder-client.ts";
import type { DeviceEntry } from "../../core/wire/holder.gen.ts";
import type { Log } from "../call.ts";
import { faultCodes, SmFault } from "../faults.ts";
import type { Activation, Attached, Datapath, DatapathUser, DatapathVdi } from "./datapath.ts";
import { DiskLinks } from "./disk-links.ts";
import { mirroredTapdisk } from "./mirror.ts";
import { TapCtl, type Tapdisk } from "./tap-ctl.ts";

/** What a tapdisk may take to answer what it has; after that it fails. */
const CLOSE_S = 10;
/** So often one is looked at that was to pause and did not; so long it is. */
const WAKE_MS = 1000;
const WAKE_FOR_MS = 600_000;

export type KernelNbdOptions = {
  /** Put before dom0's paths; empty: none. */
  readonly dom0Root: string;
  readonly holder: HolderClient;
  readonly log: Log;
  /** See {@link CLOSE_S}. */
  readonly closeSeconds?: number;
};

export class KernelNbdDatapath implements Datapath {
  readonly #holder: HolderClient;
  readonly #log: Log;
  readonly #tapCtl: TapCtl;
  readonly #links: DiskLinks;
  readonly #closeSeconds: number;

  constructor({ dom0Root, holder, log, closeSeconds = CLOSE_S }: KernelNbdOptions) {
    this.#holder = holder;
    this.#log = log;
    this.#tapCtl = new TapCtl(`${dom0Root}/usr/sbin/tap-ctl`);
    this.#links = new DiskLinks(dom0Root);
    this.#closeSeconds = closeSeconds;
  }

  async attach(vdi: DatapathVdi): Promise<Attached> {
    return this.#links.attached(vdi);
  }

  async activate(vdi: DatapathVdi & Activation): Promise<void> {
    const wanted = {
      id: vdi.vdi,
      volume: vdi.volume,
      session: vdi.session,
      snapshot: vdi.snapshot,
      writable: vdi.writable,
    };
    // One that was lost, or that went with the kernel's: what has it open is dead.
    const before = await this.#device(vdi);
    if (before === null || before.lost !== null) await this.deactivate(vdi);
    let opened;
    try {
      opened = await this.#holder.call("device.open", wanted);
    } catch (error) {
      if (!isWeftError(error, "E-HOLD-02")) throw faultOf(error);
      // Of something else: what has it open is of an earlier activation.
      await this.deactivate(vdi);
      opened = await this.#holder.call("device.open", wanted);
    }
    const args = argsOf(opened);
    let tapdisk = await this.#tapdiskOf(args);
    if (tapdisk?.isPaused === true) await this.#tapCtl.unpause(tapdisk);
    if (tapdisk === null) {
      const toldNode = await this.#links.hasNodes();
      const { hasNode } = await this.#tapCtl.create(args, vdi.writable);
      tapdisk = await this.#tapdiskOf(args);
      if (toldNode && !hasNode) {
        await this.deactivate(vdi);
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
    const device = await this.#device(vdi);
    const end = async (): Promise<void> => {
      for (const tapdisk of await this.#tapdisks(vdi, device))
        await this.#tapCtl.destroy(tapdisk, this.#closeSeconds);
    };
    try {
      await end();
    } catch (error) {
      // It waits for answers that don't come: without its device it has them all, and each is an error (see tapdisk.ts).
      this.#log.warn(
        { vdi: vdi.vdi, error: String(error) },
        "a tapdisk does not end; its device is taken away",
      );
      await this.#close(vdi);
      await end();
    }
    await this.#close(vdi);
    await this.#links.unlink(vdi);
  }

  async detach(vdi: DatapathVdi): Promise<void> {
    await this.#links.unlink(vdi);
  }

  /** The kernel's device has its own way to its volume: what is mirrored is opened anew under the name that it has. */
  async mirrored<T>(vdi: DatapathVdi, mirror: string, work: () => Promise<T>): Promise<T> {
    const device = await this.#device(vdi);
    const tapdisk = device === null || !isWriting(device) ? null : await this.#tapdiskOf(argsOf(device));
    if (tapdisk === null)
      throw new SmFault(faultCodes.vdiSnapshot, `No tapdisk of this host writes to the disk ${vdi.vdi}.`);
    const pause = (): Promise<void> => this.pause(vdi);
    const wake = (): void => void this.#wake(vdi);
    return mirroredTapdisk({ tapCtl: this.#tapCtl, tapdisk, args: tapdisk.args, pause, wake }, mirror, work);
  }

  /** The kernel's device keeps its size until it is made anew. */
  async resized(): Promise<boolean> {
    return false;
  }

  async pause(vdi: DatapathVdi): Promise<void> {
    const tapdisk = await this.#current(vdi);
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
    const tapdisk = await this.#current(vdi);
    if (tapdisk?.isPaused === true) await this.#tapCtl.unpause(tapdisk);
  }

  async #wake(vdi: DatapathVdi): Promise<void> {
    const end = performance.now() + WAKE_FOR_MS;
    while (performance.now() < end) {
      await delay(WAKE_MS, undefined, { ref: false });
      try {
        const tapdisk = await this.#current(vdi);
        // One that goes on is paused by nobody but who lets it go on.
        if (tapdisk === null || !(tapdisk.isPaused || tapdisk.isPausing)) return;
        if (!tapdisk.isPaused) continue;
        await this.#tapCtl.unpause(tapdisk);
        this.#log.info({ vdi: vdi.vdi }, "a tapdisk that paused late goes on");
        return;
      } catch (error) {
        this.#log.warn(
          { vdi: vdi.vdi, error: String(error) },
          "a tapdisk that may be paused is looked at again",
        );
      }
    }
  }

  async users(): Promise<readonly DatapathUser[]> {
    const [devices, tapdisks] = await Promise.all([this.#devices(), this.#tapCtl.list()]);
    const open = new Set(tapdisks.map(({ args }) => args));
    return devices.map((device) => ({
      vdi: device.id,
      connected: open.has(argsOf(device)),
      writes: isWriting(device),
      size: null,
    }));
  }

  async #current(vdi: DatapathVdi): Promise<Tapdisk | null> {
    const device = await this.#device(vdi);
    return device === null ? null : this.#tapdiskOf(argsOf(device));
  }

  async #devices(): Promise<readonly DeviceEntry[]> {
    return (await this.#holder.call("device.list", {})).devices;
  }

  /** An error where the holder doesn't answer: the kernel has the device all the same. */
  async #device({ vdi }: DatapathVdi): Promise<DeviceEntry | null> {
    return (await this.#devices()).find(({ id }) => id === vdi) ?? null;
  }

  async #close({ vdi }: DatapathVdi): Promise<void> {
    await this.#holder.call("device.close", { id: vdi });
  }

  async #tapdiskOf(args: string): Promise<Tapdisk | null> {
    return (await this.#tapCtl.list()).find((tapdisk) => tapdisk.args === args) ?? null;
  }

  /** Those of the disk: on its device, and the one that was linked last, whatever it is on. */
  async #tapdisks(vdi: DatapathVdi, device: DeviceEntry | null): Promise<readonly Tapdisk[]> {
    const [all, linked] = await Promise.all([this.#tapCtl.list(), this.#links.linked(vdi)]);
    const isOurs = ({ pid, minor, args }: Tapdisk): boolean =>
      (device !== null && args === argsOf(device)) ||
      (pid === linked?.pid && minor === linked.minor && /^aio:.*\/dev\/nbd\d+$/.test(args));
    return all.filter(isOurs);
  }
}

function isWriting({ writable, snapshot, lost }: DeviceEntry): boolean {
  return writable && snapshot === null && lost === null;
}

function argsOf({ device }: { readonly device: string }): string {
  return `aio:${device}`;
}

/** What keeps every disk of this host from being made in this way. */
function faultOf(error: unknown): unknown {
  if (isNoHolder(error) || !isWeftError(error, "E-HOLD-08")) return error;
  return new SmFault(
    faultCodes.configParamsMissing,
    `The device-config has datapath=kernel-nbd, which this host can't do: ${error.message}.`,
    "make the PBD without it: xe pbd-create …",
    error,
  );
}
