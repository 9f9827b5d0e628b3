/**
 * Storage repositories and virtual disks at real agents and a real store, as XAPI's door asks for them: each request
 * twice where XAPI may repeat it.
 */
import { randomUUID } from "node:crypto";
import { join } from "node:path";

import t from "tap";

import { dropLeft } from "../../../src/core/agent/vdi-keeper.ts";
import { SR_DELETE_MS } from "../../../src/core/model/sr.ts";
import { HELPER_MS } from "../../../src/core/model/vdi.ts";
import type { VdiAnswer } from "../../../src/core/wire/sr-api.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { FakeDaemon } from "../wire/fake-daemon.ts";
import { eventually, startCluster, type TestHost } from "./test-host.ts";

const MIB = 1n << 20n;
const GIB = 1n << 30n;

/** A disk of 1 GiB. */
async function disk({ client }: TestHost, sr: string, label: string): Promise<VdiAnswer> {
  return client.createVdi(sr, { uuid: randomUUID(), size: GIB, label });
}

async function names({ client }: TestHost): Promise<readonly string[]> {
  const found = await client.snapshots();
  return found.filter(({ state }) => state === "ready").map(({ name }) => name);
}

void t.test("agent: a repository's disks are volumes, from their making to the trash", async (t) => {
  const [h1, h2] = await startCluster(t, 2, 1);
  if (h1 === undefined || h2 === undefined) throw new Error("hosts");
  const { client } = h1;
  const sr = randomUUID();
  const asked = { uuid: sr, label: "Replicated", description: "both", copies: 2 };

  // The repository: the same again is no news, another one is.
  const made = await client.createSr(asked);
  t.match(made, { ...asked, physicalUtilisation: 0n, virtualAllocation: 0n });
  t.ok(made.physicalSize > 0n);
  t.same(await h2.client.createSr(asked), made);
  await t.rejects(client.createSr({ ...asked, copies: 1 }), { code: "E-SR-03", message: /2 copies/ });
  t.equal((await client.changeSr(sr, { label: "replicated" })).description, "both");
  t.same(
    (await h2.client.srs()).map(({ label }) => label),
    ["replicated"],
  );
  await t.rejects(client.sr(randomUUID()), { code: "E-SR-01", status: 404 });

  // A disk: of whole blocks, made once by its UUID.
  const uuid = randomUUID();
  const wanted = { uuid, size: GIB - 1n, label: "Ünïcode & <free>: text", type: "system" };
  const one = await client.createVdi(sr, { ...wanted, smConfig: { a: "b" } });
  t.match(one, { uuid, volume: uuid, snapshot: null, size: GIB, whole: true, settled: false, openOn: null });
  t.equal(one.untouched, true);
  t.match(one, { label: wanted.label, type: "system", smConfig: { a: "b" }, managed: true, cbt: false });
  t.same(await h2.client.createVdi(sr, wanted), one);
  await t.rejects(client.createVdi(sr, { ...wanted, size: GIB * 2n }), { code: "E-VDI-02" });
  await t.rejects(client.createVdi(randomUUID(), wanted), { code: "E-SR-01" });
  await t.rejects(client.createVdi(sr, { ...wanted, uuid: "X" }), { code: "E-ARG-02" });
  t.match(await client.volume(uuid), {
    name: `vdi-${uuid}`,
    copies: 2,
    inSync: 2,
    disk: { label: wanted.label, sr, srLabel: "replicated" },
  });

  // Many at once, asked of both hosts: each is there, and the list is of one look.
  const more = await Promise.all(
    Array.from({ length: 6 }, (_, n) => disk(n % 2 === 0 ? h1 : h2, sr, `disk ${n}`)),
  );
  const list = await client.vdis(sr);
  t.same(list.vdis.map((vdi) => vdi.uuid).toSorted(), [uuid, ...more.map((vdi) => vdi.uuid)].toSorted());
  t.equal(list.sr.virtualAllocation, 7n * GIB);
  t.match(await client.sr(sr), { virtualAllocation: 7n * GIB, label: "replicated" });

  // Changed: what is named, and nothing else.
  const changed = await h2.client.changeVdi(uuid, {
    size: 2n * GIB - 5n,
    label: "root",
    settled: true,
    cbt: true,
  });
  t.match(changed, { size: 2n * GIB, label: "root", type: "system", settled: true, cbt: true });
  await t.rejects(client.changeVdi(uuid, { size: GIB }), { code: "E-VOL-15" });
  t.match(await client.changeVdi(uuid, { snapshotOf: null, smConfig: {} }), { smConfig: {}, label: "root" });

  // One made elsewhere comes in by its UUID, and is in one repository only.
  const db = await client.createVolume({ name: "db", size: GIB });
  await t.rejects(client.vdi(db.id), { code: "E-VDI-01", facts: { live: true } }, "there, and no disk");
  const other = (await client.createSr({ uuid: randomUUID() })).uuid;
  t.match(await client.introduceVdi(sr, { uuid: db.id }), { uuid: db.id, label: "db", settled: false });
  t.match(await client.introduceVdi(sr, { uuid: db.id, label: "again" }), { label: "db" });
  await t.rejects(client.introduceVdi(other, { uuid: db.id }), { code: "E-VDI-02" });
  await t.rejects(client.introduceVdi(sr, { uuid: randomUUID() }), { code: "E-VDI-01" });

  // A repository goes without disks; those in the trash are none, and come back with the volume.
  await t.rejects(client.deleteSr(sr), { code: "E-SR-02", message: /8 virtual disks/, exitCode: 2 });
  for (const { uuid: each } of [...more, one, { uuid: db.id }]) {
    await client.deleteVdi(each);
    await h2.client.deleteVdi(each);
    await t.rejects(client.vdi(each), { code: "E-VDI-01", status: 404 });
  }
  await t.rejects(client.vdi(randomUUID()), { code: "E-VDI-01", facts: { live: false } });
  await client.deleteVdi(randomUUID());
  t.same((await client.vdis(sr)).vdis, []);
  await t.rejects(client.createVdi(sr, wanted), { code: "E-VDI-02", message: /deleted/ });
  await client.restoreFromTrash(uuid);
  t.match((await client.vdis(sr)).vdis, [{ uuid, label: "root", settled: true, cbt: true }]);
  await client.deleteVdi(uuid);
  await client.emptyTrash(null);
  const store = await h1.store();
  const left = await eventually(
    "their keys gone with them",
    async () => (await store.list(keys.vdis)).entries,
    ({ length }) => length === 0,
  );
  t.same(left, []);
  await client.deleteSr(sr);
  await t.rejects(client.deleteSr(sr), { code: "E-SR-01" });

  // A disk that comes while its repository goes: one of the two is refused, whichever was first.
  for (let n = 0; n < 5; n += 1) {
    const racing = (await client.createSr({ uuid: randomUUID(), copies: 1 })).uuid;
    const codeOf = async (work: Promise<unknown>): Promise<string> =>
      work.then(
        () => "ok",
        (error: unknown) => (error as { readonly code: string }).code,
      );
    const outcome = await Promise.all([
      codeOf(h2.client.createVdi(racing, { uuid: randomUUID(), size: MIB })),
      codeOf(client.deleteSr(racing)),
    ]);
    t.ok(["ok E-SR-02", "E-SR-01 ok"].includes(outcome.join(" ")), outcome.join(" "));
  }
  // Who was to delete one died meanwhile: it is as it was, half a minute later.
  const marked = (await client.createSr({ uuid: randomUUID(), copies: 1 })).uuid;
  const mark = async (agoMs: number): Promise<void> => {
    const { value = "{}" } = (await store.get(keys.sr(marked))) ?? {};
    const deletingAt = new Date(Date.now() - agoMs).toISOString();
    await store.put(keys.sr(marked), JSON.stringify({ ...(JSON.parse(value) as object), deletingAt }));
  };
  const last = { uuid: randomUUID(), size: MIB };
  await mark(0);
  await t.rejects(client.createVdi(marked, last), { code: "E-SR-01", message: /is being deleted/ });
  await mark(SR_DELETE_MS);
  t.equal((await client.createVdi(marked, last)).sr, marked);
  await t.rejects(client.deleteSr(marked), { code: "E-SR-02" });
  t.notMatch((await store.get(keys.sr(marked)))?.value, /deletingAt/);

  // A key that nobody can read is named in its repository's list, never a disk less, and hides no other one.
  const beside = await disk(h1, other, "beside");
  await store.put(keys.vdi(uuid), JSON.stringify({ format: 1, sr: other, uuid }));
  t.match(await client.vdis(other), { vdis: [{ uuid: beside.uuid }], unread: [uuid] });
  await t.rejects(client.vdi(uuid), { code: "E-STORE-07", facts: { key: keys.vdi(uuid) } });
  await client.deleteVdi(beside.uuid);
  await t.rejects(client.deleteSr(other), { code: "E-STORE-07" }, "who can say that it is empty");
  await client.createSr(asked);
  t.match(await client.vdis(sr), { vdis: [], unread: [] });
});

