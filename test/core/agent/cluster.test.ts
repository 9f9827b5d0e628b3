/** From one host to three: the store grows from one voter over a learner to three voters, and survives losses. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import type { AgentClient } from "../../../src/core/wire/agent-client.ts";
import { encodeJoinToken } from "../../../src/core/model/token-code.ts";
import { Secret } from "../../../src/core/model/secret.ts";
import { eventually, joinHost, startCluster, startHost } from "./test-host.ts";

async function clusterStatus(client: AgentClient) {
  const status = await client.status();
  if (status.kind !== "cluster") throw new Error("not in a cluster");
  return status;
}

void t.test("agent: without a cluster it serves status, and refuses the rest with E-AGENT-03", async (t) => {
  const host = await startHost(t, 1);
  const status = await eventually(
    "the daemon",
    () => host.client.status(),
    (s) => s.daemon.reachable,
  );
  t.equal(status.kind, "no-cluster");
  await t.rejects(host.client.volumes(), { code: "E-AGENT-03", status: 409, exitCode: 1 });
  const mode = (await stat(join(host.directory, "run", "agent.sock"))).mode & 0o777;
  t.equal(mode, 0o600);
  await t.rejects(host.client.init({ address: "192.0.2.1" }), {
    code: "E-ARG-02",
    message: /not an address of this host/,
  });
  const token = encodeJoinToken({
    fingerprint16: new Uint8Array(16),
    id4: new Uint8Array(4),
    secret12: new Secret(new Uint8Array(12)),
  });
  await t.rejects(host.client.join({ from: "127.0.0.1", token, address: host.address }), {
    code: "E-HOST-09",
  });
});

void t.test(
  "agent: init makes a store of one, twice is refused, a restart of the agent leaves etcd alone",
  async (t) => {
    const [host] = await startCluster(t, 1, 11);
    if (host === undefined) throw new Error("a host");
    await t.rejects(host.client.init({ address: host.address }), { code: "E-HOST-04" });
    const before = await host.etcd.runningPid();
    t.ok(before !== null);
    t.equal((await stat(join(host.stateDir, "etcd"))).mode & 0o777, 0o700);
    await host.stopAgent();
    t.equal(await host.etcd.runningPid(), before, "etcd goes on");
    await host.startAgent();
    const status = await eventually(
      "its own lease",
      () => clusterStatus(host.client),
      (s) => s.health === "healthy",
    );
    t.equal(await host.etcd.runningPid(), before, "adopted, not started again");
    t.match(status, {
      health: "healthy",
      cluster: { name: "lab" },
      store: { writable: true, members: [{ leader: true }] },
    });
    // A member that died is started again.
    process.kill(before ?? 0, "SIGKILL");
    await eventually(
      "the store",
      () => clusterStatus(host.client),
      (s) => s.store.writable && s.hosts[0]?.alive === true,
    );
    t.not(await host.etcd.runningPid(), before);
  },
);

void t.test(
  "agent: two hosts are voter and learner, three are three voters; one may die, one may leave",
  async (t) => {
    const hosts = await startCluster(t, 2, 21);
    const [h1, h2] = hosts;
    if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
    const two = await clusterStatus(h2.client);
    t.same(
      two.hosts.map((h) => [h.name, h.store, h.alive]).toSorted((a, b) => (String(a) < String(b) ? -1 : 1)),
      [
        ["h1", "voter", true],
        ["h2", "learner", true],
      ],
    );
    const h3 = await startHost(t, 23);
    await t.rejects(joinHost(h3, h1, "h1"), { code: "E-HOST-03" });
    await joinHost(h3, h1);
    const three = await eventually(
      "three voters",
      () => clusterStatus(h3.client),
      (s) => s.hosts.length === 3 && s.hosts.every((h) => h.store === "voter"),
    );
    t.equal(three.store.members.filter((m) => m.answers).length, 3);
    await eventually(
      "three endpoints",
      () => h3.client.cluster(),
      (c) => c.endpoints.length === 3,
    );

    // The placer dies with its etcd and agent: another takes over, and the cluster goes on.
    await h1.stopAgent();
    await h1.etcd.stop();
    await eventually(
      "h1 to be missed",
      () => clusterStatus(h2.client),
      (s) =>
        s.store.writable &&
        s.hosts.some((h) => h.name === "h1" && !h.alive) &&
        s.hosts.filter((h) => h.alive).length === 2,
    );
    const removed = await h2.client.removeHost("h1");
    t.match(removed, { name: "h1", storeMemberRemoved: true });
    const after = await eventually(
      "two hosts",
      () => clusterStatus(h3.client),
      (s) => s.hosts.length === 2,
    );
    t.ok(after.store.writable);
  },
);
