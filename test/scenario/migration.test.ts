/**
 * Plot: the disk of a running VM is moved to another storage repository while the guest writes single sectors, on real hosts and in
 * XAPI's order of calls: the one is made of what was copied and of what was written meanwhile, which may be one sector of a block.
 */
import t from "tap";

import { PoolHosts } from "../lives/hosts.ts";
import { Migration } from "../sm-driver/lib/migration.ts";
import { SectorGuest } from "../sm-driver/lib/sector-guest.ts";

const isRoot = process.getuid?.() === 0;
const SIZE = 1 << 20;

await t.test(
  "migration: a running VM's disk comes to another SR, sector by sector as its guest left it",
  { skip: isRoot ? false : "only root can mount file systems for pools" },
  async (t) => {
    const hosts = await PoolHosts.up({ pools: ["h1", "h2"], xfsBytes: 2 ** 30, hasIoUring: true });
    try {
      const { pool } = hosts;
      const [master, source, destination] = [pool.host(0), pool.host(2), pool.host(1)];
      const other = pool.addSr();
      const deviceConfig = { copies: "2" };
      for (const sr of [pool.srOf(undefined), other]) {
        await master.call("sr_create", { sr, args: ["0"], deviceConfig });
        for (const host of pool.hosts) await host.call("sr_attach", { sr, deviceConfig });
      }
      // They do this by and by.
      for (const [n, { host }] of pool.hosts.entries())
        await hosts.host(n).cluster.agent().setXapiHost(host.uuid);

      const uuid = await master.create(BigInt(SIZE), "root");
      await source.start(uuid);
      const guest = new SectorGuest(SIZE);
      await guest.resume(source, uuid);
      await guest.write(300);
      const migration = new Migration(
        pool,
        uuid,
        { host: source, master },
        { host: destination, master, sr: other },
      );
      await migration.start(null, () => guest.write(200));
      await guest.write(100);
      t.ok(await guest.sees(), "it reads its own disk while it is mirrored");
      guest.suspend();
      const begun = performance.now();
      await migration.finish();
      t.comment(`from suspension until it can go on: ${Math.round(performance.now() - begun)} ms`);
      t.strictSame(migration.ignored, []);

      const { leaf } = migration;
      await destination.start(leaf);
      await guest.resume(destination, leaf);
      t.ok(await guest.sees(), "all of it is there, and nothing else");
      await guest.write(50);
      const snapshot = await master.copy("vdi_snapshot", leaf);
      t.ok(await guest.sees());
      guest.suspend();
      await destination.stop(leaf);

      const known = pool.xapi.vdis(other.ref).map((record) => record.get("uuid"));
      const { vdis } = await hosts.host(2).cluster.agent().vdis(other.uuid);
      t.same(new Set(known), new Set([leaf, snapshot]));
      t.same(new Set(vdis.map((vdi) => vdi.uuid)), new Set([leaf, snapshot]), "nothing else is left");
      await master.call("vdi_delete", { vdiUuid: snapshot });
      await master.call("vdi_delete", { vdiUuid: leaf });
      t.strictSame(pool.xapi.violations, []);
    } catch (error) {
      console.error(hosts.logs(40));
      throw error;
    } finally {
      await hosts.down();
    }
  },
);
