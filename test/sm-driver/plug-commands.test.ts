/**
 * How hosts get disks and give them back, as XAPI orders the calls: a VM's start and stop, its migration, hosts that died, disks
 * that are reset on boot.
 */
import { randomUUID } from "node:crypto";

import t from "tap";

import { DriverFailure } from "./lib/client.ts";
import { MIB, World } from "./lib/world.ts";

async function fault(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "no fault";
  } catch (error) {
    if (error instanceof DriverFailure) return error.message;
    throw error;
  }
}

void t.test("plug: the life of a VM's disk, with a migration while it runs", async (t) => {
  const world = await World.start(t, 2);
  const [h1, h2] = [world.host(0), world.host(1)];
  const uuid = await h1.create(64n * MIB);
  const path = `${world.srUuid}/${uuid}`;
  t.strictSame(await h1.call("vdi_attach", { vdiUuid: uuid, args: ["true"] }), {
    params: `/dev/sm/backend/${path}`,
    params_nbd: `nbd:unix:/run/blktap-control/nbd/${path}:exportname=${uuid}`,
    o_direct: true,
    o_direct_reason: "SR_NOT_SUPPORTED",
    xenstore_data: {},
  });
  t.notOk(world.store.open.has(uuid), "attached is not opened");
  h1.datapath.hasNodes = false;
  t.strictSame(
    await h1.call("vdi_attach", { vdiUuid: uuid, args: ["true"] }),
    {
      params_nbd: `nbd:unix:/run/blktap-control/nbd/${path}:exportname=${uuid}`,
      o_direct: true,
      o_direct_reason: "SR_NOT_SUPPORTED",
      xenstore_data: {},
    },
    "where tapdisks have no block devices XAPI gets the socket alone, as XCP-ng 9's own drivers answer",
  );
  h1.datapath.hasNodes = true;
  await h1.start(uuid);
  world.write(0, uuid, "begun on h1");

  // As xapi.md 3.6 orders it: attached on two hosts, active on one.
  await h2.call("vdi_attach", { vdiUuid: uuid, args: ["true"] });
  await h1.call("vdi_deactivate", { vdiUuid: uuid });
  await h2.call("vdi_activate", { vdiUuid: uuid, args: ["true"] });
  world.write(1, uuid, "gone on with on h2");
  await h1.call("vdi_detach", { vdiUuid: uuid });
  t.strictSame(
    world.store.open.get(uuid),
    [{ host: h2.host.uuid, writable: true }],
    "the source's detach takes nothing away",
  );
  t.throws(() => world.write(0, uuid, "too late"));

  // XAPI has forgotten where it had the disk, and repeats itself.
  h2.forgetAll();
  await h2.plug(uuid);
  world.write(1, uuid, "still there");
  await h2.stop(uuid);
  await h2.stop(uuid);
  t.strictSame(world.store.open.get(uuid), []);
  t.equal(h2.datapath.attached.size + h2.datapath.active.size, 0);
  t.equal(world.store.disk(uuid).content, "still there");
});

void t.test(
  "vdi_activate: who has the disk is asked about only then, and dead is who XAPI says is",
  async (t) => {
    const world = await World.start(t, 3);
    const [h1, h2, h3] = [world.host(0), world.host(1), world.host(2)];
    const uuid = await h1.create(64n * MIB);
    await h1.plug(uuid);
    const asked = (): number => world.xapi.requests.filter(({ method }) => method.startsWith("host")).length;
    t.equal(asked(), 0);

    await h2.call("vdi_attach", { vdiUuid: uuid, args: ["true"] });
    const activate = (): Promise<unknown> => h2.call("vdi_activate", { vdiUuid: uuid, args: ["true"] });
    t.match(await fault(activate()), /^24: E-VDI-04 .*is open on /);
    t.match(world.store.activations.slice(-2), [{ deadHosts: [] }, { deadHosts: [] }]);
    t.equal(asked(), 2);

    h1.host.live = false;
    h3.host.live = false;
    await activate();
    t.strictSame(world.store.activations.at(-1)?.deadHosts, [h1.host.uuid, h3.host.uuid]);
    world.write(1, uuid, "taken over");

    // XAPI doesn't say: then nobody is dead.
    await h3.call("vdi_attach", { vdiUuid: uuid, args: ["true"] });
    world.xapi.intercept = async () => {
      throw new Error("XAPI restarts");
    };
    t.match(await fault(h3.call("vdi_activate", { vdiUuid: uuid, args: ["true"] })), /^24: /);
  },
);

