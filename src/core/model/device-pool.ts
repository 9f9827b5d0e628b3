/**
 * A pool on a whole device, from the intent to its end: what is to be done next, by what is there.
 *
 *     making ──mkfs, mount, weftd's pool──▶ ready ──pool remove──▶ leaving ──weftd let go, unmounted──▶ forgotten
 *        └── no file system of ours there, or one whose mkfs was cut short ──▶ undone: the device is as it was
 *
 * With LVM the file system lies on the volume `meta` of a group of ours on the device, which is made before it: `making` makes
 * the group, too, and it is activated before the mount, and idle again before it is forgotten.
 *
 * The id is the file system's UUID: chosen and remembered before the device is touched, and written by mkfs. So after any
 * end of the agent the device itself tells how far it came; where a disk is plugged in plays no role.
 *
 * Must always hold:
 * - nothing here formats: a device is formatted once, by who has just judged it blank and remembered it;
 * - undone is only what has our id and the mark that its mkfs has not ended: never a file system that was mounted once;
 * - a ready pool's device is only ever mounted, and only where exactly one device has its file system.
 */
import { type Finding, finding } from "./finding.ts";

export type DeviceEntry = {
  /** The file system's UUID. */
  readonly id: string;
  readonly cluster: string;
  readonly kind: "xfs" | "lvm-thin";
  /** For people: as it was called when the pool was made. */
  readonly path: string;
  readonly serial: string | null;
  readonly sizeBytes: bigint;
  readonly phase: "making" | "ready" | "leaving";
  /** weftd's; null while it has none. */
  readonly pool: string | null;
};

export type DeviceSeen = {
  /** Devices that have the file system. */
  readonly found: readonly { readonly path: string; readonly number: string; readonly inProgress: boolean }[];
  /** Number of the device that is mounted in the pool's place; null: none is. */
  readonly mounted: string | null;
  /** The device that the entry names: is it there, and does somebody hold it (as a mkfs does that outlived its agent)? */
  readonly named: "absent" | "free" | "busy";
  /** The volume group: there, and are its volumes active? Always none where the kind is xfs. */
  readonly group: "none" | "idle" | "active";
  /** Does weftd know a pool there? Null: it doesn't answer. Asked for those that are leaving. */
  readonly isKnown: boolean | null;
};

export type DeviceStep =
  /** Nothing of it is on any device. */
  | { readonly kind: "forget" }
  /** Our mkfs was cut short there. */
  | { readonly kind: "erase"; readonly path: string }
  /** The group's volumes are not active. */
  | { readonly kind: "activate" }
  /** The group was cut short and never had a pool: it goes, and the device is as it was. */
  | { readonly kind: "dismantle" }
  | { readonly kind: "deactivate" }
  | { readonly kind: "mount"; readonly path: string }
  | { readonly kind: "unmount" }
  /** Mounted: weftd shall serve it. */
  | { readonly kind: "serve" }
  /** It was not removed after all. */
  | { readonly kind: "stay" }
  | { readonly kind: "wait"; readonly finding: Finding };

export function nextDeviceStep(entry: DeviceEntry, seen: DeviceSeen): DeviceStep {
  const { found, mounted } = seen;
  if (entry.phase === "leaving") {
    if (seen.isKnown === null)
      return wait("E-DISK-10", entry, "weftd has not said yet whether it let go of it");
    if (seen.isKnown) return { kind: "stay" };
    if (mounted !== null) return { kind: "unmount" };
    return { kind: seen.group === "active" ? "deactivate" : "forget" };
  }
  const [first, second] = found;
  if (first !== undefined && second !== undefined) {
    const both = found.map(({ path }) => path).join(" and ");
    return wait(
      "E-DISK-10",
      entry,
      `${both} have the same file system: one is a copy, and must be taken away`,
    );
  }
  if (first === undefined) {
    if (seen.group === "idle") return { kind: "activate" };
    if (seen.group === "active" && entry.phase === "making" && mounted === null) return { kind: "dismantle" };
    if (entry.phase === "ready" || mounted !== null || seen.named === "absent")
      return wait("E-DISK-09", entry, "no disk of this host has its file system");
    if (seen.named === "busy") return wait("E-DISK-10", entry, `${entry.path} is in use`);
    return { kind: "forget" };
  }
  if (first.inProgress) {
    if (entry.phase === "ready" || mounted !== null)
      return wait("E-DISK-10", entry, `the file system on ${first.path} is not whole`);
    if (seen.group !== "none") return { kind: "dismantle" };
    if (seen.named === "busy") return wait("E-DISK-10", entry, `${first.path} is in use`);
    return { kind: "erase", path: first.path };
  }
  if (mounted === null) return { kind: "mount", path: first.path };
  // It went away while it was mounted, and came back under another number.
  return mounted === first.number ? { kind: "serve" } : { kind: "unmount" };
}

/** A step could not be done. */
export function deviceTrouble(entry: DeviceEntry, why: string): Finding {
  return findingOf("E-DISK-10", entry, why);
}

function wait(code: "E-DISK-09" | "E-DISK-10", entry: DeviceEntry, why: string): DeviceStep {
  return { kind: "wait", finding: findingOf(code, entry, why) };
}

function findingOf(code: "E-DISK-09" | "E-DISK-10", entry: DeviceEntry, why: string): Finding {
  const name = entry.pool === null ? "A pool that is being made" : `Pool ${entry.pool.slice(0, 8)}`;
  const serial = entry.serial === null ? "" : `, serial ${entry.serial}`;
  const what = code === "E-DISK-09" ? "waits for its disk" : "can't use its disk";
  return finding(code, `${name} ${what} (${entry.path}${serial}): ${why}.`, {
    facts: { pool: entry.pool, device: entry.path, serial: entry.serial, id: entry.id },
    do: [
      code === "E-DISK-09"
        ? { why: "Plug it in; the pool comes back by itself. What is there", command: "weft disk list" }
        : { why: "It is tried again every few seconds. What is there", command: "weft disk list" },
    ],
  });
}
