/**
 * Work that is another host's, for as long as that one does it: who comes first is told by keys that every host can write,
 * so one that is gone may seem to live for good.
 */

/** The first one needs a few seconds for each step. */
export const TAKE_OVER_MS = 15_000;

export class Overdue {
  readonly #afterMs: number;
  #what = "";
  #sinceMs = 0;

  constructor(afterMs: number = TAKE_OVER_MS) {
    this.#afterMs = afterMs;
  }

  /** Whether the same was to be done all this time, each time when this was asked. */
  is(what: string): boolean {
    const nowMs = performance.now();
    if (what !== this.#what) {
      this.#what = what;
      this.#sinceMs = nowMs;
    }
    return nowMs - this.#sinceMs >= this.#afterMs;
  }

  /** Nothing is to be done now. */
  clear(): void {
    this.#what = "";
  }
}
