/**
 * While the store is away: perhaps it is only this host that it doesn't believe, or that doesn't believe it, because other
 * authorities took over while this host was off. Then a member's door has the newer list.
 *
 * Must always hold: a store that is away for another reason costs one question in some seconds, and no certificate.
 */
import { isWeftError, reasonOf } from "../wire/errors.ts";
import type { Log } from "./log.ts";

const ASK_MS = 5000;

export type RescueOptions = {
  readonly isAway: () => boolean;
  /** True: this host has another certificate now, by the authority that signs the newest list. */
  readonly catchUp: () => Promise<boolean>;
  readonly log: Log;
  readonly everyMs?: number;
};

export class Rescue {
  readonly #options: RescueOptions;
  readonly #timer: NodeJS.Timeout;
  #asking = false;
  #said = "";

  constructor(options: RescueOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.#look(), options.everyMs ?? ASK_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #look(): void {
    const { isAway, catchUp, log } = this.#options;
    if (this.#asking || !isAway()) return;
    this.#asking = true;
    catchUp()
      .then((caughtUp) => {
        if (caughtUp) log.warn({}, "this host was away while other authorities took over; it has caught up");
        return caughtUp;
      })
      .catch((error: unknown) => {
        if (!isWeftError(error)) {
          log.error({ error: reasonOf(error) }, "catching up: a bug");
          return;
        }
        // Else nobody answers: the usual case of a store that is away.
        if (!isWeftError(error, "E-HOST-14") || this.#said === error.message) return;
        this.#said = error.message;
        log.error({ code: error.code }, error.message);
      })
      .finally(() => {
        this.#asking = false;
      });
  }
}
