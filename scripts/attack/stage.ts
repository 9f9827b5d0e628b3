/**
 * Where attacks are played: four hosts, a volume in two copies whose guest writes all the time, a second volume that an
 * attack may aim at, and networks for strangers.
 *
 * Must always hold:
 * - the guest's history is judged at the end: an attack that corrupts is found, also where nothing looked like it;
 * - what the store says of trust, tokens, volumes and copies is the same before and after each attack.
 */
import { X509Certificate } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import { z } from "zod";

import { kidOf } from "../../src/core/wire/certificate.ts";
import { IdentityFiles } from "../../src/core/wire/identity-files.ts";
import type { AuthorityKeys } from "../../src/core/wire/x509-make.ts";
import { Cluster } from "../cluster/cluster.ts";
import type { Host } from "../cluster/host.ts";
import { Guest } from "../faults/guest.ts";
import { nativeBin } from "../lib/repository.ts";
import { until } from "../lib/until.ts";
import type { Credential, KnownAuthority, KnownHost, Knowledge } from "./knowledge.ts";

const VOLUME = "guest";
const VICTIM = "victim";
const SIZE = 64n * 1024n * 1024n;

/** Keys that change by themselves, whoever attacks. */
const VOLATILE =
  /^\/weft\/v1\/(?:alive|pool-usage|placer|trust-ack|audit-head|api-token-used|member-turn|vol\/[^/]+\/(?:pause|used))(?:\/|$)/;

const dumpJson = z.object({ kvs: z.array(z.object({ key: z.string(), value: z.string() })).default([]) });

export class Stage {
  readonly cluster: Cluster;
  readonly knowledge: Knowledge;
  /** Read by the attackers; 0600. */
  readonly knowledgePath: string;
  readonly #scratch: string;
  readonly #guest: Guest;
  readonly #socket: string;

  private constructor(parts: {
    readonly cluster: Cluster;
    readonly knowledge: Knowledge;
    readonly knowledgePath: string;
    readonly scratch: string;
    readonly guest: Guest;
    readonly socket: string;
  }) {
    this.cluster = parts.cluster;
    this.knowledge = parts.knowledge;
    this.knowledgePath = parts.knowledgePath;
    this.#scratch = parts.scratch;
    this.#guest = parts.guest;
    this.#socket = parts.socket;
  }

  static async up(options: {
    readonly dir: string;
    readonly seed: number;
    readonly say: (line: string) => void;
  }): Promise<Stage> {
    const { dir, seed, say } = options;
    const cluster = await Cluster.up({
      dir,
      hosts: 4,
      pools: ["h1", "h2"],
      stranger: true,
      keepTokens: true,
      say,
    });
    const scratch = mkdtempSync(join(tmpdir(), "weft-attack-"));
    const first = cluster.host("h1").agent();
    for (const name of [VOLUME, VICTIM]) await first.createVolume({ name, size: SIZE, copies: 2 });
    await first.attach(VICTIM);
    const { path: socket } = await cluster.host("h3").agent().attach(VOLUME);
    const knowledge = await steal(cluster);
    const knowledgePath = join(scratch, "knowledge.json");
    writeFileSync(knowledgePath, JSON.stringify(knowledge), { mode: 0o600 });
    const guest = await Guest.start({ dir, socket, seed, history: join(scratch, "history") });
    return new Stage({ cluster, knowledge, knowledgePath, scratch, guest, socket });
  }

