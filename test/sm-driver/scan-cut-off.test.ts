/**
 * Plot: XAPI and the store differ in all that they can differ in, and the host that scans dies before each thing that it does. After
 * XAPI's next try both are as after an undisturbed scan, at no moment was a record forgotten of what the store has, and nothing was
 * thrown away that holds something.
 */
import t from "tap";

import { MIB, World } from "./lib/world.ts";

const LONG_AGO = new Date(0).toISOString();

type Plot = { readonly world: World; readonly kept: string; readonly held: string; readonly gone: string };

async function differing(t: { readonly teardown: (fn: () => Promise<void>) => void }): Promise<Plot> {
  const world = await World.start(t);
  const h1 = world.host(0);
  const { store, xapi } = world;
  const kept = await h1.create(64n * MIB, "kept");
  const snapshot = await h1.copy("vdi_snapshot", kept);
  const lost = await h1.create(64n * MIB, "lost by XAPI");
  const gone = await h1.create(64n * MIB, "gone from the store");
  const empty = await h1.create(64n * MIB, "left empty");
  const held = await h1.create(64n * MIB, "left with data");
  const named = await h1.create(64n * MIB, "made, not settled");
  for (const uuid of [snapshot, lost, empty, held]) xapi.forget(xapi.vdiRef(uuid));
  store.disks.delete(gone);
  for (const uuid of [empty, held]) Object.assign(store.disk(uuid), { settled: false, createdAt: LONG_AGO });
  store.disk(named).settled = false;
  Object.assign(store.disk(held), { physicalUtilisation: 4096n, untouched: false });
  store.disk(kept).size = 128n * MIB;
  xapi.set(xapi.vdiRef(kept), "name_label", "renamed");
  xapi.set(world.srRef, "name_label", "another name");
  xapi.set(world.srRef, "other_config", { dirty: "" });
  return { world, kept, held, gone };
}

/** What can be seen, but for what is new in each world. */
function seen({ world, gone }: Plot): object {
  const { store, xapi, srRef, srUuid } = world;
  const records = xapi.vdis(srRef);
  return {
    labels: new Set(records.map((record) => record.get("name_label"))),
    sizes: new Set(records.map((record) => record.get("virtual_size"))),
    snapshots: records.filter((record) => record.get("is_a_snapshot") === true).length,
    stored: new Set([...store.disks.values()].map(({ label, settled }) => `${label} ${settled}`)),
    sr: store.srs.get(srUuid)?.label,
    dirty: xapi.record(srRef).get("other_config"),
    knowsGone: world.knows(gone),
    differences: world.differences(),
  };
}

await t.test("scan: killed anywhere and tried again, it ends as an undisturbed one", async (t) => {
  let undisturbed: object | null = null;
  let steps = 0;
  for (let end = 0; end === 0 || end <= steps + 1; end += 1) {
    const plot = await differing(t);
    const { world, kept, held } = plot;
    const h1 = world.host(0);
    h1.steps.begin(end === 0 ? null : end);
    await h1.call("sr_scan").catch(() => null);
    if (end === 0) steps = h1.steps.done.length;
    h1.steps.begin(null);
    t.ok(world.knows(kept), "what the store has is not forgotten");
    t.equal(world.store.disks.has(held), true, "what holds something is not thrown away");
    await h1.call("sr_scan");
    undisturbed ??= seen(plot);
    t.strictSame(seen(plot), undisturbed, `ended before step ${end} of ${steps}`);
    // XAPI repeats a scan that changed which VDIs there are: this one changes nothing.
    const before = world.xapi.vdis(world.srRef).length;
    await h1.call("sr_scan");
    t.equal(world.xapi.vdis(world.srRef).length, before);
  }
  t.match(undisturbed, { sr: "another name", dirty: {}, knowsGone: false, differences: [] });
  t.ok(steps > 15, `a scan has ${steps} steps here`);
});

const plainRecord = {
  name_label: "x",
  name_description: "",
  type: "user",
  sharable: false,
  read_only: false,
  managed: true,
  virtual_size: "1",
  physical_utilisation: "1",
  is_a_snapshot: false,
  snapshot_of: "OpaqueRef:NULL",
  cbt_enabled: false,
  sm_config: {},
};

await t.test("scan: one VDI that XAPI does not take leaves the others scanned", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const [bad, good] = [await h1.create(64n * MIB, "bad"), await h1.create(64n * MIB, "good")];
  for (const uuid of [bad, good]) world.xapi.forget(world.xapi.vdiRef(uuid));
  // A record of another SR has the uuid, and XAPI refuses a second one.
  const other = world.xapi.addSr("8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f01");
  world.xapi.add("VDI", { uuid: bad, SR: other, location: "elsewhere", ...plainRecord });
  await h1.call("sr_scan");
  t.equal(world.knows(good), true);
  t.match(world.warnings.join(), /left out a VDI/);
});

await t.test("scan: what it asks for does not grow with the disks, where nothing differs", async (t) => {
  const asked: number[] = [];
  for (const count of [3, 60]) {
    const world = await World.start(t);
    const h1 = world.host(0);
    for (let i = 0; i < count; i += 1) await h1.create(MIB, `disk ${i}`);
    h1.steps.begin(null);
    await h1.call("sr_scan");
    asked.push(h1.steps.done.length);
  }
  const [few = 0, many = 0] = asked;
  t.equal(many, few);
  t.ok(many < 12, `it asks for ${many} things`);
});

await t.test("scan: while the store can't be read nothing of XAPI's is touched", async (t) => {
  const { world } = await differing(t);
  world.store.refuses = { code: "E-STORE-01", message: "no majority", status: 503 };
  const before = world.xapi.vdis(world.srRef).map((record) => [...record]);
  await t.rejects(world.host(0).call("sr_scan"), { code: 47 });
  t.strictSame(
    world.xapi.vdis(world.srRef).map((record) => [...record]),
    before,
  );
});
