/** Hosts come, lose their disks, and go (enrol.test.ts: who is let in, and who isn't). */
import t from "tap";

import { joinTarget } from "../../../src/core/agent/join.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { eventually, joinHost, startCluster, startWithSpare } from "./test-host.ts";

void t.test("join: the address to ask is read as people write it", async (t) => {
  t.same(joinTarget("h1"), { host: "h1", port: 7400 });
  t.same(joinTarget("10.0.0.1:7400"), { host: "10.0.0.1", port: 7400 });
  t.same(joinTarget("https://10.0.0.1:7400/"), { host: "10.0.0.1", port: 7400 });
  t.same(joinTarget("fd00::1"), { host: "fd00::1", port: 7400 });
  t.same(joinTarget("[fd00::1]"), { host: "fd00::1", port: 7400 });
  t.same(joinTarget("[fd00::1]:7400"), { host: "fd00::1", port: 7400 });
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
    t.not(await joinHost(h2, h1), before.host);
    t.equal((await h2.client.cluster()).id, before.id);
  },
);

void t.test(
  "host: one that is removed while it is off learns so from a member, and may join again",
  async (t) => {
    const { h1, spare } = await startWithSpare(t, 71);
    const before = await spare.client.cluster();
    await spare.stopAgent();
    await eventually(
      "its removal",
      () => h1.client.removeHost(spare.name),
      ({ name }) => name === spare.name,
      30_000,
    );
    await spare.startAgent();
    await eventually(
      "it to be in no cluster",
      () => spare.client.status(),
      ({ kind }) => kind === "no-cluster",
      30_000,
    );
    await eventually(
      "its identity to be destroyed",
      () => new IdentityFiles(spare.stateDir).readHost(),
      (identity) => identity === null,
    );
    t.not(await joinHost(spare, h1), before.host);
  },
);

void t.test("host: one whose key another host deleted in the store stays, and registers anew", async (t) => {
  const [h1, h2] = await startCluster(t, 2, 51);
  if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
  const { host } = await h1.client.cluster();
  // Any host's certificate opens the store: what stands there unsigned decides about nobody.
  const store = await h2.store();
  for (const key of [keys.host(host), keys.hostName("h1"), keys.hostAddress(h1.address)])
    await store.delete(key);
  const entry = await eventually(
    "its registration",
    () => store.get(keys.host(host)),
    (found) => found !== null,
  );
  t.match(JSON.parse(entry?.value ?? ""), { id: host, name: "h1", address: h1.address });
  t.not(await store.get(keys.hostName("h1")), null);
  t.match(await h1.client.status(), { kind: "cluster", self: { host } });
  t.equal((await h1.client.authorities()).hosts.length, 2);
  // Nor is it hidden by what can't be read, or names another one.
  const good = { id: host, name: "h1", address: h1.address, joinedAt: new Date().toISOString() };
  for (const planted of ["garbage", JSON.stringify({ ...good, name: "h9" })]) {
    await store.put(keys.host(host), planted);
    await eventually(
      `its registration over ${planted}`,
      () => store.get(keys.host(host)),
      (found) => found?.value.includes('"h1"') ?? false,
    );
    await eventually(
      "to be seen by the other one",
      () => h2.client.hosts(),
      (list) => list.some(({ id, name }) => id === host && name === "h1"),
    );
  }
  store.call.close();
});
