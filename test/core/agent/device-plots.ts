/**
 * Run by devices.test.ts as root, in a mount namespace of its own.
 *
 * Plot: whole disks become pools and are given up again, on a host whose agent ends where it hurts. The disks are loop
 * devices, the tools those of the system; weftd is one that keeps no files.
 */
import { randomUUID } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { execa } from "execa";

import { LoopDevice, unmount } from "./loop-device.ts";
import { eventually, startHost, type TestHost } from "./test-host.ts";

async function hostInCluster(t: Parameters<typeof startHost>[0], n: number): Promise<TestHost> {
  const host = await startHost(t, n);
  // Before the host's directory goes, with whatever is mounted in it.
  t.teardown(() => endMounts(host));
  await host.client.init({ name: host.name, address: host.address, clusterName: "lab" });
  return host;
}

async function mountsOf(host: TestHost): Promise<readonly string[]> {
  const text = await readFile("/proc/self/mounts", "utf8");
  return text.split("\n").filter((line) => line.includes(` ${host.stateDir}/pools/`));
}

async function endMounts(host: TestHost): Promise<void> {
  await host.stopAgent();
  for (const line of await mountsOf(host)) await unmount(line.split(" ")[1] ?? "");
}

async function remembered(host: TestHost): Promise<readonly Record<string, unknown>[]> {
  const file = JSON.parse(await readFile(join(host.stateDir, "devices.json"), "utf8")) as {
    devices: Record<string, unknown>[];
  };
  return file.devices;
}

/** As the kernel of XCP-ng 8.3 (4.19) has to be able to mount it. */
async function format(device: LoopDevice, id: string): Promise<void> {
  const features = `reflink=1,bigtime=0,inobtcount=0,rmapbt=0,uuid=${id}`;
  await execa("mkfs.xfs", ["-q", "-K", "-m", features, "-L", `weft-${id.slice(0, 6)}`, device.path]);
}

async function uuidOn(device: LoopDevice): Promise<string> {
  const { stdout } = await execa("blkid", ["-p", "-s", "UUID", "-o", "value", device.path], {
    reject: false,
  });
  return stdout.trim();
}

void t.test(
  "device: a blank disk becomes a pool: XFS with reflink, mounted with noatime, remembered",
  async (t) => {
    const device = await LoopDevice.make(t);
    const host = await hostInCluster(t, 241);
    t.match(await host.client.disks(device.path), [
      { device: device.path, state: "blank", blank: true, what: null },
    ]);
    const pool = await host.client.createPool({ path: device.path });
    t.match(pool, { device: device.path, kind: "xfs", state: "serving", hostName: host.name });
    const [entry] = await remembered(host);
    t.match(entry, { phase: "ready", pool: pool.id, path: device.path });
    t.equal(entry?.["id"], await uuidOn(device), "by what stands on the disk itself");
    t.equal(pool.path, join(host.stateDir, "pools", String(entry?.["id"])));
    const [mount = "", more] = await mountsOf(host);
    t.match(mount, new RegExp(`^${device.path} ${pool.path} xfs rw,nosuid,nodev,noexec,noatime,`));
    t.equal(more, undefined);
    const { stdout } = await execa("xfs_info", [pool.path]);
    t.match(stdout, /reflink=1 .*bigtime=0 inobtcount=0/, "kernel 4.19 mounts it too");
    t.match(stdout, /rmapbt=0/);
    t.equal((await host.client.createPool({ path: device.path })).id, pool.id, "asked again it is the same");
    t.match(await host.client.disks(device.path), [
      { state: "pool", pool: pool.id, what: `pool ${pool.id.slice(0, 8)}` },
    ]);
    await t.rejects(
      host.client.wipeDisk({ device: device.path, name: `weft-${String(entry?.["id"]).slice(0, 6)}` }),
      {
        code: "E-DISK-03",
        exitCode: 2,
      },
    );

    await host.client.removePool(pool.id);
    t.strictSame(await mountsOf(host), []);
    t.strictSame(await remembered(host), []);
    t.equal(await uuidOn(device), entry?.["id"], "what it held is still there");
    await t.rejects(host.client.createPool({ path: device.path }), { code: "E-DISK-07" });
  },
);

