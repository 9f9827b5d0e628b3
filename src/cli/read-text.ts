/** A file that the user named, whole. */
import { readFile } from "node:fs/promises";

import { reasonOf, WeftError } from "../core/wire/errors.ts";

/** Throws E-ARG-02 when it can't be read. */
export async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (cause) {
    throw new WeftError({
      code: "E-ARG-02",
      message: `${file} can't be read: ${reasonOf(cause)}.`,
      facts: { file },
      cause,
    });
  }
}
