/**
 * What comes between a decision about a disk and its swap: real agents on a real store, the moment chosen by doubles of
 * weftd. A guest that came in meanwhile keeps its disk.
 */
import { randomUUID } from "node:crypto";
import { mkdir, utimes, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

import t from "tap";

import { openCaretaker } from "../../../src/core/agent/perform.ts";
import { dropLeft } from "../../../src/core/agent/vdi-keeper.ts";
import type { VolumeId } from "../../../src/core/model/ids.ts";
import { HELPER_MS } from "../../../src/core/model/vdi.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { FakeDaemon } from "../wire/fake-daemon.ts";
import { eventually, startCluster } from "./test-host.ts";

const GIB = 1n << 30n;
const now = { writable: true, waitMs: 0 };

const [h1, h2] = await startCluster(t, 2, 31);
if (h1 === undefined || h2 === undefined) throw new Error("hosts");
const sr = (await h1.client.createSr({ uuid: randomUUID(), copies: 2 })).uuid;
const disk = async (): Promise<VolumeId> =>
  (await h1.client.createVdi(sr, { uuid: randomUUID(), size: GIB })).volume as VolumeId;

await t.test("agent: a disk is taken from the session that was asked about, and from no other", async (t) => {
  // No guest is connected there, so it is taken over; before that is done its host has closed it, and opened it for another one.
  const uuid = await disk();
  await h2.client.activateVdi(uuid, now);
  h1.weftd.beforeOpen = async () => {
    await h2.client.deactivateVdi(uuid);
    await h2.client.activateVdi(uuid, now);
    h2.weftd.connected.add(uuid);
  };
  await t.rejects(h1.client.activateVdi(uuid, now), { code: "E-VDI-04", message: /^h2 has/ });
  t.match(await h1.client.vdi(uuid), { openOn: { name: "h2" } });
  h2.weftd.connected.delete(uuid);
  t.match(await h1.client.activateVdi(uuid, now), { volume: uuid }, "of that one it is asked anew");

  // A caretaker makes way, and a guest that came in its place doesn't.
  const other = await disk();
  await openCaretaker(h2.member().daemon.client, other);
  h1.weftd.beforeOpen = async () => {
    await h2.client.activateVdi(other, now);
    h2.weftd.connected.add(other);
  };
  await t.rejects(h1.client.activateVdi(other, now), { code: "E-VDI-04", message: /^h2 has/ });
  t.match(await h1.client.vdi(other), { openOn: { name: "h2" } });

  // A weftd that was restarted opens what it had, or gives it back; not what another host has by then.
  for (const again of [
    (): Promise<unknown> => h1.client.activateVdi(uuid, now),
    (): Promise<unknown> => h1.client.deactivateVdi(uuid),
  ]) {
    h1.weftd.sessions.delete(uuid);
    h1.weftd.beforeOpen = async () => {
      await h2.client.activateVdi(uuid, now);
      h2.weftd.connected.add(uuid);
    };
    await again().catch((error: unknown) => t.match(error, { code: "E-VDI-04" }));
    t.match(await h1.client.vdi(uuid), { openOn: { name: "h2" } });
    h2.weftd.connected.delete(uuid);
    await h2.client.deactivateVdi(uuid);
    await h1.client.activateVdi(uuid, now);
  }
});

// A package was updated: the agent is new, and weftd goes on until it is restarted in maintenance.
await t.test("agent: a weftd of the version before opens, gives back and takes over disks", async (t) => {
  const uuid = await disk();
  for (const { weftd } of [h1, h2]) weftd.isOfBefore = true;
  t.match(await h2.client.activateVdi(uuid, now), { volume: uuid });
  await h2.client.deactivateVdi(uuid);
  await h2.client.activateVdi(uuid, now);
  t.match(await h1.client.activateVdi(uuid, now), { volume: uuid });
  t.match(await h1.client.vdi(uuid), { openOn: { name: "h1" } });
  await openCaretaker(h2.member().daemon.client, await disk());
  for (const { weftd } of [h1, h2]) weftd.isOfBefore = false;
});

await t.test("agent: who was given a disk has a moment until its guest is connected", async (t) => {
  const uuid = await disk();
  const { path } = await h2.client.activateVdi(uuid, now);
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, "");
  await t.rejects(h1.client.activateVdi(uuid, now), { code: "E-VDI-04", facts: { since: /^20/ } });
  // On the host itself nobody stands in its own way.
  t.match(await h2.client.vdiUsers(uuid), { users: [{ connected: false }] });

  // Until its first client came and went, or for half a minute.
  h2.weftd.left.add(uuid);
  t.match(await h1.client.activateVdi(uuid, now), { volume: uuid });
  await h1.client.deactivateVdi(uuid);
  h2.weftd.left.delete(uuid);
  await h2.client.activateVdi(uuid, now);
  const before = new Date(Date.now() - 31_000);
  await utimes(path, before, before);
  t.match(await h1.client.activateVdi(uuid, now), { volume: uuid });
});

