/** `npm run cluster -- …`: hosts on this machine, to try things by hand and to play faults. */
import { Command } from "commander";

import { Cluster, leftOutWithoutRoot } from "./cluster.ts";

const program = new Command("npm run cluster --")
  .description("A cluster of real hosts on this machine.")
  .option("--dir <dir>", "where the hosts keep their state", ".cluster")
  .enablePositionalOptions();

const cluster = (): Cluster => Cluster.open(program.opts<{ dir: string }>().dir);
const dir = (): string => program.opts<{ dir: string }>().dir;

program
  .command("up")
  .description("make, start and form a cluster")
  .option("--hosts <n>", "number of hosts", "3")
  .option("--pools <names>", "hosts that hold copies", "h1,h2")
  .action(async (options: { hosts: string; pools: string }) => {
    const made = await Cluster.up({
      dir: dir(),
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
  .action(async (host: string, command: string[]) => {
    const { result } = await cluster().host(host).exec(command, { stdio: "inherit" });
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
    .action(async (host: string) => cluster().host(host)[verb]());
}

for (const verb of ["cut", "heal"] as const) {
  program
    .command(verb)
    .description(verb === "cut" ? "drop every packet between two hosts" : "undo a cut")
    .argument("<host>")
    .argument("<other>")
    .action(async (host: string, other: string) => cluster()[verb](host, other));
}

program
  .command("logs")
  .description("what a host's processes wrote")
  .argument("<host>")
  .action((host: string) => {
    for (const [name, text] of Object.entries(cluster().host(host).logs()))
      console.log(`==> ${name} <==\n${text}`);
  });

program
  .command("down")
  .description("end and remove everything, also after a crash")
  .option("--keep", "leave the hosts' directories (state and logs)")
  .action(async (options: { keep?: boolean }) => Cluster.down(dir(), { keep: options.keep === true }));

try {
  await program.parseAsync();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
