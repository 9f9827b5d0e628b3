/** The seeds that were run can be counted on: none twice, and each run is a commit's. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { array, assert, integer, property } from "fast-check";
import t from "tap";

import { nextSeed, parseManifest, sumOf, writeManifest } from "../../scripts/campaign/manifest.ts";
import type { Run } from "../../scripts/campaign/manifest.ts";
import { repository } from "../../scripts/lib/repository.ts";

const commit = "0123456789abcdef0123456789abcdef01234567";
const run = (first: number, last: number): Run => ({
  range: [first, last],
  commit,
  date: "2026-11-21",
  violations: 0,
  seconds: 1.5,
});

await t.test("seeds: the manifest of this repository is whole, and each finding has its end", async (t) => {
  const runs = parseManifest(readFileSync(join(repository, "docs/seeds.json"), "utf8"));
  t.ok(sumOf(runs).seeds > 0);
  for (const { range, violations, note } of runs) {
    t.equal(violations > 0, note !== undefined, `what became of the finding in ${range.join(" to ")}`);
  }
});

await t.test("seeds: a range that was run is not run again, and none stands there twice", async (t) => {
  t.equal(nextSeed([]), 1_000_001);
  t.equal(nextSeed([run(1, 10), run(11, 30)]), 31);
  t.throws(
    () => parseManifest(writeManifest([run(1, 10), run(10, 30)])),
    /10 to 30 does not come after 1 to 10/,
  );
  t.throws(() => parseManifest(writeManifest([run(9, 3)])), /9 to 3 ends before it begins/);
  t.throws(() => parseManifest(`[{ "range": [1, 2] }]`));
});

await t.test("seeds: what is written is read again, and its sum is the number of seeds", async () => {
  const lengths = array(integer({ min: 1, max: 100_000 }), { maxLength: 20 });
  assert(
    property(lengths, (counts) => {
      let first = 1;
      const runs = counts.map((count) => {
        const next = run(first, first + count - 1);
        first += count;
        return next;
      });
      t.strictSame(parseManifest(writeManifest(runs)), runs);
      t.equal(sumOf(runs).seeds, first - 1);
    }),
  );
});
