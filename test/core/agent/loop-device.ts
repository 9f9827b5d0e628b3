/**
 * Loop devices for tests, which only root can make.
 *
 * Must always hold: none is left, nor a mount of one: a test that ends takes its own away, and the next one those of a
 * test that was killed.
 */
import { mkdtemp, open, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import { z } from "zod";

import { until } from "../../../scripts/lib/until.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

const PREFIX = "weft-loop-";
const listed = z.object({ loopdevices: z.array(z.object({ name: z.string(), "back-file": z.string() })) });

export class LoopDevice {
  readonly #file: string;
  /** `/dev/loop3`; null while it is unplugged. */
  #path: string | null = null;

  private constructor(file: string) {
    this.#file = file;
  }

  static async make(t: Scope, bytes: number = 400 << 20): Promise<LoopDevice> {
    await removeStale();
    const directory = await mkdtemp(join(tmpdir(), `${PREFIX}${process.pid}-`));
    const device = new LoopDevice(join(directory, "disk"));
    t.teardown(async () => {
      await device.unplug();
      await rm(directory, { recursive: true, force: true });
    });
    await (await open(device.#file, "w")).close();
    await truncate(device.#file, bytes);
    await device.plugIn();
    return device;
  }

  get path(): string {
    if (this.#path === null) throw new Error(`${this.#file} is not plugged in`);
    return this.#path;
  }

  async plugIn(): Promise<void> {
    this.#path = (await execa("losetup", ["--find", "--show", this.#file])).stdout.trim();
  }

  /** With what is mounted of it, as at the end of a host. */
  async unplug(): Promise<void> {
    if (this.#path === null) return;
    await detach(this.#path);
    this.#path = null;
  }

  async unmount(): Promise<void> {
    await unmountAll(this.path);
  }

  async write(at: number, bytes: Uint8Array): Promise<void> {
    const device = await open(this.path, "r+");
    try {
      await device.write(bytes, 0, bytes.length, at);
      await device.sync();
    } finally {
      await device.close();
    }
  }
}

async function detach(path: string): Promise<void> {
  await unmountAll(path);
  await execa("losetup", ["--detach", path]);
}

async function unmountAll(path: string): Promise<void> {
  const { stdout } = await execa("findmnt", ["--noheadings", "--output", "TARGET", "--source", path], {
    reject: false,
  });
  for (const at of stdout.split("\n").filter((line) => line !== "")) await unmount(at.trim());
}

/** As soon as nobody has a file of it open: an agent that was told to stop may still end what it writes there. */
export async function unmount(at: string): Promise<void> {
  await until(async () => ((await execa("umount", [at], { reject: false })).exitCode === 0 ? true : null), {
    what: `the unmounting of ${at}`,
    deadlineMs: 10_000,
  });
}

/** Of test processes that are gone. */
async function removeStale(): Promise<void> {
  const { stdout } = await execa("losetup", ["--list", "--json", "--output", "NAME,BACK-FILE"]);
  if (stdout.trim() === "") return;
  for (const { name, "back-file": file } of listed.parse(JSON.parse(stdout)).loopdevices) {
    const pid = Number(new RegExp(`/${PREFIX}(\\d+)-`).exec(file)?.[1] ?? Number.NaN);
    if (!Number.isNaN(pid) && !isAlive(pid)) await detach(name).catch(() => undefined);
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
