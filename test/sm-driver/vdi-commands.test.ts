/**
 * XAPI's commands about disks, on a store of maps: what XAPI has afterwards, and what it is told when something is wrong.
 */
import t from "tap";

import { DriverFailure } from "./lib/client.ts";
import { MIB, World } from "./lib/world.ts";

const GIB = 1024n * MIB;

/** The number and text of the fault that this ends in. */
async function fault(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "no fault";
  } catch (error) {
    if (error instanceof DriverFailure) return error.message;
    throw error;
  }
}

void t.test("vdi_create: XAPI has the disk, with what the user said, before the answer", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const args = [
    String(GIB + 1n),
    "data <&> \u{1f4be}",
    "of Ann",
    "OpaqueRef:NULL",
    "false",
    "19700101T00:00:00Z",
    "",
    "false",
  ];
  const uuid = await h1.uuid("vdi_create", { args, vdiType: "system", vdiSmConfig: { type: "raw" } });
  t.match(world.record(uuid), {
    uuid,
    location: uuid,
    name_label: "data <&> \u{1f4be}",
    name_description: "of Ann",
    SR: world.srRef,
    type: "system",
    virtual_size: String(GIB + 4096n),
    physical_utilisation: "8192",
    read_only: false,
    sharable: false,
    managed: true,
    is_a_snapshot: false,
    snapshot_of: "OpaqueRef:NULL",
    snapshot_time: "19700101T00:00:00Z",
    metadata_of_pool: "OpaqueRef:NULL",
    cbt_enabled: false,
    sm_config: { type: "raw" },
  });
  t.equal(world.store.disk(uuid).settled, true);
  const sr = world.xapi.record(world.srRef);
  t.equal(sr.get("virtual_allocation"), String(GIB + 4096n), "the SR's sizes are prompt");
  t.equal(sr.get("physical_size"), String(1n << 40n));
  t.strictSame(world.differences(), []);
  t.ok(
    world.xapi.requests.every(({ subtaskOf }) => subtaskOf === "OpaqueRef:task"),
    "all of it is a part of XAPI's task",
  );

  // A snapshot that XAPI copies from another SR comes as a disk of its own.
  const of = world.xapi.vdiRef(uuid);
  const copy = ["4096", "copy", "", "OpaqueRef:NULL", "true", "20261122T21:40:00Z", of, "true"];
  const snapshot = await h1.uuid("vdi_create", { args: copy, vdiType: "user" });
  t.match(world.record(snapshot), {
    is_a_snapshot: true,
    snapshot_of: of,
    snapshot_time: "20261122T21:40:00Z",
    read_only: true,
  });

  // The pool's metadata backup is found by its uuid: asked again it is the same.
  const vdiUuid = "0a0b0c0d-0000-4000-8000-00000000000a";
  for (const _ of ["first", "again"])
    t.equal(await h1.create(GIB, "backup", { vdiUuid, vdiRef: "" }), vdiUuid);
  t.strictSame(world.differences(), []);
});

void t.test(
  "vdi_create: what can't be made is refused with a number and a remedy, and nothing stays",
  async (t) => {
    const world = await World.start(t);
    const h1 = world.host(0);
    const statefile = { vdiType: "ha_statefile", vdiSmConfig: { type: "raw" } };
    t.match(await fault(h1.create(GIB, "ha", statefile)), /^78: .*one writer.*opterr=use another shared SR/);
    t.match(await fault(h1.create("many")), /^143: vdi_create: the virtual size "many" is no number/);
    t.match(await fault(h1.create("-1")), /^143: /);
    t.match(await fault(h1.create("0")), /^79: E-VOL-02 /);
    t.match(
      await fault(h1.uuid("vdi_create", { args: ["4096", "short"] })),
      /^143: vdi_create has no argument/,
    );
    const args = ["4096", "", "", "OpaqueRef:NULL", "perhaps", "19700101T00:00:00Z", "", "false"];
    t.match(await fault(h1.uuid("vdi_create", { args })), /^143: .*is_a_snapshot is "perhaps"/);
    const odd = ["4096", "", "", "OpaqueRef:NULL", "false", "yesterday", "", "false"];
    t.match(await fault(h1.uuid("vdi_create", { args: odd })), /^143: "yesterday" is no moment/);
    t.equal(world.store.disks.size, 0);

    // The store is away; XAPI is away when it is to be told.
    world.store.refuses = { code: "E-STORE-01", message: "The store does not answer.", status: 503 };
    t.match(await fault(h1.create(GIB)), /^47: E-STORE-01 The store does not answer/);
    world.store.refuses = null;
    const { intercept } = world.xapi;
    world.xapi.intercept = async ({ method }) => {
      if (method === "VDI.db_introduce") throw new Error("XAPI restarts");
    };
    t.match(await fault(h1.create(GIB)), /^153: XAPI did not answer VDI.db_introduce/);
    world.xapi.intercept = intercept;
    t.equal(world.store.disks.size, 0, "what XAPI could not be told of is gone");
    t.strictSame(world.differences(), []);
  },
);

