/** A root directory that has busybox and nothing else: no C library, no loader. Programs in it find what they bring. */
import {
  appendFileSync,
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

import { execa, execaSync } from "execa";

import { withoutIoUring } from "../../../scripts/lib/without-io-uring.ts";
import { SHARED } from "../../../scripts/package/rpm.ts";

/** Told of every call, and agrees. */
const RECORDED = ["systemctl", "systemd-tmpfiles", "multipathd"];
const RECORD = '#!/bin/sh\necho "${0##*/} $*" >>/recorded\n';

/** A test runner gives every program below it something to load into Node, which no host has. */
const WITHOUT_RUNNER = ["-u", "NODE_OPTIONS"];

export type Outcome = { readonly exitCode: number; readonly stdout: string; readonly stderr: string };

export class BusyboxRoot {
  readonly path = mkdtempSync(join(tmpdir(), "weft-root-"));
  /** Of its own, so that ports of others don't matter. */
  readonly network = `weft-package-${process.pid}`;

  constructor(files: Readonly<Record<string, string>>) {
    const own = ["bin", "dev", "proc", "tmp", "run", "var/tmp", "var/lib/rpm"];
    for (const name of [...own, ...SHARED]) mkdirSync(join(this.path, name), { recursive: true });
    cpSync("/usr/bin/busybox", join(this.path, "bin/busybox"), { dereference: true });
    execaSync("chroot", [this.path, "/bin/busybox", "--install", "-s", "/bin"]);
    execaSync("mknod", [join(this.path, "dev/null"), "c", "1", "3"]);
    for (const [path, text] of Object.entries(files)) this.write(path, text);
    for (const name of RECORDED) this.write(`usr/bin/${name}`, RECORD, 0o755);
    execaSync("ip", ["netns", "add", this.network]);
    this.#inNetwork("ip link set lo up");
    this.#inNetwork("ip address add 10.77.0.1/24 dev lo");
  }

  remove(): void {
    execaSync("ip", ["netns", "delete", this.network], { reject: false });
    rmSync(this.path, { recursive: true, force: true });
  }

  write(path: string, text: string, mode = 0o644): void {
    const at = join(this.path, path);
    mkdirSync(dirname(at), { recursive: true });
    rmSync(at, { force: true });
    writeFileSync(at, text);
    chmodSync(at, mode);
  }

  read(path: string): string {
    return readFileSync(join(this.path, path), "utf8");
  }

  has(path: string): boolean {
    return existsSync(join(this.path, path));
  }

  /** What the recorded programs were asked for since the last call. */
  recorded(): readonly string[] {
    appendFileSync(join(this.path, "recorded"), "");
    const lines = this.read("recorded").split("\n");
    rmSync(join(this.path, "recorded"));
    return lines.filter((line) => line !== "");
  }

  async rpm(...args: readonly string[]): Promise<Outcome> {
    return settled(
      await execa(
        "env",
        [...WITHOUT_RUNNER, "rpm", "--root", this.path, "--dbpath", "/var/lib/rpm", "--nodeps", ...args],
        {
          reject: false,
          env: { LC_ALL: "C" },
        },
      ),
    );
  }

  async dpkg(...args: readonly string[]): Promise<Outcome> {
    // Debian's own programs of these names are asked for before anything is done.
    const force = ["--force-depends", "--force-bad-path", "--force-not-root"];
    return settled(
      await execa("env", [...WITHOUT_RUNNER, "dpkg", "--root", this.path, ...force, ...args], {
        reject: false,
        env: { LC_ALL: "C" },
      }),
    );
  }

  /** Runs a program in here, with its own network, `/proc` and nothing of our environment. */
  async run(command: readonly string[], timeoutMs = 60_000): Promise<Outcome> {
    return settled(await this.#start(command, timeoutMs));
  }

  /** The same on a kernel without io_uring, as 4.19 is: its calls are answered ENOSYS. */
  startWithoutIoUring(command: readonly string[]) {
    return this.#start(command, 300_000, withoutIoUring([]));
  }

  /** The same, for one that goes on; its pid is the program's own. */
  start(command: readonly string[]) {
    return this.#start(command, 300_000);
  }

  #start(command: readonly string[], timeout: number, first: readonly string[] = []) {
    const inside = `unset NODE_OPTIONS && mount -t proc proc ${this.path}/proc && exec "$@"`;
    const here = [...first, "chroot", this.path, ...command];
    return execa("ip", ["netns", "exec", this.network, "sh", "-c", inside, "sh", ...here], {
      reject: false,
      timeout,
      extendEnv: false,
      env: { PATH: "/sbin:/usr/sbin:/bin:/usr/bin" },
      stdin: "ignore",
    });
  }

  #inNetwork(command: string): void {
    execaSync("ip", ["netns", "exec", this.network, ...command.split(" ")]);
  }

  /** Every path with what is there, but for the database of packages. */
  listing(): readonly string[] {
    return readdirSync(this.path, { recursive: true, encoding: "utf8" })
      .filter((path) => !/^(?:var\/lib\/(?:rpm|dpkg)(?:\/|$)|recorded$)/.test(path))
      .toSorted()
      .map((path) => {
        const stat = lstatSync(join(this.path, path));
        const mode = stat.mode.toString(8);
        if (stat.isSymbolicLink()) return `${path} ${mode} -> ${readlinkSync(join(this.path, path))}`;
        return stat.isFile() && stat.size < 1 << 16
          ? `${path} ${mode} ${this.read(path)}`
          : `${path} ${mode}`;
      });
  }
}

function settled(done: {
  readonly exitCode?: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}): Outcome {
  return { exitCode: done.exitCode ?? -1, stdout: done.stdout, stderr: done.stderr };
}