  /** The longest wait of the guest's requests since the window before; begins another. */
  async window(name: string): Promise<number> {
    return (await this.#guest.window(name)).stall_ms;
  }

  /** What no attack may change, by key. */
  async state(): Promise<ReadonlyMap<string, string>> {
    const dump = await this.cluster.host("h1").etcdctl(["get", "--prefix", "/weft/v1/", "--write-out=json"]);
    const { kvs } = dumpJson.parse(JSON.parse(dump));
    const pairs = kvs.map(({ key, value }) => [plain(key), plain(value)] as const);
    return new Map(
      pairs.filter(([key]) => !VOLATILE.test(key)).map(([key, value]) => [key, essentialOf(key, value)]),
    );
  }

  /** Resident memory in MiB, by `host/program`. */
  async memory(): Promise<ReadonlyMap<string, number>> {
    const found = new Map<string, number>();
    for (const host of this.cluster.hosts) {
      for (const pid of await host.pids()) {
        const program = programOf(pid);
        if (program !== null) found.set(`${host.name}/${program}`, residentMiB(pid));
      }
    }
    return found;
  }

  /** The volume that nobody's attack may keep from its owner: closed, opened and served again. */
  async victimWorks(): Promise<void> {
    const agent = this.cluster.host("h1").agent();
    await agent.detach(VICTIM);
    await agent.attach(VICTIM);
  }

  /** Ends the guest and judges its history; null: nothing is wrong with it. */
  async judge(): Promise<string | null> {
    await this.#guest.stop();
    const { stdout, exitCode } = await execa(
      join(nativeBin(), "weft-checker"),
      ["verify", "--history", this.#guest.history, "--final", "--socket", this.#socket],
      { reject: false },
    );
    return exitCode === 0 ? null : `the guest's history: ${stdout}`;
  }

  dispose(): void {
    this.#guest.kill();
    rmSync(this.#scratch, { recursive: true, force: true });
  }
}

/** What lies on the hosts' disks. */
async function steal(cluster: Cluster): Promise<Knowledge> {
  const listed = await cluster.host("h1").agent().hosts();
  const hosts = await Promise.all(cluster.hosts.map(async (host) => stolenHost(host, listed)));
  const files = new IdentityFiles(cluster.host("h1").stateDir);
  const { host: authorities, store: storeAuthorities } = await files.readAuthorities();
  const { id } = await cluster.host("h1").agent().cluster();
  const names = new Map(hosts.map((host) => [host.id, host.name]));
  return {
    cluster: id,
    hosts,
    targets: (await recordOf(cluster, VICTIM)).flatMap(({ node, ...target }) => {
      const host = names.get(node);
      return host === undefined ? [] : [{ host, ...target }];
    }),
    tokens: await tokensOf(cluster),
    apiTokens: await apiTokensOf(cluster),
    liar: join(nativeBin(), "weft-liar"),
    authority: stolenAuthority(authorities),
    storeAuthority: stolenAuthority(storeAuthorities),
  };
}

/** h2's own, by which it joined, is the used one. */
async function tokensOf(cluster: Cluster): Promise<Knowledge["tokens"]> {
  const agent = cluster.host("h1").agent();
  const { token: expired } = await agent.createToken({ forMs: 1000 });
  const { token: fresh } = await agent.createToken({});
  const { token: revoked, id } = await agent.createToken({});
  await agent.revokeToken(id);
  await until(async () => ((await agent.tokens()).some(isOver) ? true : null), {
    what: "a token to expire",
    deadlineMs: 10_000,
  });
  return {
    fresh,
    used: readFileSync(join(cluster.host("h2").layout.dir, "join-token"), "utf8").trim(),
    revoked,
    expired,
  };
}

async function apiTokensOf(cluster: Cluster): Promise<Knowledge["apiTokens"]> {
  const agent = cluster.host("h1").agent();
  const { token: viewer } = await agent.createApiToken({ name: "viewer", role: "viewer" });
  const { token: operator } = await agent.createApiToken({ name: "operator", role: "operator" });
  const { token: revoked, id } = await agent.createApiToken({ name: "revoked", role: "admin" });
  await agent.revokeApiToken(id);
  const { token: expired } = await agent.createApiToken({ name: "expired", role: "admin", forMs: 1000 });
  await until(async () => ((await agent.apiTokens()).some(isOver) ? true : null), {
    what: "an API token to expire",
    deadlineMs: 10_000,
  });
  return { viewer, operator, expired, revoked };
}

function isOver({ expiresAt }: { readonly expiresAt: string }): boolean {
  return Date.parse(expiresAt) < Date.now();
}

const recordJson = z.looseObject({
  vol: z.string(),
  replicas: z.array(z.object({ rid: z.number(), node: z.string(), pool: z.string() })),
});

type Target = Omit<Knowledge["targets"][number], "host"> & { readonly node: string };

/** The copies of a volume, by its record. */
async function recordOf(cluster: Cluster, name: string): Promise<readonly Target[]> {
  const { id } = await cluster.host("h1").agent().volume(name);
  const text = await cluster.host("h1").etcdctl(["get", "--print-value-only", `/weft/v1/vol/${id}/state`]);
  const record = recordJson.parse(JSON.parse(text));
  return record.replicas.map(({ rid, node, pool }) => ({ node, volume: id, rid, pool, record }));
}

async function stolenHost(
  host: Host,
  listed: readonly { readonly id: string; readonly name: string }[],
): Promise<KnownHost> {
  const identity = await new IdentityFiles(host.stateDir).readHost();
  const found = listed.find(({ name }) => name === host.name);
  if (identity === null || found === undefined) throw new Error(`${host.name} has no identity`);
  return {
    name: host.name,
    id: found.id,
    address: host.layout.address,
    identity: { cert: identity.certPem + identity.chainPem, key: identity.keyPem.reveal() },
    identityDir: join(host.stateDir, "identity"),
    agentSocket: host.agentSocket,
    daemonSocket: host.daemonSocket,
    store: host.name === "h4" ? null : storeOf(host),
  };
}

/** Certificate and key in one file. */
function storeOf(host: Host): Credential {
  const text = readFileSync(join(host.stateDir, "authority/tls/etcd.pem"), "utf8");
  const at = text.indexOf("-----BEGIN PRIVATE KEY-----");
  return { cert: text.slice(0, at), key: text.slice(at) };
}

function stolenAuthority([first]: readonly AuthorityKeys[]): KnownAuthority {
  if (first === undefined) throw new Error("h1 holds no authority");
  return {
    kid: kidOf(new X509Certificate(first.pem).publicKey),
    pem: first.pem,
    key: first.keyPem.reveal(),
  };
}

/** Of a volume's record who owns it and since which epoch: copies may fall behind and catch up meanwhile. */
function essentialOf(key: string, value: string): string {
  if (!key.endsWith("/state")) return value;
  const { epoch, owner } = z.looseObject({ epoch: z.string(), owner: z.unknown() }).parse(JSON.parse(value));
  return JSON.stringify({ epoch, owner });
}

function plain(base64: string): string {
  return Buffer.from(base64, "base64").toString("utf8");
}

/** Null: none of those that are watched. */
function programOf(pid: number): string | null {
  const words = read(`/proc/${pid}/cmdline`).split("\0");
  const name = words[0]?.split("/").at(-1) ?? "";
  if (name === "weftd" || name === "etcd") return name;
  return words.some((word) => word.endsWith("/resident/main.ts")) ? "agent" : null;
}

function residentMiB(pid: number): number {
  return Number(/^VmRSS:\s+([0-9]+) kB$/m.exec(read(`/proc/${pid}/status`))?.[1] ?? "0") / 1024;
}

/** Empty: the process has ended. */
function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
