/**
 * The disks of this host, as the kernel and the tools know them.
 *
 * Must always hold: looking changes nothing, and opens for writing nothing; what can't be looked at says so.
 */
import { constants, type FileHandle, open, readFile, realpath, stat } from "node:fs/promises";

import { type Content, type Disk, type DiskPool, POOL_DISK_BYTES_MIN } from "../model/disk.ts";
import {
  type BlockRow,
  LSBLK_COLUMNS,
  mergeSignatures,
  type Mount,
  parseBlkid,
  parseLsblk,
  parseMounts,
  parsePvs,
  parseSwaps,
  parseWipefs,
  PVS_COLUMNS,
  type VolumeGroup,
  volumeGroupOf,
  type XfsSuperblock,
  xfsSuperblock,
} from "../model/disk-tools.ts";
import { isOfGroup } from "../model/thin-group.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { needTool, runTool } from "./tool.ts";

/** A disk that hangs is left out after this. */
const LOOK_MS = 10_000;
const EDGE_BYTES = 1 << 20;
const SECTOR_BYTES = 4096;
/** Of these kinds nothing can be a pool, and nothing on them is anybody's data. */
const NO_DISKS: ReadonlySet<string> = new Set(["rom"]);

/** Which pool is on a device, by its file system's superblock or its volume group. */
export type PoolOf = (superblock: XfsSuperblock | null, group: string | null) => DiskPool | null;

type Surroundings = {
  readonly rows: readonly BlockRow[];
  readonly mounts: readonly Mount[];
  readonly swaps: readonly string[];
  readonly groups: ReadonlyMap<string, VolumeGroup>;
};

/** Every one of them, or the one at `path`, whatever link that is: E-DISK-02 if there is none. */
export async function lookAtDisks(path: string | null, poolOf: PoolOf): Promise<readonly Disk[]> {
  const wanted = path === null ? null : await deviceAt(path);
  const around = await surroundings();
  const rows = distinct(around.rows).filter(
    ({ name, kind, sizeBytes }) =>
      (wanted === null && !NO_DISKS.has(kind) && sizeBytes > 0n) || wanted === pathOf(name),
  );
  if (wanted !== null && rows.length === 0) throw noDisk(wanted);
  const disks: Disk[] = [];
  // One after the other: a listing is in no hurry, and what hangs takes one thread.
  for (const row of rows) disks.push(await lookAt(row, around, poolOf, wanted !== null));
  return disks;
}

/** The kernel's own path of a block device; E-DISK-02 where there is none. */
export async function deviceAt(path: string): Promise<string> {
  try {
    const real = await realpath(path);
    if ((await stat(real)).isBlockDevice()) return real;
  } catch {
    throw noDisk(path);
  }
  throw noDisk(path);
}

/** Null: nothing is there, or something else. */
export async function blockDeviceAt(path: string): Promise<string | null> {
  try {
    return await deviceAt(path);
  } catch (error) {
    if (isWeftError(error, "E-DISK-02")) return null;
    throw error;
  }
}

export async function mountsNow(): Promise<readonly Mount[]> {
  return parseMounts(await readFile("/proc/self/mountinfo", "utf8"));
}

/** Of every device that can be read, what says that it is an XFS. */
export async function xfsDevices(): Promise<
  readonly { readonly path: string; readonly number: string; readonly superblock: XfsSuperblock }[]
> {
  const found = [];
  for (const { name, number, sizeBytes, kind } of distinct(await blockRows())) {
    if (sizeBytes < POOL_DISK_BYTES_MIN || NO_DISKS.has(kind)) continue;
    const superblock = await within(readSuperblock(pathOf(name))).catch(() => null);
    if (superblock !== null) found.push({ path: pathOf(name), number, superblock });
  }
  return found;
}