void t.test(
  "agent: snapshots, clones and resets of disks, and what is left of those cut short",
  async (t) => {
    const [h1, h2] = await startCluster(t, 2, 11);
    if (h1 === undefined || h2 === undefined) throw new Error("hosts");
    const { client } = h1;
    const sr = (await client.createSr({ uuid: randomUUID(), copies: 2 })).uuid;
    const root = await disk(h1, sr, "root");
    const { uuid } = root;
    await client.changeVdi(uuid, { cbt: true, settled: true });

    // A snapshot is a disk that is read; the same again is the same one.
    const first = randomUUID();
    const taken = await h2.client.snapshotVdi(uuid, { uuid: first, label: "before" });
    t.match(taken, {
      uuid: first,
      volume: uuid,
      snapshot: first,
      label: "before",
      isSnapshot: true,
      cbt: true,
    });
    t.match(taken, { snapshotOf: uuid, readOnly: true, whole: true, settled: false, size: GIB });
    t.same(await client.snapshotVdi(uuid, { uuid: first }), taken);
    await t.rejects(client.snapshotVdi(first, { uuid: randomUUID() }), { code: "E-VDI-03" });
    await t.rejects(client.snapshotVdi(uuid, { uuid }), { code: "E-VDI-02" });
    t.match(await client.snapshot(first), {
      name: `vdi-${first}`,
      volumeName: `vdi-${uuid}`,
      createdBy: "root@h2",
    });

    // Clones: of the snapshot, and of the disk as it is now. Nothing stays of what was taken for the second.
    const [a, b] = [randomUUID(), randomUUID()];
    const clone = await client.cloneVdi(first, { uuid: a });
    t.match(clone, {
      uuid: a,
      volume: a,
      label: "before",
      isSnapshot: false,
      readOnly: false,
      cbt: false,
      sr,
    });
    t.same(await client.cloneVdi(first, { uuid: a }), clone);
    t.match(await client.cloneVdi(uuid, { uuid: b, label: "copy" }), { uuid: b, volume: b, label: "copy" });
    t.match(await client.cloneVdi(uuid, { uuid: b }), { label: "copy" });
    await t.rejects(client.cloneVdi(first, { uuid: b }), { code: "E-VDI-02" });
    t.same(await names(h1), [`vdi-${first}`]);
    t.equal((await client.vdis(sr)).vdis.length, 4);

    // What changed: all of it, whatever weftd tells at once.
    const blocks = [0, 9, 1001, 1002, 16_383];
    h1.weftd.changes.set(first, { exact: true, blocks });
    h1.weftd.changedPage = 1001n * 65_536n;
    const second = randomUUID();
    await client.snapshotVdi(uuid, { uuid: second });
    const changes = await client.changedVdiBlocks(second, first);
    t.match(changes, { size: GIB, granularity: 65_536 });
    const bitmap = Buffer.from(changes.bitmap, "base64");
    t.equal(bitmap.length, Number(GIB / 65_536n / 8n));
    t.same(
      Array.from({ length: bitmap.length * 8 }, (_, n) => n).filter(
        (n) => (((bitmap[n >> 3] ?? 0) >> (7 - (n & 7))) & 1) === 1,
      ),
      blocks,
    );
    t.equal((await client.changedVdiBlocks(uuid, first)).size, GIB, "also up to now");
    await t.rejects(client.changedVdiBlocks(uuid, a), { code: "E-VDI-03" });
    t.same((await names(h1)).toSorted(), [`vdi-${first}`, `vdi-${second}`].toSorted());

    // Back in place; data destroyed.
    t.match(await client.revertVdi(uuid, first), { uuid, size: GIB });
    await t.rejects(client.revertVdi(a, first), { code: "E-VDI-03" });
    t.equal((await client.destroyVdiData(first)).dataDestroyed, true);
    await t.rejects(client.destroyVdiData(uuid), { code: "E-VDI-03" });
    await t.rejects(client.cloneVdi(first, { uuid: randomUUID() }), { code: "E-SNAP-18" });

    // Reset: the first one marks, the next ones go back, and the mark goes when it is said so.
    const reverts = (): number =>
      [h1, h2].flatMap(({ weftd }) => weftd.daemon.calls).filter(({ method }) => method === "volume.revert")
        .length;
    const before = reverts();
    t.equal((await client.resetVdi(a)).resets, true);
    t.equal((await names(h1)).filter((name) => name.startsWith("reset-")).length, 1);
    t.equal(reverts(), before);
    await client.resetVdi(a);
    t.equal(reverts(), before + 1);
    t.equal((await client.changeVdi(a, { size: 2n * GIB })).size, 2n * GIB);
    t.equal(reverts(), before + 2, "it goes back before it grows");
    await client.resetVdi(a, true);
    t.equal((await names(h1)).filter((name) => name.startsWith("reset-")).length, 1);
    t.equal((await client.resetVdi(a, false)).resets, false);
    await client.resetVdi(a, false);
    t.equal((await names(h1)).filter((name) => name.startsWith("reset-")).length, 0);
    await client.resetVdi(a);

    // With its disk goes what was taken for it, and no snapshot that is a disk.
    await client.deleteVdi(a);
    t.notOk((await names(h1)).some((name) => name.startsWith("reset-")));
    await client.deleteVdi(first);
    await client.deleteVdi(first);
    t.same((await client.vdis(sr)).vdis.map((vdi) => vdi.uuid).toSorted(), [uuid, b, second].toSorted());

    // XAPI's revert of a VM: the disk is deleted, what was made of its snapshot takes its place, and that lives on without it.
    const old = await disk(h1, sr, "old");
    const kept = randomUUID();
    await client.snapshotVdi(old.uuid, { uuid: kept });
    const reverted = randomUUID();
    await client.cloneVdi(kept, { uuid: reverted });
    await client.deleteVdi(old.uuid);
    await client.deleteVdi(old.uuid);
    await t.rejects(client.vdi(old.uuid), { code: "E-VDI-01", facts: { live: false } });
    t.match(await client.vdi(kept), { whole: true, volume: old.uuid, snapshotOf: old.uuid });
    t.notOk((await client.vdis(sr)).vdis.some((vdi) => vdi.uuid === old.uuid));
    const again = randomUUID();
    t.match(await client.cloneVdi(kept, { uuid: again }), { whole: true });
    await t.rejects(client.introduceVdi(sr, { uuid: old.uuid }), { code: "E-VDI-01" });
    await t.rejects(client.snapshotVdi(old.uuid, { uuid: randomUUID() }), { code: "E-VDI-01" });
    await client.restoreFromTrash(old.uuid);
    t.match(await client.vdi(old.uuid), { label: "old", whole: true });
    await client.deleteVdi(old.uuid);
    for (const each of [kept, reverted, again]) await client.deleteVdi(each);

    // Cut short: a key without its snapshot, and a snapshot for a moment. Neither goes before its time.
    const store = await h1.store();
    const { value } = (await store.get(keys.vdi(second))) ?? { value: "{}" };
    const lost = randomUUID();
    const key = { ...(JSON.parse(value) as object), uuid: lost, snapshot: lost, settled: false };
    await store.put(keys.vdi(lost), JSON.stringify(key));
    const helper = randomUUID();
    await client.createSnapshot(uuid, { name: `clone-${helper}` });
    t.match(await client.vdi(lost), { whole: false });
    const context = h1.member();
    await context.mirror.sync();
    await dropLeft(context, Date.now());
    t.match(await client.vdi(lost), { whole: false });
    await dropLeft(context, Date.now() + HELPER_MS + 60_000);
    await t.rejects(client.vdi(lost), { code: "E-VDI-01" });
    t.ok((await names(h1)).includes(`clone-${helper}`), "a person's stays, whatever its name");
    // By the same UUID it is asked again: the one whose key was left is finished.
    await store.put(keys.vdi(lost), JSON.stringify(key));
    t.match(await client.snapshotVdi(uuid, { uuid: lost }), { whole: true, uuid: lost });
    // A snapshot that goes by another door is no disk any more.
    await client.deleteSnapshot(second);
    await client.changeVdi(lost, { settled: true });
    await client.deleteSnapshot(lost);
    await t.rejects(client.vdi(lost), { code: "E-VDI-01" });
  },
);

