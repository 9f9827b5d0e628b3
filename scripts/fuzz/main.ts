/**
 * `npm run fuzz`: hostile input at every door, two doors at a time.
 *
 *     npm run fuzz                                   every door, 30 s each
 *     npm run fuzz -- --seconds 600 --json FILE      as long as you have
 *     npm run fuzz -- --target log --target rest     some of them; --list names all
 *     npm run fuzz -- --target log --replay FILE     one input again
 *     npm run fuzz -- --seed 42                      the same inputs again, as far as the time reaches
 *     npm run fuzz -- --canary                       do the fuzzers find what was put there for them?
 *     npm run fuzz -- --minimise                     keep the smallest corpus that reaches everything known
 *     npm run fuzz -- --unit-tests                   weft-io's and weft-export's tests under AddressSanitizer
 *
 * Must always hold: a finding ends with status 1, its input and the command that replays it; so does a door that was
 * never tried.
 */
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";

import { builtFuzzer, fuzz, minimise, nativeTargets, replay, unitTests } from "./native.ts";
import type { Fuzzer } from "./native.ts";
import { outcomeLine } from "./outcome.ts";
import type { Outcome } from "./outcome.ts";
import { scriptDoors, tryDoor } from "./script-doors.ts";

/** Each canary is found within a second or two; this is when it counts as missed. */
const CANARY_SECONDS = 60;

const { values: asked } = parseArgs({
  options: {
    seconds: { type: "string", default: "30" },
    target: { type: "string", multiple: true, default: [] },
    json: { type: "string" },
    seed: { type: "string" },
    replay: { type: "string" },
    list: { type: "boolean", default: false },
    canary: { type: "boolean", default: false },
    minimise: { type: "boolean", default: false },
    "unit-tests": { type: "boolean", default: false },
  },
});

try {
  process.exitCode = (await run()) ? 0 : 1;
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}

async function run(): Promise<boolean> {
  const [native, scripts] = [nativeTargets(), await scriptDoors()];
  const all = [...native, ...scripts];
  if (asked.list) {
    console.log(all.join("\n"));
    return true;
  }
  if (asked["unit-tests"]) return unitTests();
  const unknown = asked.target.filter((name) => !all.includes(name));
  if (unknown.length > 0) throw new Error(`No door ${unknown.join(", ")}; there are ${all.join(", ")}.`);
  const seconds = Number(asked.seconds);
  if (!Number.isInteger(seconds) || seconds < 1)
    throw new Error(`--seconds ${asked.seconds} is not a number of seconds.`);
  const chosen = asked.target.length === 0 ? all : asked.target;
  const fuzzer = asked.canary || chosen.some((name) => native.includes(name)) ? await builtFuzzer() : null;
  if (fuzzer !== null) {
    if (asked.canary) return canaries(fuzzer);
    if (asked.replay !== undefined) return replayed(fuzzer, chosen, asked.replay);
    if (asked.minimise) {
      for (const name of chosen) if (native.includes(name)) console.log(await minimise(fuzzer, name));
      return true;
    }
  }
  const jobs = chosen.map((name) => async (): Promise<Outcome> => {
    const outcome =
      fuzzer !== null && native.includes(name)
        ? await fuzz(fuzzer, name, seconds, asked.seed ?? null)
        : await tryDoor(name, seconds, asked.seed ?? null);
    console.log(outcomeLine(outcome));
    for (const { input, replay: command, text } of outcome.findings)
      console.log(`${text}\n  input:  ${input}\n  replay: ${command}`);
    return outcome;
  });
  const outcomes = await twoAtATime(jobs);
  const findings = outcomes.flatMap((outcome) => outcome.findings).length;
  const idle = outcomes.filter(({ executions }) => executions === 0).map(({ name }) => name);
  if (asked.json !== undefined) {
    const path = resolve(process.env["INIT_CWD"] ?? ".", asked.json);
    writeFileSync(path, `${JSON.stringify({ findings, doors: outcomes }, null, 2)}\n`);
  }
  console.log(
    `${outcomes.length} doors, ${findings} findings${idle.length === 0 ? "" : `; never tried: ${idle.join(", ")}`}`,
  );
  return findings === 0 && idle.length === 0;
}

async function twoAtATime(jobs: readonly (() => Promise<Outcome>)[]): Promise<readonly Outcome[]> {
  const waiting = jobs.values();
  const outcomes: Outcome[] = [];
  const work = async (): Promise<void> => {
    for (const job of waiting) outcomes.push(await job());
  };
  await Promise.all([work(), work()]);
  return outcomes;
}

async function replayed(fuzzer: Fuzzer, chosen: readonly string[], file: string): Promise<boolean> {
  const [name] = chosen;
  if (name === undefined || chosen.length !== 1)
    throw new Error("--replay wants the one --target that the input is for.");
  return replay(fuzzer, name, resolve(process.env["INIT_CWD"] ?? ".", file));
}

/** Who does not find these finds nothing: coverage leads to the first, the sanitizer sees the second. */
async function canaries(fuzzer: Fuzzer): Promise<boolean> {
  let found = true;
  for (const [name, words] of [
    ["canary", "the canary was found"],
    ["canary_memory", "AddressSanitizer: heap-buffer-overflow"],
  ] as const) {
    const { findings } = await fuzz(fuzzer, name, CANARY_SECONDS);
    const ok = findings.some(({ text }) => text.includes(words));
    console.log(`${ok ? "ok      found " : "FAILED  missed"} ${name}`);
    found &&= ok;
  }
  return found;
}
