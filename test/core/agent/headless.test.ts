/** A volume's head is deleted and its snapshots stay: what goes on, what is refused, and how it comes back or goes. */
import t, { type Test } from "tap";

import { eventually, type TestHost, three } from "./test-host.ts";

const GIB = 1n << 30n;
const KEEP = { keepSnapshots: true };

void t.test("agent: a volume whose head is deleted lives on in its snapshots", async (t) => {
  const [h1, h2, h3] = await three(t, 201);
  const { id } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
  const first = await h1.client.createSnapshot("db", { name: "first" });
  const second = await h1.client.createSnapshot("db", { name: "second" });

  // Not while a guest has it, and not without the word for it.
  await h2.client.attach("db");
  await t.rejects(h1.client.deleteVolume("db", KEEP), { code: "E-VOL-12" });
  await h2.client.detach("db");
  await t.rejects(h1.client.deleteVolume("db"), {
    code: "E-SNAP-10",
    do: [{}, { command: "weft volume delete db --keep-snapshots" }],
  });
  await h3.client.deleteVolume("db", KEEP);
  const headless = await h1.client.volume(id);
  t.match(headless, { name: "db", health: "healthy", deletedAt: null, inSync: 2 });
  t.match(headless.head, { data: "kept", keptUntil: /^20/ });
  t.same(
    (await h2.client.volumes()).map((volume) => volume.head?.data),
    ["kept"],
  );
  t.match(await h2.client.trash(), [{ volume: id, name: "db", snapshots: 2 }]);
  // Asked again there is nothing to do; and it does not go with its snapshots.
  await h1.client.deleteVolume(id, KEEP);
  await t.rejects(h1.client.deleteVolume(id), { code: "E-SNAP-10" });

  // Nothing that needs its head; a word for who knows it by its name.
  const refused: readonly (() => Promise<unknown>)[] = [
    () => h1.client.attach(id),
    () => h1.client.attach("db"),
    () => h1.client.resizeVolume(id, 2n * GIB, null),
    () => h1.client.limitVolume(id, null),
    () => h1.client.createSnapshot(id),
    () => h1.client.createGroup({ volumes: [id], name: "g" }),
    () => h1.client.revertVolume(first.id),
    () => h1.client.volume("db"),
    () => h1.client.snapshots("db"),
  ];
  for (const [at, work] of refused.entries()) await t.rejects(work(), { code: "E-VOL-19" }, `${at}`);

  // Its name is free, and its snapshots are used by its id: read, cloned, kept from deletion, moved with its copies.
  await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h3"] });
  t.equal((await h1.client.snapshots("db")).length, 0);
  t.equal((await h1.client.snapshot(`${id}@first`)).id, first.id);
  t.equal((await h1.client.snapshots(id)).length, 2);
  await h3.client.attachSnapshot(first.id);
  await h3.client.detachSnapshot(first.id);
  await h1.client.changeSnapshot(second.id, { name: "kept" });
  const clone = await h1.client.createVolume({ name: "copy", from: first.id });
  t.match(clone.createdFrom, { volume: id, volumeName: "db", snapshotName: "first" });
  await h1.client.addReplica(id, { host: "h3" });
  await eventually(
    "a copy more",
    () => h1.client.volume(id),
    ({ inSync }) => inSync === 3,
  );
  t.match(await h1.client.why(id), { health: "healthy" });

  // Its name is another one's: it comes back under its own only when that is gone.
  await t.rejects(h1.client.restoreFromTrash(id), { code: "E-VOL-01" });
  await h1.client.deleteVolume("db");
  await h1.client.emptyTrash("db");
  const restored = await h2.client.restoreFromTrash(id);
  t.match(restored, { id, name: "db", head: null, inSync: 3 });
  t.same(await h1.client.trash(), []);
  await h2.client.attach("db");
  await goes(t, [h1, h2, h3]);
});

/** What only a deleted head has goes, and with the last snapshot the volume. */
async function goes(t: Test, hosts: readonly [TestHost, TestHost, TestHost]): Promise<void> {
  const [h1, h2] = hosts;
  const { id } = await h1.client.createVolume({ name: "old", size: GIB, hosts: ["h1", "h2"] });
  const { id: snapshot } = await h1.client.createSnapshot("old", { name: "only" });
  await h1.client.deleteVolume("old", KEEP);
  let go = (): void => undefined;
  const held = new Promise<void>((resolve) => (go = resolve));
  for (const { weftd } of hosts) weftd.holdsRelease = held;
  await h2.client.emptyTrash(id);
  t.match((await h1.client.volume(id)).head, { data: "releasing", keptUntil: null });
  await t.rejects(h1.client.restoreFromTrash(id), { code: "E-VOL-20" });
  t.same(await h1.client.trash(), [], "nothing that can be brought back");
  go();
  await eventually(
    "all of it given back, and nobody at it",
    () => h1.client.volume(id),
    ({ head, owner }) => head?.data === "released" && owner === null,
    60_000,
  );
  await h1.client.deleteSnapshot(snapshot);
  await eventually(
    "the volume gone",
    () => h1.client.volume(id).catch((error: unknown) => (error as { readonly code: string }).code),
    (answer) => answer === "E-ARG-01",
    60_000,
  );
  for (const { weftd } of hosts)
    t.notOk([...weftd.replicas.keys(), ...weftd.trash.keys()].some((key) => key.startsWith(id)));

  // One whose head has not rested for a day is in the trash for the rest of it.
  const { id: young } = await h1.client.createVolume({ name: "young", size: GIB, hosts: ["h1", "h2"] });
  const { id: last } = await h1.client.createSnapshot("young", { name: "last" });
  await h1.client.deleteVolume("young", KEEP);
  const [{ keptUntil } = { keptUntil: "" }] = await h1.client.trash();
  await h1.client.deleteSnapshot(last);
  const [deleted] = await eventually(
    "all of it in the trash",
    () => h1.client.trash(),
    ([item]) => item?.snapshots === 0,
    60_000,
  );
  t.match(deleted, { volume: young, keptUntil });
  const back = await h1.client.restoreFromTrash("young");
  t.match(back, { id: young, head: null, deletedAt: null });
}
