/** How etcd is started, and how its process is known again: by flags, and by its data directory. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, cp, mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { etcdArguments, EtcdProcess } from "../../../src/core/agent/etcd-process.ts";
import { StoreIdentity } from "../../../src/core/agent/store-identity.ts";
import { loopback } from "../wire/etcd-for-tests.ts";
import { makeCluster, silent } from "./identity-for-tests.ts";

const CLUSTER = "11111111-1111-4111-8111-111111111111";
const HOST = "22222222-2222-4222-8222-222222222222";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };
type Place = { readonly stateDir: string; readonly runDir: string };

async function emptyPlace(t: Scope): Promise<Place> {
  const directory = await mkdtemp(join(tmpdir(), "weft-etcd-process-"));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const place = { stateDir: join(directory, "state"), runDir: join(directory, "run") };
  await Promise.all([mkdir(place.stateDir), mkdir(place.runDir)]);
  return place;
}

function startOf(address: string): Parameters<EtcdProcess["configure"]>[0] {
  return {
    identity: { host: HOST, address, cluster: CLUSTER },
    initialCluster: `${HOST}=https://${address}:7403`,
    initialState: "new",
  };
}

void t.test("etcd: the command line: each flag with its value, nothing beside the plan", async (t) => {
  const plan = {
    name: "--force-new-cluster",
    clientUrl: "https://[fd00::1]:7402",
    peerUrl: "https://[fd00::1]:7403",
    initialCluster: "a=https://[fd00::1]:7403,b=https://[fd00::2]:7403",
    initialState: "existing" as const,
    token: CLUSTER,
  };
  const words = etcdArguments(plan, "/var/lib/weft/etcd", "/var/lib/weft/authority/tls");
  t.same(words, [
    "--name=--force-new-cluster",
    "--data-dir=/var/lib/weft/etcd",
    "--listen-client-urls=https://[fd00::1]:7402",
    "--advertise-client-urls=https://[fd00::1]:7402",
    "--listen-peer-urls=https://[fd00::1]:7403",
    "--initial-advertise-peer-urls=https://[fd00::1]:7403",
    "--initial-cluster=a=https://[fd00::1]:7403,b=https://[fd00::2]:7403",
    "--initial-cluster-state=existing",
    `--initial-cluster-token=${CLUSTER}`,
    "--cert-file=/var/lib/weft/authority/tls/etcd.pem",
    "--key-file=/var/lib/weft/authority/tls/etcd.pem",
    "--client-cert-auth=true",
    "--trusted-ca-file=/var/lib/weft/authority/tls/clients.pem",
    "--client-crl-file=/var/lib/weft/authority/tls/crl.der",
    "--peer-cert-file=/var/lib/weft/authority/tls/etcd.pem",
    "--peer-key-file=/var/lib/weft/authority/tls/etcd.pem",
    "--peer-client-cert-auth=true",
    "--peer-trusted-ca-file=/var/lib/weft/authority/tls/peers.pem",
    "--peer-crl-file=/var/lib/weft/authority/tls/crl.der",
    "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "--strict-reconfig-check=true",
    "--enable-grpc-gateway=true",
    "--heartbeat-interval=100",
    "--election-timeout=500",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=1h",
    "--quota-backend-bytes=1073741824",
    "--logger=zap",
    "--log-level=warn",
    "--log-outputs=stderr",
  ]);
  t.notOk(
    words.some((word) => word.startsWith("--config-file")),
    "beside a configuration file etcd ignores every flag",
  );
});

void t.test(
  "etcd: started by the plan on disk, adopted by the next agent, its files are root's",
  async (t) => {
    const place = await emptyPlace(t);
    const address = loopback(71);
    const etcd = new EtcdProcess({ ...place, program: "/usr/bin/etcd" });
    t.equal(await etcd.isConfigured(), false);
    await etcd.configure(startOf(address));
    t.equal(await etcd.isConfigured(), true);
    await t.rejects(etcd.ensureRunning(), /certificate nobody makes/);
    let prepared = 0;
    const { files, authority, identity } = await makeCluster(t);
    const shown = new StoreIdentity({ files, authority, identity, address, log: silent });
    etcd.prepareBy(async () => {
      prepared += 1;
      await shown.prepare();
      await cp(join(files.stateDir, "authority"), join(place.stateDir, "authority"), { recursive: true });
    });
    // As an administrator's `cp -r` may leave it.
    await mkdir(etcd.dataDir);
    await chmod(etcd.dataDir, 0o755);
    const pid = await etcd.ensureRunning();
    t.teardown(() => etcd.stop());
    const again = new EtcdProcess({ ...place, program: "/nowhere/etcd" });
    t.equal(await again.ensureRunning(), pid, "the same process, by its command line");
    t.equal(prepared, 1);
    const variables = (await readFile(`/proc/${pid}/environ`, "utf8")).split("\0");
    t.ok(variables.includes("TZ=UTC"), "its log's times are read");
    const words = (await readFile(`/proc/${pid}/cmdline`, "utf8")).split("\0").slice(1, -1);
    const plan: unknown = JSON.parse(await readFile(join(place.stateDir, "etcd.json"), "utf8"));
    const tlsDir = join(place.stateDir, "authority", "tls");
    t.same(words, etcdArguments(plan as Parameters<typeof etcdArguments>[0], etcd.dataDir, tlsDir));
    const modes = await Promise.all(
      ["etcd", "etcd.json", "etcd.log"].map(async (name) => (await stat(join(place.stateDir, name))).mode),
    );
    t.same(
      modes.map((mode) => mode & 0o777),
      [0o700, 0o600, 0o600],
    );
    await etcd.retire();
    t.equal(await etcd.isConfigured(), false);
    t.equal(await etcd.runningPid(), null);
  },
);

void t.test(
  "etcd: another process that has its number, or another state directory's etcd, is not ours",
  async (t) => {
    const place = await emptyPlace(t);
    const etcd = new EtcdProcess({ ...place, program: "/usr/bin/etcd" });
    const script = ["-e", "setInterval(() => {}, 1e6)", "--"];
    for (const [flag, ours] of [
      [`--data-dir=${etcd.dataDir}2`, null],
      [`--config-file=${etcd.dataDir}`, null],
      [`--data-dir=${etcd.dataDir}`, "it"],
    ] as const) {
      const child = spawn(process.execPath, [...script, flag], { stdio: "ignore" });
      await once(child, "spawn");
      await writeFile(join(place.runDir, "etcd.pid"), `${child.pid}\n`);
      t.equal(await etcd.runningPid(), ours === null ? null : child.pid, flag);
      const gone = once(child, "exit");
      child.kill("SIGKILL");
      await gone;
      t.equal(await etcd.runningPid(), null, "it has ended");
    }
  },
);

void t.test(
  "etcd: a plan that can't be understood, or one of an older weft, is refused and kept",
  async (t) => {
    const place = await emptyPlace(t);
    const etcd = new EtcdProcess({ ...place, program: "/usr/bin/etcd" });
    const old = join(place.stateDir, "etcd.conf.json");
    await writeFile(old, JSON.stringify({ name: HOST, "data-dir": etcd.dataDir }));
    await t.rejects(etcd.isConfigured(), {
      code: "E-STORE-09",
      facts: { path: old },
      safe: "Nothing was changed.",
    });
    await t.rejects(etcd.ensureRunning(), { code: "E-STORE-09" });
    t.ok((await stat(old)).isFile());
    await rm(old);
    const path = join(place.stateDir, "etcd.json");
    await etcd.configure(startOf(loopback(72)));
    const good = await readFile(path, "utf8");
    await writeFile(path, good.replaceAll("https://", "http://"));
    await t.rejects(etcd.isConfigured(), {
      code: "E-HOST-11",
      facts: { path },
      safe: "Nothing was changed.",
    });
    for (const bad of [
      "",
      "{}",
      good.slice(0, -20),
      good.replace('"new"', '"force"'),
      good.replace("https://", ""),
    ]) {
      await writeFile(path, bad);
      await t.rejects(etcd.isConfigured(), { code: "E-STORE-09", facts: { path } });
      await t.rejects(etcd.ensureRunning(), { code: "E-STORE-09", facts: { path } });
    }
  },
);