void t.test("vdi_create: names, sm_config and sizes as people and XAPI give them", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const create = async (fields: { readonly [at: number]: string }, call = {}): Promise<string> => {
    const args = ["4096", "disk", "", "OpaqueRef:NULL", "false", "19700101T00:00:00Z", "", "false"];
    return h1.uuid("vdi_create", {
      args: args.map((one, at) => fields[at] ?? one),
      vdiType: "user",
      ...call,
    });
  };

  // XAPI has all of a text, the store as much as it keeps; a scan takes nothing of it back.
  const names = ["two\nlines\tand 'quotes' \"double\" <&>", "\u{1f4be}".repeat(3), "x".repeat(10_000), ""];
  const blob = Buffer.alloc(6000, "weft").toString("base64");
  const many = Object.fromEntries(Array.from({ length: 100 }, (_, n) => [`key-${n}`, `value ${n}`]));
  const huge = { ...many, huge: "y".repeat(40_000) };
  for (const name of names) {
    const uuid = await create({ 1: name, 2: name.repeat(2) }, { vdiSmConfig: { blob, ...many } });
    const whole = { name_label: name, name_description: name.repeat(2), sm_config: { blob, ...many } };
    t.match(world.record(uuid), whole);
    t.equal(world.store.disk(uuid).label, name.slice(0, 1024));
    t.strictSame(world.store.disk(uuid).smConfig, { blob, ...many });
    await h1.call("vdi_update", { vdiUuid: uuid });
    await h1.call("sr_scan");
    t.match(world.record(uuid), whole);
  }
  const uuid = await create({}, { vdiSmConfig: huge });
  t.strictSame(world.record(uuid)["sm_config"], huge);
  t.strictSame(world.store.disk(uuid).smConfig, many, "what is too large is XAPI's alone");
  h1.steps.begin(null);
  await h1.call("vdi_update", { vdiUuid: uuid });
  t.notOk(h1.steps.done.some((step) => step.startsWith("PATCH")));

  t.match(world.record(await create({ 0: "1" })), { virtual_size: "4096" });
  for (const [size, number] of [
    ["0", /^79: /],
    ["-1", /^143: /],
    ["1e9", /^143: /],
    ["0x1000", /^143: /],
    [" 4096", /^143: /],
    ["", /^143: /],
    ["4096.0", /^143: /],
    ["99999999999999999999", /^143: /],
  ] as const)
    t.match(await fault(create({ 0: size })), number, `size "${size}"`);

  const pool = world.xapi.add("pool", {});
  t.match(world.record(await create({ 3: pool })), { metadata_of_pool: pool });
  const readOnly = await create({ 7: "true" });
  t.match(world.record(readOnly), { read_only: true });
  t.match(await fault(h1.plug(readOnly)), /^46: .*read-only.*mode=RO/);
  await h1.plug(readOnly, false);
  t.strictSame(world.differences(), []);
  t.strictSame(world.xapi.violations, []);
});

