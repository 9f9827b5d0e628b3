/**
 * Real etcd members on loopback addresses of this process's own, with the fixed ports of a host.
 *
 * Must always hold: every process started here is ended, also after SIGSTOP, and its directory removed.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { post, type StoreTls } from "../../../src/core/wire/store-http.ts";
import { type Leaf, TestAuthority } from "./certificates-for-tests.ts";

export const CLIENT_PORT = 7402;
export const PEER_PORT = 7403;

/** `127.x.y.n`, x and y from the process id: test files run side by side. */
export function loopback(n: number): string {
  return `127.${100 + ((process.pid >> 8) & 127)}.${process.pid & 255}.${n}`;
}

export type TestMember = {
  readonly name: string;
  readonly endpoint: string;
  readonly kill: (signal: NodeJS.Signals) => void;
  /** Ends it and waits for the end. */
  readonly stop: () => Promise<void>;
  readonly start: () => Promise<void>;
};

export type TestStore = {
  readonly members: readonly TestMember[];
  readonly endpoints: readonly string[];
  /** What a host shows; null: the store is served in clear. */
  readonly tls: StoreTls | null;
};

/** Two authorities, as weft has them: hosts show certificates of one, members of the store those of the other. */
export type TestPki = { readonly hosts: TestAuthority; readonly store: TestAuthority; readonly host: Leaf };

/** A host's certificate; identities are names, never addresses. */
export const HOST_NAMES = "URI:weft://c/host/h";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

export async function makePki(t: Scope): Promise<TestPki> {
  const [hosts, store] = await Promise.all([TestAuthority.make(t, "hosts"), TestAuthority.make(t, "store")]);
  return { hosts, store, host: await hosts.issue({ names: HOST_NAMES }) };
}

/** What a client shows that has this certificate and believes this store. */
export function tlsOf(leaf: Pick<Leaf, "cert" | "key">, storeCa: string): StoreTls {
  return { current: () => leaf, storeCa: () => storeCa };
}

/** Starts members 1..count as one cluster and waits until each answers. With a PKI: mutual TLS on both ports. */
export async function startStore(
  t: Scope,
  count: number,
  first: number = 1,
  more: readonly string[] = [],
  pki: TestPki | null = null,
): Promise<TestStore> {
  const directory = await mkdtemp(join(tmpdir(), "weft-etcd-"));
  const scheme = pki === null ? "http" : "https";
  const tls = pki === null ? null : tlsOf(pki.host, pki.store.cert);
  const numbers = Array.from({ length: count }, (_, i) => first + i);
  const cluster = numbers.map((n) => `m${n}=${scheme}://${loopback(n)}:${PEER_PORT}`).join(",");
  const members = await Promise.all(
    numbers.map(async (n) => {
      const secrets = pki === null ? [] : await tlsFlags(pki, directory, n);
      return member(directory, n, scheme, cluster, [...secrets, ...more], tls);
    }),
  );
  t.teardown(async () => {
    await Promise.all(members.map((m) => m.stop()));
    await rm(directory, { recursive: true, force: true });
  });
  await Promise.all(members.map((m) => m.start()));
  return { members, endpoints: members.map((m) => m.endpoint), tls };
}

/** Another authority for peers than for clients; the gateway inside etcd is a client with the member's certificate. */
async function tlsFlags({ hosts, store }: TestPki, directory: string, n: number): Promise<readonly string[]> {
  // A peer's source address must be in its certificate: on loopback it is 127.0.0.1.
  const { path } = await store.issue({ names: `IP:${loopback(n)},IP:127.0.0.1` });
  const clients = join(directory, `clients-${n}.pem`);
  await writeFile(clients, hosts.cert + store.cert);
  return [
    ["--cert-file", path, "--key-file", path, "--client-cert-auth", "--trusted-ca-file", clients],
    ["--peer-cert-file", path, "--peer-key-file", path],
    ["--peer-client-cert-auth", "--peer-trusted-ca-file", store.path],
  ].flat();
}

function member(
  directory: string,
  n: number,
  scheme: "http" | "https",
  cluster: string,
  more: readonly string[],
  tls: StoreTls | null,
): TestMember {
  const endpoint = `${scheme}://${loopback(n)}:${CLIENT_PORT}`;
  const peer = `${scheme}://${loopback(n)}:${PEER_PORT}`;
  const args = [
    ["--name", `m${n}`],
    ["--data-dir", join(directory, `m${n}`)],
    ["--listen-client-urls", endpoint],
    ["--advertise-client-urls", endpoint],
    ["--listen-peer-urls", peer],
    ["--initial-advertise-peer-urls", peer],
    ["--initial-cluster", cluster],
    ["--heartbeat-interval", "100"],
    ["--election-timeout", "500"],
    ["--logger", "zap"],
    ["--log-level", "error"],
    more,
  ].flat();
  let child: ChildProcess | null = null;
  const stop = async (): Promise<void> => {
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, "exit");
    child.kill("SIGKILL");
    await gone;
  };
  const start = async (): Promise<void> => {
    child = spawn("/usr/bin/etcd", args, { stdio: "ignore" });
    await untilHealthy(endpoint, tls);
  };
  return { name: `m${n}`, endpoint, kill: (signal) => void child?.kill(signal), stop, start };
}

async function untilHealthy(endpoint: string, tls: StoreTls | null): Promise<void> {
  const end = performance.now() + 30_000;
  for (;;) {
    try {
      const signal = AbortSignal.timeout(1000);
      const answer = await post(endpoint, "/v3/kv/range", JSON.stringify({ key: "eA==" }), { signal, tls });
      for await (const _ of answer.body);
      if (answer.status === 200) return;
    } catch (error) {
      if (performance.now() > end) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
