/**
 * Whole disks as pools. Root plays device-plots.ts in a mount namespace of its own: one that another test makes meanwhile
 * would take copies of the plots' mounts with it, and keep their disks in use. Without root, that it takes root is said.
 */
import { join } from "node:path";
import t from "tap";

import { startHost } from "./test-host.ts";

const isRoot = process.getuid?.() === 0;

if (isRoot) {
  const inside = ["--mount", "--propagation", "private", process.execPath];
  await t.spawn("unshare", [...inside, join(import.meta.dirname, "device-plots.ts")], {
    name: "devices: in a mount namespace",
    timeout: 300_000,
  });
}

await t.test(
  "devices: without root, disks are listed, and using one is refused",
  { skip: isRoot ? "root plays the plots instead" : false },
  async (t) => {
    const host = await startHost(t, 240);
    await host.client.init({ name: host.name, address: host.address, clusterName: "lab" });
    for (const { device, blank, state } of await host.client.disks()) {
      t.equal(blank, false, `${device} is ${state}: what isn't looked at is not blank`);
      await t.rejects(host.client.createPool({ path: device }), { code: "E-DISK-06" }, device);
      await t.rejects(host.client.wipeDisk({ device, name: "x" }), { code: "E-DISK-06" }, device);
    }
    t.equal((await host.client.status()).kind, "cluster");
  },
);
