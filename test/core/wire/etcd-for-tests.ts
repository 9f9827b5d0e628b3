/**
 * Real etcd members on loopback addresses of this process's own, with the fixed ports of a host.
 *
 * Must always hold: every process started here is ended, also after SIGSTOP, and its directory removed.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

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

export type TestStore = { readonly members: readonly TestMember[]; readonly endpoints: readonly string[] };

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

/** Starts members 1..count as one cluster and waits until each answers. */
export async function startStore(
  t: Scope,
  count: number,
  first: number = 1,
  more: readonly string[] = [],
): Promise<TestStore> {
  const directory = await mkdtemp(join(tmpdir(), "weft-etcd-"));
  const numbers = Array.from({ length: count }, (_, i) => first + i);
  const cluster = numbers.map((n) => `m${n}=http://${loopback(n)}:${PEER_PORT}`).join(",");
  const members = numbers.map((n) => member(directory, n, cluster, more));
  t.teardown(async () => {
    await Promise.all(members.map((m) => m.stop()));
    await rm(directory, { recursive: true, force: true });
  });
  await Promise.all(members.map((m) => m.start()));
  return { members, endpoints: members.map((m) => m.endpoint) };
}

function member(directory: string, n: number, cluster: string, more: readonly string[]): TestMember {
  const endpoint = `http://${loopback(n)}:${CLIENT_PORT}`;
  const args = [
    ["--name", `m${n}`],
    ["--data-dir", join(directory, `m${n}`)],
    ["--listen-client-urls", endpoint],
    ["--advertise-client-urls", endpoint],
    ["--listen-peer-urls", `http://${loopback(n)}:${PEER_PORT}`],
    ["--initial-advertise-peer-urls", `http://${loopback(n)}:${PEER_PORT}`],
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
    await untilHealthy(endpoint);
  };
  return { name: `m${n}`, endpoint, kill: (signal) => void child?.kill(signal), stop, start };
}

async function untilHealthy(endpoint: string): Promise<void> {
  const end = performance.now() + 30_000;
  for (;;) {
    try {
      const answer = await fetch(`${endpoint}/v3/kv/range`, {
        method: "POST",
        body: JSON.stringify({ key: "eA==" }),
        signal: AbortSignal.timeout(1000),
      });
      await answer.text();
      if (answer.ok) return;
    } catch (error) {
      if (performance.now() > end) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