void t.test("device: what isn't blank is refused by its name, and erased by its name only", async (t) => {
  const [disk, swap] = [await LoopDevice.make(t), await LoopDevice.make(t)];
  const host = await hostInCluster(t, 242);
  await execa("mkfs.ext4", ["-q", "-L", "backup", disk.path]);
  const before = await uuidOn(disk);
  await t.rejects(host.client.createPool({ path: disk.path }), {
    code: "E-DISK-07",
    exitCode: 2,
    message: `${disk.path} on ${host.name} is not blank: ext4 file system "backup".`,
  });
  for (const name of ["", "Backup", "backup "])
    await t.rejects(host.client.wipeDisk({ device: disk.path, name }), { code: "E-DISK-04", exitCode: 2 });
  await t.rejects(host.client.wipeDisk({ device: disk.path, host: "h9", name: "backup" }), {
    code: "E-DISK-08",
  });

  const at = join(host.directory, "mounted");
  await mkdir(at);
  await execa("mount", [disk.path, at]);
  t.match(await host.client.disks(disk.path), [{ state: "in-use", what: `mounted at ${at}` }]);
  await t.rejects(host.client.createPool({ path: disk.path }), { code: "E-DISK-03" });
  await t.rejects(host.client.wipeDisk({ device: disk.path, name: "backup" }), {
    code: "E-DISK-03",
    exitCode: 2,
  });
  await disk.unmount();
  t.equal(await uuidOn(disk), before, "nothing of it was touched");

  t.match(await host.client.wipeDisk({ device: disk.path, host: host.name, name: "backup" }), {
    held: 'ext4 file system "backup"',
    disk: { state: "blank" },
  });
  t.match(await host.client.wipeDisk({ device: disk.path }), { held: null }, "blank is blank");
  t.match(await host.client.createPool({ path: disk.path }), { state: "serving" });

  await execa("mkswap", ["-L", "sw", swap.path]);
  await t.rejects(host.client.createPool({ path: swap.path }), {
    code: "E-DISK-07",
    message: /swap space "sw"/,
  });
  const name = "sw";
  t.match(await host.client.wipeDisk({ device: swap.path, name }), { held: 'swap space "sw"' });
  await swap.write((400 << 20) - 4096, Buffer.from("the end of a disk that nobody knows"));
  t.match(await host.client.disks(swap.path), [{ state: "data", what: "data of no known kind" }]);
  await t.rejects(host.client.createPool({ path: swap.path }), { code: "E-DISK-07" });
  const [{ name: own } = { name: "" }] = await host.client.disks(swap.path);
  t.match(await host.client.wipeDisk({ device: swap.path, name: own }), { disk: { state: "blank" } });
});

void t.test("device: what can't be a pool is refused with the reason", async (t) => {
  const small = await LoopDevice.make(t, 64 << 20);
  const host = await hostInCluster(t, 243);
  const add = (path: string, kind: "dir" | "xfs" | "zfs" | null = null): Promise<unknown> =>
    host.client.createPool({ path, kind });
  await t.rejects(add(small.path), { code: "E-DISK-05", message: /64 MiB, a pool takes 300 MiB/ });
  await t.rejects(add("/dev/null"), { code: "E-DISK-02", exitCode: 1 });
  await t.rejects(add("/dev/nothing-here"), { code: "E-DISK-02" });
  await t.rejects(add(host.directory, "xfs"), { code: "E-DISK-02" });
  await t.rejects(add(small.path, "dir"), { code: "E-ARG-02" });
  await t.rejects(add(small.path, "zfs"), { code: "E-POOL-08", exitCode: 1 });
  await t.rejects(add("/tank", "zfs"), { code: "E-POOL-08" });
});

void t.test("device: a disk that is missing is said, and its pool comes back when it does", async (t) => {
  const device = await LoopDevice.make(t);
  const other = await LoopDevice.make(t);
  const host = await hostInCluster(t, 244);
  const pool = await host.client.createPool({ path: device.path });
  const [entry] = await remembered(host);
  const was = device.path;

  // The host ends, and comes up with the disk plugged in elsewhere.
  await host.stopAgent();
  await device.unplug();
  await other.unplug();
  const taken = await LoopDevice.make(t);
  t.equal(taken.path, was, "another disk has its name now");
  await host.startAgent();
  const problems = async (): Promise<readonly { code: string; message: string }[]> => {
    const status = await host.client.status();
    return status.kind === "cluster" ? status.problems.filter(({ code }) => code.startsWith("E-DISK-")) : [];
  };
  await eventually("the missing disk", problems, (found) => found.length === 1);
  const [said] = await problems();
  t.match(said, {
    code: "E-DISK-09",
    message: new RegExp(`^Pool ${pool.id.slice(0, 8)} waits for its disk \\(${was}\\)`),
  });
  t.match(
    await host.client.disks(taken.path),
    [{ state: "blank" }],
    "the one that has its name is not taken for it",
  );

  await device.plugIn();
  t.not(device.path, was);
  await eventually("its return", problems, (found) => found.length === 0);
  t.match(await mountsOf(host), [new RegExp(`^${device.path} ${pool.path} xfs .*noatime`)]);
  t.strictSame(await remembered(host), [entry], "it is what it was");
});

