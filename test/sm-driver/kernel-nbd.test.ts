/** A guest's disk on a device of the kernel: made, found again, lost and ended, with a double of tap-ctl and devices in memory. */
import { readlinkSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import t, { type Test } from "tap";

import { WeftError } from "../../src/core/wire/errors.ts";
import type { HolderClient } from "../../src/core/wire/holder-client.ts";
import type { DeviceEntry, DeviceOpen } from "../../src/core/wire/holder.gen.ts";
import { tapdisks } from "../../src/resident/tapdisks.ts";
import { KernelNbdDatapath } from "../../src/sm-driver/datapath/kernel-nbd.ts";
import { TapCtl } from "../../src/sm-driver/datapath/tap-ctl.ts";
import { Turns } from "../../src/sm-driver/datapath/turns.ts";
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
const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** The kernel's devices as the holder has them; each is a socket of NBD, which the double of tapdisk takes for one. */
class MemoryDevices implements HolderClient {
  readonly memory = memoryDisk(1 << 20);
  readonly #root: string;
  readonly #devices = new Map<string, { entry: DeviceEntry; readonly stop: () => Promise<void> }>();
  #next = 32;
  isStuck = false;
  hasNbd = true;

  constructor(root: string) {
    this.#root = root;
  }

  call: HolderClient["call"] = async (method, params) => {
    const answer: unknown = await this.#answer(method, params);
    return answer as never;
  };

  async #answer(method: string, params: unknown): Promise<unknown> {
    if (method === "device.list") return { devices: [...this.#devices.values()].map(({ entry }) => entry) };
    const { id } = params as { readonly id: string };
    const known = this.#devices.get(id);
    if (method === "device.close") {
      this.#devices.delete(id);
      await known?.stop();
      return {};
    }
    const open = params as DeviceOpen;
    if (!this.hasNbd)
      throw new WeftError({ code: "E-HOLD-08", message: "this host's kernel has no nbd module", facts: {} });
    if (known !== undefined) {
      const { entry } = known;
      if (entry.lost === null && entry.first === open.session)
        return { first: entry.first, device: entry.device };
      throw new WeftError({ code: "E-HOLD-02", message: "It is a device already.", facts: {} });
    }
    const device = join(this.#root, `dev/nbd${this.#next}`);
    this.#next += 1;
    const { memory } = this;
    const stop = await serveNbd(device, {
      size: () => memory.size(),
      ask: async (...request) => (this.isStuck ? new Promise(() => {}) : memory.ask(...request)),
    });
    const { volume, session: first, snapshot, writable } = open;
    const state = { size: "0", away_ms: null, waits_for: null, lost: null, reconnected: "0" };
    const entry = { id, device, volume, first, snapshot, writable, ...state };
    this.#devices.set(id, { entry, stop });
    return { first, device };
  }

  /** The kernel has disconnected it: whoever has it open gets errors. */
  async lose(id: string): Promise<void> {
    const device = this.#devices.get(id);
    if (device === undefined) throw new Error("there is none");
    device.entry = { ...device.entry, lost: "E-VOL-21  taken" };
    await device.stop();
  }

  /** Another holder finds no device that was lost. */
  forget(id: string): void {
    this.#devices.delete(id);
  }
}

async function scene(t: Test, nodes: boolean) {
  const root = await mkdtemp(join(tmpdir(), "tap-"));
  installTapCtl(root, { nodes });
  await mkdir(join(root, "dev"), { recursive: true });
  const holder = new MemoryDevices(root);
  const datapath = new KernelNbdDatapath({ dom0Root: root, holder, log, closeSeconds: 1 });
  t.teardown(async () => {
    await datapath.deactivate(disk);
    await rm(root, { recursive: true });
  });
  const { paramsNbd } = await datapath.attach(disk);
  const socket = /^nbd:unix:(.*):exportname=/.exec(paramsNbd)?.[1] ?? "";
  const tapCtl = new TapCtl(join(root, "usr/sbin/tap-ctl"));
  return { root, holder, datapath, socket, tapCtl };
}

for (const nodes of [true, false]) {
  await t.test(
    `kernel-nbd: a disk is activated, written and given back, each twice, ${nodes ? "with" : "without"} device nodes`,
    async (t) => {
      const { root, holder, datapath, socket, tapCtl } = await scene(t, nodes);
      await datapath.activate(active);
      const [made] = await tapCtl.list();
      t.equal(made?.args, `aio:${join(root, "dev/nbd32")}`);
      await datapath.activate(active);
      t.strictSame(await tapCtl.list(), [made], "asked again, it is the same tapdisk");
      t.equal(readlinkSync(socket), join(root, `run/blktap-control/nbd${made?.pid}.${made?.minor}`));
      const guest = await NbdClient.connect(readlinkSync(socket));
      const data = Buffer.alloc(4096, 7);
      t.equal((await guest.ask(nbdWrite, 8192n, 4096, data)).error, 0);
      t.ok(holder.memory.bytes.subarray(8192, 12288).equals(data));
      t.strictSame(await datapath.users(), [{ vdi: VDI, connected: true, writes: true, size: null }]);
      await datapath.pause(disk);
      await datapath.activate(active);
      t.ok((await guest.ask(nbdRead, 8192n, 4096, data)).data.equals(data), "who activates it wakes it");

      await datapath.activate({ ...active, session: VDI });
      const [anew] = await tapCtl.list();
      t.not(anew?.pid, made?.pid, "in another ownership it is another device, and another tapdisk");
      t.match(await guest.ask(nbdRead, 0n, 4096, data), { error: 5 });

      holder.isStuck = true;
      const again = await NbdClient.connect(readlinkSync(socket));
      const lost = again.ask(nbdWrite, 0n, 4096, Buffer.alloc(4096, 9));
      const ended = datapath.deactivate(disk);
      t.match(await lost, { error: 5 }, "what is not answered fails with its device");
      await ended;
      await datapath.deactivate(disk);
      await datapath.detach(disk);
      t.strictSame(await tapCtl.list(), []);
      t.strictSame(await datapath.users(), []);
      t.ok(holder.memory.bytes.subarray(0, 4096).equals(Buffer.alloc(4096)), "and is not written");
    },
  );
}

await t.test(
  "kernel-nbd: a tapdisk of a device that was lost is never taken for the new one's",
  async (t) => {
    const { holder, datapath, tapCtl } = await scene(t, false);
    await datapath.activate(active);
    const [first] = await tapCtl.list();
    await holder.lose(VDI);
    await datapath.activate(active);
    const [second, ...others] = await tapCtl.list();
    t.strictSame(others, [], "the dead one is gone");
    t.not(second?.args, first?.args);
    // The holder was restarted after the loss: the kernel tells it of no device.
    await holder.lose(VDI);
    holder.forget(VDI);
    await datapath.activate(active);
    const left = await tapCtl.list();
    t.equal(left.length, 1);
    t.not(left[0]?.pid, second?.pid, "it was found by the disk's link");
  },
);

await t.test("kernel-nbd: a host whose kernel can't do it says so; the device-config chooses", async (t) => {
  const { holder, datapath, root } = await scene(t, false);
  holder.hasNbd = false;
  await t.rejects(datapath.activate(active), { code: 115, message: /has no nbd module/ });
  // No tap-ctl is there: what looks for paused tapdisks when it begins has nothing to run in a directory that goes.
  const nowhere = join(root, "nowhere");
  const chosen = tapdisks({ runDir: nowhere, dom0Root: nowhere }, log as never, new Turns());
  t.ok(chosen(new Map([["datapath", "kernel-nbd"]])) instanceof KernelNbdDatapath);
  t.notOk(chosen(new Map()) instanceof KernelNbdDatapath);
  t.throws(() => chosen(new Map([["datapath", "ublk"]])), { code: 115 });
});
