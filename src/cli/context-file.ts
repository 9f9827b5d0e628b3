/**
 * Clusters that this user works with from here: contexts.json, with the address, the authority and the token of each.
 *
 * Must always hold:
 * - nobody but its owner may read it: one that others can read is not used, for it holds tokens;
 * - it is replaced as a whole; what is not understood is not used, and not written over.
 */
import { mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { randomBytes } from "node:crypto";
import { dirname, join } from "node:path";
import { z } from "zod";

import { parseName } from "../core/model/name.ts";
import { Secret } from "../core/model/secret.ts";
import { parseApiToken } from "../core/model/api-token-text.ts";
import type { RemoteAgent } from "../core/wire/agent-client.ts";
import { reasonOf, WeftError } from "../core/wire/errors.ts";
import { remoteUrl } from "./arguments.ts";

const BYTES_MAX = 1 << 20;
/** Means this host's own agent, whatever context is in use. */
export const LOCAL = "local";

const contextJson = z.object({
  url: z.string().max(300),
  fingerprint: z.string().regex(/^[0-9a-f]{64}$/),
  token: z
    .string()
    .max(100)
    .refine((text) => parseApiToken(text) !== null),
});
const fileJson = z.object({
  current: z.string().nullable(),
  contexts: z.record(z.string().max(63), contextJson),
});

type NamedContext = {
  readonly name: string;
  readonly url: string;
  readonly fingerprint: string;
  readonly token: Secret<string>;
};
export type Contexts = { readonly current: string | null; readonly all: readonly NamedContext[] };

/** `WEFT_CONFIG`, or contexts.json in the user's own place for settings. */
export function contextsPath(environment: NodeJS.ProcessEnv): string {
  const told = environment["WEFT_CONFIG"] ?? "";
  if (told !== "") return told;
  const own = environment["XDG_CONFIG_HOME"] ?? "";
  return join(own === "" ? join(environment["HOME"] ?? "/", ".config") : own, "weft", "contexts.json");
}

/** `beforeRead`: where there is one, before its tokens are in memory. E-CTX-03 when it is there and can't be used. */
export async function readContexts(path: string, beforeRead: () => void): Promise<Contexts> {
  let text: string;
  try {
    await using file = await open(path, "r");
    // Of what was opened, whatever the name means a moment later.
    const { mode, uid, size } = await file.stat();
    const own = process.geteuid?.() ?? uid;
    if ((mode & 0o077) !== 0) throw unusable(path, "others than its owner may read it");
    if (uid !== own && uid !== 0) throw unusable(path, "another user owns it");
    beforeRead();
    text = size > BYTES_MAX ? "" : await file.readFile("utf8");
  } catch (cause) {
    if (cause instanceof WeftError) throw cause;
    if (cause instanceof Error && "code" in cause && cause.code === "ENOENT")
      return { current: null, all: [] };
    throw unusable(path, reasonOf(cause), cause);
  }
  const parsed = parseContexts(text);
  if (parsed === null) throw unusable(path, "it is not what weft wrote");
  return parsed;
}

/** Null: not what `renderContexts` makes. */
export function parseContexts(text: string): Contexts | null {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return null;
  }
  const parsed = fileJson.safeParse(json);
  if (!parsed.success) return null;
  const { current, contexts } = parsed.data;
  const all = Object.entries(contexts).map(([name, { url, fingerprint, token }]) => ({
    name,
    url,
    fingerprint,
    token: new Secret(token),
  }));
  const fine = all.every(({ name, url }) => isContextName(name) && remoteUrl(url) !== null);
  return fine && (current === null || all.some(({ name }) => name === current)) ? { current, all } : null;
}

export function renderContexts({ current, all }: Contexts): string {
  const contexts = Object.fromEntries(
    all.map(({ name, url, fingerprint, token }) => [name, { url, fingerprint, token: token.reveal() }]),
  );
  return `${JSON.stringify({ current, contexts }, null, 2)}\n`;
}

export async function writeContexts(path: string, contexts: Contexts): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const beside = `${path}.${randomBytes(6).toString("hex")}`;
  try {
    await writeFile(beside, renderContexts(contexts), { mode: 0o600, flag: "wx", flush: true });
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true });
    throw error;
  }
}

export function isContextName(name: string): boolean {
  return name !== LOCAL && parseName("context", name).kind === "ok";
}

/** Which agent is asked: null means this host's own. `asked` is what the command line says, else what is in use. */
export function chosenContext({ current, all }: Contexts, asked: string | null): NamedContext | null {
  const name = asked ?? current;
  if (name === null || name === LOCAL) return null;
  const found = all.find((context) => context.name === name);
  if (found !== undefined) return found;
  throw new WeftError({
    code: "E-CTX-01",
    message: `No context "${name}".`,
    facts: { context: name },
    do: [
      { why: "See all", command: "weft context list" },
      { why: "Make one", command: "weft login https://HOST:7400" },
    ],
  });
}

export function remoteOf({ url, fingerprint, token }: NamedContext): RemoteAgent {
  const at = remoteUrl(url);
  if (at === null) throw new Error(`a context's url is one: ${url}`);
  return { ...at, fingerprint, token };
}

function unusable(path: string, reason: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-CTX-03",
    message: `${path} can't be used: ${reason}.`,
    facts: { path },
    safe: "No token of it was used.",
    do: [{ why: "Make it yours alone", command: `chmod 600 ${path}` }],
    cause,
  });
}
