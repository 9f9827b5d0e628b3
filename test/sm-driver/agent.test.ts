/**
 * The same commands on real agents with a real store: a VM's disk on two hosts, in XAPI's order of calls. What is on the disks is
 * the daemon's matter, which is a double here.
 */
import { join } from "node:path";

import t from "tap";

import { startCluster } from "../core/agent/test-host.ts";
import { MIB, Pool } from "./lib/world.ts";

const GIB = 1024n * MIB;

void t.test("driver: a disk's life on two hosts, as XAPI orders the calls", async (t) => {
  const [first, second] = await startCluster(t, 2, 231);
  if (first === undefined || second === undefined) throw new Error("two hosts");
  const pool = await Pool.of(
    t,
    [first, second].map(({ directory }) => join(directory, "run", "agent.sock")),
  );
  const { srUuid, xapi } = pool;
  await first.client.createSr({ uuid: srUuid, label: "replicated", copies: 2 });
  for (const [n, { client }] of [first, second].entries()) await client.setXapiHost(pool.host(n).host.uuid);
  const [h1, h2] = [pool.host(0), pool.host(1)];

  const uuid = await h1.create(GIB - 1n, "root \u{1f4be}", { vdiSmConfig: { type: "raw" } });
  t.match(pool.record(uuid), { name_label: "root \u{1f4be}", virtual_size: String(GIB), location: uuid });
  t.match(await second.client.vdi(uuid), {
    settled: true,
    whole: true,
    volume: uuid,
    smConfig: { type: "raw" },
  });
  t.match(await second.client.volume(uuid), { name: `vdi-${uuid}`, copies: 2 });

  // More than a volume can have; and an SR of a size, which is that of its pools all the same.
  await t.rejects(h1.create(1n << 63n), { code: 79, message: /E-VOL-02/ });
  pool.warnings.length = 0;
  await h1.call("sr_create", { args: [String(100n * GIB)], deviceConfig: { copies: "2" } });

  // It starts on the second host, while the first one is the master.
  await h2.start(uuid);
  t.match(await first.client.vdi(uuid), { openOn: { name: second.name } });
  t.match(h2.datapath.active.get(uuid), { writable: true, size: GIB });
  xapi.set(xapi.vdiRef(uuid), "name_label", "renamed");
  await h1.call("vdi_update", { vdiUuid: uuid });
  await h1.call("vdi_enable_cbt", { vdiUuid: uuid });
  const snapshot = await h1.copy("vdi_snapshot", uuid);
  t.match(pool.record(snapshot), {
    is_a_snapshot: true,
    name_label: "renamed",
    snapshot_of: xapi.vdiRef(uuid),
  });
  t.match(await first.client.vdi(snapshot), { snapshotOf: uuid, cbt: true, isSnapshot: true, settled: true });
  t.equal(await h1.uuid("vdi_resize_online", { vdiUuid: uuid, args: [String(2n * GIB)] }), uuid);
  t.match(pool.record(uuid), { virtual_size: String(2n * GIB) });

  // It migrates to the first one.
  await h1.call("vdi_attach", { vdiUuid: uuid, args: ["true"] });
  await h2.call("vdi_deactivate", { vdiUuid: uuid });
  await h1.call("vdi_activate", { vdiUuid: uuid, args: ["true"] });
  await h2.call("vdi_detach", { vdiUuid: uuid });
  t.match(await second.client.vdi(uuid), { openOn: { name: first.name } });
  await h1.stop(uuid);
  t.equal((await first.client.vdi(uuid)).openOn, null);

  // Back to the snapshot, as XAPI reverts a VM; then the snapshot outlives what it was taken of.
  const back = await h1.copy("vdi_clone", snapshot);
  t.match(pool.record(back), { virtual_size: String(GIB), is_a_snapshot: false, read_only: false });
  await h2.start(back);
  await h2.stop(back);

  // A disk that is reset on boot: marked at its first boot, gone back to at the second.
  await h1.start(back, "reset");
  await h1.stop(back);
  await h1.start(back, "reset");
  await h1.stop(back);
  await h1.start(back);
  await h1.stop(back);

  first.weftd.changes.set(snapshot, { exact: true, blocks: [0, 9] });
  second.weftd.changes.set(snapshot, { exact: true, blocks: [0, 9] });
  await h2.start(uuid);
  const later = await h1.copy("vdi_snapshot", uuid);
  const changed = await h1.call("vdi_list_changed_blocks", { vdiUuid: snapshot, args: [xapi.vdiRef(later)] });
  if (typeof changed !== "string") throw new Error("a bitmap in base64");
  const bitmap = Buffer.from(changed, "base64");
  t.equal(bitmap.length, Number((2n * GIB) / 65536n / 8n));
  t.match([bitmap[0], bitmap[1]], [0b1000_0000, 0b0100_0000]);
  await h1.call("vdi_data_destroy", { vdiUuid: later });
  t.match(await first.client.vdi(later), { dataDestroyed: true, type: "cbt_metadata" });
  await h2.stop(uuid);

  const sr = await first.client.vdis(srUuid);
  t.strictSame(
    sr.vdis.map((vdi) => vdi.uuid).toSorted(),
    xapi
      .vdis(pool.srRef)
      .map((record) => String(record.get("uuid")))
      .toSorted(),
    "the store and XAPI have the same disks",
  );
  t.ok(sr.vdis.every(({ settled }) => settled));
  for (const each of [later, snapshot, back, uuid]) await h1.call("vdi_delete", { vdiUuid: each });
  t.equal(xapi.vdis(pool.srRef).length, 0);
  await first.client.deleteSr(srUuid);
  t.strictSame(pool.warnings, []);
});
