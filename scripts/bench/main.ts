/** `npm run bench`: weft beside the floor under it and a peer, or beside what its work needs at least, in one run. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { execa } from "execa";
import { Command, InvalidArgumentError } from "commander";

import { Cluster } from "../cluster/cluster.ts";
import { weftServices } from "../cluster/host.ts";
import type { Services } from "../cluster/host.ts";
import { nativeTarget, profile, repository } from "../lib/repository.ts";
import { cloneFigures, runCloneJob } from "./clone-job.ts";
import { figuresOf, renderRuns, sides as allSides } from "./figures.ts";
import type { Run, Side } from "./figures.ts";
import { renderFigures } from "./frame.ts";
import type { Figure } from "./frame.ts";
import { lifeFigures, runLifeJob } from "./life-job.ts";
import { runMainJob } from "./main-job.ts";
import { runSnapshotJob, snapshotFigures } from "./snapshot-job.ts";

const SIZE = 256n * 1024n * 1024n;
/** Much more than what hosts say to each other meanwhile, which is counted as well. */
const LIFE_SIZE = 2n * 1024n * 1024n * 1024n;

/** Each of its blocks is written again at random, and each of its regions has a first write of its own. */
const SNAPSHOT_SIZE = 512n * 1024n * 1024n;
/** Room for the volume, its images and the trash. */
const SNAPSHOT_POOL = 8 * 1024 * 1024 * 1024;

const jobs = ["main", "life"] as const;
type Job = (typeof jobs)[number];

/** Hosts without weft, to measure the others alone. */
const idle: Services = { commands: () => ({}), ready: async () => Promise.resolve(true) };

type Options = {
  readonly json?: string;
  readonly dir: string;
  readonly sides: readonly Side[];
  readonly rounds: number;
  readonly seconds: number;
};

const program = new Command("npm run bench --")
  .description(
    "main: 4 KiB durable random writes on two copies, and reads, diskless. " +
      "life: what a copy that was away costs to bring back, and what snapshots cost their guest.",
  )
  .argument("[job]", "main or life", jobOf, "main")
  .option("--json <file>", "write the figures to a file")
  .option("--dir <dir>", "where the hosts keep their state", join(repository, ".cluster", "bench"))
  .option("--sides <names>", "what main measures", sidesOf, allSides)
  .option("--rounds <n>", "rounds; the medians count", positive, 5)
  .option("--seconds <n>", "length of each of main's short runs", positive, 3)
  .action(async (job: Job, options: Options) => {
    const figures = job === "main" ? await mainJob(options) : await lifeJob(options);
    if (figures.length > 0) console.log(`\n${renderFigures(figures)}`);
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(figures, null, 2)}\n`);
    process.exitCode = figures.some(({ holds }) => holds === false) ? 1 : 0;
  });

try {
  await program.parseAsync();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}

async function mainJob(options: Options): Promise<readonly Figure[]> {
  const runs = await measure(options);
  console.log(`\n${renderRuns(runs)}`);
  return figuresOf(runs);
}

async function lifeJob({ dir, rounds }: Options): Promise<readonly Figure[]> {
  const say = (line: string): void => console.log(line);
  const place = join(dir, "life");
  await Cluster.down(place);
  try {
    const cluster = await Cluster.up({ dir: place, hosts: 3, pools: ["h1", "h2"], say });
    const resyncs = lifeFigures(await runLifeJob({ cluster, rounds, size: LIFE_SIZE, say }), LIFE_SIZE);
    return [...resyncs, ...(await snapshotJob(place, rounds, say))];
  } finally {
    await Cluster.down(place);
  }
}

/** On a cluster of its own, whose pools can hold snapshots. */
async function snapshotJob(
  place: string,
  rounds: number,
  say: (line: string) => void,
): Promise<readonly Figure[]> {
  await Cluster.down(place);
  const pools = ["h1", "h2", "h3"];
  const cluster = await Cluster.up({ dir: place, hosts: 3, pools, xfsBytes: SNAPSHOT_POOL, say });
  const size = SNAPSHOT_SIZE;
  const snapshots = snapshotFigures(await runSnapshotJob({ cluster, rounds, size, say }), size);
  return [...snapshots, ...cloneFigures(await runCloneJob({ cluster, rounds, say }))];
}

async function measure({ dir, sides, rounds, seconds }: Options): Promise<readonly Run[]> {
  const say = (line: string): void => console.log(line);
  const clusters = new Map<string, Cluster>();
  // Side by side in networks of their own: an idle cluster costs the others next to nothing.
  const clusterOf = async (side: Side): Promise<Cluster> => {
    const place = placeOf(side, dir);
    const cluster = clusters.get(place) ?? (await startFor(side, place, sides, say));
    clusters.set(place, cluster);
    return cluster;
  };
  const down = async (): Promise<void> => {
    for (const place of new Set(allSides.map((side) => placeOf(side, dir)))) await Cluster.down(place);
  };
  await down();
  try {
    return await runMainJob({ sides, rounds, secondsEach: seconds, size: SIZE, say, clusterOf });
  } finally {
    await down();
  }
}

/** Floor and peer are on the hosts of `weft`. */
function placeOf(side: Side, dir: string): string {
  return side === "weft-auth" || side === "weft-clear" ? join(dir, side) : join(dir, "weft");
}

async function startFor(
  side: Side,
  dir: string,
  sides: readonly Side[],
  say: (line: string) => void,
): Promise<Cluster> {
  if (!side.startsWith("weft") && !sides.includes("weft")) return startIdle(dir);
  const transport = side === "weft-auth" ? "auth" : side === "weft-clear" ? "clear" : "tls";
  const options = { dir, hosts: 3, pools: ["h1", "h2"], transport, say } as const;
  return Cluster.up(
    transport === "clear" ? { ...options, services: weftServices([], await insecureDaemon()) } : options,
  );
}

/** A weftd that obeys `clear`, beside the one that people run. */
async function insecureDaemon(): Promise<string> {
  const target = join(nativeTarget(), "insecure");
  const command = ["build", "--quiet", "--profile", profile(), "-p", "weftd", "--features", "insecure-clear"];
  await execa("cargo", command, { cwd: join(repository, "native"), env: { CARGO_TARGET_DIR: target } });
  return join(target, profile() === "dev" ? "debug" : "release", "weftd");
}

async function startIdle(dir: string): Promise<Cluster> {
  const cluster = await Cluster.create({ dir, hosts: 3, pools: ["h1", "h2"], services: idle });
  await Promise.all(cluster.hosts.map(async (host) => host.start()));
  return cluster;
}

function jobOf(text: string): Job {
  const job = jobs.find((one) => one === text);
  if (job !== undefined) return job;
  throw new InvalidArgumentError(`the jobs are ${jobs.join(", ")}`);
}

function sidesOf(text: string): readonly Side[] {
  return text.split(",").map((name) => {
    const side = allSides.find((one) => one === name);
    if (side !== undefined) return side;
    throw new InvalidArgumentError(`the sides are ${allSides.join(", ")}`);
  });
}

function positive(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("expected a whole number above 0");
}