void t.test("vdi_snapshot, vdi_clone: of snapshots, of clones, of what VMs share", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const uuid = await h1.create(GIB, "root");
  await h1.start(uuid);
  world.write(0, uuid, "monday");
  const snapshot = await h1.copy("vdi_snapshot", uuid);
  world.write(0, uuid, "tuesday");

  const again = await h1.copy("vdi_snapshot", snapshot);
  t.match(world.record(again), { is_a_snapshot: true, snapshot_of: world.xapi.vdiRef(snapshot) });
  t.match(world.store.disk(again), {
    isSnapshot: true,
    snapshotOf: snapshot,
    content: "monday",
    settled: true,
  });
  await h1.call("vdi_delete", { vdiUuid: snapshot });
  const clone = await h1.copy("vdi_clone", await h1.copy("vdi_clone", again));
  t.match(world.record(clone), { is_a_snapshot: false, snapshot_of: "OpaqueRef:NULL", read_only: false });
  await h1.start(clone);
  t.equal(world.store.disk(clone).content, "monday");
  h1.steps.begin(null);
  await h1.call("sr_scan");
  t.notOk(
    h1.steps.done.some((step) => step.startsWith("PATCH") || step.startsWith("VDI.set_")),
    "a scan has nothing to add",
  );

  world.xapi.set(world.xapi.vdiRef(uuid), "sharable", true);
  await h1.call("vdi_update", { vdiUuid: uuid });
  t.match(await fault(h1.uuid("vdi_snapshot", { vdiUuid: uuid, driverParams: {} })), /^82: .*sharable/);
  t.strictSame(world.differences(), []);
});

void t.test("vdi_delete: the disk and XAPI's record go; what is gone already is no error", async (t) => {
  const world = await World.start(t, 2);
  const [h1, h2] = [world.host(0), world.host(1)];
  const uuid = await h1.create(GIB);
  await h2.plug(uuid);
  t.match(await fault(h1.call("vdi_delete", { vdiUuid: uuid })), /^24: E-VOL-12 /);
  t.ok(world.knows(uuid));
  await h2.unplug(uuid);
  await h1.call("vdi_delete", { vdiUuid: uuid });
  t.notOk(world.knows(uuid));
  t.equal(world.store.disks.size, 0);
  t.equal(world.xapi.record(world.srRef).get("virtual_allocation"), "0");

  const lost = await h1.create(GIB);
  world.store.disks.delete(lost);
  await h1.call("vdi_delete", { vdiUuid: lost });
  t.notOk(world.knows(lost), "a record without a volume goes");

  // Not when the store doesn't say that it is gone.
  const kept = await h1.create(GIB);
  world.store.refuses = { code: "E-STORE-01", message: "The store does not answer.", status: 503 };
  t.match(await fault(h1.call("vdi_delete", { vdiUuid: kept })), /^47: /);
  t.ok(world.knows(kept));
});

void t.test("vdi_introduce: a volume that was made elsewhere becomes a disk by its id", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const id = "d15c0000-0000-4000-8000-000000000001";
  world.store.elsewhere.set(id, GIB);
  const asked = { newUuid: id, vdiLocation: id, vdiSmConfig: { note: "by hand" } };
  for (const _ of ["first", "again"]) {
    t.equal(await h1.uuid("vdi_introduce", asked), id);
    t.match(world.record(id), { virtual_size: String(GIB), name_label: "made-elsewhere" });
  }
  t.strictSame(world.store.disk(id).smConfig, { note: "by hand" });
  t.strictSame(world.differences(), []);
  const other = { ...asked, newUuid: "d15c0000-0000-4000-8000-000000000002" };
  t.match(await fault(h1.uuid("vdi_introduce", other)), /^143: .*by its id.*opterr=weft volume list/);
  const unknown = { newUuid: other.newUuid, vdiLocation: other.newUuid };
  t.match(await fault(h1.uuid("vdi_introduce", unknown)), /E-VOL-03/);
});