/** Of the device that was called so and has this serial number and size: is it there, and does somebody hold it? */
export async function stateOfDevice(named: {
  readonly path: string;
  readonly serial: string | null;
  readonly sizeBytes: bigint;
}): Promise<"absent" | "free" | "busy"> {
  const { path, serial, sizeBytes } = named;
  const row = distinct(await blockRows()).find(
    (one) =>
      one.sizeBytes === sizeBytes &&
      (serial === null ? pathOf(one.name) === path : one.serial === serial && one.kind !== "part"),
  );
  if (row === undefined) return "absent";
  try {
    return (await isHeld(pathOf(row.name))) ? "busy" : "free";
  } catch {
    // It goes away just now.
    return "absent";
  }
}

async function surroundings(): Promise<Surroundings> {
  return {
    rows: await blockRows(),
    mounts: await mountsNow(),
    swaps: parseSwaps(await readFile("/proc/swaps", "utf8").catch(() => "")),
    groups: await volumeGroups(),
  };
}

async function blockRows(): Promise<readonly BlockRow[]> {
  return parseLsblk(await needTool("lsblk", ["--pairs", "--bytes", "--output", LSBLK_COLUMNS], LOOK_MS));
}

/** What LVM doesn't say, or where it isn't installed, is looked up on the disk. */
async function volumeGroups(): Promise<ReadonlyMap<string, VolumeGroup>> {
  const format = ["--noheadings", "--separator", ",", "--units", "b", "--nosuffix"];
  const run = await runTool("pvs", [...format, "--options", PVS_COLUMNS], LOOK_MS).catch(() => null);
  return run === null ? new Map() : parsePvs(run.stdout);
}

async function lookAt(row: BlockRow, around: Surroundings, poolOf: PoolOf, isAlone: boolean): Promise<Disk> {
  const path = pathOf(row.name);
  const below = around.rows.filter(({ parent }) => parent === row.name);
  const partitions = distinct(below).filter(({ kind }) => kind === "part");
  const uses = [
    ...usesOf(row, around),
    ...partitions.flatMap((part) => usesOf(part, around).map((use) => `${part.name} ${use}`)),
  ];
  const disk = {
    path,
    name: row.name,
    kind: row.kind,
    sizeBytes: row.sizeBytes,
    readOnly: row.readOnly,
    model: row.model,
    serial: row.serial,
  };
  const nothing = { signatures: [], volumeGroup: null, partitions: [], edges: null };
  try {
    const superblock = await within(readSuperblock(path));
    const content = await contentOf(path, around.groups);
    const pool = poolOf(superblock, content.volumeGroup?.name ?? null);
    const parts = [];
    for (const { name } of partitions)
      parts.push({ name, ...(await contentOf(pathOf(name), around.groups)) });
    const isKnown = uses.length + content.signatures.length + parts.length > 0 || pool !== null;
    const edges = isKnown ? null : await edgesOf(path, row.sizeBytes);
    // For himself alone, as a RAID, another namespace's mount, a mkfs. Asked only of what looks blank or is about to be
    // used: for that moment nobody else gets it.
    const isFree = uses.length === 0 && pool === null;
    const held = isFree && (edges === "zero" || isAlone) && (await isHeld(path));
    return {
      ...disk,
      ...content,
      partitions: parts,
      uses: held ? ["somebody has it open for himself"] : uses,
      edges,
      unread: null,
      pool,
    };
  } catch (error) {
    return { ...disk, ...nothing, uses, unread: unreadReason(error), pool: null };
  }
}

function unreadReason(error: unknown): string {
  if (process.getuid?.() !== 0) return "only root can look at it, and this agent isn't root";
  return reasonOf(error).replace(/\.$/, "");
}

