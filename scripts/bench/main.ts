/** `npm run bench`: weft beside the floor under it and a peer, on this machine, in one run. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { Command, InvalidArgumentError } from "commander";

import { Cluster } from "../cluster/cluster.ts";
import type { Services } from "../cluster/host.ts";
import { repository } from "../lib/repository.ts";
import { figuresOf, renderFigures, renderRuns } from "./figures.ts";
import type { Run, Side } from "./figures.ts";
import { runMainJob } from "./main-job.ts";

const SIZE = 256n * 1024n * 1024n;

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
  .description("Figures of the main job: 4 KiB durable random writes on two copies, and reads, diskless.")
  .argument("[job]", "main is the only one", "main")
  .option("--json <file>", "write the figures to a file")
  .option("--dir <dir>", "where the hosts keep their state", join(repository, ".cluster", "bench"))
  .option("--sides <names>", "what is measured", sidesOf, ["weft", "floor", "quorum"] as const)
  .option("--rounds <n>", "rounds; the medians count", positive, 5)
  .option("--seconds <n>", "length of each of the short runs", positive, 3)
  .action(async (job: string, options: Options) => {
    if (job !== "main") throw new Error(`there is no job "${job}"; there is: main`);
    const runs = await measure(options);
    const figures = figuresOf(runs);
    console.log(`\n${renderRuns(runs)}`);
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

async function measure({ dir, sides, rounds, seconds }: Options): Promise<readonly Run[]> {
  const say = (line: string): void => console.log(line);
  await Cluster.down(dir);
  try {
    const cluster = sides.includes("weft")
      ? await Cluster.up({ dir, hosts: 3, pools: ["h1", "h2"], say })
      : await startIdle(dir);
    return await runMainJob(cluster, { sides, rounds, secondsEach: seconds, size: SIZE, say });
  } finally {
    await Cluster.down(dir);
  }
}

async function startIdle(dir: string): Promise<Cluster> {
  const cluster = await Cluster.create({ dir, hosts: 3, pools: ["h1", "h2"], services: idle });
  await Promise.all(cluster.hosts.map(async (host) => host.start()));
  return cluster;
}

function sidesOf(text: string): readonly Side[] {
  return text.split(",").map((name) => {
    if (name === "weft" || name === "floor" || name === "quorum") return name;
    throw new InvalidArgumentError("the sides are weft, floor, quorum");
  });
}

function positive(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("expected a whole number above 0");
}
