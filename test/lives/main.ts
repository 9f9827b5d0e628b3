/**
 * `npm run lives`: VMs' disks live by XAPI's calls on whole hosts, as a seed draws it, while programs and hosts are killed in the
 * middle of the calls.
 *
 *     npm run lives                                       one life of 60 s
 *     npm run lives -- --lives 20 --seed 7 --seconds 300  more of them, with seeds from 7 on
 *     npm run lives -- --troubles weftd host              only some of driver, agent, weftd, holder, host; "none" for a life without
 *     npm run lives -- --io libaio                        on kernels without io_uring
 *
 * Must always hold: exit status 0 only if all that life.ts judges held in every life; a seed draws the same plan again, though not
 * the same moments.
 */
import { Command, InvalidArgumentError, Option } from "commander";

import { randomOf } from "../../scripts/attack/attack.ts";
import { PoolHosts } from "./hosts.ts";
import { Life } from "./life.ts";
import { TROUBLES, type TroubleKind } from "./trouble.ts";

type Options = {
  lives: number;
  seed: number;
  seconds: number;
  vms: number;
  perCent: number;
  troubles: readonly (TroubleKind | "none")[];
  io: "io_uring" | "libaio";
  verbose?: boolean;
};

const program = new Command("npm run lives --")
  .description("VMs' disks by XAPI's calls on whole hosts, while programs and hosts are killed.")
  .option("--lives <n>", "how many", whole(1), 1)
  .option("--seed <n>", "of the first; each later one has the next number", whole(0), 1)
  .option("--seconds <n>", "how long each lives", whole(1), 60)
  .option("--vms <n>", "VMs at once", whole(1), 3)
  .option("--per-cent <n>", "how many of a hundred calls are struck", whole(0), 12)
  .addOption(
    new Option("--troubles <names...>", "which").choices([...TROUBLES, "none"]).default([...TROUBLES]),
  )
  .addOption(
    new Option("--io <driver>", "how disks are driven").choices(["io_uring", "libaio"]).default("io_uring"),
  )
  .option("--verbose", "says what happens")
  .allowExcessArguments(false);
program.parse();
const asked = program.opts<Options>();
if (process.getuid?.() !== 0) {
  console.error("npm run lives needs root: it makes network namespaces and mounts");
  process.exit(1);
}

let broken = 0;
for (let n = 0; n < asked.lives; n += 1) if (!(await live(asked.seed + n))) broken += 1;
console.log(
  broken === 0 ? `Everything held in ${asked.lives} lives.` : `${broken} of ${asked.lives} lives failed.`,
);
process.exitCode = broken === 0 ? 0 : 1;

async function live(seed: number): Promise<boolean> {
  const begun = performance.now();
  const lines: string[] = [];
  const say = (line: string): void => {
    const at = `${((performance.now() - begun) / 1000).toFixed(1).padStart(7)} s  ${line}`;
    lines.push(at);
    if (asked.verbose === true) console.log(at);
  };
  const hasIoUring = asked.io === "io_uring";
  const hosts = await PoolHosts.up({ pools: ["h1", "h2", "h3"], xfsBytes: 2 ** 30, hasIoUring });
  const end = async (): Promise<void> => hosts.down();
  const cut = (): void => void end().finally(() => process.exit(130));
  process.once("SIGINT", cut).once("SIGTERM", cut);
  try {
    const kinds = asked.troubles.filter((kind) => kind !== "none");
    const perCent = kinds.length === 0 ? 0 : asked.perCent;
    const { seconds, vms } = asked;
    const life = new Life({ hosts, random: randomOf(seed), seconds, vms, perCent, kinds, say });
    const report = await life.live();
    const troubles = [...report.troubles.values()].reduce((sum, count) => sum + count, 0);
    const took = ((performance.now() - begun) / 1000).toFixed(0);
    console.log(
      `seed ${seed}: ${report.calls} calls, ${report.written} writes, ${troubles} troubles in ${took} s`,
    );
    for (const [words, count] of report.faults) console.log(`    ${count} times ${words}`);
    if (report.broken.length === 0) return true;
    for (const what of report.broken) console.log(`    BROKEN ${what}`);
    if (asked.verbose !== true) console.log(lines.slice(-60).join("\n"));
    console.log(hosts.logs(60));
    return false;
  } finally {
    process.off("SIGINT", cut).off("SIGTERM", cut);
    await end();
  }
}

function whole(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(`Expected a whole number from ${least} on.`);
  };
}
