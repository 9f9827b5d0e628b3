/** A host for tests: a real agent with XAPI's door in it and a real etcd on a loopback address of its own, a fake weftd. */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { nativeBin } from "../../../scripts/lib/repository.ts";
import { Agent } from "../../../src/core/agent/agent.ts";
import type { MemberContext } from "../../../src/core/agent/context.ts";
import { EtcdProcess } from "../../../src/core/agent/etcd-process.ts";
import type { LocalDoor } from "../../../src/core/agent/local-door.ts";
import type { DeviceSizes } from "../../../src/core/agent/size-keeper.ts";
import { openLog } from "../../../src/core/agent/log.ts";
import type { HostAnswer } from "../../../src/core/wire/agent-api.ts";
import { AgentClient } from "../../../src/core/wire/agent-client.ts";
import { isWeftError } from "../../../src/core/wire/errors.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import type { StoreTls } from "../../../src/core/wire/store-http.ts";
import { smDoors } from "../../../src/resident/sm-door.ts";
import { loopback } from "../wire/etcd-for-tests.ts";
import { FakeWeftd } from "./fake-weftd.ts";
import { storeTlsOf } from "./store-tls-of.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

export class TestHost {
  readonly address: string;
  readonly name: string;
  readonly directory: string;
  readonly client: AgentClient;
  readonly weftd: FakeWeftd;
  readonly etcd: EtcdProcess;
  #agent: Agent | null = null;
  /** Disks on which a guest's device stands, connected or not; null: nobody can say. */
  devices: ReadonlySet<string> | null = new Set();
  /** Of guests' devices, from the next start of its agent on. */
  sizes: DeviceSizes | null = null;
  /** Set before its agent is started. */
  doors: readonly LocalDoor[] = [];
  readonly #rebuildAfterMs: number | null;
  readonly #certificateLifeMs: number | null;

  constructor(
    directory: string,
    n: number,
    rebuildAfterMs: number | null,
    certificateLifeMs: number | null = null,
  ) {
    this.#rebuildAfterMs = rebuildAfterMs;
    this.#certificateLifeMs = certificateLifeMs;
    this.directory = directory;
    this.name = `h${n % 10}`;
    this.address = loopback(n);
    this.client = new AgentClient({ socketPath: join(directory, "run", "agent.sock") });
    this.weftd = new FakeWeftd(join(directory, "run"), this.stateDir, () => this.#shown());
    this.etcd = new EtcdProcess({
      stateDir: this.stateDir,
      runDir: join(directory, "run"),
      program: "/usr/bin/etcd",
    });
  }

  /** Null: its agent is down, or in no cluster yet. */
  #shown(): StoreTls | null {
    try {
      return this.#agent?.member().identity.tls ?? null;
    } catch (error) {
      if (isWeftError(error, "E-AGENT-03")) return null;
      throw error;
    }
  }

  get stateDir(): string {
    return join(this.directory, "state");
  }

  /** The store as this host sees it: with its certificate. */
  async store(patienceMs: number = 5000): Promise<StoreClient> {
    const { endpoints } = await this.client.cluster();
    return new StoreClient({ endpoints, tls: storeTlsOf(this.stateDir), patienceMs });
  }

