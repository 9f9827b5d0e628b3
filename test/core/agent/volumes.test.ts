/** The life of volumes through three agents: made, attached, changed, deleted, restored, forgotten. */
import t from "tap";

import type { VolumeAnswer } from "../../../src/core/wire/agent-api.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { eventually, startCluster, three } from "./test-host.ts";

const GIB = 1n << 30n;

function places(volume: VolumeAnswer): readonly string[] {
  return volume.replicas.map((r) => `${r.rid} ${r.hostName} ${r.state}`);
}

void t.test(
  "agent: a volume is made on two hosts by a third, once for a token, with a name of its own",
  async (t) => {
    const [h1, h2, h3] = await three(t, 1);
    const made = await h3.client.createVolume({
      name: "db",
      size: GIB,
      copies: 2,
      hosts: ["h1", "h2"],
      createdBy: "token-1",
    });
    t.match(made, { name: "db", size: GIB, copies: 2, inSync: 2, health: "healthy", epoch: 1n, owner: null });
    t.same(places(made), ["0 h1 INSYNC", "1 h2 INSYNC"]);
    t.equal(h1.weftd.replicas.size, 1);
    t.equal(h2.weftd.replicas.size, 1);
    const again = await h1.client.createVolume({ name: "other", size: GIB, createdBy: "token-1" });
    t.equal(again.id, made.id, "the same token is the same volume");
    await t.rejects(h2.client.createVolume({ name: "db", size: GIB }), { code: "E-VOL-01" });
    await t.rejects(h2.client.createVolume({ name: "big", size: GIB, copies: 4 }), { code: "E-VOL-03" });
    await t.rejects(h2.client.createVolume({ name: "odd", size: 4097n }), { code: "E-ARG-02" });
    await t.rejects(h2.client.createVolume({ name: "one", size: GIB, copies: 1, minIsr: 2 }), {
      code: "E-VOL-06",
    });
    await t.rejects(h1.client.volume("bd"), { code: "E-ARG-01", message: /Did you mean "db"/ });
    t.same(
      (await h2.client.volumes()).map((v) => v.name),
      ["db"],
    );

    // Attach where it has no copy, twice; another host is refused until it steals.
    const attached = await h3.client.attach("db");
    t.same(await h3.client.attach(made.id), attached);
    await t.rejects(h1.client.attach("db"), { code: "E-VOL-12", exitCode: 2, message: /open on h3/ });
    await t.rejects(h1.client.deleteVolume("db"), { code: "E-VOL-12", message: /h3/ });
    await t.rejects(h1.client.detach("db"), { code: "E-VOL-13" });
    t.equal((await h1.client.volume("db")).owner?.hostName, "h3");
    const stolen = await h1.client.steal("db");
    t.ok(stolen.epoch > attached.epoch);
    t.match(await h1.client.detach("db"), { lostWrites: 0 });
  },
);

void t.test("agent: a pool that was added can be used at once, from any host", async (t) => {
  const [h1, h2] = await startCluster(t, 2, 41);
  if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
  h1.weftd.holdPools = true;
  h1.weftd.noSnapshots.set("/second", "the pool lies on tmpfs");
  let answered = false;
  const adding = h1.client.createPool({ path: "/second" }).finally(() => {
    answered = true;
  });
  await eventually(
    "the pool that starts",
    () => h2.client.pools(),
    (pools) => pools.some((pool) => pool.path === "/second" && pool.state === "starting"),
  );
  t.notOk(answered, "it has no room that anybody knows of");
  h1.weftd.letPoolsServe();
  const pool = await adding;
  t.match(pool, { state: "serving", free: 100n * GIB, total: 100n * GIB });
  t.equal(pool.noSnapshots, "the pool lies on tmpfs");
  t.same(
    (await h2.client.pools()).find(({ id }) => id === pool.id),
    pool,
    "h2 knows the same",
  );
});

