/**
 * Run in a guest of the lab (`npm run lab -- lvm`), whose kernel has thin volumes.
 *
 * Plot: a disk becomes a pool on LVM and is given up again, on a host whose agent ends where it hurts. LVM and its volumes
 * are real; weftd is one that keeps no files.
 */
import { randomUUID } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { execa } from "execa";

import { BUNDLE_FILE } from "../../../src/core/agent/bundle-keeper.ts";
import { LVM_CONFIG } from "../../../src/core/agent/thin-group.ts";
import { groupName } from "../../../src/core/model/thin-group.ts";
import { parseBundle } from "../../../src/core/wire/bundle.ts";
import { LoopDevice } from "./loop-device.ts";
import { eventually, startHost, type TestHost } from "./test-host.ts";

const cpu = await readFile("/proc/cpuinfo", "utf8");
if (!cpu.includes("User Mode Linux")) throw new Error("Only in a guest of the lab: npm run lab -- lvm");

async function remembered(host: TestHost): Promise<readonly Record<string, unknown>[]> {
  const file = JSON.parse(await readFile(join(host.stateDir, "devices.json"), "utf8")) as {
    devices: Record<string, unknown>[];
  };
  return file.devices;
}

/** `name size zero when-full chunk` of each volume. */
async function volumes(): Promise<readonly string[]> {
  const columns = "lv_name,lv_active,zero,lv_when_full,chunk_size";
  const args = ["lvs", "--noheadings", "--separator", " ", "--units", "k", "--options", columns];
  return (await lvm(...args)).split("\n").map((line) => line.trim());
}

async function lvm(...args: readonly string[]): Promise<string> {
  return (await execa("lvm", [...args, "--config", LVM_CONFIG])).stdout;
}

async function blank(host: TestHost): Promise<boolean> {
  return (await host.client.disks(DISK)).every((disk) => disk.blank);
}

const { path: DISK } = await LoopDevice.make(t, 3 * 2 ** 29);
const host = await startHost(t, 249);
await host.client.init({ name: host.name, address: host.address, clusterName: "lab" });

await t.test(
  "lvm: a blank disk becomes a pool on thin volumes, found again when nothing is active",
  async (t) => {
    t.ok(await blank(host));
    const pool = await host.client.createPool({ path: DISK, kind: "lvm-thin" });
    t.match(pool, { device: DISK, kind: "lvm-thin", state: "serving" });
    const [entry] = await remembered(host);
    const id = String(entry?.["id"]);
    t.match(entry, { kind: "lvm-thin", phase: "ready", pool: pool.id, path: DISK });
    t.strictSame(await volumes(), ["data active zero error 64.00k", "meta active unknown  0k"]);
    t.strictSame(JSON.parse(await readFile(join(pool.path, "lvm-thin"), "utf8")), { vg: groupName(id) });
    t.equal((await host.client.createPool({ path: DISK, kind: "lvm-thin" })).id, pool.id, "asked again");
    t.match(await host.client.disks(DISK), [{ state: "pool", pool: pool.id }]);
    const { stdout } = await execa("lsblk", ["-nro", "KNAME,TYPE"]);
    const parts = stdout
      .split("\n")
      .flatMap((line) => (line.endsWith(" lvm") ? [line.split(" ")[0] ?? ""] : []));
    t.ok(parts.length >= 4, "meta, data and its parts");
    for (const part of parts)
      await t.rejects(host.client.createPool({ path: `/dev/${part}` }), { code: "E-DISK-03" }, part);

    await eventually(
      "the bundle",
      () => readFile(join(pool.path, BUNDLE_FILE), "utf8"),
      (text) => parseBundle(text) !== null,
    );
    await host.stopAgent();
    await execa("umount", [pool.path]);
    await lvm("vgchange", "--activate", "n", groupName(id));
    // As if its system were installed anew: who it was is found in a group that nobody has activated, and that is idle again after.
    const newcomer = await startHost(t, 248);
    const { bundles } = await newcomer.client.bundles();
    const { host: self } = JSON.parse(await readFile(join(host.stateDir, "host.json"), "utf8")) as {
      host: string;
    };
    t.strictSame(
      bundles.map((text) => parseBundle(text)?.host),
      [self],
    );
    t.ok(
      (await volumes()).every((line) => !line.includes(" active")),
      "nothing stays active",
    );
    t.notMatch(await readFile("/proc/self/mounts", "utf8"), groupName(id).replaceAll("-", "--"));
    await newcomer.stopAgent();
    await host.startAgent();
    const isMounted = (text: string) => text.includes(` ${pool.path} xfs `);
    await eventually("its mount", () => readFile("/proc/self/mounts", "utf8"), isMounted);

    await host.client.removePool(pool.id);
    t.strictSame(await remembered(host), []);
    t.ok(
      (await volumes()).every((line) => !line.includes(" active")),
      "idle, and all there",
    );
    await t.rejects(host.client.createPool({ path: DISK, kind: "lvm-thin" }), { code: "E-DISK-07" });
    await host.client.wipeDisk({ device: DISK, name: groupName(id) });
    t.ok(await blank(host));
  },
);

await t.test("lvm: a group that was cut short anywhere is undone", async (t) => {
  const { cluster } = JSON.parse(await readFile(join(host.stateDir, "host.json"), "utf8")) as {
    cluster: string;
  };
  const size = await execa("lsblk", ["-bno", "SIZE", DISK]);
  const commands = (group: string, id: string): readonly (readonly string[])[] => [
    ["vgcreate", "--yes", "--addtag", `weft.id=${id}`, group, DISK],
    ["lvcreate", "--yes", "--size", "512m", "--name", "meta", group],
    ["lvcreate", "--yes", "--type", "thin-pool", "--size", "100m", "--name", "data", group],
  ];
  const cuts: readonly (readonly [steps: number, isBoot: boolean])[] = [
    [0, false],
    [1, false],
    [2, false],
    [3, true],
    [3, false],
  ];
  const cutShort = async (steps: number, isBoot: boolean): Promise<string> => {
    await host.stopAgent();
    const id = randomUUID();
    for (const command of commands(groupName(id), id).slice(0, steps)) await lvm(...command);
    if (isBoot) await lvm("vgchange", "--activate", "n", groupName(id));
    const entry = {
      id,
      cluster,
      kind: "lvm-thin",
      path: DISK,
      serial: null,
      sizeBytes: size.stdout.trim(),
      phase: "making",
      pool: null,
    };
    await writeFile(join(host.stateDir, "devices.json"), JSON.stringify({ devices: [entry] }));
    return id;
  };
  const isOver = (entries: readonly unknown[]) => entries.length === 0;
  for (const [steps, isBoot] of cuts) {
    await cutShort(steps, isBoot);
    await host.startAgent();
    await eventually("its end", () => remembered(host), isOver);
    t.ok(await blank(host), `${steps} commands, ${isBoot ? "then a boot" : "then killed"}`);
  }

  const id = await cutShort(3, false);
  const thin = ["--type", "thin", "--thinpool", "data", "--virtualsize", "68m"];
  await lvm("lvcreate", "--yes", ...thin, "--name", "r-77.1-x", groupName(id));
  await host.startAgent();
  const problems = async () => {
    const status = await host.client.status();
    return status.kind === "cluster" ? status.problems.map(({ message }) => message) : [];
  };
  await eventually("a pool's group is let be", problems, (all) =>
    all.some((message) => message.includes("has volumes of copies")),
  );
  t.equal((await volumes()).length, 3);
});
