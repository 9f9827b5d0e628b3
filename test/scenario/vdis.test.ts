/**
 * Plot: the life of a disk as XAPI's driver asks for it, with real daemons: it is made, written, snapshotted, cloned, and moves
 * from host to host: by the hand-over of a migration, from a guest that has gone, and from a host that died with its guest.
 */
import { randomUUID } from "node:crypto";

import t from "tap";

import { until } from "../../scripts/lib/until.ts";
import { Disk } from "./nbd.ts";
import { onStage } from "./stage.ts";

const isRoot = process.getuid?.() === 0;
const SIZE = 16n << 20n;
const block = (text: string): Buffer => Buffer.alloc(4096, text);

await t.test(
  "virtual disk: it follows its guest, and never leaves one that lives",
  { skip: isRoot ? false : "only root has network namespaces, and can mount file systems for pools" },
  async (t) => {
    await onStage(
      async ({ cluster, h1, h2, h3 }) => {
        const [one, two, three] = [h1.agent(), h2.agent(), h3.agent()];
        const sr = (await one.createSr({ uuid: randomUUID(), label: "replicated", copies: 2 })).uuid;
        const { uuid } = await three.createVdi(sr, { uuid: randomUUID(), size: SIZE, label: "root" });
        const writable = { writable: true, waitMs: 15_000 };
        const began = performance.now();
        const here = await one.activateVdi(uuid, writable);
        t.comment(`activated in ${Math.round(performance.now() - began)} ms`);
        t.equal(here.size, SIZE);

        // A guest writes; its snapshot is taken from a host that has nothing to do with it.
        const disk = await Disk.open(here.path);
        await disk.write(0, block("a"));
        const snapshot = randomUUID();
        await two.snapshotVdi(uuid, { uuid: snapshot });
        await disk.write(0, block("b"));
        t.match(await two.vdiUsers(uuid), { users: [{ host: { name: "h1" }, connected: true }] });
        await t.rejects(two.activateVdi(uuid, { ...writable, waitMs: 1500 }), {
          code: "E-VDI-04",
          message: /^h1 has the virtual disk "root" .* open since 20.*did not close it within 2 s/,
        });

        // Migration: the destination asks while the source still has it, and goes on where that ended.
        const moving = two.activateVdi(uuid, writable);
        disk[Symbol.dispose]();
        await one.deactivateVdi(uuid);
        const moved = await Disk.open((await moving).path);
        t.ok((await moved.read(0, 4096)).equals(block("b")));
        await moved.write(4096, block("c"));
        const reader = await three.activateVdi(snapshot, { writable: false });
        using old = await Disk.open(reader.path);
        t.ok((await old.read(0, 4096)).equals(block("a")), "the snapshot is of then");

        // A clone of the disk as it is, under its guest; and it goes back to its mark.
        const clone = randomUUID();
        await three.cloneVdi(uuid, { uuid: clone });
        const attached = await one.activateVdi(clone, writable);
        using copy = await Disk.open(attached.path);
        t.ok((await copy.read(4096, 4096)).equals(block("c")));
        t.match(await one.changedVdiBlocks(uuid, snapshot), { size: SIZE, granularity: 65_536 });
        const { bitmap } = await one.changedVdiBlocks(uuid, snapshot);
        t.equal(Buffer.from(bitmap, "base64")[0], 0x80);

        // Taken back to before it grew: in the size of then, and what was beyond comes back with no later growth.
        const { uuid: grown } = await one.createVdi(sr, { uuid: randomUUID(), size: SIZE });
        const [then, beyond] = [randomUUID(), Number(SIZE)];
        const inGuest = async <T>(work: (disk: Disk) => Promise<T>): Promise<T> => {
          using guest = await Disk.open((await two.activateVdi(grown, writable)).path);
          const done = await work(guest);
          guest[Symbol.dispose]();
          await two.deactivateVdi(grown);
          return done;
        };
        await inGuest((guest) => guest.write(0, block("x")));
        await one.snapshotVdi(grown, { uuid: then });
        await one.changeVdi(grown, { size: 2n * SIZE });
        await inGuest((guest) => guest.write(beyond, block("y")));
        t.match(await three.revertVdi(grown, then), { size: SIZE });
        await one.changeVdi(grown, { size: 2n * SIZE });
        await inGuest(async (guest) => {
          t.ok((await guest.read(0, 4096)).equals(block("x")));
          t.ok((await guest.read(beyond, 4096)).equals(Buffer.alloc(4096)));
        });

        // The end of a storage migration: what the guest wrote by sectors lies over what was copied, to the sector.
        const [leaf, parent, dummy] = [randomUUID(), randomUUID(), randomUUID()];
        await two.createVdi(sr, { uuid: leaf, size: SIZE });
        await two.layerVdi(leaf);
        await two.snapshotVdi(leaf, { uuid: dummy });
        await two.createVdi(sr, { uuid: parent, size: SIZE });
        const on = async (
          vdi: string,
          host: typeof two,
          work: (disk: Disk) => Promise<void>,
        ): Promise<void> => {
          using mirror = await Disk.open((await host.activateVdi(vdi, writable)).path);
          await work(mirror);
          mirror[Symbol.dispose]();
          await host.deactivateVdi(vdi);
        };
        await on(parent, two, (base) => base.write(0, Buffer.concat([block("p"), block("q")])));
        await on(leaf, two, async (mirror) => {
          await mirror.write(1024, Buffer.alloc(512, "s"));
          await mirror.write(1 << 20, Buffer.alloc(512));
          t.ok((await mirror.read(0, 1024)).equals(Buffer.alloc(1024)), "nobody is shown what nobody wrote");
        });
        await t.rejects(one.activateVdi(leaf, writable), { code: "E-VDI-08" }, "half of a disk starts no VM");
        const composedIn = performance.now();
        t.match(await two.composeVdi(leaf, parent), { uuid: leaf, volume: parent, layer: false });
        t.comment(`composed in ${Math.round(performance.now() - composedIn)} ms`);
        await three.deleteVdi(dummy);
        await on(leaf, one, async (whole) => {
          const wanted = Buffer.concat([block("p"), block("q")]);
          wanted.fill("s", 1024, 1536);
          t.ok((await whole.read(0, 8192)).equals(wanted));
        });
        await t.rejects(three.vdi(parent), { code: "E-VDI-01" });

        // The guest is gone, and nobody has closed its disk: whoever is told to start one takes it.
        moved[Symbol.dispose]();
        await until(async () => ((await two.vdiUsers(uuid)).users[0]?.connected === false ? true : null), {
          what: "the guest's end",
          deadlineMs: 10_000,
        });
        const third = await three.activateVdi(uuid, { ...writable, waitMs: 0 });
        const guest = await Disk.open(third.path);
        await guest.write(8192, block("d"));

        // Its host dies with it.
        await cluster.unplug("h3");
        await h3.kill();
        const last = await one.activateVdi(uuid, { ...writable, waitMs: 30_000 });
        using again = await Disk.open(last.path);
        t.ok((await again.read(8192, 4096)).equals(block("d")), "nothing that was acknowledged is lost");
        guest[Symbol.dispose]();
      },
      { xfsBytes: 1024 * 2 ** 20 },
    );
  },
);