await t.test("agent: a guest whose device is paused keeps its disk", async (t) => {
  const uuid = await disk();
  await h2.client.activateVdi(uuid, now);
  h2.devices = new Set([randomUUID(), uuid]);
  await t.rejects(h1.client.activateVdi(uuid, now), { code: "E-VDI-04", message: /^h2 has/ });
  h2.devices = null;
  await t.rejects(h1.client.activateVdi(uuid, now), { code: "E-VDI-04" }, "nobody can say");

  // One that has lost its volume is none, though it stands.
  h2.devices = new Set([uuid]);
  const held = { id: uuid, volume: uuid, snapshot: null, connected: false, lost: "taken over" };
  const list = (): unknown => ({ entries: [held] });
  const holder = new FakeDaemon(join(h2.directory, "run", "holder.sock"), { list } as object);
  await holder.start();
  t.match(await h1.client.activateVdi(uuid, now), { volume: uuid });
  await holder.stop();
  h2.devices = new Set();
  await h1.client.deactivateVdi(uuid);
});

await t.test("agent: what XAPI has declared dead loses its disks without being asked", async (t) => {
  const xapi = randomUUID();
  const uuid = await disk();
  await h2.client.setXapiHost(xapi);
  await h2.client.activateVdi(uuid, now);
  h2.weftd.connected.add(uuid);
  t.same(await h1.client.declareXapiHostDead(randomUUID()), { host: null });
  await t.rejects(h1.client.activateVdi(uuid, now), { code: "E-VDI-04" });
  t.same(await h1.client.declareXapiHostDead(xapi), { host: h2.weftd.host });
  t.match(await h1.client.activateVdi(uuid, now), { volume: uuid });
  await h1.client.deactivateVdi(uuid);

  // It is there again: a sign of life of its agent that was not there then.
  await h2.stopAgent();
  await h2.startAgent();
  await h2.client.activateVdi(uuid, now);
  await t.rejects(h1.client.activateVdi(uuid, now), { code: "E-VDI-04" });
  h2.weftd.connected.delete(uuid);
  await h2.client.deactivateVdi(uuid);
});

await t.test(
  "agent: a disk whose last guest ended with its host can be deleted, one in use can't",
  async (t) => {
    const [here, there, used] = [await disk(), await disk(), await disk()];
    await h1.client.activateVdi(here, now);
    await h2.client.activateVdi(there, now);
    await h2.client.activateVdi(used, now);
    h2.weftd.connected.add(used);
    for (const uuid of [here, used]) await t.rejects(h1.client.deleteVdi(uuid), { code: "E-VOL-12" });
    // Both hosts were started anew.
    h1.weftd.sessions.delete(here);
    h2.weftd.sessions.delete(there);
    for (const uuid of [here, there]) {
      await h1.client.deleteVdi(uuid);
      await t.rejects(h1.client.vdi(uuid), { code: "E-VDI-01" });
    }
    await t.rejects(h1.client.deleteVdi(used), { code: "E-VOL-12" });
    h2.weftd.connected.delete(used);
    await h2.client.deactivateVdi(used);
  },
);

