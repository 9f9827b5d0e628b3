/**
 * `npm run faults`: real processes under real faults, each run judged by the history of its load.
 *
 *     npm run faults                                 5 runs of every fault
 *     npm run faults -- --runs 100 --fault kill      the bars ask for 100 of kill, stop, drop and power-off each
 *     npm run faults -- --json FILE                  also writes the figures
 *
 * Must always hold:
 * - exit status 0 only if in every run no acknowledged write was lost, every block was linearizable, the copies were
 *   equal and what the fault promises came true. Times alone fail nothing, but for waits that last 30 s;
 * - what was started and mounted is gone at the end, also after Ctrl-C; the logs of a failed run stay.
 */
import { cpSync, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";

import { Cluster } from "../cluster/cluster.ts";
import { profile, repository } from "../lib/repository.ts";
import { runTask } from "../lib/task.ts";
import { Arena } from "./arena.ts";
import { parseArguments } from "./arguments.ts";
import type { FaultName } from "./catalogue.ts";
import { Disk, endOutside } from "./disk.ts";
import { figuresOf, isGood, lineOf, renderBars, renderFigures } from "./figures.ts";
import type { FaultRun } from "./figures.ts";
import { playRun } from "./run.ts";

const asked = parseArguments(process.argv.slice(2), join(repository, ".cluster/faults"));
if (asked.kind === "told") {
  console.error(asked.say);
  process.exit(asked.status);
}
const { faults, runs, json } = asked;
const dir = resolve(asked.dir);
/** Where the logs of failed runs stay. */
const failed = `${dir}-failed`;
/** Histories and sockets. */
const scratch = mkdtempSync(join(tmpdir(), "weft-faults-"));

let arena: Arena | null = null;
let stopping: Promise<void> | null = null;

for (const name of ["SIGINT", "SIGTERM"] as const) {
  process.on(name, () => {
    console.error("ending what was started…");
    // Twice: what was being started meanwhile is there then, and nothing more can start without a network.
    stopping ??= clean()
      .then(clean)
      .finally(() => process.exit(130));
  });
}

try {
  if (process.getuid?.() !== 0)
    throw new Error("npm run faults needs root: it makes network namespaces and mounts");
  await build();
  await endOutside(dir);
  await Cluster.down(dir);
  const done = await playAll();
  const figures = figuresOf(done);
  console.log(`\n${renderFigures(figures)}\n`);
  const bars = renderBars(done);
  if (bars !== null) console.log(`${bars}\n`);
  if (json !== null) {
    const path = resolve(process.env["INIT_CWD"] ?? ".", json);
    writeFileSync(path, `${JSON.stringify(figures, null, 2)}\n`);
  }
  const bad = done.filter((run) => !isGood(run)).length;
  console.log(
    bad === 0 ? `Everything held in ${done.length} runs.` : `${bad} of ${done.length} runs failed.`,
  );
  process.exitCode = bad === 0 ? 0 : 1;
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
} finally {
  await (stopping ?? clean());
}

async function playAll(): Promise<readonly FaultRun[]> {
  const done: FaultRun[] = [];
  for (const fault of faults) {
    for (let turn = 0; turn < runs; turn++) done.push(await playOne(fault, turn));
  }
  return done;
}

async function playOne(fault: FaultName, turn: number): Promise<FaultRun> {
  arena ??= await Arena.up({
    dir,
    mount: async (host) => Disk.mount(host, dir, scratch),
    say: (line) => console.log(`         ${line}`),
  });
  const started = performance.now();
  const own = join(scratch, `${fault}-${turn + 1}`);
  const run = await playRun(arena, fault, turn, own);
  // What ended then ended because everything was.
  if (stopping !== null) return run;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(`${seconds.padStart(6)} s  ${`${fault} ${turn + 1}/${runs}`.padEnd(32)}  ${lineOf(run)}`);
  if (!isGood(run)) {
    console.log(`         its logs: ${keepLogs(arena, own)}`);
    // Nobody should trust these hosts any more.
    arena = null;
    await endOutside(dir);
    await Cluster.down(dir);
  }
  rmSync(own, { recursive: true, force: true });
  return run;
}

/** What the hosts wrote, and the histories. */
function keepLogs({ cluster }: Arena, own: string): string {
  const place = join(failed, basename(own));
  rmSync(place, { recursive: true, force: true });
  cpSync(own, place, { recursive: true });
  for (const { name, layout, stateDir } of cluster.hosts) {
    cpSync(join(layout.dir, "log"), join(place, name), { recursive: true });
    const etcd = join(stateDir, "etcd.log");
    if (existsSync(etcd)) cpSync(etcd, join(place, name, "etcd.log"));
  }
  return place;
}

async function build(): Promise<void> {
  const programs = ["weft-faultfs", "weft-checker"];
  const command = ["cargo", "build", "--quiet", "--profile", profile()];
  const { ok, output } = await runTask({
    name: `build of ${programs.join(" and ")}`,
    cwd: "native",
    command: [...command, ...programs.flatMap((program) => ["-p", program])],
  });
  if (!ok) throw new Error(`${programs.join(" and ")} were not built:\n${output}`);
}

/** By looking, not by remembering: whatever is there of this directory. */
async function clean(): Promise<void> {
  await endOutside(dir);
  await Cluster.down(dir);
  rmSync(scratch, { recursive: true, force: true });
}
