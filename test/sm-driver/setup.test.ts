/**
 * Plot: three hypervisors of a pool. An SR is created and no weft is there: its hosts become a cluster. A host comes to the
 * pool and gets the SR's PBD: it becomes one of them, by what XAPI carries, and nothing of that is a secret.
 */
import { chmod, mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { execa } from "execa";
import t from "tap";

import { type DiskAnswer } from "../../src/core/wire/agent-api.ts";
import { AgentClient } from "../../src/core/wire/agent-client.ts";
import { BUNDLE_FILE, BundleKeeper } from "../../src/core/agent/bundle-keeper.ts";
import { openLog } from "../../src/core/agent/log.ts";
import { alertSink } from "../../src/resident/alert-sink.ts";
import { noDatapath } from "../../src/sm-driver/datapath/none.ts";
import { Driver } from "../../src/sm-driver/driver.ts";
import { smCallOf } from "../../src/sm-driver/call.ts";
import { ensureCluster, ensureMember, otherCluster } from "../../src/sm-driver/setup/ensure.ts";
import { callPlugin } from "../../src/sm-driver/setup/pool-records.ts";
import { weft } from "../cli/fake-agent.ts";
import { eventually, joinHost, type TestHost } from "../core/agent/test-host.ts";
import { requestOf } from "./lib/client.ts";
import { NETWORK, startPool, type TestPool } from "./lib/pool-for-tests.ts";

const SR = "8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f02";
const HOOK = join(import.meta.dirname, "../../packaging/libexec/xapi-hook");
const log = { info: () => {}, warn: () => {}, error: () => {}, debug: () => {} };

const blank: DiskAnswer = {
  hostName: "h1",
  device: "/dev/weft-test",
  kind: "disk",
  size: 1n << 40n,
  model: null,
  serial: null,
  blank: true,
  state: "blank",
  what: null,
  name: "weft-test",
  nameKind: "device",
  pool: null,
};

/** A host whose agent knows a blank disk that this machine has not: its pool is a directory. */
class WithDisk extends AgentClient {
  readonly #host: TestHost;

  constructor(host: TestHost) {
    super({ socketPath: `${host.directory}/run/agent.sock` });
    this.#host = host;
  }

  override async disks(): Promise<DiskAnswer[]> {
    return [blank];
  }

  override async createPool(): ReturnType<AgentClient["createPool"]> {
    return this.#host.client.createPool({ path: `/pool-of-${this.#host.name}` });
  }
}

/** As XAPI runs it; the script's own place of the socket is this host's. */
async function hook(
  { directory }: TestHost,
  ...words: readonly string[]
): Promise<{ readonly exitCode: number | undefined; readonly stdout: string }> {
  const text = await readFile(HOOK, "utf8");
  const path = join(directory, "xapi-hook");
  await writeFile(path, text.replace('RUN = "/run/weft"', `RUN = ${JSON.stringify(join(directory, "run"))}`));
  await chmod(path, 0o755);
  const { exitCode, stdout } = await execa(path, [...words], { reject: false });
  return { exitCode, stdout };
}

function needed(
  pool: TestPool,
  n: number,
  deviceConfig: Readonly<Record<string, string>>,
): Parameters<typeof ensureCluster>[0] {
  const host = pool.hosts[n];
  if (host === undefined) throw new Error("a host");
  const call = smCallOf(requestOf({ command: "sr_create", hostRef: host.xapi.ref, deviceConfig }));
  return { agent: new WithDisk(host.weft), xapi: pool.session(), call, refusedDatapath: null, log };
}

void t.test(
  "sr_create: a pool without weft becomes a cluster by the plan; a host that comes later joins at its PBD",
  async (t) => {
    const pool = await startPool(t, 3, 111);
    const [h1, h2, h3] = pool.hosts;
    if (h1 === undefined || h2 === undefined || h3 === undefined) throw new Error("three hosts");
    // The third one is off when the SR is made.
    h3.xapi.live = false;
    await t.rejects(
      ensureCluster(needed(pool, 0, { disks: "h9:/dev/sdb", copies: "two", network: NETWORK, copys: "2" })),
      { code: 143, message: /^E-ARG-02 .*"copys"[^]*\nE-ARG-01 .*"h9"[^]*\nE-VOL-08 / },
    );
    await t.rejects(ensureCluster(needed(pool, 0, { disks: "none" })), { message: /^E-SETUP-04 / });
    t.equal((await h1.weft.client.status()).kind, "no-cluster", "nothing was done where a plan has findings");
    pool.xapi.set(pool.poolRef, "other_config", { "weft-setup": `${new Date().toISOString()} h2` });
    await t.rejects(ensureCluster(needed(pool, 0, {})), { code: "E-SETUP-16", message: /begun on h2/ });
    // Whoever had it is long gone.
    pool.xapi.set(pool.poolRef, "other_config", { "weft-setup": "2026-01-01T00:00:00.000Z h2" });

    await ensureCluster(
      needed(pool, 0, { disks: `${h1.xapi.uuid}:${blank.device}`, copies: "1", network: NETWORK }),
    );
    const listed = (await h2.weft.client.hosts()).map(({ name, address }) => `${name} ${address}`);
    t.strictSame(
      listed.toSorted(),
      [h1, h2].map(({ weft }) => `${weft.name} ${weft.address}`),
    );
    t.equal((await h1.weft.client.pools()).length, 1);
    // With weft there it only registers: nobody's plug-in is asked.
    const asked = pool.argv.length;
    await ensureCluster(needed(pool, 0, { copies: "1" }));
    t.equal(pool.argv.length, asked);

    h3.xapi.live = true;
    await ensureMember(needed(pool, 2, {}));
    t.match(await h3.weft.client.status(), {
      kind: "cluster",
      self: { name: h3.weft.name, address: h3.weft.address },
    });
    await ensureMember(needed(pool, 2, {}));
    await eventually(
      "three hosts",
      () => h1.weft.client.hosts(),
      (all) => all.length === 3,
    );
    t.notMatch(pool.argv.join("\n"), /PRIVATE KEY|token|secret/i, "nothing secret stands in an argv");
    t.match(
      pool.argv.join("\n"),
      /<methodName>join-request<\/methodName>/,
      "the request came from the host itself",
    );
    const audit = await h1.weft.client.audit({
      since: null,
      volume: null,
      host: null,
      who: null,
      refused: null,
      limit: "200",
    });
    const vouched = audit.lines.flatMap(({ what, target }) =>
      what === "POST /v1/admission" && typeof target["vouchedBy"] === "string" ? [target["vouchedBy"]] : [],
    );
    t.strictSame(
      [...new Set(vouched)].toSorted(),
      [h2, h3].map(({ xapi }) => `XAPI host ${xapi.uuid}`).toSorted(),
    );

    await h1.weft.client.createVolume({ name: "db", size: 1n << 30n, copies: 1 });
    await eventually(
      "its copy",
      () => h1.weft.client.volume("db"),
      ({ health }) => health === "healthy",
    );
    // XAPI ejects h1: it gives up where a PBD can't be unplugged. Its hook comes when all is done, and must not fail.
    const detach = async (n: number): Promise<unknown> => {
      const agentSocket = join(pool.hosts[n]?.weft.directory ?? "", "run/agent.sock");
      const parts = { agentSocket, xapiSocket: pool.xapi.socketPath, datapath: () => noDatapath, log };
      const sessionRef = pool.xapi.openSession(pool.poolRef);
      const asked = { command: "sr_detach", srUuid: SR, srRef: "OpaqueRef:sr", sessionRef };
      const { fault } = await new Driver({ ...parts, newUuid: () => SR }).handle(
        requestOf(asked),
        new AbortController().signal,
      );
      return fault;
    };
    t.equal(await detach(0), null);
    pool.xapi.set(pool.poolRef, "current_operations", { "OpaqueRef:task": "eject" });
    t.match(await detach(0), {
      code: 202,
      message: /^E-HOST-01 .* has the only copy in sync of 1 volume of weft \(db\)/,
    });
    t.equal(await detach(1), null, "h2 has nothing that others have not");
    pool.xapi.set(pool.poolRef, "current_operations", {});
    t.match(await hook(h1.weft, "pool-eject"), {
      exitCode: 0,
      stdout: /has the only copy in sync of 1 volume of weft \(db\)\. .*weft host remove/,
    });
    t.match(await hook(h2.weft, "pool-eject"), { exitCode: 0, stdout: /^Take it out.*weft host remove/ });
    t.match(await hook(h2.weft, "pool-join"), { exitCode: 0, stdout: /is a host of weft's cluster "lab"/ });
    t.match(await hook(h1.weft, "host-post-declare-dead", "-hostuuid", h2.xapi.uuid, "-reason", "fenced"), {
      exitCode: 0,
      stdout: "",
    });

    const health: unknown = JSON.parse(await callPlugin(pool.session(), h2.xapi.ref, "health"));
    t.match(health, {
      level: String,
      headline: String,
      hosts: [{ alive: true }, { alive: true }, { alive: true }],
    });
    await t.rejects(callPlugin(pool.session(), h2.xapi.ref, "nothing"), {
      message: /refused host\.call_plugin: E-ARG-02 /,
    });
    await t.rejects(callPlugin(pool.session(), h2.xapi.ref, "admit"), {
      message: /refused host\.call_plugin: E-ARG-02 /,
    });
    await t.rejects(callPlugin(pool.session(), h2.xapi.ref, "join-request", { address: "10.0.0.1" }), {
      message: /refused host\.call_plugin: E-HOST-04 /,
    });
  },
);

void t.test("sr_attach: a host that nobody can let in says whom it asked, and why not", async (t) => {
  const pool = await startPool(t, 2, 115);
  const [h1, h2] = pool.hosts;
  if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
  await t.rejects(ensureMember(needed(pool, 1, {})), {
    code: 47,
    message: new RegExp(`^E-SETUP-08 .*\\(${h1.weft.name}: This host is not in a cluster yet\\.\\)`),
  });
  const plugin = pool.xapi.plugin;
  pool.xapi.plugin = null;
  await t.rejects(ensureMember(needed(pool, 1, {})), {
    message: /E-SETUP-08 .*XENAPI_MISSING_PLUGIN|E-SETUP-08 .*weft/,
  });
  // Each of them was made a cluster of its own before they came together.
  pool.xapi.plugin = plugin;
  for (const { weft: one } of pool.hosts)
    await one.client.init({ name: one.name, address: one.address, clusterName: `of-${one.name}` });
  t.match(await otherCluster(needed(pool, 1, {})), {
    code: 47,
    message: new RegExp(`^E-SETUP-02 .*: ${h2.weft.name} in ........, ${h1.weft.name} in ........\\. `),
  });
});

void t.test(
  "weft init: shows the plan, restarts no toolstack while a task runs, then the master's first, and makes the SR",
  async (t) => {
    const pool = await startPool(t, 2, 117);
    const [h1, h2] = pool.hosts;
    if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
    await h1.weft.client.init({ name: h1.weft.name, address: h1.weft.address, clusterName: "lab" });
    await joinHost(h2.weft, h1.weft);
    const restarted: string[] = [];
    for (const { weft: host, xapi } of pool.hosts) {
      await host.client.createPool({ path: `/pool-of-${host.name}` });
      const bin = join(host.directory, "opt/xensource/bin");
      await mkdir(bin, { recursive: true });
      await writeFile(
        join(bin, "xe-toolstack-restart"),
        `#!/bin/sh\necho ${xapi.uuid} >> ${h1.weft.directory}/restarts\n`,
      );
      await chmod(join(bin, "xe-toolstack-restart"), 0o755);
    }
    const made: unknown[] = [];
    pool.xapi.methods.set("SR.create", (params) => {
      made.push(params.slice(0, 9));
      return pool.xapi.addSr(SR, {}, "replicated");
    });
    const init = (...more: readonly string[]): ReturnType<typeof weft> =>
      weft(["--run-dir", join(h1.weft.directory, "run"), "init", "--sr", "replicated", ...more]);
    await eventually(
      "both pools",
      () => h1.weft.client.pools(),
      (all) => all.every(({ total }) => total !== null && total > 0n) && all.length === 2,
    );

    const plan = await init("--plan");
    t.match(
      plan.out,
      /usable [^]*SR "replicated" \(shared\)[^]*All of it is so already[^]*toolstack of each host is restarted, the master's first/,
    );
    const task = pool.xapi.add("task", { name_label: "Async.VM.start", status: "pending" });
    const busy = await init("--yes");
    t.match(busy.err, /E-SETUP-07[^]*Async\.VM\.start/);
    t.equal(busy.code, 2);
    t.strictSame(made, []);
    pool.xapi.forget(task);
    pool.xapi.set(pool.poolRef, "ha_enabled", true);
    t.match((await init("--yes")).err, /E-SETUP-14/);
    pool.xapi.set(pool.poolRef, "ha_enabled", false);

    const plain = pool.xapi.plugin;
    let driver = "";
    let isDiskNew = true;
    pool.xapi.plugin = async (host, argument) => {
      if (argument.includes("<methodName>restart-toolstack<")) {
        restarted.push(host.uuid);
        if (restarted.length === 1) driver = pool.xapi.add("SM", { type: "weft" });
      }
      const answer = plain === null ? "" : await plain(host, argument);
      if (!isDiskNew || restarted.length === 0 || !argument.includes("<methodName>inventory<")) return answer;
      const disk = JSON.stringify({ ...blank, size: String(blank.size) });
      return answer.replace('"disks":[', `"disks":[${disk},`).replace(",]", "]");
    };
    // A disk that was put in while the toolstacks restarted: nobody was shown that it would be taken.
    t.match((await init("--yes", "--disks", "auto")).err, /E-SETUP-09/);
    t.notMatch(pool.argv.join(), /pool-add/);
    t.strictSame(made, []);
    isDiskNew = false;
    restarted.splice(0);
    pool.xapi.forget(driver);
    const done = await init("--yes");
    t.match(
      done.out,
      new RegExp(`Ready in .*: 2 hosts, 2 toolstacks restarted, SR "replicated" ${SR}\\.`),
      done.err,
    );
    t.strictSame(restarted, [h1.xapi.uuid, h2.xapi.uuid], "the master's first");
    t.match(made, [[h1.xapi.ref, { copies: "2" }, "0", "replicated", String, "weft", "user", true]]);
    // Asked again, all of it is there.
    t.match((await init("--yes")).out, new RegExp(`Ready in .*: 2 hosts, SR "replicated" ${SR}\\.`));
    t.equal(made.length, 1);
    const sink = alertSink({ xapiSocket: pool.xapi.socketPath }, openLog("silent"));
    t.strictSame(await sink.hosts(), new Set([h1.xapi.uuid, h2.xapi.uuid]));
    await sink.say([
      { name: "WEFT_DEGRADED", priority: 3, text: "1 volume (db) with fewer copies than wanted." },
    ]);
    t.strictSame(pool.xapi.messages, [
      { name: "WEFT_DEGRADED", body: "1 volume (db) with fewer copies than wanted." },
    ]);
    t.equal(await alertSink({ xapiSocket: "/nowhere" }, openLog("silent")).hosts(), null);
    t.strictSame(pool.xapi.record(pool.poolRef).get("other_config"), {}, "the lock is given back");

    // h2 is installed anew: it has its address, and not its key.
    await h2.weft.stopAgent();
    await h2.weft.etcd.stop();
    await rm(h2.weft.stateDir, { recursive: true });
    await h2.weft.startAgent();
    await t.rejects(ensureMember(needed(pool, 1, {})), { message: /E-SETUP-15 .*is a host of weft already/ });
    t.equal((await h2.weft.client.status()).kind, "no-cluster");
    // What it is told to do does it.
    await eventually(
      "its removal",
      () => h1.weft.client.removeHost(h2.weft.name),
      () => true,
    );
    await ensureMember(needed(pool, 1, {}));
    const back = await h2.weft.client.hosts();
    t.strictSame(back.map(({ name }) => name).toSorted(), [h1.weft.name, h2.weft.name].toSorted());
    t.strictSame(pool.xapi.violations, []);
  },
);

/** A host whose disk has what is given, as its agent would find it there. */
class WithBundle extends AgentClient {
  readonly #texts: readonly string[];

  constructor(host: TestHost, texts: readonly string[]) {
    super({ socketPath: `${host.directory}/run/agent.sock` });
    this.#texts = texts;
  }

  override async bundles(): ReturnType<AgentClient["bundles"]> {
    return { bundles: [...this.#texts] };
  }
}

void t.test(
  "sr_attach: a host that was installed anew is again who it was, by the sealed bundle on its pool's disk",
  async (t) => {
    const pool = await startPool(t, 3, 120);
    const [h1, h2, h3] = pool.hosts;
    if (h1 === undefined || h2 === undefined || h3 === undefined) throw new Error("three hosts");
    await h1.weft.client.init({ name: h1.weft.name, address: h1.weft.address, clusterName: "lab" });
    const was = await joinHost(h2.weft, h1.weft);
    const disk = join(h2.weft.directory, "disk");
    const { self, host, store, identity, authority, log: own } = h2.weft.member();
    const keeping = { self, host, store, identity, authority, log: own, stateDir: h2.weft.stateDir };
    await new BundleKeeper({ ...keeping, places: async () => [disk] }).look();
    const text = await readFile(join(disk, BUNDLE_FILE), "utf8");
    t.notMatch(text, /PRIVATE KEY|BEGIN/, "nothing of it can be read there");
    t.equal((await stat(join(disk, BUNDLE_FILE))).mode & 0o777, 0o600);

    const plug = (n: number, texts: readonly string[]): Promise<void> => {
      const test = pool.hosts[n];
      if (test === undefined) throw new Error("a host");
      return ensureMember({ ...needed(pool, n, {}), agent: new WithBundle(test.weft, texts) });
    };
    // Another host with that disk, while its own is there and after: it comes as itself, a new one.
    await plug(2, [text]);
    const other = await eventually(
      "h3's own place",
      () => h3.weft.client.cluster(),
      ({ host: is }) => is !== "",
    );
    t.not(other.host, was);
    // A store of two votes has no majority without h2.
    await eventually(
      "the third vote",
      () => h1.weft.client.status(),
      (now) => now.kind === "cluster" && now.store.members.filter(({ learner }) => !learner).length === 3,
    );

    await h2.weft.stopAgent();
    await h2.weft.etcd.stop();
    await rm(h2.weft.stateDir, { recursive: true });
    await h2.weft.startAgent();
    // By a setup of the pool: its plan has room on h2, whose disks have its pools.
    const found = ["garbage", text.replace(/"box":"..../, '"box":"AAAA'), text];
    const again = needed(pool, 1, { disks: "none", copies: "1" });
    await ensureCluster({ ...again, agent: new WithBundle(h2.weft, found) });
    await eventually(
      "the same host, which reaches its store",
      () => h2.weft.client.cluster(),
      ({ host: is }) => is === was,
    );
    await eventually(
      "its place among the others",
      () => h1.weft.client.hosts(),
      (all) => all.length === 3 && all.every(({ alive }) => alive),
    );
    t.notMatch(pool.argv.join("\n"), /PRIVATE KEY/);
  },
);