void t.test(
  "vdi_activate: one that fails leaves the disk to others, and vdi_detach what is left of it",
  async (t) => {
    // A guest that migrates goes on where it was: it has its disk back at once. XAPI calls vdi_detach alone, later.
    const world = await World.start(t, 2);
    const [h1, h2] = [world.host(0), world.host(1)];
    const uuid = await h1.create(64n * MIB);
    h1.datapath.fails = true;
    t.match(await fault(h1.plug(uuid)), /^1200: .*tap-ctl: no memory/);
    t.strictSame(world.store.open.get(uuid), []);
    await h2.start(uuid);
    await h1.call("vdi_detach", { vdiUuid: uuid });
    t.strictSame(world.store.open.get(uuid), [{ host: h2.host.uuid, writable: true }]);

    // Asked once more while its guest runs: that goes on, though this fails.
    h2.datapath.fails = true;
    t.match(await fault(h2.call("vdi_activate", { vdiUuid: uuid, args: ["true"] })), /^1200: /);
    world.write(1, uuid, "it has it");

    // Of a disk that is no more, too.
    world.store.open.clear();
    world.store.disks.delete(uuid);
    await h2.stop(uuid);
    t.equal(h2.datapath.active.size + h2.datapath.attached.size, 0);
  },
);

void t.test(
  "on-boot reset: each boot begins as the disk was when that was said, and an old boot is never gone back to",
  async (t) => {
    const world = await World.start(t);
    const h1 = world.host(0);
    const uuid = await h1.create(64n * MIB);
    const content = (): string => world.store.disk(uuid).content;
    await h1.start(uuid);
    world.write(0, uuid, "installed");
    await h1.stop(uuid);

    // XAPI's set_on_boot clones it, and deletes the clone.
    await h1.call("vdi_delete", { vdiUuid: await h1.uuid("vdi_clone", { vdiUuid: uuid, driverParams: {} }) });
    for (const guest of ["Ann", "Bob"]) {
      await h1.start(uuid, "reset");
      t.equal(content(), "installed");
      world.write(0, uuid, `used by ${guest}`);
      await h1.stop(uuid);
    }

    // It persists, and is reset again, and no guest has booted meanwhile: what the last one wrote stays.
    const setOnBoot = async (onBoot: "persist" | "reset"): Promise<void> => {
      const clone = await h1.uuid("vdi_clone", { vdiUuid: uuid, onBoot, driverParams: {} });
      await h1.call("vdi_delete", { vdiUuid: clone });
    };
    await setOnBoot("reset");
    t.equal(world.store.disk(uuid).mark, "installed", "said twice it is said once");
    await setOnBoot("persist");
    await h1.start(uuid, "reset");
    t.equal(content(), "used by Bob");
    world.write(0, uuid, "gone with the next boot");
    await h1.stop(uuid);
    await h1.start(uuid, "reset");
    t.equal(content(), "used by Bob");
    await h1.stop(uuid);

    // Nobody tells the driver that it persists now; the next guest's data stays, also when it is reset again later.
    await h1.start(uuid);
    t.equal(content(), "used by Bob");
    world.write(0, uuid, "upgraded");
    await h1.stop(uuid);
    await h1.start(uuid, "reset");
    t.equal(content(), "upgraded");
    world.write(0, uuid, "used by Cyd");
    await h1.stop(uuid);
    await h1.start(uuid, "reset");
    t.equal(content(), "upgraded");
  },
);

