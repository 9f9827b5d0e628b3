/**
 * Which refusals are written one by one, and which are only counted: a flood of them must not fill the audit's disk, nor
 * push out of it what was done before.
 *
 *     first of a source ──▶ a line of its own, a window of a second ──others in it are counted──▶ one line with their number
 *         └─ strangers' lines are used up, or too many sources at once ──▶ counted with the others of its crowd ──▶ one line
 *
 * Must always hold:
 * - none is lost: every refusal is in the count of exactly one line;
 * - strangers together, from however many addresses, make a bounded number of lines; what crowds at the ports hides nothing
 *   of what is tried with requests, for each crowd has lines of its own;
 * - whom this cluster knows has its own windows, and strangers take nothing from them.
 */
import { Allowances } from "./gate.ts";

const WINDOW_MS = 1000;
/** Sources that are told apart at a time. */
const SOURCES_MAX = 100;
/** Lines about strangers, for each crowd: 200 to 500 bytes each, so that months of a flood fit where it took days. */
const LINES_OF_STRANGERS = { perSecond: 1, burst: 60 };
/** How often those are told of who have no line of their own. */
const OTHERS_MS = 60_000;

/** Strangers: those who come to a port and get no further, and those whose request was read. */
export type Crowd = "connections" | "requests";

/** `crowd` null: somebody whom the cluster knows. `count`: so many, which somebody has counted already. */
export type Refused = { readonly source: string; readonly crowd: Crowd | null; readonly count: number };
export type Counted = { readonly source: string; readonly count: number };
/** `count` refusals came after the one that opened the window. */
type Window = { readonly crowd: Crowd | null; readonly endsMs: number; count: number };

export class Refusals {
  readonly #windows = new Map<string, Window>();
  readonly #lines = new Allowances(LINES_OF_STRANGERS);

  /** True: this one gets a line of its own. */
  count({ source, crowd, count }: Refused, nowMs: number): boolean {
    const open = this.#windows.get(source);
    if (open !== undefined) {
      open.count += count;
      return false;
    }
    const hasLine = this.#windows.size < SOURCES_MAX && (crowd === null || this.#lines.take(crowd, nowMs));
    if (hasLine) this.#windows.set(source, { crowd, endsMs: nowMs + WINDOW_MS, count: 0 });
    else this.#countOther(crowd, count, nowMs);
    return hasLine;
  }

  /** Ends the windows whose time is over; those that counted something are to be written. */
  end(nowMs: number): readonly Counted[] {
    const over = Array.from(this.#windows).filter(([, { endsMs }]) => endsMs <= nowMs);
    for (const [source] of over) this.#windows.delete(source);
    const counted: Counted[] = [];
    for (const [source, { crowd, count }] of over.filter(([, window]) => window.count > 0)) {
      if (crowd === null || this.#lines.take(crowd, nowMs)) counted.push({ source, count });
      else this.#countOther(crowd, count, nowMs);
    }
    return counted;
  }

  /** The same with all of them, and nothing is counted any more. */
  endAll(): readonly Counted[] {
    const all = Array.from(this.#windows, ([source, { count }]) => ({ source, count }));
    this.#windows.clear();
    return all.filter(({ count }) => count > 0);
  }

  /** When the next window ends; null: none is open. */
  get nextEndMs(): number | null {
    const ends = Array.from(this.#windows.values(), ({ endsMs }) => endsMs);
    return ends.length === 0 ? null : Math.min(...ends);
  }

  /** Windows that are open. */
  get size(): number {
    return this.#windows.size;
  }

  #countOther(crowd: Crowd | null, count: number, nowMs: number): void {
    const source = crowd === null ? "others" : `others (${crowd})`;
    const open = this.#windows.get(source);
    if (open !== undefined) open.count += count;
    // Its line is none of the crowd's own, so that it is written when they are used up.
    else
      this.#windows.set(source, {
        crowd: null,
        endsMs: nowMs + (crowd === null ? WINDOW_MS : OTHERS_MS),
        count,
      });
  }
}
