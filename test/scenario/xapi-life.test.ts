/**
 * Plot: a VM's disk in XAPI's order of calls, on real hosts, with a guest that writes all the time and remembers what it was
 * told is done: start, snapshot, growth, weftd killed and started again, the holder replaced, boots that reset, reverts, live migration, once with a
 * target that fails, the end of its host and the take-over by XAPI's word, and a power cut of the whole pool. Meanwhile another host
 * wants the disk and is told who has it, and fifty other disks start at once on all hosts. All of the way is there: the program that
 * XAPI runs, the agent, weftd, the holder, and a double of tapdisk, whose end the guest has. The hosts have no io_uring, as dom0's
 * kernel has none.
 */
import { rename, writeFile } from "node:fs/promises";
import { join } from "node:path";

import t from "tap";

import { until } from "../../scripts/lib/until.ts";
import { BLOCK, type Content } from "../lives/content.ts";
import { Guest, Numbers, numbersOn } from "../lives/guest.ts";
import { DEVICE_CONFIG, type PoolHost, PoolHosts } from "../lives/hosts.ts";
import { DriverFailure } from "../sm-driver/lib/client.ts";
import { MIB } from "../sm-driver/lib/world.ts";
import { Disk } from "./nbd.ts";

const isRoot = process.getuid?.() === 0;
/** Of all guests. */
const numbers = new Numbers();
const FIFTY = 50;
/** A guest's source asks nobody for longer: less than the half minute in which a new session counts as connected. */
const BACK_MS = 15_000;
/** XAPI's mutex for all storage repositories of a host is held meanwhile. */
const SR_ATTACH_MS = 10_000;

async function reads(host: PoolHost, uuid: string): Promise<readonly number[]> {
  await host.sm.plug(uuid, false);
  const numbers = await numbersOn(host.pathOf(uuid));
  await host.sm.unplug(uuid);
  return numbers;
}

/** Writes a moment, through a boot of its own. */
async function lives(host: PoolHost, uuid: string, content: Content): Promise<Guest> {
  const guest = new Guest(numbers);
  guest.content = content;
  await host.sm.start(uuid);
  await guest.resume(host.pathOf(uuid));
  await until(() => (guest.written >= 20 ? true : null), { what: "some writes", deadlineMs: 20_000 });
  await guest.suspend();
  await host.sm.stop(uuid);
  return guest;
}

async function refusal(work: Promise<unknown>): Promise<DriverFailure | null> {
  try {
    await work;
    return null;
  } catch (error) {
    if (error instanceof DriverFailure) return error;
    throw error;
  }
}

/** Its tap-ctl fails as long as `work` takes. */
async function withoutTapdisk<T>({ root }: PoolHost, work: () => Promise<T>): Promise<T> {
  const program = join(root, "usr/sbin/tap-ctl");
  await rename(program, `${program}.kept`);
  await writeFile(program, `#!/bin/sh\n[ "$1" = create ] && exit 5\nexec "$0.kept" "$@"\n`, { mode: 0o755 });
  try {
    return await work();
  } finally {
    await rename(`${program}.kept`, program);
  }
}

