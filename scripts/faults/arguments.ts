/** What `npm run faults` was asked for. */
import { Command, CommanderError, InvalidArgumentError } from "commander";

import { catalogue, faultNames, isFaultName } from "./catalogue.ts";
import type { FaultName } from "./catalogue.ts";

export type Asked = {
  readonly kind: "run";
  readonly runs: number;
  readonly faults: readonly FaultName[];
  readonly json: string | null;
  readonly dir: string;
};

/** There is nothing to run: help was asked for, or the arguments are wrong. */
export type Told = { readonly kind: "told"; readonly say: string; readonly status: number };

type Options = { runs: number; fault?: readonly FaultName[]; json?: string; dir: string };

export function parseArguments(words: readonly string[], defaultDir: string): Asked | Told {
  const said: string[] = [];
  const program = new Command("npm run faults --")
    .description("Real processes under real faults, checked for lost writes and linearizability.")
    .option("--runs <n>", "runs of each fault", positive, 5)
    .option("--fault <names...>", "which faults; all, unless told", faultOf)
    .option("--json <file>", "write the figures to a file")
    .option("--dir <dir>", "where the hosts keep their state", defaultDir)
    .addHelpText("after", () => `\nFaults:\n${faultLines()}`)
    .allowExcessArguments(false)
    .exitOverride()
    .configureOutput({ writeOut: (text) => said.push(text), writeErr: (text) => said.push(text) });
  try {
    program.parse(words, { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    return { kind: "told", say: said.join("").trimEnd(), status: error.exitCode };
  }
  const { runs, fault, json, dir } = program.opts<Options>();
  return { kind: "run", runs, faults: fault ?? faultNames, json: json ?? null, dir };
}

function faultLines(): string {
  const width = Math.max(...faultNames.map((name) => name.length));
  return faultNames.map((name) => `  ${name.padEnd(width)}  ${catalogue[name].does}`).join("\n");
}

function faultOf(text: string, before: readonly FaultName[] = []): readonly FaultName[] {
  if (!isFaultName(text)) {
    throw new InvalidArgumentError(`There is no fault "${text}"; there are ${faultNames.join(", ")}.`);
  }
  return before.includes(text) ? before : [...before, text];
}

function positive(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("Expected a whole number above 0.");
}
