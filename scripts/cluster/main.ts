/**
 * `npm run cluster -- …`: hosts on this machine, to try things by hand and to play faults.
 *
 * Must always hold: after `up --dir DIR` the other commands mean that cluster until it is down, named or not.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

import { Command } from "commander";

import { Cluster, leftOutWithoutRoot } from "./cluster.ts";

const program = new Command("npm run cluster --")
  .description("A cluster of real hosts on this machine.")
  .enablePositionalOptions();

const DEFAULT_DIR = ".cluster";
/** Which directory the last `up` was given. */
const POINTER = join(".tap", "cluster-dir");

function lastDir(): string {
  try {
    return readFileSync(POINTER, "utf8");
  } catch {
    return DEFAULT_DIR;
  }
}

type WithDir = { readonly dir?: string };
const dir = (options: WithDir): string => options.dir ?? program.opts<WithDir>().dir ?? lastDir();
const cluster = (options: WithDir): Cluster => Cluster.open(dir(options));

program
  .command("up")
  .description("make, start and form a cluster")
  .option("--hosts <n>", "number of hosts", "3")
  .option("--pools <names>", "hosts that hold copies", "h1,h2")
  .action(async (options: WithDir & { hosts: string; pools: string }) => {
    const where = options.dir ?? program.opts<WithDir>().dir ?? DEFAULT_DIR;
    mkdirSync(".tap", { recursive: true });
    writeFileSync(POINTER, resolve(where));
    const made = await Cluster.up({
      dir: where,
      hosts: Number(options.hosts),
      pools: options.pools.split(",").filter((name) => name !== ""),
      say: (line) => console.log(line),
    });
    if (made.mode === "loopback") console.log(`Not root: left out are ${leftOutWithoutRoot.join("; ")}.`);
    console.log("Next:  npm run cluster -- exec h3 -- weft status");
  });

program
  .command("exec")
  .description("run a command on a host: exec h3 -- weft status")
  .argument("<host>")
  .argument("<command...>")
  .passThroughOptions()
  .action(async (host: string, words: string[], options: WithDir) => {
    const command = words[0] === "--" ? words.slice(1) : words;
    const { result } = await cluster(options).host(host).exec(command, { stdio: "inherit" });
    process.exitCode = (await result).exitCode ?? 1;
  });

const verbs = {
  kill: "end everything on a host with SIGKILL",
  stop: "halt everything on a host with SIGSTOP",
  cont: "let it go on with SIGCONT",
  start: "bring a killed host back",
} as const;

for (const verb of ["kill", "stop", "cont", "start"] as const) {
  program
    .command(verb)
    .description(verbs[verb])
    .argument("<host>")
    .action(async (host: string, options: WithDir) => cluster(options).host(host)[verb]());
}

for (const verb of ["cut", "heal"] as const) {
  program
    .command(verb)
    .description(verb === "cut" ? "drop every packet between two hosts" : "undo a cut")
    .argument("<host>")
    .argument("<other>")
    .action(async (host: string, other: string, options: WithDir) => cluster(options)[verb](host, other));
}

program
  .command("logs")
  .description("what a host's processes wrote")
  .argument("<host>")
  .action((host: string, options: WithDir) => {
    for (const [name, text] of Object.entries(cluster(options).host(host).logs()))
      console.log(`==> ${name} <==\n${text}`);
  });

program
  .command("down")
  .description("end and remove everything, also after a crash")
  .option("--keep", "leave the hosts' directories (state and logs)")
  .action(async (options: WithDir & { keep?: boolean }) => {
    await Cluster.down(dir(options), { keep: options.keep === true });
    rmSync(POINTER, { force: true });
  });

// Before or after the command's name: both read well.
for (const command of [program, ...program.commands])
  command.option("--dir <dir>", `where the hosts keep their state (${DEFAULT_DIR}, or the last up's)`);

try {
  await program.parseAsync();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
