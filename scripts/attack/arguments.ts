/** What `npm run attack` was asked for. */
import { Command, CommanderError, InvalidArgumentError } from "commander";

import { attacks } from "./catalogue.ts";
import { RETURNING } from "./returning.ts";

export type Asked = {
  readonly kind: "run";
  readonly tries: number;
  readonly seed: number;
  readonly only: readonly string[];
  readonly json: string | null;
  readonly dir: string;
};

/** There is nothing to run: help was asked for, or the arguments are wrong. */
export type Told = { readonly kind: "told"; readonly say: string; readonly status: number };

type Options = { tries: number; seed: number; only?: readonly string[]; json?: string; dir: string };

const names: readonly string[] = Array.from(new Set([...attacks.map(({ name }) => name), RETURNING.name]));

export function parseArguments(words: readonly string[], defaultDir: string): Asked | Told {
  const said: string[] = [];
  const program = new Command("npm run attack --")
    .description("Attacks a running cluster of three hosts while guests write.")
    .option("--tries <n>", "tries of each attack at least", whole(1), 20)
    .option("--seed <n>", "decides the variations", whole(0), 1)
    .option("--only <names...>", "which attacks; all, unless told", nameOf)
    .option("--json <file>", "write the figures to a file")
    .option("--dir <dir>", "where the hosts keep their state", defaultDir)
    .addHelpText("after", `\nAttacks:\n${names.map((name) => `  ${name}`).join("\n")}`)
    .allowExcessArguments(false)
    .exitOverride()
    .configureOutput({ writeOut: (text) => said.push(text), writeErr: (text) => said.push(text) });
  try {
    program.parse(words, { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    return { kind: "told", say: said.join("").trimEnd(), status: error.exitCode };
  }
  const { tries, seed, only, json, dir } = program.opts<Options>();
  return { kind: "run", tries, seed, only: only ?? names, json: json ?? null, dir };
}

function whole(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(`Expected a whole number from ${least} on.`);
  };
}

function nameOf(text: string, before: readonly string[] = []): readonly string[] {
  if (!names.includes(text))
    throw new InvalidArgumentError(`There is no attack "${text}"; there are ${names.join(", ")}.`);
  return before.includes(text) ? before : [...before, text];
}
