/**
 * Plot: a tapdisk writes to a second place from a snapshot on, while its guest goes on writing and reading; and all that can go
 * wrong with that: the guest must not notice it.
 */
import { randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import t from "tap";

import { TapCtl } from "../../src/sm-driver/datapath/tap-ctl.ts";
import { TapdiskDatapath } from "../../src/sm-driver/datapath/tapdisk.ts";
import { eventually } from "../core/agent/test-host.ts";
import { MemoryHolder, MemoryVolume, MemoryVolumes } from "./lib/memory-holder.ts";
import { memoryDisk, serveNbd } from "./lib/nbd.ts";
import { installTapCtl } from "./lib/tap-ctl.ts";
import { handOver, TapdiskEnd } from "./lib/tapdisk-end.ts";
import { MIB, World } from "./lib/world.ts";

const SIZE = 1 << 20;
const SECTOR = 512;
const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

/** A host with one disk that a guest has. */
async function host(t: Scope) {
  const root = await mkdtemp(join(tmpdir(), "mir-"));
  installTapCtl(root);
  const disk = { sr: randomUUID(), vdi: randomUUID() };
  const volume = new MemoryVolume(SIZE);
  const holder = new MemoryHolder(new MemoryVolumes([[disk.vdi, volume]]));
  const options = { runDir: join(root, "run/weft"), dom0Root: root, holder, log, closeSeconds: 1 };
  const datapath = new TapdiskDatapath(options);
  t.teardown(async () => {
    await datapath.deactivate(disk);
    await holder.stop();
    await rm(root, { recursive: true });
  });
  const open = { writable: true, exportPath: "", size: BigInt(SIZE), volume: disk.vdi };
  const { paramsNbd } = await datapath.attach(disk);
  await datapath.activate({ ...disk, ...open, session: randomUUID(), snapshot: null });
  const link = /^nbd:unix:(.*):exportname=/.exec(paramsNbd)?.[1] ?? "";
  const tapCtl = new TapCtl(join(root, "usr/sbin/tap-ctl"));
  return { root, disk, volume, options, datapath, tapCtl, link, guest: await TapdiskEnd.open(link) };
}

/** Another SR's disk, as XAPI hands it over by this name. */
async function secondPlace(t: Scope, root: string, link: string, name: string, size: number = SIZE) {
  const memory = memoryDisk(size);
  const path = join(root, `${name.replaceAll("/", "-")}.sock`);
  const stop = await serveNbd(path, memory);
  t.teardown(stop);
  await handOver(link, name, path);
  return { memory, stop };
}

function sector(n: number): Buffer {
  return Buffer.alloc(SECTOR, n % 251 || 1);
}

await t.test(
  "mirror: snapshot and second place together hold each write, exactly from the snapshot on",
  async (t) => {
    const { root, disk, volume, datapath, tapCtl, link, guest } = await host(t);
    const { memory } = await secondPlace(t, root, link, "mirror_vbd/7/xvda");

    // The guest writes as fast as it can, and reads what it wrote; the last sector never again.
    await guest.write(SIZE - SECTOR, sector(7));
    let next = 0;
    const end = new AbortController();
    const work = async (): Promise<void> => {
      for (; !end.signal.aborted; next += 1) {
        const at = ((next * 37) % (SIZE / SECTOR - 1)) * SECTOR;
        await guest.write(at, sector(next));
        if (!(await guest.read(at, SECTOR)).equals(sector(next)))
          throw new Error(`write ${next} reads otherwise`);
      }
    };
    const worker = work();
    const past = (n: number): Promise<number> =>
      eventually(
        `write ${n}`,
        async () => next,
        (at) => at > n,
      );
    await past(50);
    const then = await datapath.mirrored(disk, "nbd:mirror_vbd/7/xvda", async () => volume.copy());
    await past(next + 100);

    // A pause for another reason keeps the mirror.
    await datapath.pause(disk);
    await datapath.unpause(disk);
    t.equal(await datapath.resized(disk, BigInt(2 * SIZE)), false, "nor does its disk's growth end it");
    await past(next + 100);
    end.abort();
    await worker;

    const both = Buffer.from(then.bytes);
    for (let at = 0; at < SIZE; at += SECTOR) {
      const after = memory.bytes.subarray(at, at + SECTOR);
      // No write is of zeroes.
      if (after[0] !== 0) after.copy(both, at);
    }
    t.ok(both.equals(volume.bytes), "laid over the snapshot, it is the disk");
    t.notOk(memory.bytes.equals(volume.bytes), "and holds less than all of it");

    await datapath.mirrored(disk, "null", async () => undefined);
    const before = Buffer.from(memory.bytes);
    await guest.write(0, sector(99));
    t.ok((await guest.read(0, SECTOR)).equals(sector(99)));
    t.ok(memory.bytes.equals(before), "given up, nothing is written there any more");
    const [tapdisk] = await tapCtl.list();
    t.match(tapdisk, { isPaused: false, args: /^x-chain:/ }, "and it is never opened by nbd: again");
    await datapath.deactivate(disk);
    t.strictSame(await tapCtl.list(), []);
  },
);

await t.test(
  "mirror: where it can't be made the guest goes on without it, and who asked is told",
  async (t) => {
    const { root, disk, volume, options, datapath, tapCtl, link, guest } = await host(t);
    const socket = join(options.runDir, "tap", `${disk.vdi}.sock`);
    await guest.write(0, sector(1));
    let n = 10;
    const goesOn = async (what: string): Promise<void> => {
      n += 1;
      await guest.write(4096, sector(n));
      t.ok((await guest.read(4096, SECTOR)).equals(sector(n)), what);
      t.ok((await guest.read(0, SECTOR)).equals(sector(1)), what);
      t.match(await tapCtl.list(), [{ isPaused: false }], what);
    };

    const failing = datapath.mirrored(disk, "nbd:x", async () => {
      throw new Error("no majority");
    });
    await t.rejects(failing, /no majority/);
    await goesOn("the snapshot failed");
    t.match(await tapCtl.list(), [{ args: /^x-chain:/ }], "by the name that is right whatever it was told");

    await datapath.pause(disk);
    await t.rejects(
      datapath.mirrored(disk, "null", async () => 1),
      { code: 453, message: /paused for something else/ },
    );
    await new TapdiskDatapath(options).wakeAll();
    await goesOn("and woken");

    // What isn't paused refuses, and opens itself as a second place from then on.
    const letGo = datapath.mirrored(disk, "null", async () => {
      for (const { pid, minor } of await tapCtl.list())
        await tapCtl.unpause({ pid, minor, isPaused: true, isPausing: false, args: `nbd:${socket}` });
    });
    await t.rejects(letGo, { code: 453, message: /Invalid argument/ });
    t.match(await tapCtl.list(), [{ args: /^nbd:/ }]);
    await goesOn("somebody let it go on in the middle");
    t.equal(await datapath.resized(disk, BigInt(2 * SIZE)), false, "nor is it opened anew for its size");
    for (const tapdisk of await tapCtl.list()) await tapCtl.pause(tapdisk);
    await new TapdiskDatapath(options).wakeAll();
    await goesOn("it was left paused since");

    await t.rejects(
      datapath.mirrored(disk, "nbd:nobody", async () => 1),
      { code: 82, message: /could not open/ },
    );
    await goesOn("XAPI has handed nothing over");

    await datapath.mirrored(disk, "null", async () => 1);
    const { memory: small } = await secondPlace(t, root, link, "small", SIZE / 2);
    await t.rejects(
      datapath.mirrored(disk, "nbd:small", async () => 1),
      { code: 82, message: /size/ },
    );
    await goesOn("it is of another size");
    t.ok(small.bytes.equals(Buffer.alloc(SIZE / 2)));

    const { stop } = await secondPlace(t, root, link, "dies");
    await datapath.mirrored(disk, "nbd:dies", async () => 1);
    await stop();
    await goesOn("the other side has gone away");
    const [tapdisk] = await tapCtl.list();
    t.match(
      tapdisk === undefined ? null : await tapCtl.stats(tapdisk),
      { nbd_mirror_failed: 1 },
      "which XAPI sees",
    );
    t.ok(volume.bytes.subarray(4096, 4096 + SECTOR).equals(sector(n)));

    const other = { ...disk, vdi: randomUUID() };
    await t.rejects(
      datapath.mirrored(other, "nbd:x", async () => 1),
      { code: 82, message: /No tapdisk/ },
    );

    await datapath.deactivate(disk);
    const read = { writable: false, exportPath: "", size: BigInt(SIZE), volume: disk.vdi };
    await datapath.activate({ ...disk, ...read, session: randomUUID(), snapshot: null });
    await t.rejects(
      datapath.mirrored(disk, "null", async () => 1),
      { code: 82, message: /No tapdisk of this host writes/ },
      "what reads it has no writes to mirror",
    );
  },
);

await t.test("mirror: two who ask at once are served one after the other", async (t) => {
  const { disk, datapath, tapCtl, guest } = await host(t);
  const done: string[] = [];
  const work = (name: string) => async (): Promise<void> => {
    done.push(`${name} begins`);
    t.match(await tapCtl.list(), [{ isPaused: true }]);
    done.push(`${name} ends`);
  };
  await Promise.all(["one", "two"].map((name) => datapath.mirrored(disk, "null", work(name))));
  t.strictSame(done, ["one begins", "one ends", "two begins", "two ends"]);
  await guest.write(0, sector(3));
});

await t.test("mirror: an agent that ends between pause and unpause leaves no guest waiting", async (t) => {
  const { disk, options, datapath, tapCtl, guest } = await host(t);
  const ended = Promise.withResolvers<void>();
  // What that agent would do next it never does.
  void datapath.mirrored(disk, "null", () => {
    ended.resolve();
    return new Promise(() => {});
  });
  await ended.promise;
  t.match(await tapCtl.list(), [{ isPaused: true }]);
  const write = guest.write(0, sector(5));

  await new TapdiskDatapath(options).wakeAll();
  await write;
  t.match(await tapCtl.list(), [{ isPaused: false }]);
  t.ok((await guest.read(0, SECTOR)).equals(sector(5)));
});

await t.test("mirror: vdi_snapshot begins and ends one, on whichever host the guest is", async (t) => {
  const world = await World.start(t, 2);
  const [h1, h2] = [world.host(0), world.host(1)];
  const disk = await h1.create(64n * MIB);
  await h2.plug(disk);
  const snapshot = (mirror: string): Promise<string> =>
    h1.uuid("vdi_snapshot", { vdiUuid: disk, driverParams: { mirror } });
  for (const mirror of [
    "",
    "nbd:",
    "nbd:/run/x",
    "nbd:10.0.0.1:80",
    "aio:/dev/sda",
    "nbd:a b",
    `nbd:${"x".repeat(300)}`,
  ])
    await t.rejects(snapshot(mirror), { code: 143 }, mirror);
  const known = world.xapi.vdis(world.srRef).length;
  // Read on the master meanwhile, as for a copy.
  const reader = { sr: "", vdi: disk, writable: false };
  await h1.datapath.attach(reader);
  await h1.datapath.activate({
    ...reader,
    exportPath: "",
    size: 64n * MIB,
    volume: disk,
    session: null,
    snapshot: disk,
  });
  await snapshot("nbd:mirror_vbd/1/xvda");
  t.strictSame([...h2.datapath.mirrors], [[disk, "nbd:mirror_vbd/1/xvda"]], "on the guest's host");
  t.strictSame([...h1.datapath.mirrors], [], "not on one that reads it");
  await h1.datapath.deactivate(reader);
  await h1.datapath.detach(reader);
  await snapshot("null");
  t.strictSame([...h2.datapath.mirrors], []);
  await h2.unplug(disk);
  await snapshot("null");
  t.equal(world.xapi.vdis(world.srRef).length, known + 3);
  await t.rejects(snapshot("nbd:mirror_vbd/1/xvda"), { code: 82, text: /no host has it active/ });
  await h2.plug(disk);
  world.xapi.plugin = null;
  await t.rejects(snapshot("nbd:mirror_vbd/1/xvda"), { code: 82, text: /XENAPI_MISSING_PLUGIN/ });
  t.equal(world.xapi.vdis(world.srRef).length, known + 3, "and no snapshot is left");
  t.strictSame(world.differences(), []);
});