void t.test("vdi_update: the store follows XAPI's names and flags, and nothing that passes", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const uuid = await h1.create(GIB, "old");
  const ref = world.xapi.vdiRef(uuid);
  const update = async (): Promise<void> => void (await h1.call("vdi_update", { vdiUuid: uuid }));
  world.xapi.set(ref, "name_label", "new");
  world.xapi.set(ref, "name_description", "x".repeat(5000));
  world.xapi.set(ref, "managed", false);
  world.xapi.set(ref, "sharable", true);
  world.xapi.set(ref, "type", "ephemeral");
  const passing = { "host_OpaqueRef:1": "RW", "read-caching-enabled-on-1": "false", paused: "true" };
  world.xapi.set(ref, "sm_config", { base_mirror: "a/b", ...passing });
  await update();
  t.match(world.store.disk(uuid), { label: "new", managed: false, sharable: true, type: "ephemeral" });
  t.equal(world.store.disk(uuid).description.length, 4096, "as much of it as fits");
  t.strictSame(world.store.disk(uuid).smConfig, { base_mirror: "a/b" });

  // Asked again with nothing new nothing is written; and before the data is gone the type stays.
  world.xapi.set(ref, "type", "cbt_metadata");
  h1.steps.begin(null);
  await update();
  t.notOk(h1.steps.done.some((step) => step.startsWith("PATCH")));
  t.equal(world.store.disk(uuid).type, "ephemeral");

  world.store.disks.delete(uuid);
  t.match(await fault(update()), /^144: E-VDI-01 /);
});

void t.test(
  "vdi_snapshot, vdi_clone: new disks with what XAPI shows of them, also under a guest",
  async (t) => {
    const world = await World.start(t, 2);
    const [h1, h2] = [world.host(0), world.host(1)];
    const uuid = await h1.create(GIB, "root");
    await h1.call("vdi_enable_cbt", { vdiUuid: uuid });
    await h2.start(uuid);
    world.write(1, uuid, "monday");

    // The master takes it, the guest is elsewhere.
    const snapshot = await h1.copy("vdi_snapshot", uuid);
    world.write(1, uuid, "tuesday");
    t.match(world.record(snapshot), {
      name_label: "root",
      is_a_snapshot: true,
      snapshot_of: world.xapi.vdiRef(uuid),
      snapshot_time: /^20\d{6}T/,
      virtual_size: String(GIB),
      cbt_enabled: true,
      read_only: false,
    });
    t.equal(world.store.disk(snapshot).snapshotOf, uuid);

    const clone = await h1.copy("vdi_clone", snapshot);
    t.match(world.record(clone), {
      name_label: "root",
      is_a_snapshot: false,
      snapshot_of: "OpaqueRef:NULL",
      read_only: false,
    });
    await h1.start(clone);
    t.equal(world.store.disk(clone).content, "monday");
    world.write(0, clone, "another monday");
    t.equal(world.store.disk(snapshot).content, "monday");
    t.match(
      await fault(h1.call("vdi_attach", { vdiUuid: snapshot, args: ["true"] })),
      /^46: .*is a snapshot.*xe vdi-clone/,
    );
    await h1.plug(snapshot, false);
    await h2.plug(snapshot, false);

    t.strictSame(world.differences(), []);
  },
);

void t.test(
  "vdi_revert: the disk is as the snapshot was, in place and by XAPI's clone and delete",
  async (t) => {
    const world = await World.start(t);
    const h1 = world.host(0);
    const uuid = await h1.create(GIB);
    await h1.start(uuid);
    world.write(0, uuid, "good");
    const snapshot = await h1.copy("vdi_snapshot", uuid);
    world.write(0, uuid, "bad");
    const args = [world.xapi.vdiRef(uuid)];
    t.match(await fault(h1.call("vdi_revert", { vdiUuid: snapshot, args })), /^24: /);
    await h1.stop(uuid);
    await h1.call("vdi_revert", { vdiUuid: snapshot, args });
    t.equal(world.store.disk(uuid).content, "good");
    t.match(await fault(h1.call("vdi_revert", { vdiUuid: snapshot, args: ["OpaqueRef:NULL"] })), /^143: /);

    const again = await h1.copy("vdi_clone", snapshot);
    await h1.call("vdi_delete", { vdiUuid: uuid });
    t.equal(world.store.disk(again).content, "good");
    t.ok(world.knows(snapshot), "the snapshot outlives its disk");
  },
);