await t.test("agent: a session is not closed because its record can't be read", async (t) => {
  const uuid = await disk();
  await h1.client.activateVdi(uuid, now);
  const store = await h1.store();
  const kept = (await store.get(keys.state(uuid)))?.value ?? "";
  await store.put(keys.state(uuid), "{}");
  await t.rejects(h1.client.activateVdi(uuid, now));
  const closed = h1.weftd.daemon.calls.filter(({ method }) => method === "session.close");
  t.notOk(closed.some(({ params }) => params["volume"] === uuid));
  await store.put(keys.state(uuid), kept);
  t.match(await h1.client.activateVdi(uuid, now), { path: join(h1.directory, "run", "nbd", `${uuid}.sock`) });
});

await t.test("agent: a disk that nobody has is read on several hosts at once, as it is then", async (t) => {
  const uuid = await disk();
  const reading = { writable: false, waitMs: 0 };
  const readers = async (): Promise<readonly string[]> =>
    (await h1.client.snapshots()).filter(({ volume }) => volume === uuid).map(({ id }) => id);
  const here = await h1.client.activateVdi(uuid, reading);
  t.match(here, { session: null, path: /\.sock$/ });
  t.same(await h1.client.activateVdi(uuid, reading), here);
  t.equal((await h2.client.activateVdi(uuid, reading)).snapshot, here.snapshot);
  t.same(await readers(), [here.snapshot]);

  // It was written by hand meanwhile: who reads it from now on reads that, the other one what it has begun with.
  await h1.client.deactivateVdi(uuid);
  await h1.client.attach(uuid);
  h1.weftd.connected.add(uuid);
  await t.rejects(h2.client.activateVdi(uuid, reading), { code: "E-VDI-04", message: /^h1 has/ });
  h1.weftd.connected.delete(uuid);
  await h1.client.detach(uuid);
  const later = await h1.client.activateVdi(uuid, reading);
  t.not(later.snapshot, here.snapshot);
  t.equal((await readers()).length, 2);

  // The last one takes it away, also where another one is named by now.
  await h2.client.deactivateVdi(uuid);
  await h1.client.deactivateVdi(uuid);
  const context = h1.member();
  const left = await eventually(
    "no reader is left",
    async () => {
      await context.mirror.sync();
      await dropLeft(context, Date.now() + HELPER_MS);
      return readers();
    },
    ({ length }) => length === 0,
  );
  t.same(left, []);
  t.equal((await h1.client.vdi(uuid)).openOn, null);
  t.match(await h2.client.activateVdi(uuid, now), { snapshot: null });
  await h2.client.deactivateVdi(uuid);

  // Where no copy can have snapshots it is read on one host.
  h1.weftd.refusesSnapshots = { code: "E-SNAP-01", facts: {} };
  h2.weftd.refusesSnapshots = { code: "E-SNAP-01", facts: {} };
  const alone = await h1.client.activateVdi(uuid, reading);
  t.match(alone, { snapshot: null, session: /-/ });
  h1.weftd.connected.add(uuid);
  await t.rejects(h2.client.activateVdi(uuid, reading), { code: "E-VDI-04" });
  h1.weftd.connected.delete(uuid);
  await h1.client.deactivateVdi(uuid);
  h2.weftd.refusesSnapshots = null;
});

await t.test("agent: what can't be read hides nothing else, and no guest is kept by it", async (t) => {
  const uuid = await disk();
  await h1.client.activateVdi(uuid, now);
  const store = await h1.store();
  const damaged = randomUUID();
  await store.put(keys.sr(damaged), "{}");
  await store.put(keys.vdi(uuid), "{}");
  t.match(await h1.client.srs(), [{ uuid: sr }]);
  t.match((await h1.client.vdis(sr)).unread, [uuid]);
  await t.rejects(h1.client.sr(damaged), { code: "E-STORE-07" });
  await h1.client.deactivateVdi(uuid);
  t.notOk(h1.weftd.sessions.has(uuid));
  await h1.client.deactivateVdi(uuid);
  await dropLeft(h1.member(), Date.now());
});
