/**
 * `devices.json` of the state directory: which devices of this host weft has made pools of, or is about to.
 *
 * Must always hold: what is said here is on stable media before the device is touched, and is taken out only after.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";

import type { DeviceEntry } from "../model/device-pool.ts";
import { writeDurably } from "../wire/durable-file.ts";
import { WeftError } from "../wire/errors.ts";
import { u64, uuid } from "../wire/json-types.ts";

const deviceFile = z.object({
  devices: z.array(
    z.object({
      id: uuid,
      cluster: uuid,
      kind: z.enum(["xfs", "lvm-thin"]).default("xfs"),
      path: z.string().startsWith("/"),
      serial: z.string().nullable(),
      sizeBytes: u64,
      phase: z.enum(["making", "ready", "leaving"]),
      pool: uuid.nullable(),
    }),
  ),
});

export class DeviceFile {
  readonly #path: string;
  #entries: readonly DeviceEntry[];

  private constructor(path: string, entries: readonly DeviceEntry[]) {
    this.#path = path;
    this.#entries = entries;
  }

  /** E-HOST-06 when it is there and can't be understood. */
  static async open(stateDir: string): Promise<DeviceFile> {
    const path = join(stateDir, "devices.json");
    try {
      return new DeviceFile(path, deviceFile.decode(JSON.parse(await readFile(path, "utf8"))).devices);
    } catch (cause) {
      if (cause instanceof Error && "code" in cause && cause.code === "ENOENT")
        return new DeviceFile(path, []);
      throw new WeftError({
        code: "E-HOST-06",
        message: `${path} can't be read or understood.`,
        facts: { path },
        safe: "Nothing was changed.",
        cause,
      });
    }
  }

  get entries(): readonly DeviceEntry[] {
    return this.#entries;
  }

  /** Adds it, or puts it in the place of the one with its id. */
  async put(entry: DeviceEntry): Promise<void> {
    await this.#write([...this.#entries.filter(({ id }) => id !== entry.id), entry]);
  }

  async drop(id: string): Promise<void> {
    await this.#write(this.#entries.filter((entry) => entry.id !== id));
  }

  async #write(entries: readonly DeviceEntry[]): Promise<void> {
    const devices = deviceFile.encode({ devices: [...entries] });
    await writeDurably(this.#path, `${JSON.stringify(devices, null, 2)}\n`);
    this.#entries = entries;
  }
}
