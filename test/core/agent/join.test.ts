/** Init and join may be cut short anywhere; the same command finishes them. A member may lose its disk. */
import t from "tap";

import { HostFiles } from "../../../src/core/agent/host-file.ts";
import { joinUrl } from "../../../src/core/agent/join.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { eventually, startCluster, startHost } from "./test-host.ts";

void t.test("join: the address to ask is read as people write it", async (t) => {
  t.equal(joinUrl("h1"), "http://h1:7400");
  t.equal(joinUrl("10.0.0.1:7400"), "http://10.0.0.1:7400");
  t.equal(joinUrl("http://10.0.0.1:7400/"), "http://10.0.0.1:7400");
  t.equal(joinUrl("fd00::1"), "http://[fd00::1]:7400");
  t.equal(joinUrl("[fd00::1]"), "http://[fd00::1]:7400");
  t.equal(joinUrl("[fd00::1]:7400"), "http://[fd00::1]:7400");
});

void t.test("join: cut short after the registration, it is the same host the second time", async (t) => {
  const [h1] = await startCluster(t, 1, 11);
  if (h1 === undefined) throw new Error("a host");
  const h2 = await startHost(t, 12);
  const cluster = await h1.client.cluster();
  const host = "99999999-9999-4999-8999-999999999999";
  // As a crash leaves it: the intent on disk, the keys in the store, no host.json.
  await new HostFiles(h2.stateDir).writeIntent({
    kind: "join",
    cluster: cluster.id,
    clusterName: cluster.name,
    createdAt: cluster.createdAt,
    host,
    name: "h2",
    address: h2.address,
  });
  const store = new StoreClient({ endpoints: cluster.endpoints });
  const json = { id: host, name: "h2", address: h2.address, joinedAt: new Date().toISOString() };
  await store.put(keys.host(host), JSON.stringify(json));
  await store.put(keys.hostName("h2"), JSON.stringify({ host }));
  await store.put(keys.hostAddress(h2.address), JSON.stringify({ host }));
  const joined = await h2.client.join({ from: h1.address, address: h2.address });
  t.equal(joined.host, host);
  t.equal((await h1.client.hosts()).length, 2);
});

void t.test("store: a member that lost its disk is taken out and comes back as a new one", async (t) => {
  const [h1, h2, h3] = await startCluster(t, 3, 21);
  if (h1 === undefined || h2 === undefined || h3 === undefined) throw new Error("three hosts");
  const voters = async (): Promise<readonly (readonly [string, boolean])[]> => {
    const status = await h1.client.status();
    if (status.kind !== "cluster") throw new Error("a cluster");
    return status.store.members.map((m) => [m.id, m.answers && !m.learner] as const);
  };
  const before = await eventually("three voters", voters, (v) => v.length === 3 && v.every(([, ok]) => ok));
  await h2.stopAgent();
  await h2.etcd.stop();
  await h2.etcd.setAside();
  await h2.startAgent();
  const after = await eventually(
    "three voters again, one of them new",
    voters,
    (v) => v.length === 3 && v.every(([, ok]) => ok) && v.some(([id]) => !before.some(([old]) => old === id)),
    45_000,
  );
  t.equal(after.length, 3);
});

void t.test(
  "host: one that is removed while it runs leaves the cluster, and may join again as a new host",
  async (t) => {
    const [h1, h2] = await startCluster(t, 2, 31);
    if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
    const before = await h2.client.cluster();
    await t.rejects(h2.client.removeHost("h2"), { code: "E-HOST-10" });
    await eventually(
      "the removal",
      () => h1.client.removeHost("h2"),
      (r) => r.name === "h2" && r.storeMemberRemoved,
    );
    await eventually(
      "h2 to be in no cluster",
      () => h2.client.status(),
      (s) => s.kind === "no-cluster",
    );
    await eventually(
      "its etcd to end",
      () => h2.etcd.runningPid(),
      (pid) => pid === null,
    );
    const again = await h2.client.join({ from: h1.address, name: "h2", address: h2.address });
    t.equal(again.id, before.id);
    t.not(again.host, before.host);
  },
);