type Ends = (device: LoopDevice, host: TestHost, id: string) => Promise<void>;
/** Where the agent was killed while it made a pool, and whether that is finished or undone. */
const ends: readonly (readonly [where: string, Ends, outcome: "finished" | "undone"])[] = [
  ["before mkfs", async () => undefined, "undone"],
  [
    "in mkfs",
    async (device, _host, id) => {
      await format(device, id);
      // mkfs.xfs 6.1 writes this mark with the first superblock, and takes it away last.
      await device.write(126, Buffer.of(1));
    },
    "undone",
  ],
  ["after mkfs", async (device, _host, id) => format(device, id), "finished"],
  [
    "after the mount",
    async (device, host, id) => {
      await format(device, id);
      const at = join(host.stateDir, "pools", id);
      await mkdir(at, { recursive: true });
      await execa("mount", ["-o", "noatime", device.path, at]);
    },
    "finished",
  ],
];

void t.test(
  "device: killed anywhere while a pool is made, it is finished or undone, and formatted once",
  async (t) => {
    for (const [index, [where, end, outcome]] of ends.entries()) {
      const device = await LoopDevice.make(t);
      const host = await hostInCluster(t, 250 + index);
      const { cluster } = (await host.client.me()) as { cluster: { id: string } };
      await host.stopAgent();
      const id = randomUUID();
      const entry = {
        id,
        cluster: cluster.id,
        path: device.path,
        serial: null,
        sizeBytes: String(400 << 20),
      };
      const devices = [{ ...entry, phase: "making", pool: null }];
      await writeFile(join(host.stateDir, "devices.json"), JSON.stringify({ devices }));
      await end(device, host, id);
      const marked = outcome === "finished" ? `${where} ${id}` : "";
      if (marked !== "") await mark(device, host, id, marked);
      await host.startAgent();
      if (outcome === "undone") {
        await eventually(
          where,
          () => remembered(host),
          (found) => found.length === 0,
        );
        t.match(await host.client.disks(device.path), [{ state: "blank" }], where);
        t.match(await host.client.createPool({ path: device.path }), { state: "serving" }, where);
      } else {
        await eventually(
          where,
          () => remembered(host),
          ([found]) => found?.["phase"] === "ready",
        );
        t.equal(await uuidOn(device), id, where);
        t.equal(
          await readFile(join(host.stateDir, "pools", id, "mark"), "utf8"),
          marked,
          `${where}: not formatted again`,
        );
        const [pool] = await eventually(
          "its pool",
          () => host.client.pools(),
          ([found]) => (found?.device ?? null) !== null,
        );
        t.match(pool, { device: device.path, path: join(host.stateDir, "pools", id) }, where);
      }
      await endMounts(host);
      await host.destroy();
      await device.unplug();
    }
  },
);

void t.test("device: killed before its pool was remembered as made: it is the same pool after", async (t) => {
  const device = await LoopDevice.make(t);
  const host = await hostInCluster(t, 246);
  const pool = await host.client.createPool({ path: device.path });
  await host.stopAgent();
  const path = join(host.stateDir, "devices.json");
  const text = await readFile(path, "utf8");
  await writeFile(path, text.replace('"ready"', '"making"').replace(/"pool": "[^"]*"/, '"pool": null'));
  await device.unmount();
  await host.startAgent();
  await eventually(
    "the pool",
    () => remembered(host),
    ([found]) => found?.["phase"] === "ready",
  );
  t.match(await remembered(host), [{ pool: pool.id }]);
  t.equal((await mountsOf(host)).length, 1);
});

/** Something on the file system that a second mkfs would end. */
async function mark(device: LoopDevice, host: TestHost, id: string, text: string): Promise<void> {
  const at = join(host.stateDir, "pools", id);
  const isMounted = (await mountsOf(host)).length > 0;
  if (!isMounted) {
    await mkdir(at, { recursive: true });
    await execa("mount", [device.path, at]);
  }
  await writeFile(join(at, "mark"), text);
  if (!isMounted) await execa("umount", [at]);
}

void t.test(
  "device: killed while its pool is given up: gone where weftd let go, else it stays",
  async (t) => {
    const device = await LoopDevice.make(t);
    const host = await hostInCluster(t, 245);
    const pool = await host.client.createPool({ path: device.path });
    const path = join(host.stateDir, "devices.json");
    const leave = async (): Promise<void> => {
      await host.stopAgent();
      const text = await readFile(path, "utf8");
      await writeFile(path, text.replace('"ready"', '"leaving"'));
    };
    await leave();
    await host.startAgent();
    await eventually(
      "weftd's answer",
      () => remembered(host),
      ([found]) => found?.["phase"] === "ready",
    );
    t.equal((await mountsOf(host)).length, 1, "weftd had not been asked: it stays");
    await leave();
    host.weftd.pools.delete(pool.id);
    await host.startAgent();
    await eventually(
      "the end",
      () => remembered(host),
      (found) => found.length === 0,
    );
    t.strictSame(await mountsOf(host), []);
    t.match(await host.client.disks(device.path), [{ state: "data" }], "what is on it is left there");
  },
);
