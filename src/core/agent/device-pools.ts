/**
 * Pools on whole devices of this host: made, mounted again after a boot, given up, erased.
 *
 * Must always hold:
 * - one thing at a time; before a device is touched what is meant stands in `devices.json`;
 * - what was cut short anywhere is gone on with from what the device itself says (`nextDeviceStep`), never formatted again;
 * - a pool whose device is away is tried again until it is back; who asks for the status is told.
 */
import { randomUUID } from "node:crypto";
import { join } from "node:path";

import {
  type DeviceEntry,
  type DeviceSeen,
  type DeviceStep,
  deviceTrouble,
  nextDeviceStep,
} from "../model/device-pool.ts";
import { type Disk, type DiskPool, judgeDisk, mayFormat, mayWipe } from "../model/disk.ts";
import type { XfsSuperblock } from "../model/disk-tools.ts";
import type { Finding } from "../model/finding.ts";
import { groupName } from "../model/thin-group.ts";
import type { PoolInfo } from "../wire/daemon.gen.ts";
import type { DaemonClient } from "../wire/daemon-client.ts";
import { decided, isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { DeviceFile } from "./device-file.ts";
import * as work from "./device-work.ts";
import { lookAtDisks, mountsNow, stateOfDevice, xfsDevices } from "./disks.ts";
import type { Log } from "./log.ts";
import * as thin from "./thin-group.ts";

/** Between two looks for a disk that is missing. */
const RETRY_MS = 3000;
/** Before weftd is told who it is, so long is waited for mounts; after it they go on in the background. */
const MOUNTED_MS = 10_000;
/** A pool is done in three steps; more are a bug. */
const STEPS_MAX = 8;

export type DevicePoolsOptions = {
  readonly stateDir: string;
  readonly cluster: string;
  /** This host's name, for sentences. */
  readonly host: string;
  readonly client: DaemonClient;
  readonly log: Log;
};

export class DevicePools {
  readonly #options: DevicePoolsOptions;
  readonly #file: DeviceFile | null;
  /** Why the file can't be read: nothing is mounted or made then. */
  readonly #unreadable: WeftError | null;
  /** What keeps a pool from being served; by the entry's id. */
  readonly #waits = new Map<string, Finding>();
  /** Served since weftd last came back. */
  readonly #served = new Set<string>();
  #turn: Promise<unknown> = Promise.resolve();
  #timer: NodeJS.Timeout | null = null;
  #isStopped = false;
  /** weftd was told who it is: until then devices are only mounted. */
  #isServing = false;

  private constructor(options: DevicePoolsOptions, file: DeviceFile | null, unreadable: WeftError | null) {
    this.#options = options;
    this.#file = file;
    this.#unreadable = unreadable;
  }

  static async open(options: DevicePoolsOptions): Promise<DevicePools> {
    try {
      return new DevicePools(options, await DeviceFile.open(options.stateDir), null);
    } catch (error) {
      if (!isWeftError(error)) throw error;
      options.log.error({ code: error.code }, error.message);
      return new DevicePools(options, null, error);
    }
  }

  /** Mounts what is there, before weftd is told; what takes longer, or is missing, is gone on with. */
  async start(): Promise<void> {
    if (this.#entries().length === 0) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, MOUNTED_MS);
    await Promise.race([this.#settleAll(), promise]);
    clearTimeout(timer);
  }

  /** Returns when nothing is under way: who comes next reads the file anew. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    await this.#turn;
  }

  /** weftd is back: it may know nothing of what was mounted meanwhile. */
  nudge(): void {
    this.#served.clear();
    this.#isServing = true;
    if (this.#entries().length > 0) void this.#settleAll();
  }

  /** For `weft status`. */
  get findings(): readonly Finding[] {
    if (this.#unreadable !== null) {
      const { code, message, facts } = this.#unreadable;
      return [{ code, message, facts: { path: String(facts["path"] ?? "") }, safe: null, do: [] }];
    }
    return [...this.#waits.values()];
  }

  /** The device of the pool at this path, as it was called when the pool was made; null: the path is a directory of its own. */
  deviceOf(path: string): Pick<DeviceEntry, "path" | "kind"> | null {
    return this.#entries().find((entry) => this.#placeOf(entry) === path) ?? null;
  }

  /** Where disks of pools that stay are mounted now. */
  async mountedPlaces(): Promise<readonly string[]> {
    const kept = this.#entries().filter(({ phase }) => phase !== "leaving");
    if (kept.length === 0) return [];
    const at = new Set((await mountsNow()).map((mount) => mount.at));
    return kept.map((entry) => this.#placeOf(entry)).filter((place) => at.has(place));
  }

  list(path: string | null): Promise<readonly Disk[]> {
    return this.#inTurn(() => this.#look(path));
  }

  /**
   * A pool on the device: made, or finished where it was begun. E-DISK-07 with what is on it where it isn't blank;
   * E-DISK-10 where it was begun, and goes on by itself.
   */
  add(path: string, kind: DeviceEntry["kind"]): Promise<PoolInfo> {
    return this.#inTurn(async () => {
      const file = this.#writable();
      // Nothing is formatted that nobody could serve.
      await this.#options.client.call("hello", {});
      this.#isServing = true;
      // One that was begun, and of which nothing is there, is over.
      for (const { id, phase } of this.#entries()) if (phase === "making") await this.#settle(id);
      const disk = await this.#lookAtOne(path);
      const begun = this.#entryOn(disk);
      if (begun !== null) return this.#finish(begun);
      decided(mayFormat(disk, this.#options.host, kind));
      const { serial, sizeBytes } = disk;
      const entry: DeviceEntry = {
        id: randomUUID(),
        cluster: this.#options.cluster,
        kind,
        path: disk.path,
        serial,
        sizeBytes,
        phase: "making",
        pool: null,
      };
      await file.put(entry);
      try {
        if (kind === "xfs") await work.formatDevice(disk.path, entry.id);
        else await thin.makeGroup(disk.path, entry.id, sizeBytes);
      } catch (error) {
        // What there is of it is undone, or finished if it is whole after all.
        await this.#settle(entry.id);
        throw error;
      }
      return this.#finish(entry);
    });
  }

  /** Asks weftd to give up the pool, and unmounts its device; what is on it stays. */
  async remove(pool: string): Promise<void> {
    await this.#inTurn(async () => {
      const { client } = this.#options;
      const entry = this.#entries().find((one) => one.pool === pool) ?? null;
      if (entry === null) {
        await client.call("pool.remove", { pool });
        return;
      }
      this.#served.delete(entry.id);
      await this.#writable().put({ ...entry, phase: "leaving" });
      try {
        await client.call("pool.remove", { pool });
      } finally {
        // Refused: it stays. Not known: weftd will say.
        await this.#settle(entry.id);
      }
    });
  }

  /** Erases what is on it, by who says its name. Answers what it held; null: it was blank. */
  wipe(path: string, name: string): Promise<{ readonly disk: Disk; readonly held: string | null }> {
    return this.#inTurn(async () => {
      const file = this.#writable();
      const disk = await this.#lookAtOne(path);
      const { host } = this.#options;
      if (decided(mayWipe(disk, host, name)) === "nothing") return { disk, held: null };
      const verdict = judgeDisk(disk);
      const entry = this.#entryOn(disk);
      if (entry !== null && (await this.#mountedAt(this.#placeOf(entry))) !== null)
        await work.unmountDevice(this.#placeOf(entry));
      if (entry?.kind === "lvm-thin" && (await thin.stateOfGroup(entry.id)) === "active")
        await thin.deactivateGroup(entry.id);
      await work.eraseDevice(
        disk.path,
        disk.sizeBytes,
        disk.partitions.map((part) => `/dev/${part.name}`),
      );
      if (entry !== null) {
        await file.drop(entry.id);
        this.#waits.delete(entry.id);
      }
      const [after] = await this.#look(disk.path);
      if (after === undefined) throw new Error(`${disk.path} went away while it was erased`);
      return { disk: after, held: verdict.kind === "blank" ? null : verdict.what };
    });
  }

  /** Those of this cluster. */
  #entries(): readonly DeviceEntry[] {
    return (this.#file?.entries ?? []).filter(({ cluster }) => cluster === this.#options.cluster);
  }

  #writable(): DeviceFile {
    if (process.getuid?.() !== 0) {
      throw new WeftError({
        code: "E-DISK-06",
        message: "Only root can use whole disks, and this agent isn't root.",
        safe: "Nothing was changed.",
        do: [{ why: "Use a directory", command: "weft pool add DIRECTORY" }],
      });
    }
    if (this.#file !== null) return this.#file;
    throw this.#unreadable ?? new Error("the file is neither there nor unreadable");
  }

  async #lookAtOne(path: string): Promise<Disk> {
    const [disk] = await this.#look(path);
    if (disk === undefined) throw new Error(`nothing was seen of ${path}`);
    return disk;
  }

  #look(path: string | null): Promise<readonly Disk[]> {
    return lookAtDisks(path, (superblock, group) => this.#poolOn(superblock, group));
  }

  #poolOn(superblock: XfsSuperblock | null, group: string | null): DiskPool | null {
    const found = this.#entries().find(({ id, kind }) =>
      kind === "xfs" ? id === superblock?.uuid : groupName(id) === group,
    );
    return found === undefined
      ? null
      : { entry: found.id, id: found.pool, isUnfinished: found.phase === "making" };
  }

  #entryOn(disk: Disk): DeviceEntry | null {
    if (disk.pool === null) return null;
    return this.#entries().find(({ id }) => id === disk.pool?.entry) ?? null;
  }

  #placeOf({ id }: DeviceEntry): string {
    return join(this.#options.stateDir, "pools", id);
  }

  async #finish(entry: DeviceEntry): Promise<PoolInfo> {
    const info = await this.#settle(entry.id);
    if (info !== null) return info;
    const finding = this.#waits.get(entry.id) ?? deviceTrouble(entry, "what was made of it is gone");
    throw WeftError.fromFinding(finding);
  }

  /** All of them, once; again later while something is missing. */
  #settleAll(): Promise<void> {
    return this.#inTurn(async () => {
      for (const { id } of this.#entries()) {
        if (this.#isStopped) return;
        if (!this.#served.has(id)) await this.#settle(id);
      }
    });
  }

  /** As far as it can be brought now; what weftd says of the pool when it serves it. Never throws. */
  async #settle(id: string): Promise<PoolInfo | null> {
    const { log } = this.#options;
    for (let steps = 0; steps < STEPS_MAX; steps += 1) {
      const entry = this.#entries().find((one) => one.id === id);
      if (entry === undefined) return null;
      try {
        const step = nextDeviceStep(entry, await this.#see(entry));
        if (step.kind === "serve" && !this.#isServing) return null;
        if (step.kind === "wait") {
          this.#wait(entry, step.finding);
          return null;
        }
        const info = await this.#take(entry, step);
        if (info !== null) {
          this.#waits.delete(id);
          this.#served.add(id);
          return info;
        }
      } catch (error) {
        if (!isWeftError(error)) log.error({ error: reasonOf(error) }, "a pool's device: a bug");
        this.#wait(entry, deviceTrouble(entry, reasonOf(error).replace(/\.$/, "")));
        return null;
      }
    }
    log.error({ id }, `a pool's device is not settled after ${STEPS_MAX} steps: a bug`);
    return null;
  }

  #wait(entry: DeviceEntry, finding: Finding): void {
    if (this.#waits.get(entry.id)?.message !== finding.message)
      this.#options.log.warn({ code: finding.code }, finding.message);
    this.#waits.set(entry.id, finding);
    if (this.#isStopped || this.#timer !== null) return;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      void this.#settleAll();
    }, RETRY_MS);
    this.#timer.unref();
  }

  async #see(entry: DeviceEntry): Promise<DeviceSeen> {
    const devices = await xfsDevices();
    return {
      found: devices
        .filter(({ superblock }) => superblock.uuid === entry.id)
        .map(({ path, number, superblock }) => ({ path, number, inProgress: superblock.inProgress })),
      mounted: await this.#mountedAt(this.#placeOf(entry)),
      named: entry.phase === "making" ? await stateOfDevice(entry) : "absent",
      group: entry.kind === "lvm-thin" ? await thin.stateOfGroup(entry.id) : "none",
      isKnown: entry.phase === "leaving" ? await this.#isKnown(entry.pool) : null,
    };
  }

  /** The one that lies on top. */
  async #mountedAt(place: string): Promise<string | null> {
    return (await mountsNow()).findLast(({ at }) => at === place)?.number ?? null;
  }

  async #isKnown(pool: string | null): Promise<boolean | null> {
    if (!this.#isServing) return null;
    try {
      // One that has just started and was not told yet who it is lists none, and knows them all the same.
      if ((await this.#options.client.call("hello", {})).host === null) return null;
      const { pools } = await this.#options.client.call("pool.list", {});
      return pools.some((one) => one.pool === pool);
    } catch (error) {
      if (isWeftError(error)) return null;
      throw error;
    }
  }

  /** Not null: it is served, as far as weftd can. */
  async #take(entry: DeviceEntry, step: Exclude<DeviceStep, { kind: "wait" }>): Promise<PoolInfo | null> {
    const { log, client } = this.#options;
    const file = this.#writable();
    const place = this.#placeOf(entry);
    if (step.kind !== "serve")
      log.info({ device: entry.path, id: entry.id, step: step.kind }, "a pool's device");
    switch (step.kind) {
      case "forget":
        await file.drop(entry.id);
        await work.removeMountPoint(place);
        this.#waits.delete(entry.id);
        this.#served.delete(entry.id);
        return null;
      case "erase":
        await work.clearEdges(step.path, entry.sizeBytes);
        return null;
      case "activate":
        await thin.activateGroup(entry.id);
        return null;
      case "dismantle":
        for (const path of await thin.removeGroup(entry.id)) await work.clearEdges(path, entry.sizeBytes);
        return null;
      case "deactivate":
        await thin.deactivateGroup(entry.id);
        return null;
      case "mount":
        await work.mountDevice(step.path, place);
        return null;
      case "unmount":
        await work.unmountDevice(place);
        return null;
      case "stay":
        await file.put({ ...entry, phase: "ready" });
        return null;
      case "serve": {
        if (entry.kind === "lvm-thin") await thin.markGroup(place, entry.id);
        const info = await client.call("pool.create", { path: place });
        if (entry.phase !== "ready" || entry.pool !== info.pool)
          await file.put({ ...entry, phase: "ready", pool: info.pool });
        return info;
      }
    }
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work, work);
    this.#turn = mine.catch(() => null);
    return mine;
  }
}
