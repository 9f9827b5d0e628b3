/**
 * Wrong tries of a secret, by the address that they come from.
 *
 * Must always hold:
 * - a try counts as wrong from its begin until it is known to be right: many at once are not more than some;
 * - a right one leaves no trace;
 * - what is older than the window is forgotten.
 */
import { networkOf } from "./gate.ts";

export type TriesLimit = { readonly tries: number; readonly windowMs: number };

export class Tries {
  readonly #limit: TriesLimit;
  /** By network: when each try began, the oldest first. */
  readonly #begun = new Map<string, readonly number[]>();

  constructor(limit: TriesLimit) {
    this.#limit = limit;
  }

  /** False: there were too many, and this one is not to be looked at. `nowMs` never goes back. */
  begin(address: string, nowMs: number): boolean {
    const from = nowMs - this.#limit.windowMs;
    this.#forget(from);
    const network = networkOf(address);
    const before = (this.#begun.get(network) ?? []).filter((ms) => ms > from);
    if (before.length >= this.#limit.tries) return false;
    // Put in anew: the map's order is that of the newest try of each.
    this.#begun.delete(network);
    this.#begun.set(network, [...before, nowMs]);
    return true;
  }

  /** The try that began at this moment was right. */
  right(address: string, begunMs: number): void {
    const network = networkOf(address);
    const before = this.#begun.get(network) ?? [];
    const at = before.indexOf(begunMs);
    if (at < 0) return;
    const rest = before.toSpliced(at, 1);
    if (rest.length === 0) this.#begun.delete(network);
    else this.#begun.set(network, rest);
  }

  /** Addresses that are remembered. */
  get size(): number {
    return this.#begun.size;
  }

  #forget(from: number): void {
    for (const [network, begun] of this.#begun) {
      if ((begun.at(-1) ?? 0) > from) return;
      this.#begun.delete(network);
    }
  }
}
