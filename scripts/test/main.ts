/**
 * `npm test`: everything. The last line is "N passed, N failed"; the exit status is 0 only if nothing failed.
 *
 *     npm test                   all sections
 *     npm test -- tap sim        some of them: cargo, tap, cluster, sim
 *
 * Must always hold: a section that can't be run has failed, and the sections after it run all the same.
 */
import { profile, repositoryFiles } from "../lib/repository.ts";
import { builtSimulator, simulatorTarget } from "../lib/simulator.ts";
import { runTask } from "../lib/task.ts";
import { cargoCounts, none, simulatorCounts, sum, tapCounts, withStatus } from "./counts.ts";
import type { Counts } from "./counts.ts";

/** Some 10 s; slow machines end it after two minutes. A longer search: `npm run sim -- --seeds 100000`. */
const SIM_SEEDS = 4000;
const SIM_SECONDS = 120;

/** A file that hangs is ended then. Tests have deadlines of their own, which name what did not happen. */
const FILE_SECONDS = 300;

const sections: Readonly<Record<string, () => Promise<Counts>>> = { cargo, tap, cluster, sim };

const asked = process.argv.slice(2);
const unknown = asked.filter((name) => !(name in sections));
if (unknown.length > 0) {
  console.error(`No section ${unknown.join(", ")}; there are ${Object.keys(sections).join(", ")}.`);
  process.exit(1);
}

const all: Counts[] = [];
for (const [name, run] of Object.entries(sections)) {
  if (asked.length > 0 && !asked.includes(name)) continue;
  console.log(`\n==== ${name} ====`);
  const started = performance.now();
  const counts = await run();
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.log(`${name}: ${counts.passed} passed, ${counts.failed} failed in ${seconds} s`);
  all.push(counts);
}
const { passed, failed } = sum(all);
process.exitCode = failed === 0 && passed > 0 ? 0 : 1;
console.log(`\n${passed} passed, ${failed} failed`);

/** The model checkers go through millions of states: built without optimisation they take minutes. */
async function cargo(): Promise<Counts> {
  const most = await cargoTest("--workspace", "--exclude", "weft-model");
  // Test programs with broken rules, and no daemon among them: what isn't broken is built already.
  const pools = await cargoTest("-p", "weft-crash", "--features", "mutants", "--test", "broken");
  const plain = await plainDaemon();
  // Beside the simulator, which is optimised as well.
  const model = await cargoTest("--release", "-p", "weft-model", "--target-dir", simulatorTarget());
  return sum([most, pools, plain, model]);
}

/** What tests of the daemon built obeys `insecure-clear`; from here on the one that people run stands in its place. */
async function plainDaemon(): Promise<Counts> {
  const command = ["cargo", "build", "--quiet", "--profile", profile(), "-p", "weftd"];
  const { ok } = await runTask({ name: "weftd", cwd: "native", command, show: everything });
  return { passed: 0, failed: ok ? 0 : 1 };
}

async function cargoTest(...what: readonly string[]): Promise<Counts> {
  const command = ["cargo", "test", "--quiet", "--no-fail-fast", ...what];
  const { ok, output } = await runTask({ name: "cargo", cwd: "native", command, show: everything });
  return withStatus(cargoCounts(output), ok);
}

/** Tests that need no cluster of the whole machine's attention: they wait for half of their time, so more at once than processors. */
async function tap(): Promise<Counts> {
  return runTap(3, (path) => !needsCluster(path));
}

/** Hosts in namespaces with real daemons measure time: one at a time. */
async function cluster(): Promise<Counts> {
  return runTap(1, needsCluster);
}

function needsCluster(path: string): boolean {
  return /^test\/(scenario|e2e)\//.test(path);
}

async function runTap(jobs: number, wanted: (path: string) => boolean): Promise<Counts> {
  const files = repositoryFiles().filter((path) => path.endsWith(".test.ts") && wanted(path));
  if (files.length === 0) return none;
  const command = ["tap", `--jobs=${jobs}`, `--timeout=${FILE_SECONDS}`, "--reporter=tap", ...files];
  // One line for each file while it runs, and all that a failed one said afterwards.
  const { ok, output } = await runTask({ name: "tap", command, show: (line) => /^(not )?ok /.test(line) });
  if (!ok) console.log(output);
  return withStatus(tapCounts(output), ok);
}

/** Correct rules hold for many seeds; each broken rule is found. The simulator prints the seed that shows it. */
async function sim(): Promise<Counts> {
  let simulator: string;
  try {
    simulator = await builtSimulator();
  } catch (error) {
    console.log(error instanceof Error ? error.message : error);
    return { passed: 0, failed: 1 };
  }
  const runs = [];
  for (const options of [
    ["--seeds", String(SIM_SEEDS), "--seconds", String(SIM_SECONDS)],
    ["--mutation", "all"],
  ]) {
    const { ok, output } = await runTask({ name: "sim", command: [simulator, ...options], show: everything });
    const counts = simulatorCounts(output);
    // One that says nothing of what it did has done nothing.
    runs.push(withStatus(counts, ok && counts.passed > 0));
  }
  return sum(runs);
}

function everything(): boolean {
  return true;
}
