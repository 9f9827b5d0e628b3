/**
 * A passphrase from a file or a prompt, never from the command line.
 *
 * Must always hold: it is in no message of ours; one that is typed for the first time is typed twice; the process is
 * protected before it has it.
 */
import { WeftError } from "../core/wire/errors.ts";
import type { Context } from "./context.ts";
import { readText } from "./read-text.ts";

const LENGTH_MIN = 12;

export async function passphraseFrom(
  context: Context,
  { passphraseFile: file }: { readonly passphraseFile?: string },
  isNew: boolean,
): Promise<string> {
  context.protect();
  const given =
    file === undefined ? await asked(context, isNew) : (await readText(file)).replace(/\r?\n$/, "");
  if (given.length >= LENGTH_MIN) return given;
  throw new WeftError({
    code: "E-ARG-03",
    message:
      given === "" ? "The passphrase is missing." : `A passphrase has at least ${LENGTH_MIN} characters.`,
    safe: "Nothing was changed.",
    do: [{ why: "From a file", command: "--passphrase-file FILE" }],
  });
}

async function asked({ console }: Context, isNew: boolean): Promise<string> {
  const first = (await console.secret("Passphrase (not shown): ")) ?? "";
  if (!isNew || first.length < LENGTH_MIN) return first;
  if ((await console.secret("Once more: ")) === first) return first;
  throw new WeftError({
    code: "E-ARG-03",
    message: "The two passphrases differ.",
    safe: "Nothing was changed.",
  });
}
