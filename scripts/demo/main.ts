/**
 * `npm run demo`: three hosts, their faults, and proof that no byte was lost. Exit status 0 only if every check held.
 *
 *     npm run demo -- --json FILE      also writes the figures
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

import { Command } from "commander";

import { Cluster, leftOutWithoutRoot } from "../cluster/cluster.ts";
import { repository } from "../lib/repository.ts";
import { Ledger } from "./ledger.ts";
import { play } from "./plot.ts";

const options = new Command("npm run demo --")
  .option("--json <file>", "write the figures to a file")
  .option("--dir <dir>", "where the hosts keep their state", join(repository, ".cluster/demo"))
  .parse()
  .opts<{ json?: string; dir: string }>();

const dir = resolve(options.dir);
const scratch = join(dir, "scratch");
const ledger = new Ledger();

async function clean(keep: boolean): Promise<void> {
  rmSync(scratch, { recursive: true, force: true });
  await Cluster.down(dir, { keep });
}

for (const name of ["SIGINT", "SIGTERM"] as const) {
  process.once(name, () => {
    void clean(false).finally(() => process.exit(1));
  });
}

let failure: string | null = null;
try {
  await clean(false);
  ledger.say("starting three hosts and forming a cluster; the plot takes a minute or two");
  const cluster = await Cluster.up({ dir, hosts: 3, pools: ["h1", "h2"], say: (line) => ledger.say(line) });
  if (cluster.mode === "loopback") {
    ledger.say(`not root, so the hosts are loopback addresses; left out: ${leftOutWithoutRoot.join("; ")}`);
  }
  mkdirSync(scratch, { recursive: true });
  await play({ cluster, scratch, ledger });
} catch (error) {
  failure = error instanceof Error ? error.message : String(error);
  ledger.check("the plot was played to its end", false, failure);
}
const { ok, seconds } = ledger;
await clean(!ok);

console.log(`\n${ledger.table()}\n`);
console.log(ok ? `Every check held, in ${seconds} s.` : `Not every check held. Logs: ${dir}/h*/log`);
if (options.json !== undefined) {
  const report = { ok, seconds, ...ledger.figures, checks: ledger.checks };
  writeFileSync(
    resolve(process.env["INIT_CWD"] ?? ".", options.json),
    `${JSON.stringify(report, null, 2)}\n`,
  );
}
process.exitCode = ok ? 0 : 1;
