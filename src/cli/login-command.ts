/** `weft login`: from now on this user's commands go to that cluster. */
import type { Command } from "commander";

import { parseApiToken } from "../core/model/api-token-text.ts";
import { Secret } from "../core/model/secret.ts";
import { AgentClient, connectPinned } from "../core/wire/agent-client.ts";
import { WeftError } from "../core/wire/errors.ts";
import { contextName, fingerprint, remoteUrl } from "./arguments.ts";
import type { Bind, Context } from "./context.ts";
import { isContextName, writeContexts } from "./context-file.ts";
import { tokenFrom, type TokenOptions } from "./token-input.ts";

type Login = TokenOptions & { readonly fingerprint?: string; readonly name?: string };

export function addLoginCommand(program: Command, bind: Bind): void {
  const login = program
    .command("login")
    .description("work with a cluster from this machine, by an API token")
    .argument("<url>", "a host of it: https://HOST:7400")
    .option("--fingerprint <hex>", "of its authority, as api-token create prints it", fingerprint)
    .option("--name <context>", "how it is called here (default: the cluster's name)", contextName)
    .option("--token <text>", "the API token; - reads it from standard input (others see what stands here)")
    .option("--token-file <file>", "a file that holds it");
  bind<[string], Login>(login, async (context, [url], options) => {
    const at = remoteUrl(url);
    if (at === null) {
      throw new WeftError({
        code: "E-ARG-02",
        message: `"${url}" is not the address of a host. Example: https://10.0.9.11:7400.`,
      });
    }
    const path = context.contextsPath;
    const contexts = await context.contexts();
    const pinned = options.fingerprint ?? (await askAuthority(context, at));
    const token = apiToken(await tokenFrom(context, options));
    const me = await new AgentClient({ remote: { ...at, fingerprint: pinned, token } }).me();
    const name = options.name ?? (isContextName(me.cluster.name) ? me.cluster.name : "weft");
    const host = at.address.includes(":") ? `[${at.address}]` : at.address;
    const made = { name, url: `https://${host}:${at.port}`, fingerprint: pinned, token };
    const others = contexts.all.filter((other) => other.name !== name);
    await writeContexts(path, { current: name, all: [...others, made] });
    context.show(
      { context: name, cluster: me.cluster.name, name: me.name, role: me.role },
      () => name,
      ({ cluster, role }) =>
        `Logged in to "${cluster}" as ${me.name} (${role ?? "none"}). Context "${name}" is in use.`,
    );
  });
}

/** As ssh does it: a person compares the authority once; from then on it is known. */
async function askAuthority(
  context: Context,
  at: { readonly address: string; readonly port: number },
): Promise<string> {
  const { socket, by } = await connectPinned({ ...at, fingerprint: "" });
  socket.destroy();
  const kid = by.authority?.kid ?? "";
  const groups = (kid.match(/.{4}/g) ?? []).join(" ");
  await context.confirm(`${at.address} shows authority\n    ${groups}\nIs that yours?`);
  return kid;
}

/** Nothing of a text that is none is shown: it may be a password. */
function apiToken(text: string): Secret<string> {
  if (parseApiToken(text) !== null) return new Secret(text);
  throw new WeftError({
    code: "E-ARG-02",
    message: "This is not an API token: one begins with wft1. and has 57 characters.",
    safe: "Nothing was sent.",
    do: [{ why: "Make one, as an administrator", command: "weft api-token create NAME --role viewer" }],
  });
}