void t.test(
  "on-boot reset: a guest boots elsewhere after its host died, and a disk that persists again keeps what it has",
  async (t) => {
    const world = await World.start(t, 2);
    const [h1, h2] = [world.host(0), world.host(1)];
    const uuid = await h1.create(64n * MIB);
    const content = (): string => world.store.disk(uuid).content;
    await h1.start(uuid);
    world.write(0, uuid, "installed");
    await h1.stop(uuid);
    await h1.start(uuid, "reset");
    world.write(0, uuid, "used by Ann");

    // While its guest lives nobody boots from it.
    t.match(await fault(h2.start(uuid, "reset")), /^24: /);
    t.equal(content(), "used by Ann");
    h1.host.live = false;
    await h2.start(uuid, "reset");
    t.equal(content(), "installed");
    world.write(1, uuid, "used by Bob");
    await h2.stop(uuid);

    // Nor does a disk that was never marked wait for a dead host.
    const fresh = await h1.create(64n * MIB);
    await h1.start(fresh);
    world.write(0, fresh, "installed");
    await h2.start(fresh, "reset");
    world.write(1, fresh, "used by Eve");
    await h2.stop(fresh);
    await h2.start(fresh, "reset");
    t.equal(world.store.disk(fresh).content, "installed");
    await h2.stop(fresh);

    // It isn't reset any more, and grows before it boots: nothing goes back.
    await h1.uuid("vdi_resize", { vdiUuid: uuid, onBoot: "persist", args: [String(128n * MIB)] });
    t.equal(content(), "used by Bob");
    await h2.start(uuid);
    t.equal(content(), "used by Bob");
  },
);

void t.test("plug: what can't be is refused with a number and a remedy", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const uuid = await h1.create(64n * MIB);
  const attach = (vdiUuid: string, ...args: readonly string[]): Promise<unknown> =>
    h1.call("vdi_attach", { vdiUuid, args });
  t.match(await fault(attach(randomUUID(), "true")), /^144: E-VDI-01 /);
  t.match(await fault(attach("no-uuid", "true")), /^143: .*vdi_uuid is "no-uuid"/);
  t.match(await fault(attach(uuid)), /^143: vdi_attach has no argument 1 \(writable\)/);
  t.match(await fault(attach(uuid, "yes")), /^143: /);
  world.store.disk(uuid).sr = randomUUID();
  t.match(await fault(attach(uuid, "true")), /^144: .*is in the SR/);
  world.store.disk(uuid).sr = world.srUuid;
  world.store.disk(uuid).whole = false;
  t.match(await fault(attach(uuid, "true")), /^46: .*still being made/);
  world.store.disk(uuid).whole = true;
  world.store.refuses = { code: "E-STORE-01", message: "The store does not answer.", status: 503 };
  t.match(await fault(attach(uuid, "true")), /^47: /);
  t.equal(await h1.call("vdi_epoch_begin", { vdiUuid: uuid }), null, "without a reset nobody is asked");
  t.equal(await h1.call("vdi_epoch_end", { vdiUuid: uuid }), null);
});

void t.test("plug: a guest's start waits for a store, or a weftd, that is away for a moment", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const uuid = await h1.create(64n * MIB);
  const away = [
    { code: "E-STORE-01", message: "The store has no majority.", status: 503 },
    { code: "E-AGENT-05", message: "weftd does not answer.", status: 503 },
  ];
  let left: typeof away = [];
  h1.steps.before = (name) => {
    if (name.includes(" /v1/")) world.store.refuses = left.shift() ?? null;
  };
  const commands: readonly (readonly [command: string, ...args: readonly string[]])[] = [
    ["vdi_epoch_begin"],
    ["vdi_attach", "true"],
    ["vdi_activate", "true"],
    ["vdi_deactivate"],
    ["vdi_detach"],
  ];
  for (const [command, ...args] of commands) {
    left = [...away];
    await h1.call(command, { vdiUuid: uuid, onBoot: "reset", args });
    t.strictSame(left, [], `${command} was refused twice`);
  }
  t.strictSame(world.store.open.get(uuid), []);
  // Who makes something is told at once: it is not done twice.
  left = [...away];
  t.match(await fault(h1.create(64n * MIB)), /^47: E-STORE-01 /);
});

void t.test("plug: fifty disks start at once on three hosts, and all of them stop", async (t) => {
  const world = await World.start(t, 3);
  const disks = await Promise.all(
    Array.from({ length: 50 }, (_, n) => world.host(0).create(64n * MIB, `disk ${n}`)),
  );
  await Promise.all(disks.map((uuid, n) => world.host(n % 3).start(uuid)));
  for (const [n, uuid] of disks.entries()) world.write(n % 3, uuid, `of disk ${n}`);
  t.equal(new Set(disks).size, 50);
  t.strictSame(world.differences(), []);
  await Promise.all(disks.map((uuid, n) => world.host(n % 3).stop(uuid)));
  t.strictSame(
    disks.map((uuid) => world.store.disk(uuid).content),
    disks.map((_, n) => `of disk ${n}`),
  );
  t.ok([...world.store.open.values()].every((users) => users.length === 0));
});
