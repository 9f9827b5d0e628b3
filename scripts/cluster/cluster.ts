/**
 * A cluster of real hosts on this machine, for the demo, the tests and the benchmarks.
 *
 * As root every host is a network, PID, mount and host-name namespace of its own on one bridge. Without root the hosts
 * are three loopback addresses: no link can then be cut, and only one such cluster fits on a machine.
 *
 * Must always hold:
 * - everything of a cluster lies in its directory or carries a key derived from the directory's path, so that `down`
 *   finds it all, also after a crash and in another process;
 * - a wait has a deadline and says what it waited for.
 */
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join, resolve } from "node:path";

import { execa } from "execa";
import { z } from "zod";

import type { Settings } from "../../src/core/wire/agent-api.ts";
import { Host } from "./host.ts";
import type { HostLayout, Services } from "./host.ts";
import { Network } from "./network.ts";
import { killAll, pidsInNetwork } from "./processes.ts";

export type ClusterOptions = {
  readonly dir: string;
  readonly hosts?: number;
  /** Names of the hosts that get a pool; the others are diskless. */
  readonly pools?: readonly string[];
  /** Each pool is an XFS of its own of so many bytes, in a file: one that can hold snapshots. Needs root. */
  readonly xfsBytes?: number;
  /** A network beside the hosts, with many addresses: for whoever is none of them. Needs root. */
  readonly stranger?: boolean;
  /** The tokens by which hosts joined stay in their directories, used up: for whoever tries them again. */
  readonly keepTokens?: boolean;
  /** How hosts speak about volumes; `tls` unless told. */
  readonly transport?: Settings["transport"];
  /** What the hosts run, where it is not weft with its own options: for tests. */
  readonly services?: Services;
  /** Done when the hosts have their directories and none is started yet: a file system is mounted now or never. */
  readonly beforeStart?: (cluster: Cluster) => Promise<void>;
  /** Told what is being done, one line each. */
  readonly say?: (line: string) => void;
};

/** What a cluster without root can't show. */
export const leftOutWithoutRoot: readonly string[] = [
  "cutting a link (needs network namespaces)",
  "the end of a host taking everything with it (needs PID namespaces; processes are killed one by one)",
];

const clusterFile = z.object({
  mode: z.enum(["namespaces", "loopback"]),
  hosts: z.array(
    z.object({
      name: z.string(),
      address: z.string(),
      dir: z.string(),
      runDir: z.string(),
      pool: z.boolean(),
      xfs: z.boolean(),
    }),
  ),
});

const STRANGER = "x";
/** None of them a host's; so many that each tries fewer wrong tokens a minute than are judged, also when every route is tried. */
export const strangerAddresses: readonly string[] = Array.from(
  { length: 120 },
  (_, i) => `10.77.0.${128 + i}`,
);

type ClusterFile = z.infer<typeof clusterFile>;

export class Cluster {
  readonly dir: string;
  /** Part of every name that the cluster has on this machine. */
  readonly key: string;
  readonly hosts: readonly Host[];
  readonly mode: ClusterFile["mode"];
  readonly #network: Network | null;

