/**
 * `npm run attack`: a running cluster of three hosts, attacked at every door while guests write.
 *
 *     npm run attack                             each attack at least 20 times with variations
 *     npm run attack -- --only no-tls downgrade
 *     npm run attack -- --json FILE              also writes the figures
 *
 * Must always hold:
 * - exit status 0 only if nothing was let in, every right credential was, no guest waited above 500 ms, no process grew
 *   past its bound, the store says the same as before, and the guest's history is that of one disk;
 * - what was started is gone at the end, also after Ctrl-C.
 */
import { writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

import { Cluster } from "../cluster/cluster.ts";
import { profile, repository } from "../lib/repository.ts";
import { runTask } from "../lib/task.ts";
import { parseArguments } from "./arguments.ts";
import type { Attack } from "./attack.ts";
import { Attackers } from "./attackers.ts";
import { attacks } from "./catalogue.ts";
import { Meter } from "./meter.ts";
import type { Played } from "./report.ts";
import { complaints, figuresOf, isGood, render } from "./report.ts";
import { playReturning, RETURNING } from "./returning.ts";
import { Stage } from "./stage.ts";

const asked = parseArguments(process.argv.slice(2), join(repository, ".cluster/attack"));
if (asked.kind === "told") {
  console.error(asked.say);
  process.exit(asked.status);
}
const { tries, seed, only, json } = asked;
const dir = resolve(asked.dir);

let stage: Stage | null = null;
let attackers: Attackers | null = null;

for (const name of ["SIGINT", "SIGTERM"] as const) {
  process.on(name, () => {
    console.error("ending what was started…");
    void clean().finally(() => process.exit(130));
  });
}

try {
  if (process.getuid?.() !== 0) throw new Error("npm run attack needs root: it makes network namespaces");
  await build();
  await Cluster.down(dir);
  const say = (line: string): void => console.log(`         ${line}`);
  const played: Played[] = [];
  let history: string | null = null;
  const onStage = attacks.filter(({ name }) => only.includes(name));
  if (onStage.length > 0) {
    stage = await Stage.up({ dir, seed, say });
    attackers = new Attackers(stage);
    for (const attack of onStage) played.push(await playOne(stage, attackers, attack));
    history = await stage.judge();
  }
  if (only.includes(RETURNING.name)) {
    await clean();
    const one = await playReturning({ dir, say });
    console.log(verdictOf(one));
    played.push(one);
  }
  console.log(`\n${render(played)}\n`);
  if (history !== null) console.log(history);
  if (json !== null) {
    const path = resolve(process.env["INIT_CWD"] ?? ".", json);
    writeFileSync(path, `${JSON.stringify(figuresOf(played), null, 2)}\n`);
  }
  const bad = played.filter((one) => !isGood(one));
  for (const one of bad)
    console.log(
      `${one.attack} at ${one.door}:\n${complaints(one)
        .map((line) => `  ${line}`)
        .join("\n")}`,
    );
  const total = played.reduce((sum, one) => sum + one.tries, 0);
  const held = bad.length === 0 && history === null;
  console.log(
    held ? `Nothing was let in by ${total} tries.` : `${bad.length} of ${played.length} attacks failed.`,
  );
  process.exitCode = held ? 0 : 1;
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
} finally {
  await clean();
}

async function playOne(on: Stage, by: Attackers, attack: Attack): Promise<Played> {
  const { name, door, from } = attack;
  const before = await on.state();
  await on.window(`before ${name}`);
  const meter = await Meter.start(on);
  const { tries: count, accepted, faults } = await by.play(from, { attack: name, door, tries, seed });
  const grown = await meter.end();
  const after = await on.state();
  await on.victimWorks();
  const guestStallMs = await on.window(name);
  const played: Played = {
    attack: name,
    door,
    tries: count,
    accepted: [...accepted, ...changed(before, after, attack.changes ?? null)],
    guestStallMs,
    faults: [...faults, ...grown],
  };
  console.log(verdictOf(played));
  return played;
}

function verdictOf(played: Played): string {
  const { attack, door, tries: count } = played;
  const verdict = isGood(played) ? "held" : complaints(played).join("; ");
  return `${`${attack} at ${door}`.padEnd(40)} ${String(count).padStart(5)} tries  ${verdict}`;
}

function changed(
  before: ReadonlyMap<string, string>,
  after: ReadonlyMap<string, string>,
  itsOwn: RegExp | null,
): readonly string[] {
  const keys = new Set([...before.keys(), ...after.keys()]);
  return Array.from(keys)
    .filter((key) => itsOwn?.test(key) !== true && before.get(key) !== after.get(key))
    .map((key) => `the store's ${key} changed`);
}

async function build(): Promise<void> {
  const command = [
    "cargo",
    "build",
    "--quiet",
    "--profile",
    profile(),
    "-p",
    "weft-checker",
    "-p",
    "weft-liar",
  ];
  const { ok, output } = await runTask({ name: "build of the attackers", cwd: "native", command });
  if (!ok) throw new Error(`weft-checker and weft-liar were not built:\n${output}`);
}

async function clean(): Promise<void> {
  attackers?.dispose();
  stage?.dispose();
  await Cluster.down(dir);
}
