/**
 * The disk under a host's pool: a file system of ours that breaks on command (native/weft-faultfs).
 *
 * Must always hold:
 * - it lives outside the hosts: their end, halt or loss of power is not its own;
 * - what is mounted and what serves it is found by looking, also after a crash of whoever started it.
 */
import { spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

import { execa } from "execa";
import { z } from "zod";

import type { Host } from "../cluster/host.ts";
import { killAll, pidsMarked } from "../cluster/processes.ts";
import { nativeBin } from "../lib/repository.ts";
import { until } from "../lib/until.ts";

/** In the environment of everything that is started outside the hosts: its value is the directory of the hosts. */
export const MARK = "WEFT_FAULTS_DIR";

const ANSWER_MS = 10_000;

const answerJson = z.object({ ok: z.boolean(), error: z.string().default("no reason given") });

type Command = Readonly<Record<string, string | number>>;

export class Disk {
  readonly #control: string;
  /** Draws what of the volatile things is lost at a power cut. */
  #cuts = 0;

  private constructor(control: string) {
    this.#control = control;
  }

  /** Puts a disk under the pool of a host that is not started yet. Sockets lie in `sockets`, whose path is short. */
  static async mount(host: Host, dir: string, sockets: string): Promise<Disk> {
    const backing = join(disksOf(dir), host.name);
    const control = join(sockets, `${host.name}.disk`);
    for (const path of [backing, host.poolDir]) mkdirSync(path, { recursive: true });
    const log = openSync(join(disksOf(dir), `${host.name}.log`), "a");
    // Detached: Ctrl-C is for the one who ends it in order.
    const child = spawn(
      join(nativeBin(), "weft-faultfs"),
      ["--backing", backing, "--mount", host.poolDir, "--control", control],
      { detached: true, stdio: ["ignore", log, log], env: { ...process.env, [MARK]: dir } },
    );
    closeSync(log);
    await new Promise<void>((done, fail) => {
      child.once("spawn", done);
      child.once("error", fail);
    });
    child.unref();
    await until(() => (mountsBelow(dir).includes(host.poolDir) ? true : null), {
      what: `the disk of ${host.name} to be mounted (see ${disksOf(dir)}/${host.name}.log)`,
      deadlineMs: ANSWER_MS,
    });
    const disk = new Disk(control);
    await until(async () => disk.#tell({ op: "stats" }).then(() => true as const), {
      what: `the disk of ${host.name} to obey`,
      deadlineMs: ANSWER_MS,
    });
    return disk;
  }

  /** Nothing can be allocated, and as on a file system that copies on write, data is not written over in place either. */
  async full(): Promise<void> {
    await this.#tell({ op: "full", bytes: 0 });
    await this.#tell({ op: "fail", what: "write", errno: "ENOSPC", path: "replicas/*/seg-*" });
  }

  async fail(): Promise<void> {
    await this.#tell({ op: "fail", what: "write", errno: "EIO" });
    await this.#tell({ op: "fail", what: "flush", errno: "EIO" });
  }

  async stall(): Promise<void> {
    await this.#tell({ op: "stall", what: "any" });
  }

  async heal(): Promise<void> {
    await this.#tell({ op: "heal" });
  }

  /** Everything that was not flushed is lost, or at every second cut a half of it, chosen by lot. */
  async powerCut(): Promise<void> {
    this.#cuts += 1;
    await this.#tell({ op: "power_cut", keep: this.#cuts % 2 === 0 ? 50 : 0, seed: this.#cuts });
  }

  async powerOn(): Promise<void> {
    await this.#tell({ op: "power_on" });
  }

  #tell(command: Command): Promise<void> {
    return new Promise((done, fail) => {
      const socket = connect(this.#control);
      const failed = (why: string): void => {
        socket.destroy();
        fail(new Error(`the disk at ${this.#control} did not obey ${JSON.stringify(command)}: ${why}`));
      };
      socket.setTimeout(ANSWER_MS, () => failed(`no answer in ${ANSWER_MS / 1000} s`));
      socket.once("error", (error) => failed(error.message));
      createInterface({ input: socket }).once("line", (line) => {
        socket.destroy();
        const { ok, error } = answerOf(line);
        if (ok) done();
        else failed(error);
      });
      socket.write(`${JSON.stringify(command)}\n`);
    });
  }
}

/** Ends what runs outside the hosts of a directory, and takes its mounts away. Nothing there is fine. */
export async function endOutside(dir: string): Promise<void> {
  const whose = resolve(dir);
  await killAll(
    () => pidsMarked({ setting: `${MARK}=${whose}`, below: disksOf(whose) }),
    `the disks in ${whose}`,
  );
  // Whoever still has a file of it open meets errors, and is ended next.
  for (const path of mountsBelow(whose)) await execa("umount", ["-l", path], { reject: false });
  rmSync(disksOf(whose), { recursive: true, force: true });
}

function answerOf(line: string): z.output<typeof answerJson> {
  try {
    return answerJson.parse(JSON.parse(line));
  } catch {
    return { ok: false, error: `an answer that can't be understood: ${line}` };
  }
}

function disksOf(dir: string): string {
  return join(resolve(dir), "disks");
}

function mountsBelow(dir: string): readonly string[] {
  const points = readFileSync("/proc/self/mounts", "utf8")
    .split("\n")
    .map((line) => (line.split(" ")[1] ?? "").replaceAll("\\040", " "));
  return points.filter((point) => point.startsWith(`${resolve(dir)}/`));
}
