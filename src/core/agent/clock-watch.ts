/**
 * Asks the other hosts what time it is, one after the other.
 *
 * Must always hold: a host that doesn't answer says nothing about clocks; what it said before is forgotten with it.
 */
import type { ClockSample } from "../model/clock.ts";
import { clockFinding } from "../model/clock.ts";
import type { Finding } from "../model/finding.ts";
import type { HostId } from "../model/ids.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import type { Log } from "./log.ts";

/** One host each time: a hundred hosts ask a hundred questions in half an hour. */
const ASK_MS = 20_000;

export type ClockWatchOptions = {
  readonly others: () => readonly { readonly id: HostId; readonly name: string; readonly address: string }[];
  /** What its clock says, ms since 1970. */
  readonly ask: (address: string) => Promise<number>;
  readonly log: Log;
  readonly everyMs?: number;
};

export class ClockWatch {
  readonly #options: ClockWatchOptions;
  readonly #timer: NodeJS.Timeout;
  readonly #samples = new Map<HostId, ClockSample>();
  #next = 0;

  constructor(options: ClockWatchOptions) {
    this.#options = options;
    this.#timer = setInterval(() => {
      this.look().catch((error: unknown) =>
        options.log.error({ error: reasonOf(error) }, "the others' clocks: a bug"),
      );
    }, options.everyMs ?? ASK_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  get finding(): Finding | null {
    return clockFinding(Array.from(this.#samples.values()));
  }

  /** Asks the next one. */
  async look(): Promise<void> {
    const { others, ask } = this.#options;
    const those = others();
    for (const id of this.#samples.keys())
      if (!those.some((host) => host.id === id)) this.#samples.delete(id);
    const host = those[this.#next % Math.max(1, those.length)];
    this.#next += 1;
    if (host === undefined) return;
    const begun = Date.now();
    try {
      const theirs = await ask(host.address);
      const apartMs = theirs - (begun + Date.now()) / 2;
      this.#samples.set(host.id, { name: host.name, apartMs });
    } catch (error) {
      if (!isWeftError(error)) throw error;
      // Its certificate isn't valid yet by this host's clock: that says how far they are apart at least.
      const apartMs = error.code === "E-NET-05" ? apartOf(error.facts) : null;
      if (apartMs === null) this.#samples.delete(host.id);
      else this.#samples.set(host.id, { name: host.name, apartMs });
    }
  }
}

/** E-NET-05 tells when its validity begins, and this host's clock. */
function apartOf({ limit, now }: Readonly<Record<string, unknown>>): number | null {
  if (typeof limit !== "string" || typeof now !== "string") return null;
  return Date.parse(limit) - Date.parse(now);
}
