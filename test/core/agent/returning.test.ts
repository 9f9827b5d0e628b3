/**
 * Plot: hosts are off and come back. While one was off a member of the store was revoked, whose disk a thief has: it serves the
 * store of before at its old address, with a trust list of its own. And a pool that was off as a whole comes up without it.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createPrivateKey, randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { clientUrl, etcdArguments } from "../../../src/core/agent/etcd-process.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import { sign } from "../../../src/core/wire/signed.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { renderTrust } from "../../../src/core/wire/trust.ts";
import { storeTlsOf } from "./store-tls-of.ts";
import { eventually, startCluster, type TestHost } from "./test-host.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

/** The whole of a host, as when its power goes. */
async function powerOff(host: TestHost): Promise<void> {
  await host.stopAgent();
  await host.weftd.stop();
  await host.etcd.stop();
}

async function powerOn(host: TestHost): Promise<void> {
  await host.weftd.daemon.start();
  await host.startAgent();
}

/** Serves the data that this host's member had, alone, and shows a list that nobody else has signed. */
async function rogueOf(t: Scope, { stateDir, etcd, address }: TestHost): Promise<StoreClient> {
  const plan = JSON.parse(await readFile(join(stateDir, "etcd.json"), "utf8")) as Parameters<
    typeof etcdArguments
  >[0];
  const args = [
    ...etcdArguments(plan, etcd.dataDir, join(stateDir, "authority", "tls")),
    "--force-new-cluster",
  ];
  const child = spawn("/usr/bin/etcd", args, { stdio: "ignore" });
  const ended = once(child, "exit");
  t.teardown(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  const files = new IdentityFiles(stateDir);
  const [text, [stolen]] = [await files.readTrust(), (await files.readAuthorities()).host];
  const opened = openFirstTrust(text ?? "");
  if (opened.kind === "refused" || stolen === undefined) throw new Error("a stolen disk");
  const forged = { ...opened.value.trust, generation: 1000n, nonce: randomUUID() };
  const signed = sign(
    "trust",
    renderTrust(forged, opened.value.body),
    createPrivateKey(stolen.keyPem.reveal()),
  );
  const store = new StoreClient({
    endpoints: [clientUrl(address)],
    tls: storeTlsOf(stateDir),
    patienceMs: 20_000,
  });
  await store.put(keys.trust, signed);
  return store;
}

async function votersOf(host: TestHost): Promise<number> {
  const { endpoints } = await host.client.cluster();
  return endpoints.length;
}

void t.test("returning host: it asks no store that only a revoked member shows", async (t) => {
  const [h1, h2, h3, h4] = (await startCluster(t, 4, 211)) as [TestHost, TestHost, TestHost, TestHost];
  await eventually(
    "three voters",
    () => votersOf(h4),
    (n) => n === 3,
  );
  const { self } = (await h4.client.status()) as { readonly self: { readonly host: string } };
  await powerOff(h4);
  await powerOff(h3);
  await eventually(
    "the revocation, which a store that is slow refuses",
    () => h1.client.revokeHost(h3.name),
    () => true,
    60_000,
  );
  const rogue = await rogueOf(t, h3);
  await rogue.delete(keys.alive(self.host));
  // The thief is quicker: the others come up after it.
  await h1.stopAgent();
  await h2.stopAgent();
  const files = new IdentityFiles(h4.stateDir);
  const before = await files.readTrust();
  await powerOn(h4);
  await eventually(
    "a word of it in the status",
    () => h4.client.status(),
    (status) => status.kind === "cluster" && status.problems.some(({ code }) => code === "E-TRUST-07"),
  );
  t.equal(await rogue.get(keys.alive(self.host)), null, "nothing was written to it");
  t.equal(h4.weftd.confirmed, null, "nor is weftd told that it may ask it");
  t.equal(await files.readTrust(), before);

  await h1.startAgent();
  await h2.startAgent();
  const followed = await eventually(
    "the list of the others",
    async () => openFirstTrust((await files.readTrust()) ?? ""),
    (opened) => opened.kind === "ok" && !opened.value.trust.hosts.has(h3.weftd.host as never),
    60_000,
  );
  t.ok(followed.kind === "ok" && followed.value.trust.generation < 1000n);
  const store = await h1.store();
  await eventually(
    "its sign of life in the store of the others",
    () => store.get(keys.alive(self.host)),
    (entry) => entry !== null,
    60_000,
  );
  t.equal(await rogue.get(keys.alive(self.host)), null);
  t.not(h4.weftd.confirmed, null);
});

void t.test("returning host: a pool that was off comes up with any two of its three voters", async (t) => {
  const hosts = (await startCluster(t, 3, 221)) as [TestHost, TestHost, TestHost];
  const [h1, h2, h3] = hosts;
  // Who loses its power before it has heard of a new voter asks the ones it knew, and waits for them.
  for (const host of hosts)
    await eventually(
      `${host.name} to know three voters`,
      () => votersOf(host),
      (n) => n === 3,
    );
  await Promise.all(hosts.map(powerOff));
  await powerOn(h3);
  t.equal(await h3.etcd.runningPid(), null, "its etcd joins nobody yet");
  await powerOn(h1);
  const isWritable = async (host: TestHost): Promise<boolean> => {
    const status = await host.client.status();
    return status.kind === "cluster" && status.store.writable;
  };
  for (const host of [h1, h3]) {
    await eventually(
      `a store for ${host.name}`,
      () => isWritable(host),
      (is) => is,
      60_000,
    );
    t.not(host.weftd.confirmed, null);
  }
  // Members restarted one after the other, and the last one comes late.
  await powerOn(h2);
  await powerOff(h1);
  await powerOn(h1);
  for (const host of hosts)
    await eventually(
      `a store for ${host.name}`,
      () => isWritable(host),
      (is) => is,
      60_000,
    );
});
