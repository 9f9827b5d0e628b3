/** `weft pool add|list|remove`: places on a host where copies live. */
import type { Command } from "commander";

import { formatSize } from "../core/model/size.ts";
import type { PoolAnswer } from "../core/wire/agent-api.ts";
import { absolutePath, poolKind } from "./arguments.ts";
import type { Bind } from "./context.ts";
import { findPool } from "./reference.ts";

type Add = { readonly kind?: "dir" | "xfs" | "lvm-thin" | "zfs" };

export function addPoolCommands(program: Command, bind: Bind): void {
  const pool = program.command("pool").description("places on a host where copies live");

  const add = pool
    .command("add")
    .description("make a pool of a directory or of a whole blank disk on this host")
    .argument("<path>", "an empty directory on ext4, XFS or btrfs, or a blank device, which is taken whole")
    .option("--kind <kind>", "dir, xfs or lvm-thin (default: dir or xfs, what the path is)", poolKind);
  bind<[string], Add>(add, async (context, [path], { kind }) => {
    const made = await context.client.createPool({ path: absolutePath(path), kind: kind ?? null });
    context.show(
      made,
      ({ id }) => id,
      ({ id, path: at, hostName, device, kind: made }) =>
        device === null
          ? `Pool ${id} added: ${at} on ${hostName}.`
          : `Pool ${id} added: ${device} on ${hostName}, with ${made === "lvm-thin" ? "LVM's thin volumes" : "XFS"}, mounted at ${at}.`,
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
        { title: "PATH", of: ({ path, device }) => device ?? path },
        { title: "FREE", of: ({ free }) => (free === null ? "—" : formatSize(free)), right: true },
        { title: "SIZE", of: ({ total }) => (total === null ? "—" : formatSize(total)), right: true },
        { title: "ROTTEN", of: ({ bitRot }) => rottenText(bitRot), right: true },
        { title: "STATE", of: stateText },
        { title: "SNAPSHOTS", of: snapshotsText },
      ],
      "No pools yet.  Next:  weft pool add DIRECTORY",
    );
  });

  const remove = pool
    .command("remove")
    .description("give up a pool that holds no copies")
    .argument("<pool>", "its id, its path or device, or HOST:PATH");
  bind<[string], object>(remove, async (context, [ref]) => {
    const [pools, hosts] = await Promise.all([context.client.pools(), context.client.hosts()]);
    const found = findPool(pools, hosts, ref);
    await context.client.removePool(found.id);
    context.done(
      { pool: found.id },
      found.device === null
        ? `Pool ${found.path} on ${found.hostName} removed. Its directory is left there.`
        : `Pool ${found.device} on ${found.hostName} removed. What it held is still there:  weft disk wipe ${found.hostName}:${found.device}`,
    );
  });
}

/** Whether volumes with a copy there can have some. */
function snapshotsText({ noSnapshots, state }: PoolAnswer): string {
  if (noSnapshots !== null) return `no: ${noSnapshots}`;
  return state === "serving" ? "yes" : "—";
}

function stateText({ state, reason, room }: PoolAnswer): string {
  if (reason !== null) return `${state}: ${reason}`;
  if (room === "full") return `${state}, full: takes no data`;
  return room === "low" ? `${state}, nearly full` : state;
}

/** Blocks found, and how many of them are left. */
function rottenText(bitRot: PoolAnswer["bitRot"]): string {
  if (bitRot === null) return "—";
  return bitRot.left === 0n ? String(bitRot.found) : `${bitRot.found}, ${bitRot.left} left`;
}
