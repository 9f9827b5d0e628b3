/**
 * Work that is asked for again and again, done one round at a time.
 *
 * Must always hold: who asks is answered by a round that began after the question; a round that fails ends no other.
 */
import { isWeftError, reasonOf } from "../wire/errors.ts";
import type { Log } from "./log.ts";

export class Rounds {
  readonly #what: string;
  readonly #log: Log;
  readonly #round: () => Promise<void>;
  #running: Promise<void> | null = null;
  #again = false;

  /** `what` stands before each line of the log. */
  constructor(what: string, log: Log, round: () => Promise<void>) {
    this.#what = what;
    this.#log = log;
    this.#round = round;
  }

  /** Returns when a round that begins from now on is over, whatever came of it. */
  async settle(): Promise<void> {
    this.#again = true;
    this.#running ??= this.#run().finally(() => {
      this.#running = null;
    });
    await this.#running;
  }

  /** What fails is told in the log. */
  async guarded(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (isWeftError(error)) this.#log.warn({ code: error.code }, `${this.#what}: ${error.message}`);
      else this.#log.error({ error: reasonOf(error) }, `${this.#what}: a bug`);
    }
  }

  async #run(): Promise<void> {
    while (this.#again) {
      this.#again = false;
      await this.guarded(this.#round);
    }
  }
}
