/** `weft pool add|list|remove`: places on a host where copies live. */
import type { Command } from "commander";

import { formatSize } from "../core/model/size.ts";
import { absolutePath } from "./arguments.ts";
import type { Bind } from "./context.ts";
import { findPool } from "./reference.ts";

export function addPoolCommands(program: Command, bind: Bind): void {
  const pool = program.command("pool").description("places on a host where copies live");

  const add = pool
    .command("add")
    .description("make a pool of a directory on this host")
    .argument("<directory>", "an empty directory on ext4, XFS or btrfs");
  bind<[string], object>(add, async (context, [path]) => {
    const made = await context.client.createPool({ path: absolutePath(path) });
    context.show(
      made,
      ({ id }) => id,
      ({ id, path: at, hostName }) => `Pool ${id} added: ${at} on ${hostName}.`,
    );
  });

  const list = pool.command("list").description("all pools of the cluster");
  bind(list, async (context) => {
    const pools = await context.client.pools();
    context.list(
      pools,
      ({ id }) => id,
      [
        { title: "POOL", of: ({ id }) => id.slice(0, 8) },
        { title: "HOST", of: ({ hostName }) => hostName },
        { title: "PATH", of: ({ path }) => path },
        { title: "FREE", of: ({ free }) => (free === null ? "—" : formatSize(free)), right: true },
        { title: "SIZE", of: ({ total }) => (total === null ? "—" : formatSize(total)), right: true },
        { title: "STATE", of: ({ state, reason }) => (reason === null ? state : `${state}: ${reason}`) },
      ],
      "No pools yet.  Next:  weft pool add DIRECTORY",
    );
  });

  const remove = pool
    .command("remove")
    .description("give up a pool that holds no copies")
    .argument("<pool>", "its id, its path, or HOST:PATH");
  bind<[string], object>(remove, async (context, [ref]) => {
    const [pools, hosts] = await Promise.all([context.client.pools(), context.client.hosts()]);
    const found = findPool(pools, hosts, ref);
    await context.client.removePool(found.id);
    context.done(
      { pool: found.id },
      `Pool ${found.path} on ${found.hostName} removed. Its directory is left there.`,
    );
  });
}