void t.test(
  "agent: a disk is opened where XAPI starts a guest, and never under one that lives",
  async (t) => {
    const [h1, h2] = await startCluster(t, 2, 21);
    if (h1 === undefined || h2 === undefined) throw new Error("hosts");
    const sr = (await h1.client.createSr({ uuid: randomUUID(), copies: 2 })).uuid;
    const { uuid } = await disk(h1, sr, "root");
    const writable = { writable: true, waitMs: 0 };
    const [x1, x2] = [randomUUID(), randomUUID()];
    await h1.client.setXapiHost(x1);
    await h2.client.setXapiHost(x2);
    await h2.client.setXapiHost(x2);
    const hosts = await h1.client.hosts();
    const id = (name: string): string => hosts.find((host) => host.name === name)?.id ?? "";

    // Nobody's; twice is once; closed twice.
    const opened = await h1.client.activateVdi(uuid, writable);
    t.match(opened, { size: GIB, volume: uuid, snapshot: null, path: /\.sock$/ });
    t.same(await h1.client.activateVdi(uuid, writable), opened);
    t.match(await h2.client.vdi(uuid), { openOn: { name: "h1" } });
    t.match(await h2.client.vdiUsers(uuid), { users: [{ host: { name: "h1" }, connected: false }] });

    // A guest is connected: it stays, whoever asks, and whoever waits is told who has it.
    h1.weftd.connected.add(uuid);
    t.match(await h2.client.vdiUsers(uuid), { users: [{ connected: true }] });
    await t.rejects(h2.client.activateVdi(uuid, writable), {
      code: "E-VDI-04",
      message: /^h1 has the virtual disk "root"/,
      facts: { host: id("h1") },
      do: [{ command: `weft steal ${uuid}` }],
    });
    await t.rejects(h2.client.activateVdi(uuid, { writable: false, waitMs: 30_000 }), { code: "E-VDI-04" });
    await t.rejects(h1.client.deleteVdi(uuid), { code: "E-VOL-12" });

    // A migration: it waits until the other host has closed it.
    const waits = h2.client.activateVdi(uuid, { writable: true, waitMs: 20_000 });
    await eventually(
      "its owner was asked",
      async () => h1.weftd.daemon.calls.filter(({ method }) => method === "session.list").length,
      (count) => count > 3,
    );
    h1.weftd.connected.delete(uuid);
    h2.weftd.connected.add(uuid);
    await h1.client.deactivateVdi(uuid);
    t.match(await waits, { volume: uuid });
    await h1.client.deactivateVdi(uuid);
    t.match(await h1.client.vdi(uuid), { openOn: { name: "h2" } });

    // XAPI says that h2 is dead, and knows it by its own UUID.
    await t.rejects(h1.client.activateVdi(uuid, { ...writable, deadHosts: [x1] }), { code: "E-VDI-04" });
    t.match(await h1.client.activateVdi(uuid, { ...writable, deadHosts: [x2] }), { volume: uuid });
    t.match(await h2.client.vdi(uuid), { openOn: { name: "h1" } });

    // No guest is connected to it: it is taken over.
    t.match(await h2.client.activateVdi(uuid, writable), { volume: uuid });
    t.match(await h1.client.vdi(uuid), { openOn: { name: "h2" } });

    // Its agent is away and its machine is not: it is in nobody's power here to say that the guest is gone.
    await h2.stopAgent();
    await t.rejects(h1.client.activateVdi(uuid, writable), { code: "E-VDI-04", message: /^h2 has/ });
    h1.weftd.links.add(id("h2"));
    await t.rejects(h1.client.activateVdi(uuid, writable), { code: "E-VDI-04" });
    await h2.startAgent();
    await h2.client.deactivateVdi(uuid);

    // Where a holder has the guest its word counts: it keeps it while weftd is away, and is a client of weftd itself.
    const held = { id: uuid, volume: uuid, snapshot: null, connected: true, lost: null as string | null };
    const list = (): unknown => ({ entries: [{ ...held, snapshot: randomUUID() }, held] });
    const holder = new FakeDaemon(join(h2.directory, "run", "holder.sock"), { list } as object);
    await holder.start();
    t.teardown(() => holder.stop());
    await h2.client.activateVdi(uuid, writable);
    h2.weftd.connected.delete(uuid);
    t.match(await h1.client.vdiUsers(uuid), { users: [{ connected: true }] });
    await t.rejects(h1.client.activateVdi(uuid, writable), { code: "E-VDI-04" });
    h2.weftd.connected.add(uuid);
    held.lost = "taken over";
    t.match(await h1.client.vdiUsers(uuid), { users: [{ connected: false }] });
    const lost =
      /^The disk ".*" \([0-9a-f-]{36}\) of a guest on h2 has lost its volume, and .*: taken over\.$/;
    const status = await h2.client.status();
    if (status.kind !== "cluster") throw new Error("h2 is a member");
    const problem = status.problems.find(({ code }) => code === "E-HOLD-07");
    t.match(problem, { message: lost, do: [{ command: /^xe vm-shutdown/ }, { command: /^tap-ctl list/ }] });
    t.match((await h2.client.why(uuid)).because.at(-1), lost);
    t.notOk((await h1.client.why(uuid)).because.some((sentence) => lost.test(sentence)));
    held.lost = 7 as never;
    t.match(await h2.client.status(), { kind: "cluster" });
    held.lost = "taken over";
    await holder.stop();
    t.match(await h1.client.vdiUsers(uuid), { users: [{ connected: true }] });
    await h2.client.deactivateVdi(uuid);

    // Snapshots are read on both; so is a disk that nobody may write.
    const snapshot = randomUUID();
    await h1.client.snapshotVdi(uuid, { uuid: snapshot });
    await t.rejects(h1.client.activateVdi(snapshot, writable), { code: "E-VDI-06" });
    const iso = await h1.client.createVdi(sr, { uuid: randomUUID(), size: MIB, readOnly: true });
    await t.rejects(h1.client.activateVdi(iso.uuid, writable), { code: "E-VDI-06" });
    for (const read of [snapshot, iso.uuid]) {
      const [here, there] = await Promise.all(
        [h1, h2].map(({ client }) => client.activateVdi(read, { writable: false })),
      );
      t.match(here, { session: null, path: /\.sock$/ });
      t.equal(here?.snapshot, there?.snapshot);
      t.equal((await h1.client.vdiUsers(read)).users.length, 2);
      for (const { client } of [h1, h2]) await client.deactivateVdi(read);
      t.equal((await h1.client.vdi(read)).openOn, null);
    }
    await h1.client.changeVdi(iso.uuid, { readOnly: false });
    t.match(await h1.client.activateVdi(iso.uuid, writable), { snapshot: null });
  },
);
