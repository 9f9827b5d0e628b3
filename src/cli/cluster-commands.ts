/** `weft init`, `weft join`: how a host becomes part of a cluster. */
import type { Command } from "commander";

import type { ClusterAnswer } from "../core/wire/agent-api.ts";
import { absolutePath, address, clusterName, hostName, joinTarget, ownAddress } from "./arguments.ts";
import type { Bind, Context } from "./context.ts";

type Membership = { readonly name?: string; readonly address?: string; readonly pool?: string };
type Init = Membership & { readonly clusterName?: string };

export function addClusterCommands(program: Command, bind: Bind): void {
  const init = program
    .command("init")
    .description("make a cluster of this one host")
    .option("--name <host>", "this host's name (default: its host name)", hostName)
    .option("--address <address>", "this host's address on the storage network", address)
    .option("--cluster-name <name>", "the cluster's name", clusterName)
    .option("--pool <directory>", "add a pool there at once", absolutePath);
  bind<[], Init>(init, async (context, _, options) => {
    const cluster = await context.client.init({
      name: options.name ?? null,
      address: options.address ?? ownAddress(),
      clusterName: options.clusterName ?? null,
    });
    const pool = await addPool(context, options.pool);
    context.show(
      { ...cluster, pool },
      ({ id }) => id,
      (answer) => initText(answer, options, pool),
    );
  });

  const join = program
    .command("join")
    .description("make this host a member of the cluster that HOST belongs to")
    .argument("<host>", "address of any member, HOST or HOST:7400")
    .option("--name <host>", "this host's name (default: its host name)", hostName)
    .option("--address <address>", "this host's address on the storage network", address)
    .option("--pool <directory>", "add a pool there at once", absolutePath);
  bind<[string], Membership>(join, async (context, [from], options) => {
    const cluster = await context.client.join({
      from: joinTarget(from),
      name: options.name ?? null,
      address: options.address ?? ownAddress(),
    });
    const pool = await addPool(context, options.pool);
    const hosts = await context.client.hosts();
    const voters = hosts.filter(({ store }) => store === "voter").length;
    context.show(
      { ...cluster, pool },
      ({ id }) => id,
      ({ name }) =>
        [
          `Joined "${name}" as host ${hosts.length} of ${hosts.length}.`,
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

function initText(cluster: ClusterAnswer, options: Init, pool: string | null): string {
  const join = `weft join ${options.address ?? ownAddress()}`;
  return [
    `Cluster "${cluster.name}" created, 1 host. Volumes have 1 copy until a second host has a pool.`,
    ...(pool === null ? ["Next:  weft pool add DIRECTORY"] : [`Pool ${pool} added.`]),
    `Join others with:  ${join}`,
  ].join("\n");
}
