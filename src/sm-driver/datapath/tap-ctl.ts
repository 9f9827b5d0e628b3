/**
 * `tap-ctl`, by which dom0 makes a guest's disk of something (blktap; design xapi.md 3.3).
 *
 * Must always hold:
 * - arguments are a list and reach no shell; what it says is bounded and parsed with distrust: a line that isn't understood is
 *   nobody's tapdisk;
 * - it is never cut off in the middle because its caller ends: what it has begun it ends or takes back.
 */
import { execa } from "execa";
import { z } from "zod";

import { reasonOf } from "../../core/wire/errors.ts";
import { faultCodes, SmFault } from "../faults.ts";

/** A tapdisk of dom0. */
export type Tapdisk = {
  readonly pid: number;
  readonly minor: number;
  /** It takes no requests until it is unpaused. */
  readonly isPaused: boolean;
  /** It was asked to, and does when its last request is answered: whoever asked may be gone. */
  readonly isPausing: boolean;
  /** `TYPE:PATH`. */
  readonly args: string;
};

/** As far as it is asked for; blktap's tapdisk_vbd_stats has more. */
const tapdiskStats = z.object({
  /** What it has open: the disk, and what it mirrors to. */
  images: z.array(z.unknown()),
  /** 1: what it was to mirror to could not be opened, or has failed since. */
  nbd_mirror_failed: z.int(),
});
export type TapdiskStats = z.output<typeof tapdiskStats>;

/** blktap's TD_VBD_PAUSED and TD_VBD_PAUSE_REQUESTED. */
const PAUSED = 0x20;
const PAUSE_REQUESTED = 0x10;
const OUTPUT_MAX = 4 << 20;
/** The drivers of all of a pool's disks may start at once. */
const DEADLINE_MS = 30_000;
const LINE = /^pid=(\d{1,9}) minor=(\d{1,9}) state=0?x?([0-9a-f]{1,8}) args=([a-z0-9-]{1,16}:.{1,4096})$/;
/** Of blktap 3, whose kernel module makes a block device; of blktap 4, where this file is all there is to a minor. */
const DEVICE = /^\/[\w./-]{0,200}\/(?:tapdev|(?<marker>tapdisk-))\d{1,9}$/;

export function parseTapdisks(text: string): readonly Tapdisk[] {
  return text.split("\n").flatMap((line) => {
    const found = LINE.exec(line.trim());
    if (found === null) return [];
    const [, pid = "", minor = "", state = "", args = ""] = found;
    const flags = Number.parseInt(state, 16);
    const [isPaused, isPausing] = [(flags & PAUSED) !== 0, (flags & PAUSE_REQUESTED) !== 0];
    return [{ pid: Number(pid), minor: Number(minor), isPaused, isPausing, args }];
  });
}

export class TapCtl {
  readonly program: string;
  readonly #deadlineMs: number;

  constructor(program: string, deadlineMs: number = DEADLINE_MS) {
    this.program = program;
    this.#deadlineMs = deadlineMs;
  }

  /** All that are open; one that is only half made, or ended, has no arguments and isn't among them. */
  async list(): Promise<readonly Tapdisk[]> {
    return parseTapdisks(await this.#run(["list"]));
  }

  /**
   * Whether it has a device node. Where it takes too long (its server waits for weftd) its caller is told so, and it goes on: ended in
   * the middle it would leave a process and a minor that `list` can't name; so the next try finds the tapdisk.
   */
  async create(args: string, writable: boolean): Promise<{ readonly hasNode: boolean }> {
    const making = this.#run(["create", "-a", args, ...(writable ? [] : ["-R"])], null);
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(
      () => late.reject(failed("create", `it takes longer than ${this.#deadlineMs / 1000} s`)),
      this.#deadlineMs,
    );
    // Whoever waited has gone by then.
    making.catch(() => {});
    const text = await Promise.race([making, late.promise]).finally(() => clearTimeout(timer));
    const device = DEVICE.exec(text.trim());
    if (device === null) throw failed("create", `it names no device: ${text.slice(0, 200)}`);
    return { hasNode: device.groups?.["marker"] === undefined };
  }

  async destroy({ pid, minor }: Tapdisk, seconds: number): Promise<void> {
    await this.#run(["destroy", ...of(pid, minor), "-t", String(seconds)]);
  }

  async pause({ pid, minor }: Tapdisk): Promise<void> {
    await this.#run(["pause", ...of(pid, minor)]);
  }

  /**
   * `secondary`: to where all is written besides from now on, `null` as a word for nowhere any more; null: as it was. With one, `args`
   * must not begin with `nbd:` (mirror.ts).
   */
  async unpause({ pid, minor, args }: Tapdisk, secondary: string | null = null): Promise<void> {
    const second = secondary === null ? [] : ["-2", secondary];
    await this.#run(["unpause", ...of(pid, minor), "-a", args, ...second]);
  }

  async stats({ pid, minor }: Tapdisk): Promise<TapdiskStats> {
    const text = await this.#run(["stats", ...of(pid, minor)]);
    try {
      return tapdiskStats.parse(JSON.parse(text));
    } catch {
      throw failed("stats", `it is not understood: ${text.slice(0, 200)}`);
    }
  }

  /** `deadlineMs` of null: it is let come to its own end. */
  async #run(args: readonly string[], deadlineMs: number | null = this.#deadlineMs): Promise<string> {
    const [command = ""] = args;
    const run = await execa(this.program, args, {
      reject: false,
      cleanup: false,
      stdin: "ignore",
      ...(deadlineMs === null ? {} : { timeout: deadlineMs }),
      maxBuffer: OUTPUT_MAX,
      env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL: "C" },
      extendEnv: false,
    });
    if (!run.failed) return run.stdout;
    const said = run.stderr.trim() === "" ? (run.shortMessage ?? "it says nothing") : run.stderr.trim();
    throw failed(command, reasonOf(said).slice(-500));
  }
}

function of(pid: number, minor: number): readonly string[] {
  return ["-p", String(pid), "-m", String(minor)];
}

function failed(command: string, why: string): SmFault {
  return new SmFault(
    faultCodes.tapdiskFailed,
    `tap-ctl ${command} failed: ${why.replace(/\.$/, "")}.`,
    "tap-ctl list shows the tapdisks of this host; /var/log/daemon.log has what they say",
  );
}
