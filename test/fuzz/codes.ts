/** The codes that people can look up: the table of docs/errors.md. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { repository } from "../../scripts/lib/repository.ts";

/** "The agent failed in a way that it believed impossible": never an answer to bad input. */
const BUG = "E-AGENT-06";

const documented = new Set(
  readFileSync(join(repository, "docs/errors.md"), "utf8")
    .match(/^\| E-[A-Z]+-\d\d (?=\|)/gm)
    ?.map((row) => row.slice(2, -1)),
);

export function assertCode(code: unknown, of: string): void {
  if (typeof code !== "string" || !documented.has(code))
    throw new Error(`${JSON.stringify(code)} is no code of docs/errors.md: ${of}`);
  if (code === BUG) throw new Error(`a bug: ${of}`);
}
