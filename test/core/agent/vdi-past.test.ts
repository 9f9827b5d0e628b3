/**
 * What was taken of a disk as it once was, at real agents and a real store: nothing goes back to it, or reads it, after the disk
 * has become another one.
 */
import { randomUUID } from "node:crypto";

import t from "tap";

import { startCluster } from "./test-host.ts";

const MIB = 1n << 20n;

void t.test("agent: a disk that was taken back, or has grown, is read and reset as it is now", async (t) => {
  const [h1, h2] = await startCluster(t, 2, 251);
  if (h1 === undefined || h2 === undefined) throw new Error("hosts");
  const { client } = h1;
  const sr = (await client.createSr({ uuid: randomUUID(), copies: 2 })).uuid;
  const { uuid } = await client.createVdi(sr, { uuid: randomUUID(), size: 64n * MIB, label: "root" });
  const snapshot = randomUUID();
  await client.snapshotVdi(uuid, { uuid: snapshot });
  const marks = async (): Promise<number> =>
    (await client.snapshots()).filter(({ name, state }) => name.startsWith("reset-") && state === "ready")
      .length;
  const revertedTo = (): readonly unknown[] =>
    [h1, h2]
      .flatMap(({ weftd }) => weftd.daemon.calls)
      .filter(({ method }) => method === "volume.revert")
      .map(({ params }) => (params as { snapshot?: unknown }).snapshot);

  // A reset never goes behind a revert.
  t.equal((await client.resetVdi(uuid)).resets, true);
  t.equal((await client.revertVdi(uuid, snapshot)).resets, false);
  t.same(revertedTo(), [snapshot]);
  t.equal(await marks(), 0);
  await client.resetVdi(uuid);
  t.equal(revertedTo().length, 1, "marked anew");

  // By weft's own door neither.
  await client.revertVolume(snapshot);
  t.equal((await client.vdi(uuid)).resets, false);
  await client.resetVdi(uuid);
  t.equal(revertedTo().length, 2);

  // Its guest's host was started anew, and has it open without a guest: it boots all the same. Not under a guest.
  await client.activateVdi(uuid, { writable: true });
  await client.resetVdi(uuid);
  t.equal(revertedTo().length, 3);
  t.equal((await client.vdi(uuid)).openOn, null);
  await client.activateVdi(uuid, { writable: true });
  h1.weftd.connected.add(uuid);
  await t.rejects(client.resetVdi(uuid), { code: "E-VOL-12" });
  t.match(await client.vdi(uuid), { openOn: { name: "h1" } });
  h1.weftd.connected.delete(uuid);
  await client.deactivateVdi(uuid);

  // It grows by XAPI's door: it goes back first, and what it is then is marked; not under a guest, and not for a size that is refused.
  const goesBack = revertedTo().length;
  await t.rejects(client.changeVdi(uuid, { size: 63n * MIB }), { code: "E-VOL-15" });
  await t.rejects(client.changeVdi(uuid, { size: 1n << 62n }), { code: "E-VOL-02" });
  await client.activateVdi(uuid, { writable: true });
  h1.weftd.connected.add(uuid);
  await t.rejects(client.changeVdi(uuid, { size: 65n * MIB }), {
    code: "E-VOL-12",
    message: /^The virtual disk "root" .* goes back at each boot of its guest/,
  });
  h1.weftd.connected.delete(uuid);
  await client.deactivateVdi(uuid);
  t.equal(revertedTo().length, goesBack, "what is refused takes nothing back");
  t.match(await client.changeVdi(uuid, { size: 65n * MIB }), { size: 65n * MIB, resets: true });
  t.equal(revertedTo().length, goesBack + 1);

  // By weft's own: it boots, and goes back to what it was then from now on.
  const mark = (): Promise<string | undefined> =>
    client
      .snapshots()
      .then((all) => all.find(({ name, state }) => name.startsWith("reset-") && state === "ready")?.id);
  const marked = await mark();
  await client.resizeVolume(uuid, 66n * MIB);
  t.match(await client.resetVdi(uuid), { resets: true, size: 66n * MIB });
  t.equal(revertedTo().length, goesBack + 1, "it can't go back to another size");
  t.not(await mark(), marked);
  t.equal(await marks(), 1);
  await client.resetVdi(uuid);
  t.equal(revertedTo().length, goesBack + 2);

  // Taken back to a snapshot of another size it has that one's; where the snapshot can't be gone back to it keeps its own.
  await client.activateVdi(uuid, { writable: true });
  h1.weftd.connected.add(uuid);
  await t.rejects(client.revertVdi(uuid, snapshot), { code: "E-VOL-12" });
  t.match(await client.vdi(uuid), { size: 66n * MIB });
  h1.weftd.connected.delete(uuid);
  await client.deactivateVdi(uuid);
  t.match(await client.revertVdi(uuid, snapshot), { size: 64n * MIB, resets: false });
  t.equal(revertedTo().at(-1), snapshot);

  // A disk that nobody writes, while somebody reads it: it stays what it is, and the reader can close it.
  const iso = (await client.createVdi(sr, { uuid: randomUUID(), size: MIB, readOnly: true })).uuid;
  const old = randomUUID();
  await client.snapshotVdi(iso, { uuid: old });
  const before = await h2.client.activateVdi(iso, { writable: false });
  const changes: readonly (() => Promise<unknown>)[] = [
    () => client.changeVdi(iso, { readOnly: false }),
    () => client.changeVdi(iso, { size: 2n * MIB }),
    () => client.revertVdi(iso, old),
    () => client.deleteVdi(iso),
  ];
  for (const change of changes)
    await t.rejects(
      change().then(() => undefined),
      { code: "E-VDI-04", message: /^h2 reads / },
    );
  t.match(await client.vdi(iso), { readOnly: true, size: MIB, openOn: { name: "h2" } });
  await h2.client.deactivateVdi(iso);
  t.equal((await client.vdi(iso)).openOn, null);

  await client.revertVdi(iso, old);
  const reverted = await h2.client.activateVdi(iso, { writable: false });
  t.not(reverted.snapshot, before.snapshot, "not as it was before");
  await h2.client.deactivateVdi(iso);
  await client.changeVdi(iso, { size: 2n * MIB });
  t.match(await h2.client.activateVdi(iso, { writable: false }), { size: 2n * MIB });
});

void t.test("agent: a revert that has given a disk its size of then is not left half done", async (t) => {
  const [h1] = await startCluster(t, 1, 241);
  if (h1 === undefined) throw new Error("host");
  const { client, weftd } = h1;
  const sr = (await client.createSr({ uuid: randomUUID(), copies: 1 })).uuid;
  const { uuid } = await client.createVdi(sr, { uuid: randomUUID(), size: 64n * MIB, label: "root" });
  const snapshot = (await client.snapshotVdi(uuid, { uuid: randomUUID() })).uuid;
  // weftd is started anew in this moment.
  await client.changeVdi(uuid, { size: 65n * MIB });
  weftd.refusesReverts = { code: "E-AGENT-05", facts: {} };
  t.match(await client.revertVdi(uuid, snapshot), { size: 64n * MIB });
  t.equal(weftd.refusesReverts, null, "it was refused once");

  // What doesn't pass is told with what was done.
  await client.changeVdi(uuid, { size: 65n * MIB });
  weftd.refusesReverts = { code: "E-SNAP-16", facts: {} };
  await t.rejects(client.revertVdi(uuid, snapshot), {
    code: "E-SNAP-16",
    message: /has the size that it had in the snapshot/,
  });
  t.match(await client.revertVdi(uuid, snapshot), { size: 64n * MIB }, "and it is asked again");
});
