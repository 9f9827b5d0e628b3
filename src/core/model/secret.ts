/**
 * A value that must not be seen: a key, a token, a passphrase.
 *
 * Must always hold: whatever shows, logs or serialises it says `[secret]`; only `reveal()` gives the value, so that
 * every place that uses one can be found by its name.
 */

const HIDDEN = "[secret]";

export class Secret<Value extends string | Uint8Array> {
  readonly #value: Value;

  constructor(value: Value) {
    this.#value = value;
  }

  /** The value itself: for a key's user, a hash, or the one place that hands it to a person. */
  reveal(): Value {
    return this.#value;
  }

  toString(): string {
    return HIDDEN;
  }

  toJSON(): string {
    return HIDDEN;
  }

  /** What Node's `util.inspect` and `console` ask for. */
  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return HIDDEN;
  }
}