  private constructor(dir: string, file: ClusterFile, services?: Services) {
    const key = keyOf(dir);
    this.dir = dir;
    this.key = key;
    this.mode = file.mode;
    this.#network = file.mode === "namespaces" ? new Network(key) : null;
    this.hosts = file.hosts.map((layout) => new Host(layout, key, this.#network, services));
  }

  /** Hosts, network and directories, nothing started. */
  static async create(options: ClusterOptions): Promise<Cluster> {
    const dir = resolve(options.dir);
    if (existsSync(join(dir, "cluster.json"))) {
      throw new Error(`a cluster is up in ${dir}: npm run cluster -- down --dir ${dir}`);
    }
    const mode = process.getuid?.() === 0 ? "namespaces" : "loopback";
    const { xfsBytes = null, pools = ["h1", "h2"] } = options;
    if (xfsBytes !== null && mode !== "namespaces")
      throw new Error("only root can mount a file system for a pool");
    const hosts = layoutsOf(dir, mode, options.hosts ?? 3, pools).map((host) => ({
      ...host,
      xfs: xfsBytes !== null && host.pool,
    }));
    for (const host of hosts) removeLeftovers(host.dir);
    mkdirSync(dir, { recursive: true });
    // Written before anything is made: whatever happens now, `down` finds it.
    writeFileSync(join(dir, "cluster.json"), `${JSON.stringify({ mode, hosts }, null, 2)}\n`);
    const cluster = new Cluster(dir, { mode, hosts }, options.services);
    const [first = "", ...more] = options.stranger === true ? strangerAddresses : [];
    const strangers = first === "" ? [] : [{ name: STRANGER, address: first, more }];
    await cluster.#network?.create([...hosts, ...strangers]);
    for (const { poolImage, layout } of cluster.hosts) {
      if (poolImage === null || xfsBytes === null) continue;
      mkdirSync(layout.dir, { recursive: true });
      writeFileSync(poolImage, "");
      truncateSync(poolImage, xfsBytes);
      await execa("mkfs.xfs", ["-q", "-m", "reflink=1", poolImage]);
    }
    return cluster;
  }

  /** A working cluster: started, formed, with its pools. */
  static async up(options: ClusterOptions): Promise<Cluster> {
    const say = options.say ?? (() => {});
    const cluster = await Cluster.create(options);
    await options.beforeStart?.(cluster);
    await Promise.all(cluster.hosts.map((host) => host.start()));
    say(`started ${cluster.hosts.map((host) => host.name).join(", ")}`);
    const [first, ...others] = cluster.hosts;
    if (first === undefined) return cluster;
    const transport = options.transport === undefined ? [] : ["--transport", options.transport];
    await first.output([
      "weft",
      "init",
      "-q",
      "--address",
      first.layout.address,
      "--name",
      first.name,
      ...transport,
    ]);
    say(`${first.name}: weft init`);
    for (const host of others) {
      await joinBy(host, first, options.keepTokens === true);
      say(`${host.name}: weft join ${first.layout.address}`);
    }
    for (const host of cluster.hosts.filter(({ layout }) => layout.pool)) {
      await host.output(["weft", "pool", "add", host.poolDir]);
      say(`${host.name}: weft pool add ${host.poolDir}`);
    }
    return cluster;
  }

  /** The cluster that was made in a directory, by whichever process. */
  static open(path: string): Cluster {
    const dir = resolve(path);
    const file = join(dir, "cluster.json");
    if (!existsSync(file)) throw new Error(`no cluster is up in ${dir}: npm run cluster -- up --dir ${dir}`);
    return new Cluster(dir, clusterFile.parse(JSON.parse(readFileSync(file, "utf8"))));
  }

  /** Ends and removes whatever is there of the cluster of this directory. Nothing there is fine. */
  static async down(path: string, options: { readonly keep?: boolean } = {}): Promise<void> {
    const dir = resolve(path);
    const key = keyOf(dir);
    if (process.getuid?.() === 0) await removeNamespaces(new Network(key));
    const file = join(dir, "cluster.json");
    const hosts = existsSync(file) ? Cluster.open(dir).hosts : [];
    for (const host of hosts) {
      await killAll(() => host.pidsByMark(), host.name);
      rmSync(host.layout.runDir, { recursive: true, force: true });
      if (options.keep !== true) rmSync(host.layout.dir, { recursive: true, force: true });
    }
    rmSync(shortRunDir(key), { recursive: true, force: true });
    rmSync(file, { force: true });
    if (existsSync(dir) && readdirSync(dir).length === 0) rmdirSync(dir);
  }

  down(options: { readonly keep?: boolean } = {}): Promise<void> {
    return Cluster.down(this.dir, options);
  }

  host(name: string): Host {
    const host = this.hosts.find((one) => one.name === name);
    if (host !== undefined) return host;
    throw new Error(`no host "${name}"; there are ${this.hosts.map((one) => one.name).join(", ")}`);
  }

  /** What starts a command in the network beside the hosts. */
  asStranger(command: readonly string[]): readonly string[] {
    const network = this.#needNetwork("a stranger");
    return ["ip", "netns", "exec", network.namespace(STRANGER), ...command];
  }

  async cut(a: string, b: string): Promise<void> {
    await this.#needNetwork("cut").cut(this.host(a).name, this.host(b).layout.address);
  }

  async heal(a: string, b: string): Promise<void> {
    await this.#needNetwork("heal").heal(this.host(a).name, this.host(b).layout.address);
    await this.#needNetwork("heal").heal(this.host(b).name, this.host(a).layout.address);
  }

  /** A host no longer hears another one; what it says itself arrives. */
  async deafen(host: string, other: string): Promise<void> {
    await this.#needNetwork("deafen").deafen(this.host(host).name, this.host(other).layout.address);
  }

  async lose(host: string, probability: number): Promise<void> {
    await this.#needNetwork("lose").lose(this.host(host).name, probability);
  }

  /** `rate` as tc writes it: "1mbit". */
  async slow(host: string, rate: string): Promise<void> {
    await this.#needNetwork("slow").slow(this.host(host).name, rate);
  }

  /** Nothing leaves a host or reaches it any more. */
  async unplug(host: string): Promise<void> {
    await this.#needNetwork("unplug").unplug(this.host(host).name);
  }

  /** Heals a host's link of everything. */
  async clear(host: string): Promise<void> {
    await this.#needNetwork("clear").clear(this.host(host).name);
  }

  #needNetwork(verb: string): Network {
    if (this.#network !== null) return this.#network;
    throw new Error(`${verb} needs network namespaces, which only root can make`);
  }
}

/** By a token in a file that only root can read, as an administrator would carry it. */
async function joinBy(host: Host, member: Host, keep: boolean): Promise<void> {
  const { address, dir } = host.layout;
  const file = join(dir, "join-token");
  const token = await member.output(["weft", "token", "create", "-q", "--name", host.name]);
  writeFileSync(file, token, { mode: 0o600 });
  const named = ["--address", address, "--name", host.name];
  await host.output(["weft", "join", member.layout.address, "--token-file", file, ...named]);
  if (!keep) rmSync(file);
}

/** What `down --keep` left of an earlier cluster. Anything else of that name is not ours to remove. */
function removeLeftovers(dir: string): void {
  if (!existsSync(dir)) return;
  if (!existsSync(join(dir, "boot-id"))) throw new Error(`${dir} exists and is not a host of ours`);
  rmSync(dir, { recursive: true });
}

/** Two clusters in different directories never share a name. */
function keyOf(dir: string): string {
  return createHash("sha256").update(dir).digest("hex").slice(0, 6);
}

function layoutsOf(
  dir: string,
  mode: ClusterFile["mode"],
  count: number,
  pools: readonly string[],
): HostLayout[] {
  if (count < 1 || count > 9) throw new Error(`a cluster on one machine has 1 to 9 hosts, not ${count}`);
  const names = Array.from({ length: count }, (_, i) => `h${i + 1}`);
  const unknown = pools.filter((name) => !names.includes(name));
  if (unknown.length > 0)
    throw new Error(`--pools names ${unknown.join(", ")}; the hosts are ${names.join(", ")}`);
  return names.map((name, i) => {
    const own = join(dir, name);
    const address = mode === "namespaces" ? `10.77.0.${11 + i}` : `127.0.77.${11 + i}`;
    const runDir = runDirOf(dir, own, name);
    return { name, address, dir: own, runDir, pool: pools.includes(name), xfs: false };
  });
}

/** A socket's path has at most 107 bytes, and the longest one ends in "/nbd/", a name of 63 characters, ".sock". */
function runDirOf(dir: string, own: string, name: string): string {
  const wanted = join(own, "run");
  const longest = Buffer.byteLength(join(wanted, "nbd", `${"x".repeat(63)}.sock`));
  return longest <= 107 ? wanted : join(shortRunDir(keyOf(dir)), name);
}

function shortRunDir(key: string): string {
  return join("/tmp", `weft-run-${key}`);
}

async function removeNamespaces(network: Network): Promise<void> {
  for (const member of network.members()) {
    const inode = await network.inode(member);
    if (inode !== null) await killAll(() => pidsInNetwork(inode), member);
  }
  await network.remove();
}
