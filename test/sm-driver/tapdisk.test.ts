/** A guest's disk by tapdisk: made, found again, paused and ended, with a double of tap-ctl and a holder in memory. */
import { readlinkSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import t from "tap";

import type { HolderClient } from "../../src/core/wire/holder-client.ts";
import { WeftError } from "../../src/core/wire/errors.ts";
import type { HolderEntry, HolderOpen } from "../../src/core/wire/holder.gen.ts";
import { guestDevices } from "../../src/resident/tapdisks.ts";
import { parseTapdisks, TapCtl } from "../../src/sm-driver/datapath/tap-ctl.ts";
import { TapdiskDatapath } from "../../src/sm-driver/datapath/tapdisk.ts";
import { eventually } from "../core/agent/test-host.ts";
import { ToldSize } from "./lib/memory-holder.ts";
import { memoryDisk, NbdClient, nbdRead, nbdWrite, serveNbd } from "./lib/nbd.ts";
import { installTapCtl } from "./lib/tap-ctl.ts";

const SR = "11111111-1111-4111-8111-111111111111";
const VDI = "22222222-2222-4222-8222-222222222222";
const SESSION = "33333333-3333-4333-8333-333333333333";
const disk = { sr: SR, vdi: VDI };
const active = {
  ...disk,
  writable: true,
  exportPath: "/unused",
  size: 1n << 20n,
  volume: VDI,
  session: SESSION,
  snapshot: null,
};

/** A holder whose guests' disks are memory: what it does of the real one's is to offer, to cut, and to tell. */
class MemoryHolder implements HolderClient {
  readonly memory = memoryDisk(1 << 20);
  readonly #offers = new Map<string, { readonly open: HolderOpen; readonly stop: () => Promise<void> }>();
  /** Nothing is answered from now on. */
  isStuck = false;
  told = new ToldSize();
  #clients = 0;

  call: HolderClient["call"] = async (method, params) => {
    const answer: unknown = await this.#answer(method, params);
    return answer as never;
  };

  async #answer(method: string, params: unknown): Promise<unknown> {
    if (method === "list")
      return { entries: [...this.#offers.values()].map(({ open }) => this.#entry(open)) };
    if (method === "close") {
      const { id } = params as { readonly id: string };
      const offer = this.#offers.get(id);
      this.#offers.delete(id);
      await offer?.stop();
      if (offer !== undefined) await rm(offer.open.listen, { force: true });
      this.#clients = 0;
      this.told = new ToldSize();
      return {};
    }
    if (method === "tell_size") {
      this.told.tell((params as { readonly size: "now" | "before" }).size);
      return {};
    }
    const open = params as HolderOpen;
    const known = this.#offers.get(open.id);
    if (known !== undefined) {
      if (JSON.stringify(known.open) === JSON.stringify(open)) return { first: open.session };
      throw new WeftError({ code: "E-HOLD-02", message: "It is offered.", facts: {} });
    }
    await mkdir(join(open.listen, ".."), { recursive: true });
    const { memory } = this;
    const stop = await serveNbd(open.listen, {
      size: () => {
        this.#clients += 1;
        return this.told.next(memory.size());
      },
      ask: async (...request) => (this.isStuck ? new Promise(() => {}) : memory.ask(...request)),
    });
    this.#offers.set(open.id, { open, stop });
    return { first: open.session };
  }

  #entry(open: HolderOpen): HolderEntry {
    return {
      ...open,
      first: open.session,
      connected: this.#clients > 0,
      client_pid: null,
      told_size: this.told.last === null ? null : String(this.told.last),
      unanswered: 0,
      held_bytes: "0",
      away_ms: null,
      waits_for: null,
      lost: null,
      paused: false,
      replayed: "0",
    };
  }
}

await t.test("tapdisk: what tap-ctl lists is parsed with distrust", async (t) => {
  const text = [
    "pid=1234 minor=0 state=0 args=nbd:/run/weft/tap/a.sock",
    "pid=99 minor=17 state=0x2a args=vhd:/dev/VG_XenStorage/a b",
    "pid=5 minor=3",
    "minor=4",
    "pid=1 minor=x state=0 args=nbd:/a",
    "pid=1 minor=1 state=0 args=nbd:",
    "",
  ].join("\n");
  t.strictSame(parseTapdisks(text), [
    { pid: 1234, minor: 0, isPaused: false, isPausing: false, args: "nbd:/run/weft/tap/a.sock" },
    { pid: 99, minor: 17, isPaused: true, isPausing: false, args: "vhd:/dev/VG_XenStorage/a b" },
  ]);
});

await t.test("tapdisk: a disk is activated, written, paused and given back, each twice", async (t) => {
  // Paths of unix sockets are short.
  const root = await mkdtemp(join(tmpdir(), "tap-"));
  installTapCtl(root);
  const holder = new MemoryHolder();
  const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
  const datapath = new TapdiskDatapath({
    runDir: join(root, "run/weft"),
    dom0Root: root,
    holder,
    log,
    closeSeconds: 1,
  });
  t.teardown(async () => {
    await datapath.deactivate(disk);
    await rm(root, { recursive: true });
  });
  const tapCtl = new TapCtl(join(root, "usr/sbin/tap-ctl"));

  const { params, paramsNbd } = await datapath.attach(disk);
  if (params === null) throw new Error("blktap 3 has a device");
  await t.rejects(stat(params), "attached, nothing is there yet");
  await datapath.activate(active);
  const [made] = await tapCtl.list();
  await datapath.activate(active);
  t.strictSame(await tapCtl.list(), [made], "asked again, it is the same tapdisk");
  t.ok((await stat(params)).isFile());
  const socket = /^nbd:unix:(.*):exportname=/.exec(paramsNbd)?.[1] ?? "";
  t.equal(readlinkSync(socket), join(root, `run/blktap-control/nbd${made?.pid}.${made?.minor}`));

  const guest = await NbdClient.connect(readlinkSync(socket));
  const data = Buffer.alloc(4096, 7);
  t.equal((await guest.ask(nbdWrite, 8192n, 4096, data)).error, 0);
  t.ok((await guest.ask(nbdRead, 8192n, 4096, data)).data.equals(data));
  t.ok(holder.memory.bytes.subarray(8192, 12288).equals(data));

  const guests = guestDevices({ runDir: join(root, "run/weft"), dom0Root: root });
  await datapath.pause(disk);
  t.same([...(await guests())], [VDI], "its guest waits, and is there");
  await datapath.activate(active);
  t.equal(
    (await guest.ask(nbdWrite, 0n, 4096, data)).error,
    0,
    "whoever activates it finds it paused, and lets it go on",
  );
  t.strictSame(await datapath.users(), [{ vdi: VDI, connected: true, writes: true, size: 1n << 20n }]);

  await datapath.activate({ ...active, session: VDI });
  const [anew] = await tapCtl.list();
  t.not(anew?.pid, made?.pid, "in another ownership it is another tapdisk");
  t.match(
    await guest.ask(nbdRead, 0n, 4096, data),
    { error: 5 },
    "and what had the old one open has lost it",
  );

  holder.isStuck = true;
  const again = await NbdClient.connect(readlinkSync(socket));
  const lost = again.ask(nbdWrite, 0n, 4096, Buffer.alloc(4096, 9));
  const ended = datapath.deactivate(disk);
  t.match(await lost, { error: 5 }, "what is not answered is given up");
  await ended;
  await datapath.deactivate(disk);
  await datapath.detach(disk);
  await datapath.detach(disk);
  t.strictSame(await tapCtl.list(), []);
  await t.rejects(stat(params));
  t.ok(holder.memory.bytes.subarray(0, 4096).equals(data), "and not written");
});

await t.test("tapdisk: where tapdisks have no block devices a disk is a socket alone", async (t) => {
  const root = await mkdtemp(join(tmpdir(), "tap-"));
  installTapCtl(root, { nodes: false });
  const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
  const parts = { runDir: join(root, "run/weft"), dom0Root: root, holder: new MemoryHolder(), log };
  const datapath = new TapdiskDatapath({ ...parts, closeSeconds: 1 });
  t.teardown(async () => {
    await datapath.deactivate(disk);
    await rm(root, { recursive: true });
  });
  const { params, paramsNbd } = await datapath.attach(disk);
  t.equal(params, null);
  await datapath.activate(active);
  await datapath.activate(active);
  const [made, ...others] = await new TapCtl(join(root, "usr/sbin/tap-ctl")).list();
  t.strictSame(others, []);
  const socket = /^nbd:unix:(.*):exportname=/.exec(paramsNbd)?.[1] ?? "";
  t.equal(readlinkSync(socket), join(root, `run/blktap-control/nbd${made?.pid}.${made?.minor}`));
  t.equal((await NbdClient.connect(readlinkSync(socket))).size(), 1n << 20n);
  await t.rejects(stat(join(root, "dev/sm/backend")), "and no link to a device that isn't there");
});

await t.test("tapdisk: a device that was promised and doesn't come is said, and not again", async (t) => {
  // Blktap 4 in a kernel that still has blktap 3's module: only its first tapdisk shows which it is.
  const root = await mkdtemp(join(tmpdir(), "tap-"));
  installTapCtl(root, { nodes: false });
  await mkdir(join(root, "proc"));
  await writeFile(join(root, "proc/misc"), " 59 blktap/control\n229 fuse\n");
  const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
  const parts = { runDir: join(root, "run/weft"), dom0Root: root, holder: new MemoryHolder(), log };
  const datapath = new TapdiskDatapath({ ...parts, closeSeconds: 1 });
  t.teardown(async () => {
    await datapath.deactivate(disk);
    await rm(root, { recursive: true });
  });
  t.equal((await datapath.attach(disk)).params, join(root, "dev/sm/backend", SR, VDI));
  await t.rejects(datapath.activate(active), { code: 453 });
  t.strictSame(await new TapCtl(join(root, "usr/sbin/tap-ctl")).list(), [], "nothing is left");
  t.equal((await datapath.attach(disk)).params, null);
  await datapath.activate(active);
  t.strictSame(await datapath.users(), [{ vdi: VDI, connected: true, writes: true, size: 1n << 20n }]);
});

await t.test("tapdisk: a disk grows under its guest, whether or not its tapdisk takes that", async (t) => {
  const size = async (link: string): Promise<bigint> => (await NbdClient.connect(readlinkSync(link))).size();
  for (const takesSizes of [false, true]) {
    const root = await mkdtemp(join(tmpdir(), "tap-"));
    installTapCtl(root, { takesSizes });
    const holder = new MemoryHolder();
    const warnings: string[] = [];
    const warn = (_: object, text: string): void => void warnings.push(text);
    const log = { debug: () => {}, info: () => {}, warn, error: warn };
    const datapath = new TapdiskDatapath({ runDir: join(root, "run/weft"), dom0Root: root, holder, log });
    t.teardown(async () => {
      await datapath.deactivate(disk);
      await rm(root, { recursive: true });
    });
    const link = /^nbd:unix:(.*):exportname=/.exec((await datapath.attach(disk)).paramsNbd)?.[1] ?? "";
    await datapath.activate(active);
    const guest = await NbdClient.connect(readlinkSync(link));
    const data = Buffer.alloc(4096, 7);

    // The guest writes all the while, and is told of no error.
    const over = new AbortController();
    const errors = new Set<number>();
    const writing = (async () => {
      for (let n = 0; !over.signal.aborted; n += 1)
        errors.add((await guest.ask(nbdWrite, BigInt((n % 200) * 4096), 4096, data)).error);
    })();
    holder.memory.bytes = Buffer.concat([holder.memory.bytes, Buffer.alloc(1 << 20)]);
    const all = await Promise.all([datapath.resized(disk, 2n << 20n), datapath.resized(disk, 2n << 20n)]);
    t.strictSame(all, [takesSizes, takesSizes]);
    over.abort();
    await writing;
    t.strictSame([...errors], [0]);
    t.equal(await size(link), takesSizes ? 2n << 20n : 1n << 20n);
    t.match(await datapath.users(), [{ size: takesSizes ? 2n << 20n : 1n << 20n }]);

    // Paused for anything else it goes on with the size that it knows.
    holder.memory.bytes = Buffer.concat([holder.memory.bytes, Buffer.alloc(1 << 20)]);
    await datapath.pause(disk);
    await t.rejects(datapath.resized(disk, 3n << 20n), /paused for something else/);
    await datapath.unpause(disk);
    t.equal((await guest.ask(nbdWrite, 0n, 4096, data)).error, 0);
    t.equal(await size(link), takesSizes ? 2n << 20n : 1n << 20n);
    t.strictSame(warnings, []);

    // An agent that was killed while it asked has left it paused, and the holder telling a size that it doesn't take.
    if (!takesSizes) {
      await datapath.pause(disk);
      holder.told.tell("now");
      await datapath.wakeAll();
      t.equal((await guest.ask(nbdWrite, 0n, 4096, data)).error, 0, "it goes on all the same");
    }

    // The next guest has all of it.
    await datapath.deactivate(disk);
    await datapath.activate(active);
    t.equal(await size(link), 3n << 20n);
    t.equal(await datapath.resized(disk, 3n << 20n), true);
  }
});

await t.test("tapdisk: one that pauses when nobody waits for it any more is woken", async (t) => {
  const root = await mkdtemp(join(tmpdir(), "tap-"));
  t.teardown(() => rm(root, { recursive: true }));
  const bin = join(root, "usr/sbin");
  const socket = join(root, "run/weft/tap", `${VDI}.sock`);
  await mkdir(bin, { recursive: true });
  // As blktap's: it pauses when its last request is answered, whether or not tap-ctl still is there.
  const program = `#!/bin/sh
cd ${bin}
case $1 in
  list) echo "pid=7 minor=1 state=$(cat state) args=nbd:${socket}" ;;
  pause) echo 0x10 >state; setsid sh -c 'sleep 6; echo 0x2a >state' >/dev/null 2>&1 & exec sleep 60 ;;
  unpause) echo 0x0 >state; echo woken >woken ;;
esac
`;
  await writeFile(join(bin, "tap-ctl"), program, { mode: 0o755 });
  await writeFile(join(bin, "state"), "0x0\n");
  const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
  const parts = { runDir: join(root, "run/weft"), dom0Root: root, holder: new MemoryHolder(), log };
  const datapath = new TapdiskDatapath({ ...parts, commandMs: 5000 });
  await t.rejects(datapath.pause(disk), { code: 453 });
  await eventually(
    "it goes on",
    () => readFile(join(bin, "woken"), "utf8").catch(() => ""),
    (text) => text === "woken\n",
  );
  t.equal(await readFile(join(bin, "state"), "utf8"), "0x0\n");
});

await t.test("tapdisk: one that goes on is not woken when something else pauses it", async (t) => {
  const root = await mkdtemp(join(tmpdir(), "tap-"));
  t.teardown(() => rm(root, { recursive: true }));
  const bin = join(root, "usr/sbin");
  const other = { sr: SR, vdi: SESSION };
  const socketOf = (vdi: string): string => join(root, "run/weft/tap", `${vdi}.sock`);
  await mkdir(bin, { recursive: true });
  const program = `#!/bin/sh
cd ${bin}
case $1 in
  list)
    echo "pid=7 minor=1 state=$(cat state1) args=nbd:${socketOf(VDI)}"
    echo "pid=7 minor=2 state=$(cat state2) args=nbd:${socketOf(other.vdi)}"
    echo looked >>looks ;;
  pause) exit 1 ;;
  unpause) echo 0x0 >state$5 ;;
esac
`;
  await writeFile(join(bin, "tap-ctl"), program, { mode: 0o755 });
  for (const name of ["state1", "state2"]) await writeFile(join(bin, name), "0x0\n");
  const text = (name: string): Promise<string> => readFile(join(bin, name), "utf8");
  const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
  const parts = { runDir: join(root, "run/weft"), dom0Root: root, holder: new MemoryHolder(), log };
  const datapath = new TapdiskDatapath(parts);
  await t.rejects(datapath.pause(disk), { code: 453 });
  await eventually(
    "it is looked at, and goes on",
    () => text("looks"),
    (looks) => looks === "looked\nlooked\n",
  );
  await writeFile(join(bin, "state1"), "0x20\n");

  // This one begins later, and is looked at later, than the other would be again.
  await t.rejects(datapath.pause(other), { code: 453 });
  await writeFile(join(bin, "state2"), "0x20\n");
  await eventually(
    "the other is woken",
    () => text("state2"),
    (state) => state === "0x0\n",
  );
  t.equal(await text("state1"), "0x20\n");
});
