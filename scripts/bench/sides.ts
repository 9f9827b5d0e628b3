/**
 * What is measured: weft, the floor under it, and a peer that anybody has. All with two copies on h1 and h2 and the
 * client on h3, in the same namespaces at the same time.
 *
 * Must always hold: every side acknowledges a write only when both copies are on stable media.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { execa } from "execa";

import type { Cluster } from "../cluster/cluster.ts";
import type { Host } from "../cluster/host.ts";
import { statOf } from "../cluster/processes.ts";
import { profile, repository } from "../lib/repository.ts";
import { until } from "../lib/until.ts";
import { holderClient } from "../../src/core/wire/holder-client.ts";
import type { Side } from "./figures.ts";

export type Measured = {
  readonly cluster: Cluster;
  readonly side: Side;
  readonly uri: string;
  /** Names of its processes, as the kernel cuts them. */
  readonly processes: readonly string[];
};

const FLOOR_PORT = 7410;

export async function startSide(cluster: Cluster, side: Side, size: bigint): Promise<Measured> {
  switch (side) {
    case "weft":
    case "weft-auth":
    case "weft-clear":
      return startWeft(cluster, side, size);
    case "weft-held":
      return startHeld(cluster, size);
    case "floor":
      return startFloor(cluster, size);
    case "quorum":
      return startQuorum(cluster, size);
  }
}

async function startWeft(cluster: Cluster, side: Side, size: bigint): Promise<Measured> {
  const client = cluster.host("h3").agent();
  const { name } = await client.createVolume({ name: "bench", size, copies: 2 });
  const { path } = await client.attach(name);
  return { cluster, side, uri: nbdUri(path, ""), processes: ["weftd"] };
}

/** As a guest of XCP-ng has it: the holder is what its end is connected to. */
async function startHeld(cluster: Cluster, size: bigint): Promise<Measured> {
  const front = cluster.host("h3");
  const client = front.agent();
  const { id: volume, name } = await client.createVolume({ name: "bench-held", size, copies: 2 });
  const { session } = await client.attach(name);
  const listen = join(front.layout.runDir, "tap", "bench.sock");
  const holder = holderClient(join(front.layout.runDir, "holder.sock"));
  await holder.call("open", { id: name, listen, session, snapshot: null, volume, writable: true });
  return { cluster, side: "weft-held", uri: nbdUri(listen, ""), processes: ["weftd", "weft-holder"] };
}

async function startFloor(cluster: Cluster, size: bigint): Promise<Measured> {
  const native = join(repository, "native");
  await execa("cargo", ["build", "--quiet", "--profile", profile(), "-p", "weft-floor"], { cwd: native });
  const peers: string[] = [];
  for (const host of [cluster.host("h1"), cluster.host("h2")]) {
    const listen = `${host.layout.address}:${FLOOR_PORT}`;
    const file = join(host.layout.dir, "floor.img");
    await startListening(host, ["serve", "--listen", listen, "--file", file, "--size", String(size)]);
    peers.push("--peer", listen);
  }
  const front = cluster.host("h3");
  const socket = join(front.layout.runDir, "floor.sock");
  await startListening(front, ["nbd", "--socket", socket, ...peers, "--size", String(size)]);
  return { cluster, side: "floor", uri: nbdUri(socket, ""), processes: ["weft-floor"] };
}

/** Returns when the program says on its first line that it listens. */
async function startListening(host: Host, args: readonly string[]): Promise<void> {
  const log = join(host.layout.dir, "log", `floor-${args[0] ?? ""}.log`);
  const command = ["sh", "-c", `exec weft-floor "$@" >'${log}'`, "sh", ...args];
  await startUntil(
    host,
    command,
    () => existsSync(log) && readFileSync(log, "utf8").includes("listening on"),
  );
}

async function startQuorum(cluster: Cluster, size: bigint): Promise<Measured> {
  const children: string[] = [];
  for (const [i, host] of [cluster.host("h1"), cluster.host("h2")].entries()) {
    const file = join(host.layout.dir, "quorum.img");
    const socket = join(host.layout.runDir, "quorum.sock");
    await host.output(["qemu-img", "create", "-q", "-f", "raw", file, String(size)]);
    const image = `driver=file,node-name=file,filename=${file},cache.direct=on,aio=threads`;
    await startQemu(host, socket, [
      "--blockdev",
      image,
      "--blockdev",
      "driver=raw,node-name=top,file=file",
      "--export",
      "type=nbd,id=export,node-name=top,name=v,writable=on,writethrough=on",
    ]);
    children.push(
      "--blockdev",
      `driver=nbd,node-name=child${i},server.type=unix,server.path=${socket},export=v`,
    );
  }
  const front = cluster.host("h3");
  const socket = join(front.layout.runDir, "quorum.sock");
  const quorum =
    "driver=quorum,node-name=top,children.0=child0,children.1=child1,vote-threshold=2,read-pattern=fifo";
  await startQemu(front, socket, [
    ...children,
    "--blockdev",
    quorum,
    "--export",
    "type=nbd,id=export,node-name=top,name=v,writable=on",
  ]);
  return { cluster, side: "quorum", uri: nbdUri(socket, "v"), processes: ["qemu-storage-da"] };
}

/** A node called `top`, offered on a unix socket. */
async function startQemu(host: Host, socket: string, args: readonly string[]): Promise<void> {
  const [server, wanted] = [`addr.type=unix,addr.path=${socket}`, args.indexOf("--export")];
  const ordered = [...args.slice(0, wanted), "--nbd-server", server, ...args.slice(wanted)];
  await startUntil(host, ["qemu-storage-daemon", ...ordered], () => existsSync(socket));
}

/** Starts something that stays until the cluster goes down, and returns when it is ready. */
async function startUntil(host: Host, command: readonly string[], isReady: () => boolean): Promise<void> {
  const { result } = await host.exec(command);
  const ended = result.then(({ exitCode, stderr }) => {
    throw new Error(`${host.name}: ${command.join(" ")}: ended with status ${exitCode ?? "none"}\n${stderr}`);
  });
  const what = `${command.join(" ")} on ${host.name}`;
  const ready = until(() => (isReady() ? true : null), { what, deadlineMs: 30_000 });
  await Promise.race([ready, ended]);
}

export function nbdUri(socket: string, name: string): string {
  return `nbd+unix:///${name}?socket=${socket}`;
}

/** CPU time that the side's processes have used on all hosts, in microseconds. */
export async function cpuUsed({ cluster, processes }: Measured): Promise<number> {
  const pids = (await Promise.all(cluster.hosts.map(async (host) => host.pids()))).flat();
  const own = pids.filter((pid) => processes.includes(statOf(pid)?.name ?? ""));
  return own.reduce((sum, pid) => sum + ticksOf(readFileSync(`/proc/${pid}/stat`, "utf8")), 0) * TICK_US;
}

/** USER_HZ is 100 on every Linux that we run on. */
const TICK_US = 10_000;

/** User and system time of a line of /proc/PID/stat: fields 14 and 15, counted from after the bracketed name. */
export function ticksOf(stat: string): number {
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return Number(fields[11]) + Number(fields[12]);
}
