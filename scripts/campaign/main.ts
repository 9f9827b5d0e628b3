/**
 * `npm run campaign -- 500000`: runs seeds that nobody ran before and adds them to docs/seeds.json; without a number it says
 * how many there are, and how many since the protocol changed.
 *
 * Must always hold: what is run is what is committed; the file has each piece as soon as it is done.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import { z } from "zod";

import { repository } from "../lib/repository.ts";
import { builtSimulator } from "../lib/simulator.ts";
import { nextSeed, parseManifest, sumOf, writeManifest } from "./manifest.ts";
import type { Run } from "./manifest.ts";

/** So many seeds at a time: an end in the middle loses a minute or two. */
const PIECE = 50_000;
/** A change of one of these may change what a seed does. */
const SIMULATED = ["native/weft-proto", "native/weft-sim/src", "native/Cargo.lock"];

const manifest = join(repository, "docs/seeds.json");
const outcome = z.object({ seeds: z.int(), violations: z.int() });

function git(...args: readonly string[]): string {
  return execFileSync("git", args, { cwd: repository, encoding: "utf8" }).trim();
}

function readRuns(): readonly Run[] {
  return parseManifest(readFileSync(manifest, "utf8"));
}

/** The runs of the protocol as it is now: of the last commit that changed it, or of a later one. */
function runsOfThisProtocol(runs: readonly Run[]): readonly Run[] {
  const changed = git("log", "-1", "--format=%H", "--", "native/weft-proto/src");
  const since = new Set(git("rev-list", `${changed}..HEAD`).split("\n").concat(changed));
  return runs.filter((run) => since.has(run.commit));
}

function report(): void {
  const runs = readRuns();
  const clean = runs.filter(({ violations }) => violations === 0);
  const thousands = (some: readonly Run[]): string => sumOf(some).seeds.toLocaleString("en");
  const found = sumOf(runs).violations;
  console.log(
    `${thousands(clean)} seeds in ranges without a violation, ${thousands(runsOfThisProtocol(clean))} of them since the ` +
      `protocol last changed; ${found} violations in the other ranges, each with what became of it`,
  );
}

async function run(seeds: number): Promise<number> {
  const changes = git("status", "--porcelain", "--", ...SIMULATED);
  if (changes !== "") throw new Error(`not committed, so no commit names what would be run:\n${changes}`);
  const commit = git("rev-parse", "HEAD");
  const simulator = await builtSimulator();
  const scratch = mkdtempSync(join(tmpdir(), "weft-seeds-"));
  let violations = 0;
  try {
    for (let left = seeds; left > 0; left -= PIECE) {
      const [first, count] = [nextSeed(readRuns()), Math.min(left, PIECE)];
      const json = join(scratch, `${first}.json`);
      const started = performance.now();
      const options = ["--seed", String(first), "--seeds", String(count), "--json", json];
      const { exitCode } = await execa(simulator, options, { stdio: "inherit", reject: false });
      if (exitCode !== 0 && exitCode !== 1)
        throw new Error(`the simulator ended with ${exitCode ?? "a signal"}`);
      const seconds = Math.round((performance.now() - started) / 100) / 10;
      const found = outcome.parse(JSON.parse(readFileSync(json, "utf8")));
      const date = new Date().toISOString().slice(0, 10);
      // One that stopped at its first findings has not run the rest.
      const last = first + found.seeds - 1;
      const done: Run = { range: [first, last], commit, date, violations: found.violations, seconds };
      writeFileSync(manifest, writeManifest([...readRuns(), done]));
      violations += found.violations;
    }
  } finally {
    rmSync(scratch, { recursive: true });
  }
  return violations;
}

const [asked, ...rest] = process.argv.slice(2);
try {
  const seeds = Number(asked ?? 0);
  if (!Number.isSafeInteger(seeds) || seeds < 0 || rest.length > 0) {
    throw new Error(`"${[asked, ...rest].join(" ")}" is not a number of seeds: npm run campaign -- 500000`);
  }
  const violations = await run(seeds);
  report();
  process.exitCode = violations > 0 ? 1 : 0;
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
