/**
 * The volume group of a pool on LVM: made, activated, taken down. What is in it afterwards is weftd's.
 *
 * Must always hold:
 * - a group is found by its tag, which has the pool's entry: never by its name alone;
 * - its file system is made last, so that a group with it is whole, and one without was never used;
 * - LVM asks neither udev nor a daemon, and no configuration but ours.
 */
import { mkdir, open, readFile, rename } from "node:fs/promises";
import { join } from "node:path";

import { groupName, thinSizes } from "../model/thin-group.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import { formatDevice } from "./device-work.ts";
import { needTool } from "./tool.ts";

const LVM_MS = 60_000;
/** All that there is before a pool is served. */
const OURS: ReadonlySet<string> = new Set(["meta", "data"]);
/** Of each command. */
export const LVM_CONFIG = [
  "devices { use_devicesfile=0 obtain_device_list_from_udev=0 hints=none scan_lvs=0 }",
  "activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 error_when_full=1 }",
  // XCP-ng's lvm.conf lets nobody write metadata who does not say so.
  "global { use_lvmpolld=0 notify_dbus=0 metadata_read_only=0 } backup { backup=0 archive=0 }",
].join(" ");

/** `none`: no device has it; `idle`: its volumes aren't active. */
export type GroupState = "none" | "idle" | "active";

function lvm(verb: string, ...args: readonly string[]): Promise<string> {
  return needTool("lvm", [verb, ...args, "--config", LVM_CONFIG], LVM_MS);
}

async function report(verb: string, columns: string, ...args: readonly string[]): Promise<readonly string[]> {
  const text = await lvm(verb, "--noheadings", "--options", columns, ...args);
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
}

export async function stateOfGroup(id: string): Promise<GroupState> {
  const groups = await report("vgs", "vg_name", "--select", `vg_tags=${tagOf(id)}`);
  if (!groups.includes(groupName(id))) return "none";
  const [meta] = await report("lvs", "lv_name,lv_active", "--select", "lv_name=meta", groupName(id));
  // Without it there is nothing to activate.
  return meta === undefined || meta.endsWith(" active") ? "active" : "idle";
}

/** Entries' ids of groups of ours, whosesoever, whose volumes aren't active. None where LVM isn't installed. */
export async function idleGroups(): Promise<readonly string[]> {
  const lines = await report("vgs", "vg_tags").catch((error: unknown) => {
    if (isWeftError(error)) return [];
    throw error;
  });
  const ids = lines.flatMap((line) => TAG.exec(line)?.[1] ?? []);
  const states = await Promise.all(ids.map(stateOfGroup));
  return ids.filter((_, at) => states[at] === "idle");
}

/** All of it on a device that was judged blank. */
export async function makeGroup(path: string, id: string, sizeBytes: bigint): Promise<void> {
  const group = groupName(id);
  const { meta, metadata } = thinSizes(sizeBytes);
  // Each copy and each snapshot is a volume that the group tells of in some 700 bytes, twice: 16 MiB are room for 10,000.
  await lvm("vgcreate", "--yes", "--metadatasize", "16m", "--addtag", tagOf(id), group, path);
  await lvm("lvcreate", "--yes", "--wipesignatures", "y", "--size", `${meta}b`, "--name", "meta", group);
  const thin = ["--type", "thin-pool", "--chunksize", "64k", "--zero", "y", "--poolmetadataspare", "n"];
  const size = ["--poolmetadatasize", `${metadata}b`, "--extents", "100%FREE"];
  await lvm("lvcreate", "--yes", ...thin, ...size, "--name", "data", group);
  await formatDevice(`/dev/mapper/${group.replaceAll("-", "--")}-meta`, id);
}

export async function activateGroup(id: string): Promise<void> {
  // Its directory's volume alone: weftd sees to the others, and to what was cut short there.
  await lvm("lvchange", "--activate", "y", `${groupName(id)}/meta`);
}

export async function deactivateGroup(id: string): Promise<void> {
  await lvm("vgchange", "--activate", "n", groupName(id));
}

/** One that has never been a pool; the devices that it was on. E-DISK-10 where it has volumes that only a pool has. */
export async function removeGroup(id: string): Promise<readonly string[]> {
  const others = (await report("lvs", "lv_name", groupName(id))).filter((name) => !OURS.has(name));
  if (others.length > 0) {
    throw new WeftError({
      code: "E-DISK-10",
      message: `${groupName(id)} has volumes of copies, and no file system that can be read.`,
      facts: { group: groupName(id) },
      safe: "Nothing was changed.",
    });
  }
  const devices = await report("vgs", "pv_name", groupName(id));
  await lvm("vgremove", "--yes", "--force", groupName(id));
  return devices;
}

/** So that weftd knows what it is: durable before it is told of the directory. */
export async function markGroup(directory: string, id: string): Promise<void> {
  const path = join(directory, "lvm-thin");
  const text = `${JSON.stringify({ vg: groupName(id) })}\n`;
  if ((await readFile(path, "utf8").catch(() => "")) === text) return;
  await mkdir(directory, { recursive: true });
  const file = await open(`${path}.tmp`, "w", 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.tmp`, path);
  const above = await open(directory, "r");
  try {
    await above.sync();
  } finally {
    await above.close();
  }
}

const TAG = /(?:^|,)weft\.id=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:,|$)/;

function tagOf(id: string): string {
  return `weft.id=${id}`;
}
