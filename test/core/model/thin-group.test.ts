/** What a volume group of a pool is called, and how its device is divided. */
import t from "tap";

import { groupName, isOfGroup, thinSizes } from "../../../src/core/model/thin-group.ts";

void t.test(
  "thin group: a volume of one is known by its name, whatever else LVM has on the host",
  async (t) => {
    t.equal(groupName("1a2b3c4d-2222-4333-8444-555555555555"), "weft-1a2b3c4d");
    for (const title of ["weft--1a2b3c4d-meta", "weft--1a2b3c4d-r--77.2--x", "weft--1a2b3c4d-data_tmeta"])
      t.ok(isOfGroup(title), title);
    for (const title of ["weft-1a2b3c4d", "weft--old-meta", "vg-weft--1a2b3c4d", "sdb"])
      t.notOk(isOfGroup(title), title);
  },
);

void t.test(
  "thin group: what the pool needs for itself grows with the disk, and leaves the most of it",
  async (t) => {
    const MIB = 1n << 20n;
    const sizes: readonly (readonly [deviceMiB: bigint, meta: bigint, metadata: bigint])[] = [
      [1024n, 512n, 20n],
      [100n << 10n, 2048n, 1024n],
      [1n << 20n, 16_384n, 2097n],
      [64n << 20n, 16_384n, 15_360n],
    ];
    for (const [device, meta, metadata] of sizes) {
      t.strictSame(thinSizes(device * MIB), { meta: meta * MIB, metadata: metadata * MIB }, `${device} MiB`);
    }
  },
);
