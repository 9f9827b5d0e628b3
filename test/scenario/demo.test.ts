/**
 * Plot: the demo, as people run it. What the README promises first must be true in every commit: a host killed under
 * load costs no byte and only a short stall, and an owner that wakes up after a take-over changes nothing.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import t from "tap";
import { z } from "zod";

import { repository } from "../../scripts/lib/repository.ts";

const figures = z.object({
  ok: z.boolean(),
  seconds: z.number(),
  stall_ms_max: z.number(),
  changed_bytes: z.number(),
  resynced_bytes: z.number(),
  fenced_writes: z.number(),
  verified_bytes: z.number(),
  checks: z.array(z.object({ name: z.string(), ok: z.boolean() })),
});

/** An owner that wakes up after a take-over: its guest is told, it knows itself, and the volume is as it was. */
const takeOver = [
  "h3's load ends with an error",
  "h3's session ended as replaced by h2",
  "none of them arrived",
] as const;

await t.test("demo: every check holds, in less than 90 seconds", async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "weft-demo-"));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const json = join(dir, "figures.json");
  const script = join(repository, "scripts/demo/main.ts");
  const { exitCode, all } = await execa(process.execPath, [script, "--dir", join(dir, "d"), "--json", json], {
    all: true,
    reject: false,
  });
  t.equal(exitCode, 0, all);
  const found = figures.parse(JSON.parse(readFileSync(json, "utf8")));
  t.equal(found.ok, true);
  t.ok(found.seconds < 90, `${found.seconds} s`);
  t.ok(found.changed_bytes > 0 && found.resynced_bytes > 0);
  const held = found.checks.filter(({ ok }) => ok).map(({ name }) => name);
  t.same(
    takeOver.filter((name) => !held.includes(name)),
    [],
  );
});
