/**
 * Values of the mirror, each read once: entries are never changed, only replaced, so what was read of one stays true.
 *
 * Must always hold: what can't be read is refused each time with the same error.
 */
import { WeftError } from "../wire/errors.ts";
import type { Entry } from "../wire/store-client.ts";

/** `parse` throws a WeftError for what it does not understand. */
export function readOnce<T>(parse: (key: string, text: string) => T): (entry: Entry) => T {
  const read = new WeakMap<Entry, { readonly value: T } | WeftError>();
  return (entry) => {
    const known = read.get(entry) ?? first(entry, parse);
    read.set(entry, known);
    if (known instanceof WeftError) throw known;
    return known.value;
  };
}

function first<T>(
  { key, value }: Entry,
  parse: (key: string, text: string) => T,
): { readonly value: T } | WeftError {
  try {
    return { value: parse(key, value) };
  } catch (error) {
    if (error instanceof WeftError) return error;
    throw error;
  }
}
