/**
 * One guest: a process of weft-checker that writes stamped blocks through NBD, reads them, and keeps the history.
 *
 * Must always hold: a guest that ended unasked is an error of whoever waits for it, with what it said last.
 */
import { spawn } from "node:child_process";
import type { ChildProcessByStdio } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";

import { z } from "zod";

import { nativeBin } from "../lib/repository.ts";
import { until } from "../lib/until.ts";
import { DEADLINE_MS } from "./arena.ts";
import { MARK } from "./disk.ts";

type GuestOptions = {
  /** Of the hosts: whoever clears up finds the guest by it. */
  readonly dir: string;
  readonly socket: string;
  readonly history: string;
  readonly seed: number;
};

/** 8 MiB of the volume, half of the requests in one of them: blocks are met again and again. */
const BLOCKS = 2048;
const DEPTH = 16;
/** Requests a second: a load that leaves the processor to those who are tested. */
const RATE = 1000;

const figuresJson = z.object({
  writes: z.number(),
  errors: z.number(),
  lost_connections: z.number(),
  stall_ms: z.number(),
});

type GuestFigures = z.output<typeof figuresJson>;

const lineJson = z.union([
  z.object({ connected: z.string() }),
  z.object({ op: z.literal("figures"), total: figuresJson }),
  figuresJson.extend({ op: z.literal("end") }),
  z.object({ op: z.literal("mark"), name: z.string(), window: figuresJson }),
  z.object({ op: z.literal("error"), error: z.string() }),
  z.object({ op: z.string() }),
]);

type Line = z.output<typeof lineJson>;

type Order = { readonly op: string; readonly name?: string; readonly path?: string };

export class Guest {
  readonly history: string;
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #lines: Line[] = [];
  #said = "";
  #ended = false;

  private constructor({ dir, socket, history, seed }: GuestOptions) {
    this.history = history;
    const numbers = { blocks: BLOCKS, depth: DEPTH, seed, rate: RATE };
    const options = Object.entries(numbers).flatMap(([name, value]) => [`--${name}`, String(value)]);
    this.#child = spawn(
      join(nativeBin(), "weft-checker"),
      ["run", "--socket", socket, "--history", history, "--until-stdin-closes", "--reconnect", ...options],
      // Detached: Ctrl-C is for the one who ends it in order.
      { detached: true, stdio: ["pipe", "pipe", "pipe"], env: { ...process.env, [MARK]: dir } },
    );
    this.#child.stderr.setEncoding("utf8").on("data", (text: string) => (this.#said += text));
    createInterface({ input: this.#child.stdout }).on("line", (line) => this.#take(line));
    for (const end of ["error", "close"] as const) this.#child.once(end, () => (this.#ended = true));
    // A guest that ended reads no orders; whoever gave one misses the answer.
    this.#child.stdin.on("error", () => {});
  }

  /** Returns when it has read all its blocks once. */
  static async start(options: GuestOptions): Promise<Guest> {
    const guest = new Guest(options);
    await guest.#line("the guest's first reads", (line) => ("connected" in line ? line : null));
    return guest;
  }

  async figures(): Promise<GuestFigures> {
    this.#order({ op: "figures" });
    const { total } = await this.#line("the guest's figures", (line) => ("total" in line ? line : null));
    return total;
  }

  /** Returns when so many more of its writes were acknowledged. */
  async acknowledges(count: number): Promise<void> {
    const { writes } = await this.figures();
    await until(async () => ((await this.figures()).writes >= writes + count ? true : null), {
      what: `${count} acknowledgements of a guest's writes`,
      deadlineMs: DEADLINE_MS,
      everyMs: 10,
    });
  }

  mark(name: string): void {
    this.#order({ op: "mark", name });
  }

  /** The figures since the mark before, and a new mark. */
  async window(name: string): Promise<GuestFigures> {
    this.mark(name);
    const { window } = await this.#line("the guest's window", (line) =>
      "window" in line && line.name === name ? line : null,
    );
    return window;
  }

  async moveTo(path: string): Promise<void> {
    this.#order({ op: "socket", path });
    await this.#line("the guest to be connected", (line) =>
      "op" in line && line.op === "socket" ? line : null,
    );
  }

  /** Ends it in order. */
  async stop(): Promise<GuestFigures> {
    this.#order({ op: "stop" });
    const end = await this.#line("the guest's end", (line) => ("stall_ms" in line ? line : null));
    await until(() => (this.#ended ? true : null), {
      what: "the guest's history",
      deadlineMs: DEADLINE_MS,
      everyMs: 5,
    });
    return end;
  }

  /** Ends it in any case. */
  kill(): void {
    this.#child.kill("SIGKILL");
  }

  #order(order: Order): void {
    this.#child.stdin.write(`${JSON.stringify(order)}\n`);
  }

  #take(text: string): void {
    let json: unknown = null;
    try {
      json = JSON.parse(text);
    } catch {
      // Not for us to read; it is shown if the guest ends too early.
    }
    const parsed = lineJson.safeParse(json);
    if (parsed.success) this.#lines.push(parsed.data);
    else this.#said += `${text}\n`;
  }

  /** The first line that is wanted, taken out of those that came. */
  async #line<Wanted extends Line>(what: string, wanted: (line: Line) => Wanted | null): Promise<Wanted> {
    const look = (): Wanted | null => {
      for (const [i, line] of this.#lines.entries()) {
        const found = wanted(line);
        if (found !== null) {
          this.#lines.splice(i, 1);
          return found;
        }
      }
      return null;
    };
    const found = await until(
      () => {
        // Before the lines: those of a guest that has ended are all there.
        const ended = this.#ended;
        return look() ?? (ended ? "ended" : null);
      },
      { what, deadlineMs: DEADLINE_MS, everyMs: 2 },
    );
    if (found === "ended")
      throw new Error(`a guest ended unasked: ${this.#said.trim() || "it said nothing"}`);
    return found;
  }
}