function usesOf(row: BlockRow, { rows, mounts, swaps }: Surroundings): readonly string[] {
  const paths = [pathOf(row.name), `/dev/mapper/${row.title}`];
  const mounted = mounts.filter(({ number, source }) => number === row.number || paths.includes(source));
  const places = [...new Set(mounted.map(({ at }) => at))];
  const holders = rows.filter(({ parent, kind }) => parent === row.name && kind !== "part");
  return [
    ...(places.length === 0 ? [] : [`mounted at ${places.slice(0, 3).join(", ")}`]),
    // Also one that looks blank: a copy's volume that nothing was written to yet.
    ...(row.kind === "lvm" && isOfGroup(row.title) ? ["part of a pool"] : []),
    ...(paths.some((path) => swaps.includes(path)) ? ["used as swap"] : []),
    ...holders.map(({ title, kind }) => `part of ${title} (${kind})`),
  ];
}

async function contentOf(path: string, groups: ReadonlyMap<string, VolumeGroup>): Promise<Content> {
  // 2: it knows nothing of what is there; 8: more than one thing, which wipefs lists.
  const blkid = await runTool("blkid", ["-p", "-o", "export", path], LOOK_MS);
  if (blkid !== null && ![0, 2, 8].includes(blkid.code))
    throw new Error(`blkid failed: ${blkid.said === "" ? `exit status ${blkid.code}` : blkid.said}`);
  const signatures = mergeSignatures(
    parseBlkid(blkid?.stdout ?? ""),
    parseWipefs(await needTool("wipefs", ["--parsable", path], LOOK_MS)),
  );
  if (!signatures.some(({ type }) => type === "LVM2_member")) return { signatures, volumeGroup: null };
  return { signatures, volumeGroup: groups.get(path) ?? volumeGroupOf(await readEdge(path, 0)) };
}

async function edgesOf(path: string, sizeBytes: bigint): Promise<"zero" | "data"> {
  for (const at of edgesAt(sizeBytes)) {
    if ((await readEdge(path, at)).some((byte) => byte !== 0)) return "data";
  }
  return "zero";
}

async function readSuperblock(path: string): Promise<XfsSuperblock | null> {
  return withDevice(path, constants.O_RDONLY, async (device) =>
    xfsSuperblock(await readAt(device, 0, SECTOR_BYTES)),
  );
}

function readEdge(path: string, at: number): Promise<Uint8Array> {
  return withDevice(path, constants.O_RDONLY, (device) => readAt(device, at, EDGE_BYTES));
}

/** Where the first and the last MiB of a device begin. */
export function edgesAt(sizeBytes: bigint): readonly number[] {
  return [0, Math.max(0, Number(sizeBytes) - EDGE_BYTES)];
}

async function readAt(device: FileHandle, at: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const { bytesRead } = await device.read(bytes, done, length - done, at + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return bytes.subarray(0, done);
}

/** Whether the kernel lets nobody else have it for himself: mounted, part of something, or being formatted. */
async function isHeld(path: string): Promise<boolean> {
  try {
    await withDevice(path, constants.O_RDONLY | constants.O_EXCL, async () => undefined);
    return false;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EBUSY") return true;
    throw error;
  }
}

export async function withDevice<T>(
  path: string,
  flags: number,
  work: (device: FileHandle) => Promise<T>,
): Promise<T> {
  const device = await open(path, flags | constants.O_NONBLOCK);
  try {
    return await work(device);
  } finally {
    await device.close();
  }
}

/** A read from a disk that hangs never ends, and can't be taken back. */
async function within<T>(work: Promise<T>): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`no answer in ${LOOK_MS / 1000} s`)), LOOK_MS);
  try {
    return await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
}

function distinct(rows: readonly BlockRow[]): readonly BlockRow[] {
  return [...new Map(rows.map((row) => [row.name, row])).values()];
}

function pathOf(name: string): string {
  return `/dev/${name}`;
}

function noDisk(path: string): WeftError {
  return new WeftError({
    code: "E-DISK-02",
    message: `${path} is no block device of this host.`,
    facts: { device: path },
    safe: "Nothing was changed.",
    do: [{ why: "See all disks", command: "weft disk list" }],
  });
}
