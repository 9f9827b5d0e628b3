/**
 * The store is lost for good: a backup is restored, and the records are rebuilt from what the replicas keep.
 * Nothing may open before (protocol.md R11), and what was done after the backup must not be forgotten.
 */
import { stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { keys } from "../../../src/core/wire/store-keys.ts";
import { eventually, startCluster } from "./test-host.ts";

const GIB = 1n << 30n;

void t.test("agent: store: backup, loss, restore, repair", async (t) => {
  const [h1] = await startCluster(t, 1, 1);
  if (h1 === undefined) throw new Error("a host");
  const early = await h1.client.createVolume({ name: "early", size: GIB, copies: 1 });
  const file = join(h1.directory, "store.backup");
  const old = await h1.client.createSnapshot("early", { name: "old" });
  const backup = await h1.client.backupStore(file);
  const found = await stat(file);
  t.equal(found.mode & 0o777, 0o600);
  t.equal(BigInt(found.size), backup.bytes);
  t.match(backup.sha256, /^[0-9a-f]{64}$/);
  await t.rejects(h1.client.backupStore("/nowhere/at/all"), { code: "E-STORE-04" });
  // Where a file stands for a directory not even the removal of what was begun succeeds.
  await t.rejects(h1.client.backupStore("/dev/null/store.backup"), { code: "E-STORE-04" });
  await t.rejects(h1.client.restoreStore(file), { code: "E-STORE-12", exitCode: 2 }, "it works");

  // After the backup: a new volume, and a change of the old one.
  const late = await h1.client.createVolume({ name: "late", size: GIB, copies: 1 });
  await h1.client.attach("early");
  await h1.client.detach("early");
  const before = await h1.client.volume("early");

  // The disk of the store is gone. The agent goes on, and says so.
  await h1.stopAgent();
  await h1.etcd.stop();
  await h1.etcd.setAside();
  await h1.startAgent();
  const lost = await h1.client.status();
  t.match(lost, { kind: "cluster", health: "unavailable", store: { writable: false } });
  const junk = join(h1.directory, "junk");
  await writeFile(junk, "x".repeat(544));
  await t.rejects(h1.client.restoreStore("/nowhere"), { code: "E-STORE-04" });
  await h1.client.restoreStore(file);
  const restored = await eventually(
    "the restored store",
    () => h1.client.status(),
    (s) => s.kind === "cluster" && s.store.writable,
  );
  t.match(restored, { store: { incarnation: 0n } }, "below every watermark: nothing opens");
  t.match(restored, { problems: [{ code: "E-STORE-02" }] });
  t.match(
    restored.kind === "cluster" ? restored.volumes.map((v) => v.name) : [],
    ["early"],
    "the later volume is not in it",
  );

  // Of snapshots the pool's copy knows one that the backup has not, and that one of the backup's is gone.
  const group = "e0000000-0000-4000-a000-000000000009";
  const note = { name: "late", created: "1763820127311", created_by: "root@h1", group };
  const image = { epoch: "3", incarnation: "1", size: String(GIB), region_shift: 20 } as const;
  const snap = "e0000000-0000-4000-a000-000000000001";
  h1.weftd.images.set(`${early.id}.0`, {
    images: [{ ...image, snap, attempt: "9", generation: "5", state: "ready", note }],
    gone: [{ snap: old.id, attempt: "1" }],
  });
  t.match(await h1.client.snapshots("early"), [{ name: "old", state: "ready" }], "as the backup has it");

  // Since the backup the daemon of the pool was started seven times.
  const [pool = ""] = h1.weftd.pools.keys();
  h1.weftd.disks.set(pool, { inc: "8", served: "8" });
  const repaired = await h1.client.repairStore();
  t.equal(repaired.incarnation, 2n);
  t.same(repaired.answered, ["h1"]);
  t.same(repaired.missing, []);
  t.equal(repaired.snapshots, 1);
  const snapshots = await eventually(
    "the deletion, once more",
    () => h1.client.snapshots("early"),
    (found) => found.length === 1,
  );
  t.match(snapshots, [{ id: snap, name: "late", state: "ready", createdBy: "root@h1", copies: 1 }]);
  t.match(snapshots, [{ group: { id: group, volumes: [{ id: early.id, name: "early" }] } }]);
  t.same((await (await h1.store()).list(keys.allRepairImages)).entries, []);
  const after = await h1.client.volume("early");
  t.ok((after.epoch ?? 0n) >= (before.epoch ?? 0n) + (1n << 20n), "no replica can have promised as much");
  const recovered = await h1.client.volume(late.id);
  t.match(recovered, { name: `recovered-${late.id.slice(0, 8)}`, health: "healthy", size: GIB });
  await h1.client.attach("early");
  t.equal(early.id, after.id);
  const raised = await (await h1.store()).get(keys.pool(pool));
  t.match(
    JSON.parse(raised?.value ?? "{}"),
    { node: h1.weftd.host, inc: "8" },
    "no start of its disk is unknown",
  );
});

void t.test("agent: store: every host hears of a repair, however old the backup is", async (t) => {
  const [h1, h2] = await startCluster(t, 2, 31);
  if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
  const alone = await h1.client.createVolume({ name: "alone", size: GIB, copies: 1, hosts: ["h2"] });
  const file = join(h1.directory, "store.backup");
  await h1.client.backupStore(file);
  // The restored store counts its revisions anew, from far below what the agents have seen.
  const store = await h1.store();
  for (let i = 0; i < 300; i += 1) await store.put(keys.token(`t${i}`), "{}");
  await Promise.all([h1, h2].map((host) => host.etcd.stop()));
  await Promise.all([h1, h2].map((host) => host.etcd.setAside()));
  await eventually(
    "the restored store",
    () =>
      h1.client.restoreStore(file).then(
        () => true,
        () => false,
      ),
    (restored) => restored,
  );
  const before = alone.epoch ?? 0n;
  // A volume that the backup knows, and of which no copy tells.
  const copies = [...h2.weftd.replicas];
  h2.weftd.replicas.clear();
  await t.rejects(h1.client.repairStore(), { code: "E-STORE-03", facts: { missing: ["h2"] } });
  const after = await h1.client.volume("alone");
  t.equal(after.epoch, before, "nothing was changed");
  for (const [key, replica] of copies) h2.weftd.replicas.set(key, replica);
  const repaired = await h1.client.repairStore();
  t.same(repaired.answered.toSorted(), ["h1", "h2"]);
  t.same(repaired.missing, []);
});

void t.test(
  "agent: store: repair asks for assent when a member named in the best copy is silent",
  async (t) => {
    const [h1, h2, h3] = await startCluster(t, 3, 11);
    if (h1 === undefined || h2 === undefined || h3 === undefined) throw new Error("three hosts");
    await eventually(
      "two pools",
      () => h1.client.status(),
      (s) => s.kind === "cluster" && s.health === "healthy" && s.pools.length === 3,
    );
    const volume = await h1.client.createVolume({ name: "db", size: GIB, copies: 2, hosts: ["h1", "h2"] });
    // Whichever of the two made the record told the other: as a promise would have.
    const kept = await eventually(
      "a copy of the record",
      async () => h1.weftd.kept.get(volume.id) ?? h2.weftd.kept.get(volume.id) ?? null,
      (record) => record !== null,
    );
    if (kept === null) throw new Error("a record");
    for (const host of [h1, h2]) host.weftd.kept.set(volume.id, kept);
    // Its pool was opened and can't say what it holds, as one that waits for its lock.
    const [pool = ""] = h2.weftd.pools.keys();
    h2.weftd.holdPools = true;
    h2.weftd.silentPools.set(pool, "waiting for the pool's lock");
    await t.rejects(h1.client.repairStore(), { code: "E-STORE-03", exitCode: 2, facts: { missing: ["h2"] } });
    h2.weftd.silentPools.delete(pool);
    // Its disk is an older one than the host has served.
    h2.weftd.disks.set(pool, { inc: "3", served: "4" });
    await t.rejects(h1.client.repairStore(), { code: "E-STORE-03", exitCode: 2, facts: { missing: ["h2"] } });
    h2.weftd.disks.delete(pool);
    // Its host is there, but the disk of the copy is not, or is not believed: an answer of the host alone is none.
    const copies = [...h2.weftd.replicas];
    h2.weftd.replicas.clear();
    await t.rejects(h1.client.repairStore(), { code: "E-STORE-03", exitCode: 2, facts: { missing: ["h2"] } });
    for (const [key, replica] of copies) h2.weftd.replicas.set(key, replica);
    await h2.stopAgent();
    await t.rejects(h1.client.repairStore(), { code: "E-STORE-03", exitCode: 2, facts: { missing: ["h2"] } });
    const done = await h1.client.repairStore({ assent: true });
    t.same(done.missing, ["h2"]);
    t.match(
      done.volumes.map((v) => v.volume),
      [volume.id],
    );
    const store = await h1.store();
    t.equal(await store.get(keys.repairAsk), null, "the question is taken back");
  },
);

/** Any host can write these keys. Followed, the repair would leave nothing above them that could be written. */
void t.test("agent: store: repair follows nothing that was written near the end of its range", async (t) => {
  const [h1] = await startCluster(t, 1, 43);
  if (h1 === undefined) throw new Error("a host");
  const { id } = await h1.client.createVolume({ name: "db", size: GIB, copies: 1 });
  const kept = await eventually(
    "a copy of the record",
    async () => h1.weftd.kept.get(id) ?? null,
    (record) => record !== null,
  );
  if (kept === null) throw new Error("a record");
  const [pool = ""] = h1.weftd.pools.keys();
  h1.weftd.disks.set(pool, { inc: "3", served: "3" });
  const store = await h1.store();
  const read = async (key: string): Promise<Record<string, unknown>> =>
    JSON.parse((await store.get(key))?.value ?? "{}");
  const write = async (key: string, lie: object): Promise<void> => {
    await store.put(key, JSON.stringify({ ...(await read(key)), ...lie }));
  };
  for (const [round, far] of [1n << 38n, (1n << 64n) - 1n].entries()) {
    await write(keys.state(id), { epoch: String(far), rev: String(far) });
    await write(keys.pool(pool), { inc: String(far) });
    await write(keys.store, { incarnation: String(far) });
    const before = h1.weftd.kept.get(id);
    const repaired = await h1.client.repairStore();
    t.equal(repaired.incarnation, BigInt(round) + 2n);
    t.same(repaired.missing, []);
    t.equal((await read(keys.state(id)))["epoch"], String(BigInt(before?.epoch ?? 0) + (1n << 20n)));
    t.equal((await read(keys.pool(pool)))["inc"], "3");
    t.match(await h1.client.status(), { kind: "cluster", store: { incarnation: BigInt(round) + 2n } });
  }
  await write(keys.store, { incarnation: String((1n << 64n) - 1n) });
  t.match(
    await eventually(
      "the lie",
      () => h1.client.status(),
      (s) => s.kind === "cluster" && s.store.incarnation === null,
    ),
    { kind: "cluster" },
    "a status is given all the same",
  );
});
