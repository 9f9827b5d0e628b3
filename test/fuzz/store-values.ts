/**
 * Values of the store as anybody may have left them there, at the parsers of core/wire.
 *
 * Must always hold: a value is understood, or refused with E-STORE-07 or E-STORE-13; what is understood can be written
 * again and shown.
 */
import * as fc from "fast-check";

import { isWeftError } from "../../src/core/wire/errors.ts";
import * as record from "../../src/core/wire/record.ts";
import * as sr from "../../src/core/wire/sr-json.ts";
import { keys, parseKey } from "../../src/core/wire/store-keys.ts";
import type { OpenDoor } from "./door.ts";
import { goodValues } from "./good-values.ts";
import { anyJson, nearly, textOf } from "./values.ts";

const parsers = {
  cluster: record.parseCluster,
  store: record.parseStore,
  host: record.parseHost,
  pool: record.parsePool,
  usage: record.parsePoolUsage,
  name: record.parseNameKey,
  alive: record.parseAlive,
  made: record.parseMade,
  want: record.parseWant,
  state: record.parseRecord,
  extra: record.parseRecordExtra,
  snapshot: record.parseSnapshot,
  sr: sr.parseSr,
  vdi: sr.parseVdi,
  xapiHost: sr.parseXapiHost,
} as const satisfies Readonly<Record<string, (key: string, text: string) => unknown>>;

type Kind = keyof typeof parsers;
const kinds = Object.keys(parsers) as readonly Kind[];

type Value = { readonly kind: Kind; readonly text: string };
type Input = Value | { readonly key: string };

export async function openStoreValues(): Promise<OpenDoor> {
  const value = fc
    .constantFrom(...kinds)
    .chain((kind) =>
      fc.record({ kind: fc.constant(kind), text: textOf(fc.oneof(nearly(goodValues[kind]), anyJson)) }),
    );
  const part = fc.oneof(
    fc.constantFrom("vol", "snap", "host", "want", "replica", "state", "1", "00000000000000000001", ""),
    fc.string(),
  );
  const key = fc.record({
    key: fc.array(part, { maxLength: 6 }).map((parts) => `/weft/v1/${parts.join("/")}`),
  });
  return {
    arbitrary: fc.oneof({ weight: 9, arbitrary: value }, { weight: 1, arbitrary: key }),
    judge,
    kept: [],
    shrinks: true,
    close: async () => undefined,
  };
}

function judge(input: Input): void {
  if ("key" in input) {
    const parsed = parseKey(input.key);
    if (parsed?.kind === "made" && !Number.isSafeInteger(parsed.rid))
      throw new Error(`replica ${parsed.rid}`);
    return;
  }
  const { kind, text } = input;
  try {
    parsers[kind]("/weft/v1/some/key", text);
    if (kind === "want") {
      const want = record.parseWant(keys.want("v"), text);
      const again = record.parseWant(keys.want("v"), record.renderWant(want, text));
      if (again.sizeBytes !== want.sizeBytes || again.placements.length !== want.placements.length)
        throw new Error("want is not read as it was written");
    }
  } catch (error) {
    if (!isWeftError(error, "E-STORE-07") && !isWeftError(error, "E-STORE-13")) throw error;
  }
}
