/**
 * Where a command gets a secret from: a file, standard input, a prompt, and the command line for who wants that.
 *
 * Must always hold:
 * - a secret is in no message of ours, and only the command line's own way shows it to other users;
 * - the process is protected before it has it.
 */
import { WeftError } from "../core/wire/errors.ts";
import type { Context } from "./context.ts";
import { readText } from "./read-text.ts";

export type TokenOptions = { readonly token?: string; readonly tokenFile?: string };

/** A secret of ours is much shorter. */
const BYTES_MAX = 4096;

export async function tokenFrom(context: Context, { token, tokenFile }: TokenOptions): Promise<string> {
  if (token !== undefined && tokenFile !== undefined) {
    throw new WeftError({
      code: "E-ARG-03",
      message: "--token and --token-file do not agree: one of them names the token.",
    });
  }
  const text = await given(context, token, tokenFile);
  if (text.length > BYTES_MAX)
    throw new WeftError({ code: "E-TOKEN-01", message: `A token is no text of ${text.length} characters.` });
  if (text.trim() !== "") return text.trim();
  throw new WeftError({
    code: "E-ARG-03",
    message: "The token is missing.",
    safe: "Nothing was changed.",
    do: [
      { why: "From a file", command: "--token-file FILE" },
      { why: "From another program", command: "--token -" },
      { why: "Make one, on a host of the cluster", command: "weft token create" },
    ],
  });
}

async function given(context: Context, token: string | undefined, file: string | undefined): Promise<string> {
  context.protect();
  if (token === "-") return context.console.input();
  if (token !== undefined) return token;
  if (file === undefined) return (await context.console.secret("Token (not shown): ")) ?? "";
  return readText(file);
}