void t.test("agent: copies are added and removed on a detached volume by a caretaker", async (t) => {
  const [h1, h2] = await three(t, 11);
  const made = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1"] });
  t.equal(made.copies, 1);
  const two = await h2.client.addReplica("db", { host: "h2" });
  t.ok(two.replicas.some((r) => r.hostName === "h2"));
  await t.rejects(h2.client.addReplica("db", { host: "h2" }), { code: "E-REPL-02" });
  const level = await eventually(
    "two copies, and the caretaker gone",
    () => h1.client.volume("db"),
    (v) => v.inSync === 2 && v.owner === null,
  );
  t.equal(level.health, "healthy");
  const removed = await h1.client.removeReplica("db", 0);
  t.equal(removed.copies, 1);
  await eventually(
    "one copy, on h2",
    () => h1.client.volume("db"),
    (v) => places(v).join() === "1 h2 INSYNC" && v.owner === null,
  );
  await eventually(
    "the replica in the trash of h1",
    async () => h1.weftd.replicas.size + h1.weftd.trash.size,
    () => h1.weftd.replicas.size === 0 && h1.weftd.trash.size === 1,
  );
  await t.rejects(h1.client.removeReplica("db", 1), { code: "E-REPL-03", exitCode: 2 });
});

void t.test(
  "agent: a deleted volume rests in the trash, comes back as it was, or goes for good",
  async (t) => {
    const [h1, h2, h3] = await three(t, 21);
    const made = await h1.client.createVolume({ name: "db", size: GIB, copies: 2, hosts: ["h1", "h2"] });
    await h3.client.deleteVolume("db");
    t.same(await h1.client.volumes(), []);
    t.match(await h2.client.trash(), [{ volume: made.id, name: "db", size: GIB }]);
    await t.rejects(h1.client.attach("db"), { code: "E-VOL-11" });
    await eventually(
      "both replicas in the trash",
      async () => h1.weftd.trash.size + h2.weftd.trash.size,
      (count) => count === 2,
    );
    // The name is free meanwhile; as long as somebody has it, the old volume can't come back.
    await h1.client.createVolume({ name: "db", size: GIB, copies: 1 });
    await t.rejects(h3.client.restoreFromTrash(made.id), { code: "E-VOL-01" });
    await h1.client.deleteVolume("db");
    const back = await h3.client.restoreFromTrash(made.id);
    t.match(back, { id: made.id, name: "db", deletedAt: null });
    t.equal(h1.weftd.replicas.has(`${made.id}.0`), true);
    await h1.client.attach("db");
    await h1.client.detach("db");
    await h2.client.deleteVolume("db");
    await h1.client.emptyTrash(null);
    t.same(await h1.client.trash(), []);
    const store = await h1.store();
    t.same((await store.list(keys.volumes)).entries, [], "nothing of them is left");
    t.same((await store.list(keys.name(""))).entries, []);
  },
);

void t.test("agent: a copy on a host that is lost is made anew elsewhere", async (t) => {
  const [h1, h2, h3] = await three(t, 31);
  await h1.client.createVolume({ name: "db", size: GIB, copies: 2, hosts: ["h1", "h2"] });
  await t.rejects(h1.client.removeHost("h1"), { code: "E-HOST-10" });
  await h1.client.createVolume({ name: "single", size: GIB, copies: 1, hosts: ["h2"] });
  await t.rejects(h1.client.removeHost("h2"), { code: "E-HOST-01", message: /"single"/ });
  await h1.client.deleteVolume("single");
  await h2.stopAgent();
  await h2.weftd.daemon.stop();
  await h2.etcd.stop();
  const moved = await eventually(
    "a copy on h3",
    () => h3.client.volume("db"),
    (v) => v.replicas.some((r) => r.hostName === "h3" && r.state === "INSYNC"),
  );
  t.equal(moved.replicas.length >= 2, true);
  const why = await h1.client.why("db");
  t.ok(why.because.length > 0);
  t.match(await h1.client.progress("db"), { volume: moved.id, resync: null });
});