  /** Boots: the agent, and weftd if it doesn't run. */
  async startAgent(): Promise<void> {
    const level = process.env["WEFT_TEST_LOG"] ?? "silent";
    const options = {
      stateDir: this.stateDir,
      runDir: join(this.directory, "run"),
      etcd: "/usr/bin/etcd",
      etcdctl: "/usr/bin/etcdctl",
      bootIdFile: null,
      logLevel: level,
      rebuildAfterMs: this.#rebuildAfterMs,
      certificateLifeMs: this.#certificateLifeMs,
      addon: join(nativeBin(), "libweft_node.so"),
      syslogSocket: "",
      viewerGroup: null,
      xapiSocket: join(this.directory, "run", "xapi"),
      dom0Root: this.directory,
      allowCoreDumps: true,
    };
    const log = openLog(level);
    const isDriven = this.doors.some(({ path }) => path === "/v1/sm");
    const doors = isDriven ? this.doors : [...smDoors(options, log), ...this.doors];
    this.#agent = new Agent(
      options,
      log,
      doors,
      null,
      async () => {
        if (this.devices === null) throw new Error("it does not say");
        return this.devices;
      },
      this.sizes,
    );
    await this.#agent.start();
  }

  /** What its agent's requests are answered from. */
  member(): MemberContext {
    if (this.#agent === null) throw new Error(`${this.name}'s agent is down`);
    return this.#agent.member();
  }

  async stopAgent(): Promise<void> {
    await this.#agent?.stop();
    this.#agent = null;
  }

  async destroy(): Promise<void> {
    await this.stopAgent();
    await this.weftd.stop();
    await this.etcd.stop();
    // What was told to stop may still write its last line.
    await rm(this.directory, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  }
}

export async function startHost(
  t: Scope,
  n: number,
  rebuildAfterMs: number | null = null,
  certificateLifeMs: number | null = null,
  doorsOf: (host: TestHost) => readonly LocalDoor[] = () => [],
): Promise<TestHost> {
  const directory = await mkdtemp(join(tmpdir(), "weft-host-"));
  const host = new TestHost(directory, n, rebuildAfterMs, certificateLifeMs);
  host.doors = doorsOf(host);
  t.teardown(() => host.destroy());
  // The agent finds it at its first try: what is asked right after `init` needs a configured weftd.
  await mkdir(join(host.directory, "run"));
  await host.weftd.daemon.start();
  await host.startAgent();
  return host;
}

/** One host with a cluster, the others joined; each with a pool. */
export async function startCluster(
  t: Scope,
  count: number,
  first: number,
  rebuildAfterMs: number | null = null,
  certificateLifeMs: number | null = null,
): Promise<TestHost[]> {
  const hosts: TestHost[] = [];
  for (let n = first; n < first + count; n += 1) {
    const host = await startHost(t, n, rebuildAfterMs, certificateLifeMs);
    const [head] = hosts;
    if (head === undefined)
      await host.client.init({ name: host.name, address: host.address, clusterName: "lab" });
    else await joinHost(host, head);
    hosts.push(host);
  }
  for (const host of hosts) await host.client.createPool({ path: `/pool-of-${host.name}` });
  return hosts;
}

/** Four hosts, three of them voters of the store; `member` is a voter that isn't `h1`, `spare` is no member. */
export async function startWithSpare(
  t: Scope,
  first: number,
): Promise<{
  readonly hosts: readonly TestHost[];
  readonly h1: TestHost;
  readonly member: TestHost;
  readonly spare: TestHost;
  /** As `h1` shows them. */
  readonly list: readonly HostAnswer[];
}> {
  const hosts = await startCluster(t, 4, first);
  const [h1] = hosts;
  if (h1 === undefined) throw new Error("hosts");
  const list = await eventually(
    "three voters",
    () => h1.client.hosts(),
    (answer) => answer.filter(({ store }) => store === "voter").length === 3,
    60_000,
  );
  const storeOf = (host: TestHost): string => list.find(({ name }) => name === host.name)?.store ?? "";
  const spare = hosts.find((host) => storeOf(host) === "none");
  const member = hosts.find((host) => host !== h1 && storeOf(host) === "voter");
  if (spare === undefined || member === undefined) throw new Error("three members, and one that is none");
  return { hosts, h1, member, spare, list };
}

/** Three hosts, each with a pool that serves, in a cluster that is healthy. */
export async function three(t: Scope, first: number): Promise<[TestHost, TestHost, TestHost]> {
  const [h1, h2, h3] = await startCluster(t, 3, first, 1000);
  if (h1 === undefined || h2 === undefined || h3 === undefined) throw new Error("three hosts");
  await eventually(
    "three hosts with pools",
    () => h1.client.status(),
    (s) =>
      s.kind === "cluster" &&
      s.health === "healthy" &&
      s.pools.filter((p) => p.state === "serving").length === 3,
  );
  return [h1, h2, h3];
}

/** By a token that is made for it. */
export async function joinHost(host: TestHost, member: TestHost, name: string = host.name): Promise<string> {
  const { token } = await member.client.createToken();
  return (await host.client.join({ from: member.address, token, name, address: host.address })).host;
}

/** Asks until the answer is as wanted; the agent's own events make it so, this only looks. */
export async function eventually<T>(
  what: string,
  ask: () => Promise<T>,
  isWanted: (answer: T) => boolean,
  deadlineMs: number = 30_000,
): Promise<T> {
  const end = performance.now() + deadlineMs;
  let last: unknown = null;
  for (;;) {
    try {
      const answer = await ask();
      if (isWanted(answer)) return answer;
      last = answer;
    } catch (error) {
      last = error;
    }
    if (performance.now() > end) {
      const shown =
        last instanceof Error
          ? last.message
          : JSON.stringify(last, (_, v: unknown) => (typeof v === "bigint" ? String(v) : v));
      throw new Error(`${what} did not come within ${deadlineMs} ms; last seen: ${shown}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
