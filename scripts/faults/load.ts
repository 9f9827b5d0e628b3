/**
 * The load of a run: one guest, and after a take-over a second one beside it; at the end the judgement of both histories.
 *
 * Must always hold: what no guest heard of is no loss, and what one guest heard of must be there for all.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { execa } from "execa";
import { z } from "zod";

import { nativeBin } from "../lib/repository.ts";
import { until } from "../lib/until.ts";
import { DEADLINE_MS } from "./arena.ts";
import { Guest } from "./guest.ts";

type Judgement = {
  readonly stallMs: number;
  readonly lostAcks: number;
  readonly nonlinear: number;
  /** Requests that were answered with an error, and connections that were lost. */
  readonly failures: number;
};

const verdictJson = z.object({
  writes: z.number(),
  lost_acks: z.number(),
  nonlinear: z.number(),
  torn: z.number(),
});

export type LoadOptions = {
  /** Of the hosts. */
  readonly dir: string;
  /** For the histories. */
  readonly scratch: string;
  readonly socket: string;
  readonly seed: number;
};

export class Load {
  readonly #options: LoadOptions;
  #guest: Guest;
  #old: Guest | null = null;
  #socket: string;
  /** How long a guest waited that was started by a take-over, until it was served. */
  #takenOverMs = 0;

  private constructor(options: LoadOptions, guest: Guest) {
    this.#options = options;
    this.#guest = guest;
    this.#socket = options.socket;
  }

  static async start(options: LoadOptions): Promise<Load> {
    const { dir, scratch, socket, seed } = options;
    const guest = await Guest.start({ dir, socket, seed, history: join(scratch, "history.1") });
    return new Load(options, guest);
  }

  async acknowledges(count: number): Promise<void> {
    await this.#guest.acknowledges(count);
  }

  mark(name: string): void {
    this.#guest.mark(name);
  }

  /** The guest's longest wait since the mark before, in ms; and a new mark. */
  async stallSinceMark(name: string): Promise<number> {
    return (await this.#guest.window(name)).stall_ms;
  }

  /** Returns when a request of the guest has been without an answer for so long. */
  async waits(ms: number): Promise<void> {
    await until(async () => ((await this.#guest.figures()).stall_ms >= ms ? true : null), {
      what: `the guest to wait for ${ms} ms`,
      deadlineMs: DEADLINE_MS,
      everyMs: 20,
    });
  }

  /** The guest goes on through another socket. */
  async moveTo(socket: string): Promise<void> {
    this.#socket = socket;
    await this.#guest.moveTo(socket);
  }

  /** Another guest begins on what `open` opens, while the old one tries to go on. */
  async takeOver(open: () => Promise<string>): Promise<void> {
    const started = performance.now();
    this.#socket = await open();
    const { dir, scratch, seed } = this.#options;
    this.#old = this.#guest;
    const history = join(scratch, "history.2");
    this.#guest = await Guest.start({ dir, socket: this.#socket, seed: seed + 1, history });
    this.#takenOverMs = performance.now() - started;
  }

  /** Returns when the old guest has been told that it has the volume no more. */
  async oldGuestIsRefused(): Promise<void> {
    const old = this.#old;
    if (old === null) throw new Error("there is no old guest");
    await until(
      async () => {
        const { errors, lost_connections: lost } = await old.figures();
        return errors + lost > 0 ? true : null;
      },
      { what: "the old guest to be refused", deadlineMs: DEADLINE_MS, everyMs: 20 },
    );
  }

  /** Ends the load in order, reads everything once more, and judges. */
  async finish(): Promise<Judgement> {
    const { stall_ms: stall, errors, lost_connections: lost } = await this.#guest.stop();
    await this.#old?.stop();
    const histories = [this.#old, this.#guest].flatMap((guest) =>
      guest === null ? [] : ["--history", guest.history],
    );
    const command = ["verify", ...histories, "--final", "--socket", this.#socket];
    const { stdout, stderr, exitCode } = await execa(join(nativeBin(), "weft-checker"), command, {
      reject: false,
    });
    if (exitCode !== 0 && exitCode !== 1) throw new Error(`the histories can't be judged: ${stderr}`);
    writeFileSync(join(this.#options.scratch, "verdict.json"), stdout);
    const verdict = verdictJson.parse(JSON.parse(stdout));
    if (verdict.writes === 0) throw new Error("no write was acknowledged in the whole run");
    return {
      stallMs: Math.round(Math.max(stall, this.#takenOverMs)),
      lostAcks: verdict.lost_acks,
      // A torn block is no value that anybody wrote.
      nonlinear: Math.max(verdict.nonlinear, verdict.torn),
      failures: errors + lost,
    };
  }

  /** Ends it in any case. */
  end(): void {
    this.#guest.kill();
    this.#old?.kill();
  }
}
