/** What doors are given: any JSON, and good values with something wrong in them. */
import * as fc from "fast-check";

/** Names that meant something to somebody once. */
const sharp = fc.constantFrom(
  "__proto__",
  "constructor",
  "prototype",
  "toString",
  "",
  "0",
  "id",
  "name",
  "size",
  "path",
  "\u0000",
  "polluted",
);
const sharpNumbers = fc.constantFrom(
  0,
  -0,
  -1,
  1,
  1.5,
  1e21,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 53,
  -(2 ** 53),
  Number.MAX_VALUE,
  5e-324,
);
const sharpTexts = fc.constantFrom(
  "",
  " ",
  "0",
  "-1",
  "18446744073709551615",
  "18446744073709551616",
  "1e3",
  "0x10",
  "NaN",
  "\u0000",
  "\u2028",
  "\ud800",
  "../../etc/passwd",
  "%00",
  "a".repeat(300),
  "00000000-0000-0000-0000-000000000000",
  "2026-11-21T00:00:00.000Z",
  "+275760-09-13T00:00:00.001Z",
  "-000001-01-01T00:00:00Z",
  "null",
  "[object Object]",
  "10G",
  "1.5T",
  "INSYNC",
);

const scalar = fc.oneof(
  sharpNumbers,
  sharpTexts,
  fc.string({ maxLength: 40, unit: "binary" }),
  fc.integer(),
  fc.boolean(),
  fc.constant(null),
);

/** Own properties also for `__proto__`, as JSON.parse makes them. */
export const anyJson: fc.Arbitrary<unknown> = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small", withCrossShrink: true },
    scalar,
    fc.array(tie("value"), { maxLength: 4 }),
    fc
      .array(fc.tuple(fc.oneof(sharp, fc.string({ maxLength: 10 })), tie("value")), { maxLength: 4 })
      .map((entries) => fromEntries(entries)),
  ),
})).value;

/** A good value with up to four changes at any depth: replaced, removed, added. */
export function nearly(good: unknown): fc.Arbitrary<unknown> {
  const change = fc.record({ at: fc.nat(), how: fc.nat(5), name: sharp, value: anyJson });
  return fc.array(change, { maxLength: 4 }).map((changes) => {
    let root: unknown = structuredClone(good);
    for (const { at, how, name, value } of changes) {
      const places = placesOf(root);
      const place = places[at % Math.max(1, places.length)];
      if (place === undefined) {
        root = value;
        continue;
      }
      const [holder, key] = place;
      if (how === 0) Reflect.deleteProperty(holder, key);
      else define(holder, how === 1 ? name : key, value);
    }
    return root;
  });
}

function placesOf(value: unknown): readonly (readonly [object, string])[] {
  if (typeof value !== "object" || value === null) return [];
  return Object.keys(value).flatMap((key): (readonly [object, string])[] => [
    [value, key],
    ...placesOf((value as Record<string, unknown>)[key]),
  ]);
}

function fromEntries(entries: readonly (readonly [string, unknown])[]): object {
  const made = {};
  for (const [name, value] of entries) define(made, name, value);
  return made;
}

function define(holder: object, key: string, value: unknown): void {
  Object.defineProperty(holder, key, { value, enumerable: true, configurable: true, writable: true });
}

/** The text of some JSON, sometimes not quite JSON. */
export function textOf(value: fc.Arbitrary<unknown>): fc.Arbitrary<string> {
  const spoil = fc.record({ at: fc.nat(), what: fc.string({ maxLength: 3, unit: "binary" }) });
  return fc.tuple(value, fc.option(spoil, { freq: 9 })).map(([json, spoilt]) => {
    const text = JSON.stringify(json) ?? "";
    if (spoilt === null) return text;
    const at = spoilt.at % (text.length + 1);
    return text.slice(0, at) + spoilt.what + text.slice(at + 1);
  });
}
