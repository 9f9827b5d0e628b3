/** `weft init`, `weft join`: how a host becomes part of a cluster. */
import { type Command, Option } from "commander";

import type { EnteredAnswer, Settings, TokenCreated } from "../core/wire/agent-api.ts";
import { isWeftError } from "../core/wire/errors.ts";
import { fingerprintText } from "../core/wire/host-client.ts";
import { absolutePath, address, clusterName, hostName, joinTarget, ownAddress } from "./arguments.ts";
import type { Bind, Context } from "./context.ts";
import { addSetupOptions, isForPool, setUpPool, type SetupOptions } from "./setup-command.ts";
import { day } from "./token-commands.ts";
import { tokenFrom, type TokenOptions } from "./token-input.ts";

type Membership = { readonly name?: string; readonly address?: string; readonly pool?: string };
type Init = Membership & { readonly clusterName?: string; readonly transport?: Settings["transport"] };

export function addClusterCommands(program: Command, bind: Bind): void {
  const init = program
    .command("init")
    .description("make a cluster: of this one host, or of all hosts of its XAPI pool")
    .option("--name <host>", "this host's name (default: its host name)", hostName)
    .option("--address <address>", "this host's address on the storage network", address)
    .option("--cluster-name <name>", "the cluster's name", clusterName)
    .addOption(
      new Option("--transport <encryption>", "between hosts; as settings set transport.encryption").choices([
        "tls",
        "auth",
        "clear",
      ]),
    )
    .option("--pool <directory>", "add a pool there at once", absolutePath);
  addSetupOptions(init);
  bind<[], Init & SetupOptions>(init, async (context, _, options) => {
    context.stayHere();
    if (isForPool(options)) {
      await setUpPool(context, options);
      return;
    }
    const own = options.address ?? ownAddress();
    const cluster = await context.client.init({
      name: options.name ?? null,
      address: own,
      clusterName: options.clusterName ?? null,
      ...(options.transport === undefined ? {} : { transport: options.transport }),
    });
    const pool = await addPool(context, options.pool);
    // A person wants it next; a program asks for it when it needs one.
    const isForPeople = context.globals.json !== true && context.globals.quiet !== true;
    const token = isForPeople ? await firstToken(context) : null;
    context.show(
      { ...cluster, pool },
      ({ id }) => id,
      (answer) => initText(answer, own, pool, token),
    );
  });

  const join = program
    .command("join")
    .description("make this host a member of the cluster that HOST belongs to")
    .argument("<host>", "address of any member, HOST or HOST:7400")
    .option(
      "--token <text>",
      "what weft token create printed; - reads it from standard input (others see what stands here)",
    )
    .option("--token-file <file>", "a file that holds it")
    .option("--name <host>", "this host's name (default: its host name)", hostName)
    .option("--address <address>", "this host's address on the storage network", address)
    .option("--pool <directory>", "add a pool there at once", absolutePath);
  bind<[string], Membership & TokenOptions>(join, async (context, [from], options) => {
    context.stayHere();
    const target = joinTarget(from);
    const own = options.address ?? ownAddress();
    const cluster = await context.client.join({
      from: target,
      token: await tokenFrom(context, options),
      name: options.name ?? null,
      address: own,
    });
    const pool = await addPool(context, options.pool);
    const hosts = await context.client.hosts();
    const voters = hosts.filter(({ store }) => store === "voter").length;
    context.show(
      { ...cluster, pool },
      ({ id }) => id,
      ({ name, authority, certificateUntil }) =>
        [
          `${from} shows authority ${fingerprintText(authority)}, as the token says.`,
          `Joined "${name}" as host ${hosts.length} of ${hosts.length}. Certificate valid until ${day(certificateUntil)}, renewed by itself.`,
          ...(hosts.length < 3
            ? [
                `The store has ${voters} vote: while its host is away nothing can be attached, moved or failed over.`,
                "    Fix: weft join on any third machine; it needs no disk.",
              ]
            : []),
          ...(pool === null
            ? ["Next:  weft pool add DIRECTORY, for copies on this host too"]
            : [`Pool ${pool} added.`]),
        ].join("\n"),
    );
  });
}

async function addPool(context: Context, path: string | undefined): Promise<string | null> {
  return path === undefined ? null : (await context.client.createPool({ path })).path;
}

/** The cluster is made, whatever becomes of this. */
async function firstToken(context: Context): Promise<TokenCreated | null> {
  context.protect();
  try {
    return await context.client.createToken();
  } catch (error) {
    if (isWeftError(error)) return null;
    throw error;
  }
}

function initText(
  cluster: EnteredAnswer,
  own: string,
  pool: string | null,
  token: TokenCreated | null,
): string {
  return [
    `Cluster "${cluster.name}" created, 1 host. Volumes have 1 copy until a second host has a pool.`,
    `Authority ${fingerprintText(cluster.authority)}`,
    ...(pool === null ? ["Next:  weft pool add DIRECTORY"] : [`Pool ${pool} added.`]),
    ...(token === null
      ? ["Join others with a token:  weft token create"]
      : [
          "Join another host: there type",
          `    weft join ${own}`,
          "and paste this token where it asks (valid 60 min, for one host; for the next one: weft token create):",
          `    ${token.token}`,
        ]),
  ].join("\n");
}