void t.test("vdi_resize: XAPI and a guest's device have the new size before the answer", async (t) => {
  const world = await World.start(t, 2);
  const [h1, h2] = [world.host(0), world.host(1)];
  const uuid = await h1.create(GIB);
  const resize = async (size: bigint | string, command = "vdi_resize"): Promise<string> =>
    h1.uuid(command, { vdiUuid: uuid, args: [String(size)] });
  t.equal(await resize(2n * GIB - 1n), uuid);
  t.equal(world.record(uuid)["virtual_size"], String(2n * GIB), "made whole blocks of, upwards");
  t.equal(await resize(2n * GIB - 1n), uuid, "XAPI repeats it");
  await h1.start(uuid);
  await resize(3n * GIB, "vdi_resize_online");
  t.equal(h1.datapath.active.get(uuid)?.size, 3n * GIB);
  await resize(3n * GIB);

  // A device that can't be told is told later, by its host's agent; where nobody has the disk nobody is asked.
  h1.datapath.isSilent = true;
  await resize(4n * GIB);
  t.match(world.warnings.pop(), /its guest's device is told later .*its holder doesn't answer/);
  await h1.stop(uuid);
  await resize(5n * GIB);
  t.strictSame(world.warnings, []);
  h1.datapath.isSilent = false;
  await h2.start(uuid);
  t.equal(h2.datapath.active.get(uuid)?.size, 5n * GIB);
  await resize(5n * GIB);
  t.match(await fault(resize(GIB)), /^79: .*can't shrink/);
  t.match(await fault(resize("1e9")), /^143: /);
  t.equal(world.record(uuid)["virtual_size"], String(5n * GIB));
  t.strictSame(world.differences(), []);
});

void t.test("changed blocks: what a backup by XAPI asks for", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const uuid = await h1.create(GIB);
  const cbt = (command: string, vdiUuid: string, args: readonly string[] = []): Promise<unknown> =>
    h1.call(command, { vdiUuid, args });
  for (const _ of ["first", "again"]) await cbt("vdi_enable_cbt", uuid);
  await h1.start(uuid);
  world.write(0, uuid, "aaaa");
  const one = await h1.copy("vdi_snapshot", uuid);
  world.write(0, uuid, "abaab");
  const two = await h1.copy("vdi_snapshot", uuid);
  world.xapi.set(world.xapi.vdiRef(one), "type", "cbt_metadata");
  for (const _ of ["first", "again"]) await cbt("vdi_data_destroy", one);
  t.match(world.store.disk(one), { dataDestroyed: true, type: "cbt_metadata" });
  t.equal(world.record(one)["physical_utilisation"], "0");

  const bitmap = Buffer.from(
    String(await cbt("vdi_list_changed_blocks", one, [world.xapi.vdiRef(two)])),
    "base64",
  );
  t.equal(bitmap.length, Number(GIB / 65536n / 8n), "all of the disk");
  t.equal(bitmap[0], 0b0100_1000, "the highest bit is the first block");
  t.match(await fault(cbt("vdi_list_changed_blocks", one, ["OpaqueRef:none"])), /^144: /);
  t.match(await fault(cbt("vdi_list_changed_blocks", one)), /^143: /);

  t.match(await fault(cbt("vdi_data_destroy", uuid)), /^460: .*it is no snapshot/);
  await cbt("vdi_disable_cbt", uuid);
  t.equal(world.store.disk(uuid).cbt, false);
  const plain = await h1.copy("vdi_snapshot", uuid);
  t.match(await fault(cbt("vdi_data_destroy", plain)), /^460: .*not tracked/);
  t.match(await fault(h1.call("vdi_attach", { vdiUuid: one, args: ["false"] })), /^46: .*was destroyed/);
});
