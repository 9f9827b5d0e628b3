/** Copies side by side: a difference that is overlooked would let a split of the copies pass. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import t from "tap";

import { differingBlocks } from "../../../scripts/faults/copies.ts";

const BLOCK = 4096;

/** A pool with one copy of the volume `v`, which has this content in its segments. */
function poolWith(root: string, name: string, segments: readonly Buffer[]): string {
  const dir = join(root, name, "replicas", `v.${name}`);
  mkdirSync(dir, { recursive: true });
  for (const [i, content] of segments.entries()) writeFileSync(join(dir, `seg-00000${i}`), content);
  writeFileSync(join(dir, "meta.a"), name);
  return join(root, name);
}

await t.test("faults: copies are compared block by block, over all their segments", async (t) => {
  const root = t.testdir();
  const data = Buffer.alloc(300 * BLOCK, "data");
  const changed = Buffer.from(data);
  changed[5] = 0;
  changed[299 * BLOCK] = 0;
  const a = poolWith(root, "a", [data, data]);
  const b = poolWith(root, "b", [data, data]);
  const c = poolWith(root, "c", [data, changed]);
  t.equal(await differingBlocks([a, b], "v"), 0);
  t.equal(await differingBlocks([a, c], "v"), 2);
  t.equal(await differingBlocks([c, a], "v"), 2);
  await t.rejects(differingBlocks([a, b], "w"), /0 copies of w/);
});

await t.test("faults: what a copy does not have on disk reads as zeroes", async (t) => {
  const root = t.testdir();
  const a = poolWith(root, "a", [Buffer.alloc(8 * BLOCK)]);
  const b = poolWith(root, "b", []);
  const c = poolWith(root, "c", [Buffer.alloc(2 * BLOCK, 1)]);
  t.equal(await differingBlocks([a, b], "v"), 0);
  t.equal(await differingBlocks([b, c], "v"), 2);
  t.equal(await differingBlocks([a, c], "v"), 2);
});
