/**
 * Plot: the disk of a running VM is moved to another storage repository, in XAPI's order of calls, while the guest writes single
 * sectors; it ends well, is given up, or a part of it fails.
 */
import t from "tap";

import { Migration } from "./lib/migration.ts";
import { SectorGuest } from "./lib/sector-guest.ts";
import { MIB, type Sr, World } from "./lib/world.ts";

const SIZE = 1 << 20;
type Scope = Parameters<typeof World.startWithTapdisks>[0];

/** A VM runs on the second host, its SR's master is the first; it goes to the third, to another SR. */
async function begin(t: Scope): Promise<{
  readonly world: World;
  readonly guest: SectorGuest;
  readonly uuid: string;
  readonly sr: Sr;
  readonly migration: Migration;
  /** Another try. */
  readonly migrate: () => Migration;
}> {
  const world = await World.startWithTapdisks(t, 3);
  const sr = world.addSr();
  const [master, source, destination] = [world.host(0), world.host(1), world.host(2)];
  const uuid = await master.create(BigInt(SIZE), "root");
  await source.start(uuid);
  const guest = new SectorGuest(SIZE);
  await guest.resume(source, uuid);
  await guest.write(400);
  const migrate = (): Migration =>
    new Migration(world, uuid, { host: source, master }, { host: destination, master, sr });
  return { world, guest, uuid, sr, migration: migrate(), migrate };
}

await t.test(
  "migration: given up and begun again, a disk comes to another SR as its guest left it",
  async (t) => {
    const { world, guest, uuid, sr, migration, migrate } = await begin(t);
    const failing = migration.start(null, async () => {
      await guest.write(50);
      throw new Error("the copy failed");
    });
    await t.rejects(failing, /the copy failed/);
    await migration.cancel();
    t.strictSame(migration.ignored, []);
    t.strictSame(world.xapi.vdis(sr.ref), [], "nothing is left at the destination");
    t.strictSame([...world.store.disks.keys()], [uuid]);
    await guest.write(50);
    t.ok(await guest.sees(), "and the guest goes on");

    const again = migrate();
    await again.start(null, () => guest.write(200));
    await guest.write(200);
    t.ok(await guest.sees(), "it reads its own disk while it is mirrored");
    guest.suspend();
    await again.finish();
    t.strictSame(again.ignored, []);

    const destination = world.host(2);
    await destination.start(again.leaf);
    await guest.resume(destination, again.leaf);
    t.ok(await guest.sees(), "all of it is there, and nothing else");
    await guest.write(100);
    t.ok(await guest.sees());
    guest.suspend();
    await destination.stop(again.leaf);

    const left = world.xapi.vdis(sr.ref).map((record) => record.get("uuid"));
    t.strictSame(left, [again.leaf], "parent and dummy are gone");
    t.strictSame([...world.store.disks.keys()], [again.leaf]);
    t.notOk(world.knows(uuid));
    t.match(world.record(again.leaf), { virtual_size: String(SIZE), name_label: "root", sm_config: {} });
    const before = world.xapi.requests.length;
    await world.host(0).call("sr_scan", { sr });
    const changing = /db_introduce|db_forget|VDI\.set_/;
    const asked = world.xapi.requests.slice(before).filter(({ method }) => changing.test(method));
    t.strictSame(asked, [], "XAPI's records are right already");
  },
);

// What the destination has of an older state is cloned, grown, and brought up to date.
await t.test("migration: where compose fails, which XAPI ignores, nobody gets half a disk", async (t) => {
  const { world, guest, sr, migration } = await begin(t);
  const [master, destination] = [world.host(0), world.host(2)];
  const older = await master.create(BigInt(SIZE / 2), "older", { sr });
  world.volumes.of(older).write(0, Buffer.alloc(SIZE / 2, 0x5a));
  const nearest = await master.copy("vdi_snapshot", older);
  await migration.start(nearest, () => guest.write(300));
  guest.suspend();
  // Somebody looks into the parent at the wrong moment.
  await destination.plug(migration.parent, false);
  await migration.finish();
  t.match(migration.ignored, [/24: E-VDI-04/]);
  await t.rejects(destination.start(migration.leaf), { code: 46, text: /E-VDI-08 / });
  await destination.call("vdi_detach", { vdiUuid: migration.leaf });
  await destination.unplug(migration.parent);

  const call = { vdiUuid: migration.leaf, args: [world.xapi.vdiRef(migration.parent)] };
  await master.call("vdi_compose", call);
  await master.call("vdi_compose", call);
  t.notOk(
    world.store.disks.has(migration.parent),
    "asked again it is done, and once more it is done already",
  );
  await destination.start(migration.leaf);
  await guest.resume(destination, migration.leaf);
  t.ok(await guest.sees());
  guest.suspend();
  t.ok(world.volumes.of(nearest).bytes.equals(Buffer.alloc(SIZE / 2, 0x5a)), "what was cloned is as it was");
});

