/** Whatever was set and deleted, looking under a prefix gives what a look at every key would. */
import * as fc from "fast-check";
import t from "tap";

import { KeyIndex } from "../../../src/core/agent/key-index.ts";
import { readOnce } from "../../../src/core/agent/read-once.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import type { Entry } from "../../../src/core/wire/store-client.ts";

const entry = (key: string, modRevision: bigint = 1n): Entry => ({
  key,
  value: "",
  createRevision: 1n,
  modRevision,
  lease: 0n,
});
const part = fc.constantFrom("vol", "host", "1", "12", "a", "want", "state", "");
const key = fc
  .tuple(fc.constantFrom("/weft/v1/", "/weft/v1/", "/other/"), fc.array(part, { minLength: 1, maxLength: 5 }))
  .map(([root, parts]) => root + parts.join("/"));
const prefix = fc
  .tuple(key, fc.nat({ max: 30 }))
  .map(([text, length]) => text.slice(0, Math.max(1, text.length - length)));

void t.test("key index: every key under a prefix, and no other", async (t) => {
  const step = fc.oneof(
    key.map((name) => ({ kind: "set" as const, name })),
    key.map((name) => ({ kind: "delete" as const, name })),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), prefix, (steps, under) => {
      const index = new KeyIndex();
      const plain = new Map<string, Entry>();
      for (const [n, { kind, name }] of steps.entries()) {
        const one = entry(name, BigInt(n));
        if (kind === "set") index.set(one);
        else index.delete(name);
        if (kind === "set") plain.set(name, one);
        else plain.delete(name);
      }
      const sorted = (entries: readonly Entry[]): readonly Entry[] =>
        entries.toSorted((a, b) => (a.key < b.key ? -1 : 1));
      const wanted = [...plain.values()].filter((one) => one.key.startsWith(under));
      t.strictSame(sorted(index.under(under)), sorted(wanted), under);
      t.strictSame(sorted(index.all()), sorted([...plain.values()]));
      for (const { name } of steps) t.equal(index.get(name), plain.get(name) ?? null);
    }),
    { numRuns: 500 },
  );
});

void t.test("read once: a value is read once, and refused each time", async (t) => {
  let reads = 0;
  const read = readOnce((name) => {
    reads += 1;
    if (name === "bad") throw new WeftError({ code: "E-STORE-07", message: "damaged" });
    return { name };
  });
  const [good, bad] = [entry("good"), entry("bad")];
  t.equal(read(good), read(good));
  t.throws(() => read(bad), { code: "E-STORE-07" });
  t.throws(() => read(bad), { code: "E-STORE-07" });
  t.equal(reads, 2);
  read(entry("good"));
  t.equal(reads, 3, "another one, though it says the same");
});
