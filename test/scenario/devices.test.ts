/**
 * Plot: a whole disk is a host's pool, with the real weftd: it survives the host's end, waits for its disk when that is
 * missing, and is given up and erased in the end. The disk is a loop device, which takes root; without it
 * test/core/agent/devices.test.ts says what is refused.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { Cluster } from "../../scripts/cluster/cluster.ts";
import type { Host } from "../../scripts/cluster/host.ts";
import { until } from "../../scripts/lib/until.ts";
import { attachAnswer } from "../../src/core/wire/agent-api.ts";
import { LoopDevice } from "../core/agent/loop-device.ts";

const isRoot = process.getuid?.() === 0;

async function said(host: Host, command: readonly string[]): Promise<string> {
  const { result } = await host.exec(command);
  const { exitCode, stdout, stderr } = await result;
  return `${exitCode} ${stdout}${stderr}`;
}

async function qemuIo(host: Host, command: string): Promise<string> {
  const { path, volume } = attachAnswer.parse(await host.json(["weft", "attach", "v", "--json"]));
  const uri = `nbd+unix:///${volume}?socket=${path}`;
  try {
    return await host.output(["qemu-io", "-f", "raw", "-c", command, uri]);
  } finally {
    await host.output(["weft", "detach", "v"]);
  }
}

async function serving(host: Host): Promise<void> {
  await until(
    async () => ((await host.agent().pools()).every(({ state }) => state === "serving") ? true : null),
    {
      what: "the pool to serve",
      deadlineMs: 30_000,
    },
  );
}

await t.test(
  "device: a pool's life on a whole disk: made, booted with, missing, given up, erased",
  { skip: isRoot ? false : "only root has loop devices" },
  async (t) => {
    const disk = await LoopDevice.make(t, 1 << 30);
    const dir = mkdtempSync(join(tmpdir(), "weft-scenario-"));
    t.teardown(async () => {
      await Cluster.down(dir);
      rmSync(dir, { recursive: true, force: true });
    });
    const { hosts } = await Cluster.up({ dir, hosts: 1, pools: [] });
    const [h1] = hosts;
    if (h1 === undefined) throw new Error("one host");
    t.match(await said(h1, ["weft", "disk", "list"]), new RegExp(`^0 DEVICE[^]*${disk.path} +1 GiB .*blank`));
    t.match(
      await said(h1, ["weft", "pool", "add", disk.path]),
      /^0 Pool .* added: \/dev\/loop\d+ on h1, with XFS/,
    );
    t.match(
      await h1.output(["cat", "/proc/mounts"]),
      new RegExp(`${disk.path} ${h1.stateDir}/pools/\\S+ xfs .*noatime`),
    );
    await h1.output(["weft", "volume", "create", "v", "64MiB", "--copies", "1"]);
    await qemuIo(h1, "write -P 0x5a 1M 1M");

    await h1.kill();
    await h1.start();
    await serving(h1);
    t.match(await qemuIo(h1, "read -P 0x5a 1M 1M"), /read 1048576/, "what was written before the host's end");

    await h1.kill();
    await disk.unplug();
    await h1.start();
    const missing = await until(
      async () => {
        const status = await said(h1, ["weft", "status"]);
        return status.includes("E-DISK-09") ? status : null;
      },
      { what: "the status to say that the disk is missing", deadlineMs: 30_000 },
    );
    t.match(missing, /E-DISK-09 {2}Pool \S+ waits for its disk/);
    await disk.plugIn();
    await serving(h1);
    t.match(await qemuIo(h1, "read -P 0x5a 1M 1M"), /read 1048576/, "after its return");

    const wiping = ["weft", "disk", "wipe", `h1:${disk.path}`];
    t.match(await said(h1, [...wiping, "--name", "weft"]), /^2 .*E-DISK-03/, "a pool's disk is not erased");
    t.match(
      await said(h1, ["weft", "pool", "remove", disk.path]),
      /^2 .*E-POOL-05/,
      "nor given up while copies live there",
    );
    t.match(await h1.output(["cat", "/proc/mounts"]), new RegExp(`/pools/\\S+ xfs`), "it stays mounted");
    await serving(h1);
    await h1.output(["weft", "volume", "delete", "v", "--yes"]);
    await h1.output(["weft", "trash", "empty", "--yes"]);
    await until(
      async () => ((await said(h1, ["weft", "pool", "remove", disk.path])).startsWith("0 ") ? true : null),
      {
        what: "the pool to be given up",
        deadlineMs: 20_000,
      },
    );
    t.notMatch(await h1.output(["cat", "/proc/mounts"]), /\/pools\//, "weftd let go, and it is unmounted");
    t.match(
      await said(h1, ["weft", "pool", "add", disk.path]),
      /^2 .*E-DISK-07 .* is not blank: xfs file system "weft-/,
    );
    const [{ name } = { name: "" }] = await h1.agent().disks(disk.path);
    t.match(await said(h1, [...wiping, "--name", name]), /^0 .* is erased; it held xfs file system "weft-/);
    t.match(await said(h1, ["weft", "pool", "add", disk.path]), /^0 Pool .* added/);
    await h1.kill();
  },
);