await t.test(
  "migration: what can't be composed is refused with a number that XAPI understands",
  async (t) => {
    const world = await World.start(t, 2);
    const [h1, h2] = [world.host(0), world.host(1)];
    const other = world.addSr();
    const base = { base_mirror: "id" };
    const make = (call: object = {}): Promise<string> =>
      h1.create(64n * MIB, "disk", { vdiSmConfig: base, ...call });
    const [leaf, parent, elsewhere] = [await make(), await make(), await make({ sr: other })];
    const dummy = await h1.uuid("vdi_snapshot", { vdiUuid: leaf, driverParams: base });
    const compose = (vdiUuid: string, on: string): Promise<unknown> =>
      h1.call("vdi_compose", { vdiUuid, args: [on.startsWith("OpaqueRef:") ? on : world.xapi.vdiRef(on)] });
    t.equal(world.store.disk(leaf).layer, true);
    t.equal(world.store.disk(parent).layer, false);

    await t.rejects(compose(leaf, leaf), { code: 143 }, "with itself");
    await t.rejects(compose(leaf, elsewhere), { code: 143 }, "of another SR");
    await t.rejects(compose(leaf, dummy), { code: 143 }, "a snapshot");
    await t.rejects(compose(dummy, parent), { code: 143 }, "a snapshot");
    await t.rejects(compose(leaf, "OpaqueRef:none"), { code: 144 }, "one that XAPI has not");
    await t.rejects(compose(parent, leaf), { code: 46 }, "one that does not know what was written");
    await t.rejects(h1.call("vdi_compose", { vdiUuid: leaf }), { code: 143 }, "no argument");
    for (const active of [leaf, parent]) {
      await h2.plug(active);
      await t.rejects(compose(leaf, parent), { code: 24 }, "active");
      await h2.unplug(active);
    }
    t.strictSame(
      [leaf, parent].map((uuid) => world.store.disks.has(uuid)),
      [true, true],
      "nothing was done",
    );
    await compose(leaf, parent);
    t.notOk(world.knows(parent));
    await compose(leaf, "OpaqueRef:none");

    t.strictSame(world.differences(), []);
  },
);

await t.test(
  "migration: a leaf that was opened before its dummy fails at once, and no other snapshot does",
  async (t) => {
    const world = await World.start(t);
    const h1 = world.host(0);
    const base = { base_mirror: "id" };
    const make = (): Promise<string> => h1.create(64n * MIB, "disk", { vdiSmConfig: base });
    const snapshot = (vdiUuid: string, driverParams = {}): Promise<string> =>
      h1.uuid("vdi_snapshot", { vdiUuid, driverParams });
    const leaf = await make();
    // A caretaker had it, since a host went.
    world.store.disk(leaf).untouched = false;
    const before = [...world.store.disks.keys()];
    await t.rejects(snapshot(leaf, base), { code: 82, text: /opened before .* migrate the VM again/ });
    t.strictSame([...world.store.disks.keys()], before);
    t.strictSame(world.differences(), []);
    await snapshot(leaf);

    const [other, parent] = [await make(), await make()];
    const dummy = await snapshot(other, base);
    await snapshot(other, base);
    await snapshot(dummy, base);
    await h1.call("vdi_compose", { vdiUuid: other, args: [world.xapi.vdiRef(parent)] });
    await snapshot(other, base);
    t.strictSame(world.differences(), []);
  },
);
