/**
 * Plot: a VM's disk in XAPI's order of calls, on real hosts, with a guest that writes all the time and remembers what it was
 * told is done: start, snapshot, growth, weftd killed and started again, the holder replaced, boots that reset, live migration, the end of its host
 * and the take-over by XAPI's word. All of the way is there: the program that XAPI runs, the agent, weftd, the holder, and a
 * double of tapdisk, whose end the guest has.
 */
import { realpathSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";

import t from "tap";

import { type Services, weftServices } from "../../scripts/cluster/host.ts";
import { until } from "../../scripts/lib/until.ts";
import { stubFor } from "../sm-driver/lib/driver-for-tests.ts";
import { installSystemctl } from "../sm-driver/lib/systemctl.ts";
import { installTapCtl } from "../sm-driver/lib/tap-ctl.ts";
import { MIB, Pool, type SmHost } from "../sm-driver/lib/world.ts";
import { Disk } from "./nbd.ts";
import { MIB as MEBIBYTE, onStage } from "./stage.ts";

const isRoot = process.getuid?.() === 0;
const BLOCK = 4096;
const BLOCKS = 512;

/** Writes numbered blocks, each number once, and knows of each block which number it must have. */
class Guest {
  /** Of each block: the last number that was acknowledged, and the last that was sent. */
  readonly acked = new Map<number, number>();
  readonly sent = new Map<number, number>();
  #next = 1;
  #running: { readonly stop: () => void; readonly ended: Promise<void> } | null = null;

  async resume(path: string): Promise<void> {
    const disk = await Disk.open(path);
    const stop = new AbortController();
    const work = async (): Promise<void> => {
      using it = disk;
      while (!stop.signal.aborted) {
        const number = this.#next;
        this.#next += 1;
        const block = (number * 7919) % BLOCKS;
        this.sent.set(block, number);
        await it.write(block * BLOCK, filled(number));
        this.acked.set(block, number);
      }
    };
    const ended = work();
    // Who waits for it is told; its host may end before anybody does.
    ended.catch(() => undefined);
    this.#running = { stop: () => stop.abort(), ended };
  }

  /** After the write under way. */
  async suspend(): Promise<void> {
    this.#running?.stop();
    await this.#running?.ended;
    this.#running = null;
  }

  /** Its host has ended: what was under way may be done or not. */
  async die(): Promise<void> {
    this.#running?.stop();
    await this.#running?.ended.catch(() => undefined);
    this.#running = null;
  }

  get written(): number {
    return this.#next - 1;
  }
}

function filled(number: number): Buffer {
  const block = Buffer.alloc(BLOCK);
  for (let at = 0; at < BLOCK; at += 4) block.writeUInt32LE(number, at);
  return block;
}

/** The number of each block; -1 for one that is torn. */
async function numbersOn(path: string): Promise<readonly number[]> {
  using disk = await Disk.open(path);
  const numbers: number[] = [];
  for (let block = 0; block < BLOCKS; block += 1) {
    const data = await disk.read(block * BLOCK, BLOCK);
    const number = data.readUInt32LE(0);
    numbers.push(data.equals(filled(number)) ? number : -1);
  }
  return numbers;
}

/** Blocks that lack what was acknowledged, or have what was never sent. */
function wrong(
  numbers: readonly number[],
  acked: ReadonlyMap<number, number>,
  sent: ReadonlyMap<number, number>,
): readonly string[] {
  return numbers.flatMap((found, block) => {
    const [least, most] = [acked.get(block) ?? 0, sent.get(block) ?? 0];
    return found >= least && found <= most ? [] : [`block ${block} has ${found}, not ${least} to ${most}`];
  });
}

/** The guest's end of tapdisk; what XAPI is told is a link to it, too long for a socket's path below a directory of a test. */
function pathOn({ sockets }: SmHost, uuid: string): string {
  return realpathSync(sockets.get(uuid) ?? "");
}

async function reads(host: SmHost, uuid: string): Promise<readonly number[]> {
  await host.plug(uuid, false);
  const numbers = await numbersOn(pathOn(host, uuid));
  await host.unplug(uuid);
  return numbers;
}

await t.test(
  "xapi: a VM's disk through a killed weftd, boots that reset, migration, and the loss of its host",
  { skip: isRoot ? false : "only root can mount file systems for pools" },
  async (t) => {
    // Sockets' paths are short.
    const dir = await mkdtemp("/tmp/wx-");
    t.teardown(() => rm(dir, { recursive: true, force: true }));
    const rootOf = (name: string): string => join(dir, name);
    const xapiSocket = join(dir, "xapi");
    const weft = weftServices();
    const services: Services = {
      ...weft,
      commands: (host) =>
        weftServices(["--xapi-socket", xapiSocket, "--dom0-root", rootOf(host.name)]).commands(host),
    };
    await onStage(
      async ({ cluster }) => {
        const sockets = cluster.hosts.map(({ agentSocket }) => agentSocket);
        const pool = await Pool.of(t, sockets, xapiSocket);
        for (const [n, { name, layout }] of cluster.hosts.entries()) {
          installTapCtl(rootOf(name));
          installSystemctl(rootOf(name), layout.runDir);
          pool.host(n).executable = await stubFor(layout.runDir, rootOf(name));
        }
        const [h1, h2, h3] = [pool.host(0), pool.host(1), pool.host(2)];
        const begun = performance.now();
        const at = (what: string): void => t.comment(`${Math.round(performance.now() - begun)} ms: ${what}`);
        await h1.call("sr_create", { args: ["0"], deviceConfig: { copies: "2" } });
        for (const [n, host] of pool.hosts.entries()) {
          await host.call("sr_attach", { deviceConfig: { copies: "2" } });
          // It does this by and by.
          await cluster.hosts[n]?.agent().setXapiHost(host.host.uuid);
        }
        const uuid = await h1.create(64n * MIB, "root");
        at("made");

        const guest = new Guest();
        await h3.start(uuid);
        await guest.resume(pathOn(h3, uuid));
        at("started");
        const before = new Map(guest.acked);
        const snapshot = await h1.copy("vdi_snapshot", uuid);
        const after = new Map(guest.sent);
        t.strictSame(
          wrong(await reads(h2, snapshot), before, after),
          [],
          "the snapshot is of a moment between",
        );
        at("snapshot");
        const goesOn = async (): Promise<unknown> => {
          const { written } = guest;
          const isOn = (): true | null => (guest.written > written + 50 ? true : null);
          return until(async () => isOn(), { what: "the guest to go on", deadlineMs: 20_000 });
        };
        // Its tapdisk is asked to take the new size, as every one of today refuses it, and goes on with the one of before.
        await h1.uuid("vdi_resize_online", { vdiUuid: uuid, args: [String(128n * MIB)] });
        await goesOn();
        at("grown");

        // weftd is killed under the guest and started again: the guest waits, and sees no error.
        await cluster.host("h3").killProgram("weftd");
        await cluster.host("h3").restartDaemon();
        await goesOn();
        at("weftd killed");

        // The holder is replaced under the guest, whose tapdisk pauses; it knows the size of before the growth.
        const { paused, pausedMs } = await cluster.host("h3").agent().restartHolder();
        t.equal(paused, 1);
        await goesOn();
        at(`holder replaced, ${pausedMs} ms`);

        // Boots that keep nothing, of a disk that was made of the snapshot on another host.
        const was = await reads(h2, snapshot);
        const clone = await h1.copy("vdi_clone", snapshot);
        const other = new Guest();
        for (const _ of ["first", "second"]) {
          await h2.start(clone, "reset");
          t.strictSame(await numbersOn(pathOn(h2, clone)), was, "a boot begins as the snapshot was");
          await other.resume(pathOn(h2, clone));
          await other.suspend();
          await h2.stop(clone);
        }
        at("booted twice");

        // Live migration: the destination is attached while the source runs.
        await h1.attach(uuid);
        await guest.suspend();
        const down = performance.now();
        await h3.call("vdi_deactivate", { vdiUuid: uuid });
        await h1.call("vdi_activate", { vdiUuid: uuid, args: ["true"] });
        await guest.resume(pathOn(h1, uuid));
        t.comment(`down for ${Math.round(performance.now() - down)} ms`);
        using beyond = await Disk.open(pathOn(h1, uuid));
        t.ok(
          (await beyond.read(100 * MEBIBYTE, BLOCK)).equals(Buffer.alloc(BLOCK)),
          "its guest has the new end",
        );
        beyond[Symbol.dispose]();
        await h3.call("vdi_detach", { vdiUuid: uuid });
        const atMigration = guest.written;

        // XAPI and the store have the same disks.
        await h1.call("sr_scan");
        const { vdis } = await cluster.host("h2").agent().vdis(pool.srUuid);
        const known = pool.xapi.vdis(pool.srRef);
        t.equal(known.length, vdis.length);
        for (const { uuid: each, size } of vdis) t.equal(pool.record(each)["virtual_size"], String(size));

        // Its host ends. XAPI says so, and the guest is started elsewhere.
        await cluster.host("h1").kill();
        await guest.die();
        t.ok(guest.written > atMigration, "it has gone on");
        for (const host of pool.xapi.hosts) host.live = host !== h1.host;
        await h2.start(uuid);
        t.strictSame(
          wrong(await numbersOn(pathOn(h2, uuid)), guest.acked, guest.sent),
          [],
          "nothing is lost",
        );
        await h2.stop(uuid);
        at("taken over");
        t.strictSame(pool.xapi.violations, []);
      },
      { xfsBytes: 1024 * MEBIBYTE, services },
    );
  },
);
