/** `npm run bench`: weft beside the floor under it and a peer, on this machine, in one run. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { execa } from "execa";
import { Command, InvalidArgumentError } from "commander";

import { Cluster } from "../cluster/cluster.ts";
import { weftServices } from "../cluster/host.ts";
import type { Services } from "../cluster/host.ts";
import { nativeTarget, profile, repository } from "../lib/repository.ts";
import { figuresOf, renderFigures, renderRuns, sides as allSides } from "./figures.ts";
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
  .option("--sides <names>", "what is measured", sidesOf, allSides)
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