await t.test(
  "xapi: a VM's disk through a killed weftd, boots that reset, reverts, migration, and the loss of its host",
  { skip: isRoot ? false : "only root can mount file systems for pools" },
  async (t) => {
    const staged = await PoolHosts.up({ pools: ["h1", "h2"], xfsBytes: 2 ** 30, hasIoUring: false });
    t.teardown(() => staged.down());
    t.teardown(() => (t.passing() ? undefined : t.comment(staged.logs(40))));
    const { cluster, pool } = staged;
    const [h1, h2, h3] = [staged.host(0), staged.host(1), staged.host(2)];
    const begun = performance.now();
    const at = (what: string): void => t.comment(`${Math.round(performance.now() - begun)} ms: ${what}`);
    t.equal((await h1.cluster.ask("hello", {})).driver, "libaio", "the kernel has no io_uring");
    await h1.sm.call("sr_create", { args: ["0"], deviceConfig: DEVICE_CONFIG });
    for (const { sm, cluster: host } of staged.hosts) {
      await sm.call("sr_attach", { deviceConfig: DEVICE_CONFIG });
      // It does this by and by.
      await host.agent().setXapiHost(sm.host.uuid);
    }
    const uuid = await h1.sm.create(64n * MIB, "root");
    at("made");

    const guest = new Guest(numbers);
    await h3.sm.start(uuid);
    await guest.resume(h3.pathOf(uuid));
    at("started");
    const moment = guest.content.record();
    const snapshot = await h1.sm.copy("vdi_snapshot", uuid);
    moment.end();
    const was = await reads(h2, snapshot);
    const taken = moment.at(was);
    t.strictSame(taken.wrong(was), [], "the snapshot is of a moment between");
    at("snapshot");
    // Goes on beside what follows: a host that wants the disk of a guest that lives, also while its tapdisk is paused.
    const wanted = refusal(h2.sm.plug(uuid));
    const goesOn = async (): Promise<unknown> => {
      const { written } = guest;
      const isOn = (): true | null => (guest.written > written + 50 ? true : null);
      return until(isOn, { what: "the guest to go on", deadlineMs: 20_000 });
    };
    // Its tapdisk is asked to take the new size, as every one of today refuses it, and goes on with the one of before.
    await h1.sm.uuid("vdi_resize_online", { vdiUuid: uuid, args: [String(128n * MIB)] });
    t.equal(pool.record(uuid)["virtual_size"], String(128n * MIB));
    await goesOn();
    at("grown");

    // weftd is killed under the guest and started again: the guest waits, and sees no error.
    await h3.cluster.killProgram("weftd");
    await h3.cluster.restartDaemon();
    await goesOn();
    at("weftd killed");

    // The holder is replaced under the guest, whose tapdisk pauses; it knows the size of before the growth.
    const { paused, pausedMs } = await h3.cluster.agent().restartHolder();
    t.equal(paused, 1);
    await goesOn();
    at(`holder replaced, ${pausedMs} ms`);

    // Boots that keep nothing, of a disk that was made of the snapshot on another host.
    const clone = await h1.sm.copy("vdi_clone", snapshot);
    let last = taken.copy();
    for (const _ of ["first", "second"]) {
      const other = new Guest(numbers);
      other.content = taken.copy();
      last = other.content;
      await h2.sm.start(clone, "reset");
      t.strictSame(await numbersOn(h2.pathOf(clone)), was, "a boot begins as the snapshot was");
      await other.resume(h2.pathOf(clone));
      await other.suspend();
      await h2.sm.stop(clone);
    }
    at("booted twice");

    // Then one that keeps what the last one left. VM.revert: a clone of the snapshot takes the disk's place. Then vdi_revert, in place.
    const other = await lives(h2, clone, last);
    const kept = await h1.sm.copy("vdi_snapshot", clone);
    const before = other.content.copy();
    await lives(h3, clone, other.content);
    const reverted = await h1.sm.copy("vdi_clone", kept);
    await h1.sm.call("vdi_delete", { vdiUuid: clone });
    t.notOk(pool.knows(clone));
    t.strictSame(before.wrong(await reads(h3, reverted)), [], "the disk of a reverted VM is as its snapshot");
    const later = await h1.sm.copy("vdi_snapshot", reverted);
    await lives(h1, reverted, before.copy());
    const args = [pool.xapi.vdiRef(reverted)];
    await h1.sm.call("vdi_revert", { vdiUuid: later, args });
    t.strictSame(before.wrong(await reads(h2, reverted)), [], "a disk that was reverted in place");
    t.strictSame(before.wrong(await reads(h3, kept)), [], "a snapshot outlives its disk");
    at("reverted twice");

    // Fifty disks start at once, and stop at once.
    const fifty: { readonly uuid: string; readonly host: PoolHost }[] = [];
    for (let n = 0; n < FIFTY; n += 1)
      fifty.push({ uuid: await h1.sm.create(8n * MIB, `one of ${FIFTY}`), host: staged.host(n % 3) });
    at("fifty made");
    await Promise.all(fifty.map(({ uuid: each, host }) => host.sm.start(each)));
    at("fifty started");
    for (const [n, { uuid: each, host }] of fifty.entries()) {
      using disk = await Disk.open(host.pathOf(each));
      await disk.write(0, Buffer.alloc(BLOCK, n + 1));
    }
    await Promise.all(fifty.map(({ uuid: each, host }) => host.sm.stop(each)));
    at("fifty stopped");
    const some = [0, 17, 34, FIFTY - 1];
    for (const n of some) {
      const { uuid: each } = fifty[n] ?? { uuid: "" };
      await h1.sm.plug(each, false);
      using disk = await Disk.open(h1.pathOf(each));
      t.ok((await disk.read(0, BLOCK)).equals(Buffer.alloc(BLOCK, n + 1)), `disk ${n} has its own data`);
      await h1.sm.unplug(each);
    }

    const refused = await wanted;
    t.equal(refused?.code, 24, "a guest that lives keeps its disk");
    t.match(refused?.text, /^E-VDI-04 h3 has the virtual disk/, "and who has it is named");
    await h2.sm.call("vdi_detach", { vdiUuid: uuid });
    at("refused");

    // Live migration to a host that can't: the source goes on. Then to the same host, which can.
    await h1.sm.attach(uuid);
    await guest.suspend();
    await h3.sm.call("vdi_deactivate", { vdiUuid: uuid });
    const activate = (host: PoolHost): Promise<unknown> =>
      host.sm.call("vdi_activate", { vdiUuid: uuid, args: ["true"] });
    const failed = await withoutTapdisk(h1, () => refusal(activate(h1)));
    t.equal(failed?.code, 453, "the target can't make a device of it");
    const back = performance.now();
    await activate(h3);
    t.ok(performance.now() - back < BACK_MS, "and gives the disk back at once");
    await guest.resume(h3.pathOf(uuid));
    await h1.sm.call("vdi_detach", { vdiUuid: uuid });
    await goesOn();
    at("stayed");
    await h1.sm.attach(uuid);
    await guest.suspend();
    const down = performance.now();
    await h3.sm.call("vdi_deactivate", { vdiUuid: uuid });
    await activate(h1);
    await guest.resume(h1.pathOf(uuid));
    t.comment(`down for ${Math.round(performance.now() - down)} ms`);
    {
      using beyond = await Disk.open(h1.pathOf(uuid));
      const end = await beyond.read(Number(100n * MIB), BLOCK);
      t.ok(end.equals(Buffer.alloc(BLOCK)), "its guest has the new end");
    }
    await h3.sm.call("vdi_detach", { vdiUuid: uuid });
    const atMigration = guest.written;

    // XAPI and the store have the same disks.
    await h1.sm.call("sr_scan");
    const { vdis } = await h2.cluster.agent().vdis(pool.srUuid);
    t.strictSame(
      vdis.map(({ uuid: each, size }) => `${each} ${size}`).toSorted(),
      pool.xapi
        .vdis(pool.srRef)
        .map((record) => `${String(record.get("uuid"))} ${String(record.get("virtual_size"))}`)
        .toSorted(),
    );

    // Its host ends. XAPI says so, and the guest is started elsewhere.
    await h1.kill();
    await guest.die();
    t.ok(guest.written > atMigration, "it has gone on");
    await h2.sm.start(uuid);
    t.strictSame(guest.content.wrong(await numbersOn(h2.pathOf(uuid))), [], "nothing is lost");
    await guest.resume(h2.pathOf(uuid));
    at("taken over");

    // Power goes, and comes back. The first host plugs its SR while the store has no majority, and XAPI, which is starting itself,
    // answers nobody. Guests start when there is a majority.
    await Promise.all([h2.kill(), h3.kill()]);
    await guest.die();
    const plugs = async (host: PoolHost): Promise<void> => {
      await host.boot();
      const asked = performance.now();
      await host.sm.call("sr_attach", { deviceConfig: DEVICE_CONFIG });
      const ms = Math.round(performance.now() - asked);
      t.ok(ms < SR_ATTACH_MS, `${host.name} has plugged it after ${ms} ms`);
    };
    pool.xapi.garble = () => "hang";
    await plugs(h1);
    pool.xapi.garble = null;
    at("one host is up");
    await Promise.all([plugs(h2), plugs(h3)]);
    at("all hosts are up");
    await Promise.all([h3.sm.start(uuid), h1.sm.start(reverted)]);
    t.strictSame(guest.content.wrong(await numbersOn(h3.pathOf(uuid))), [], "nothing is lost with the power");
    t.strictSame(before.wrong(await numbersOn(h1.pathOf(reverted))), []);
    await Promise.all([h3.sm.stop(uuid), h1.sm.stop(reverted)]);
    at("started again");
    t.strictSame(pool.xapi.violations, []);
    t.equal(cluster.hosts.length, 3);
  },
);
