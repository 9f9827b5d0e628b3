/**
 * `weft help E-VOL-12`: the row of docs/errors.md.
 *
 * Must always hold: what is printed is the document itself, so that help and documentation can't differ.
 */
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";

import { suggest } from "../core/model/suggest.ts";
import { WeftError } from "../core/wire/errors.ts";

export type CodeRow = { readonly code: string; readonly meaning: string; readonly action: string };

export async function readCodeRow(code: string): Promise<CodeRow> {
  const rows = parseCodeTable(await readDocument());
  const wanted = code.toUpperCase();
  const row = rows.find((candidate) => candidate.code === wanted);
  if (row !== undefined) return row;
  const near = suggest(
    wanted,
    rows.map((candidate) => candidate.code),
  );
  throw new WeftError({
    code: "E-ARG-01",
    message: `No error code "${code}".${near === null ? "" : ` Did you mean "${near}"?`}`,
  });
}

export function parseCodeTable(markdown: string): readonly CodeRow[] {
  return markdown.split("\n").flatMap((line) => {
    const match = /^\| (E-[A-Z]+-\d+) \| (.+) \| (.+) \|$/.exec(line);
    if (match === null) return [];
    const [, code = "", meaning = "", action = ""] = match;
    return [{ code, meaning: plain(meaning), action: plain(action) }];
  });
}

function plain(markdown: string): string {
  return markdown.replaceAll("\\|", "|").replaceAll("`", "");
}

/** Beside the sources, or above the compiled files: the nearest docs/errors.md upwards. */
async function readDocument(): Promise<string> {
  for (let directory = import.meta.dirname; ; directory = dirname(directory)) {
    try {
      return await readFile(join(directory, "docs", "errors.md"), "utf8");
    } catch (cause) {
      if (directory === dirname(directory)) {
        throw new WeftError({
          code: "E-ARG-01",
          message: "docs/errors.md is not installed with weft.",
          cause,
        });
      }
    }
  }
}
