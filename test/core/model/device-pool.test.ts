/**
 * Plot: the agent or the host ends at any step of making or giving up a pool on a device; what the device says by itself
 * decides how it goes on. The world here does what each step asks, and ends anywhere.
 */
import * as fc from "fast-check";
import t from "tap";

import { type DeviceEntry, type DeviceSeen, nextDeviceStep } from "../../../src/core/model/device-pool.ts";

const entry: DeviceEntry = {
  id: "11111111-2222-4333-8444-555555555555",
  cluster: "c0000000-0000-4000-8000-000000000001",
  kind: "xfs",
  path: "/dev/sdb",
  serial: "S64GNE0R1",
  sizeBytes: 894n << 30n,
  phase: "making",
  pool: null,
};
const thin: DeviceEntry = { ...entry, kind: "lvm-thin" };
const ready: DeviceEntry = { ...entry, phase: "ready", pool: "b0000000-0000-4000-8000-000000000001" };
const leaving: DeviceEntry = { ...ready, phase: "leaving" };
const whole = { path: "/dev/sdc", number: "8:32", inProgress: false };
const seen = (rest: Partial<DeviceSeen>): DeviceSeen => ({
  found: [],
  mounted: null,
  named: "free",
  group: "none",
  isKnown: null,
  ...rest,
});

const plots: readonly (readonly [title: string, DeviceEntry, Partial<DeviceSeen>, step: string])[] = [
  ["making: killed before mkfs", entry, {}, "forget"],
  ["making: mkfs outlives the agent", entry, { named: "busy" }, "wait E-DISK-10"],
  ["making: mkfs was killed", entry, { found: [{ ...whole, inProgress: true }] }, "erase"],
  [
    "making: mkfs is still at work",
    entry,
    { found: [{ ...whole, inProgress: true }], named: "busy" },
    "wait E-DISK-10",
  ],
  ["making: killed after mkfs", entry, { found: [whole] }, "mount"],
  ["making: killed after the mount", entry, { found: [whole], mounted: "8:32" }, "serve"],
  ["making: the disk was taken out", entry, { named: "absent" }, "wait E-DISK-09"],
  ["ready: after a boot, plugged in elsewhere", ready, { found: [whole] }, "mount"],
  ["ready: the agent restarts", ready, { found: [whole], mounted: "8:32" }, "serve"],
  ["ready: its disk is missing", ready, {}, "wait E-DISK-09"],
  ["ready: its disk went away while mounted", ready, { mounted: "8:32" }, "wait E-DISK-09"],
  ["ready: and is back under another number", ready, { found: [whole], mounted: "8:16" }, "unmount"],
  [
    "ready: a copy of its disk is there too",
    ready,
    { found: [whole, { ...whole, path: "/dev/sdd" }] },
    "wait E-DISK-10",
  ],
  [
    "ready: mkfs's mark on a pool that served",
    ready,
    { found: [{ ...whole, inProgress: true }] },
    "wait E-DISK-10",
  ],
  ["leaving: weftd is away", leaving, { found: [whole], mounted: "8:32" }, "wait E-DISK-10"],
  ["leaving: weftd refused", leaving, { found: [whole], mounted: "8:32", isKnown: true }, "stay"],
  ["leaving: weftd let go", leaving, { found: [whole], mounted: "8:32", isKnown: false }, "unmount"],
  ["leaving: unmounted", leaving, { found: [whole], isKnown: false }, "forget"],
  ["making on LVM: killed before the group", thin, {}, "forget"],
  ["making on LVM: vgcreate outlives the agent", thin, { named: "busy" }, "wait E-DISK-10"],
  ["making on LVM: killed before mkfs", thin, { group: "active", named: "busy" }, "dismantle"],
  [
    "making on LVM: mkfs was killed",
    thin,
    { group: "active", named: "busy", found: [{ ...whole, inProgress: true }] },
    "dismantle",
  ],
  ["making on LVM: the host ended before mkfs", thin, { group: "idle" }, "activate"],
  ["making on LVM: killed after mkfs", thin, { group: "active", named: "busy", found: [whole] }, "mount"],
  ["ready on LVM: after a boot", { ...thin, phase: "ready" }, { group: "idle" }, "activate"],
  ["ready on LVM: activated", { ...thin, phase: "ready" }, { group: "active", found: [whole] }, "mount"],
  [
    "ready on LVM: its file system is gone",
    { ...thin, phase: "ready" },
    { group: "active" },
    "wait E-DISK-09",
  ],
  [
    "ready on LVM: mkfs's mark on a pool that served",
    { ...thin, phase: "ready" },
    { group: "active", found: [{ ...whole, inProgress: true }] },
    "wait E-DISK-10",
  ],
  [
    "leaving on LVM: unmounted",
    { ...thin, phase: "leaving" },
    { group: "active", found: [whole], isKnown: false },
    "deactivate",
  ],
  ["leaving on LVM: idle", { ...thin, phase: "leaving" }, { group: "idle", isKnown: false }, "forget"],
];
for (const [title, of, rest, wanted] of plots) {
  void t.test(`device: ${title}: ${wanted}`, async (t) => {
    const step = nextDeviceStep(of, seen(rest));
    t.equal(step.kind === "wait" ? `wait ${step.finding.code}` : step.kind, wanted);
  });
}

/** What is on the device, and what is done with it. */
type World = {
  entry: DeviceEntry | null;
  disk: "blank" | "begun" | "whole";
  isMounted: boolean;
};

/** One step, or the end of the agent in the middle of it. */
function act(world: World): string {
  if (world.entry === null) return "forgotten";
  const step = nextDeviceStep(
    world.entry,
    seen({
      found: world.disk === "blank" ? [] : [{ ...whole, inProgress: world.disk === "begun" }],
      mounted: world.isMounted ? whole.number : null,
    }),
  );
  if (step.kind === "erase") world.disk = "blank";
  if (step.kind === "forget") world.entry = null;
  if (step.kind === "mount") world.isMounted = true;
  if (step.kind === "serve") world.entry = ready;
  return step.kind;
}

void t.test("device: wherever its making ends, it is finished or undone, and formatted once", async (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom("blank" as const, "begun" as const, "whole" as const),
      fc.array(fc.boolean(), { maxLength: 6 }),
      (disk, boots) => {
        const world: World = { entry, disk, isMounted: false };
        for (const isBoot of boots) {
          act(world);
          if (isBoot) world.isMounted = false;
        }
        for (let steps = 0; steps < 4; steps += 1) act(world);
        if (disk === "whole") return world.entry === ready && world.isMounted;
        return world.entry === null && world.disk === "blank";
      },
    ),
  );
  t.pass("all of them");
});
