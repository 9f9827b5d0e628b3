/**
 * What is on a disk, and whether it may be made a pool or be erased.
 *
 * Must always hold:
 * - blank is what has no signature that any tool knows, nobody uses, and holds zeroes only where signatures stand: in its
 *   first and last MiB. What couldn't be looked at is not blank;
 * - what is in use or a pool's is neither formatted nor erased, whoever asks;
 * - to erase a disk takes the name of what is on it: what a person read there, not the disk's place.
 */
import type { Signature, VolumeGroup } from "./disk-tools.ts";
import { type Decision, type Finding, finding, ok, refused } from "./finding.ts";
import { byText } from "./ids.ts";
import { formatSize } from "./size.ts";

/** Below this mkfs.xfs refuses (xfsprogs 5.19). */
export const POOL_DISK_BYTES_MIN = 300n << 20n;

/** Half a GiB of it is for the pool's own. */
export const THIN_DISK_BYTES_MIN = 1n << 30n;

export type Content = {
  readonly signatures: readonly Signature[];
  readonly volumeGroup: VolumeGroup | null;
};

export type Disk = Content & {
  /** `/dev/sdb` */
  readonly path: string;
  /** `sdb` */
  readonly name: string;
  readonly kind: string;
  readonly sizeBytes: bigint;
  readonly readOnly: boolean;
  readonly model: string | null;
  readonly serial: string | null;
  readonly partitions: readonly (Content & { readonly name: string })[];
  /** How it is used now, one sentence's part each: `mounted at /srv`, `part of dm-0 (vg-root)`. */
  readonly uses: readonly string[];
  /** What its first and last MiB hold; null: they weren't read, since more is known already. */
  readonly edges: "zero" | "data" | null;
  /** Why it couldn't be looked at. */
  readonly unread: string | null;
  /** The pool that weft has on it, or is making of it. */
  readonly pool: DiskPool | null;
};

export type DiskPool = {
  /** Of the entry in `devices.json`. */
  readonly entry: string;
  /** Null: it has none yet. */
  readonly id: string | null;
  /** Its making was begun and not ended. */
  readonly isUnfinished: boolean;
};

export type DiskVerdict =
  | { readonly kind: "blank" }
  | { readonly kind: "data"; readonly what: string }
  | { readonly kind: "in-use"; readonly what: string }
  | { readonly kind: "pool"; readonly what: string }
  /** Blank, but no pool can be on it. */
  | { readonly kind: "unfit"; readonly what: string }
  | { readonly kind: "unread"; readonly what: string };

export function judgeDisk(disk: Disk): DiskVerdict {
  const { pool, uses, unread, edges } = disk;
  if (pool !== null) {
    if (pool.isUnfinished) return { kind: "pool", what: "a pool that is being made" };
    return { kind: "pool", what: pool.id === null ? "a pool" : `pool ${pool.id.slice(0, 8)}` };
  }
  if (uses.length > 0) return { kind: "in-use", what: uses.join(", ") };
  if (unread !== null) return { kind: "unread", what: unread };
  const what = contentOf(disk);
  if (what !== null) return { kind: "data", what };
  if (edges === null) return { kind: "unread", what: "its first and last MiB were not read" };
  if (edges === "data") return { kind: "data", what: "data of no known kind" };
  if (disk.readOnly) return { kind: "unfit", what: "it is read-only" };
  if (disk.sizeBytes < POOL_DISK_BYTES_MIN) {
    const least = formatSize(POOL_DISK_BYTES_MIN);
    return { kind: "unfit", what: `it has ${formatSize(disk.sizeBytes)}, a pool takes ${least} at least` };
  }
  return { kind: "blank" };
}

/** What `disk wipe` asks for, and what kind of name that is. */
export function nameOfContent(disk: Disk): { readonly kind: string; readonly name: string } {
  const contents = [disk, ...disk.partitions];
  const group = contents.find(({ volumeGroup }) => volumeGroup !== null)?.volumeGroup ?? null;
  if (group !== null) return { kind: "VG", name: group.name };
  const label = contents.flatMap(({ signatures }) => signatures).find((one) => one.label !== null)?.label;
  // A label that can't be typed is no name to ask for.
  if (typeof label === "string" && /^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$/.test(label))
    return { kind: "label", name: label };
  if (disk.serial !== null) return { kind: "serial", name: disk.serial };
  return { kind: "device", name: disk.name };
}

/** A disk as whoever looked at it tells it to others. */
export type JudgedDisk = {
  readonly path: string;
  readonly kind: string;
  readonly sizeBytes: bigint;
  readonly verdict: DiskVerdict;
  /** As `nameOfContent` says it. */
  readonly content: { readonly kind: string; readonly name: string };
  /** The pool that is on it. */
  readonly pool: string | null;
};

function judged(disk: Disk): JudgedDisk {
  const { path, kind, sizeBytes } = disk;
  const pool = disk.pool?.id ?? null;
  return { path, kind, sizeBytes, verdict: judgeDisk(disk), content: nameOfContent(disk), pool };
}

/** May a pool of this kind be made of it? `host` is for the sentence. */
export function mayFormat(disk: Disk, host: string, kind: "xfs" | "lvm-thin"): Decision<null> {
  return mayFormatJudged(judged(disk), host, kind);
}

/** The same of a disk that another host has looked at. */
export function mayFormatJudged(disk: JudgedDisk, host: string, kind: "xfs" | "lvm-thin"): Decision<null> {
  const { verdict } = disk;
  const where = `${disk.path} on ${host}`;
  switch (verdict.kind) {
    case "blank": {
      if (kind === "xfs" || disk.sizeBytes >= THIN_DISK_BYTES_MIN) return ok(null);
      const least = formatSize(THIN_DISK_BYTES_MIN);
      const what = `it has ${formatSize(disk.sizeBytes)}, a pool on LVM takes ${least} at least`;
      return refused(unusable(disk, { kind: "unfit", what }, host));
    }
    case "data": {
      const { kind, name } = disk.content;
      return refused(
        finding("E-DISK-07", `${where} is not blank: ${verdict.what}.`, {
          facts: { device: disk.path, host, what: verdict.what, name },
          safe: "Nothing was changed.",
          do: [
            { why: "Use another disk", command: "weft disk list" },
            {
              why: `Erase it for good (asks for the ${wordOf(kind)})`,
              command: `weft disk wipe ${host}:${disk.path}`,
            },
          ],
        }),
      );
    }
    case "pool":
    case "in-use":
    case "unfit":
    case "unread":
      return refused(unusable(disk, verdict, host));
  }
}

/** May it be erased, by who says this name? Blank: there is nothing to erase. */
export function mayWipe(disk: Disk, host: string, name: string): Decision<"erase" | "nothing"> {
  const seen = judged(disk);
  const { verdict } = seen;
  switch (verdict.kind) {
    case "blank":
      return ok("nothing");
    case "pool":
      if (disk.pool?.isUnfinished !== true) return refused(unusable(seen, verdict, host));
      break;
    case "unfit":
      return disk.readOnly ? refused(unusable(seen, verdict, host)) : ok("nothing");
    case "in-use":
    case "unread":
      return refused(unusable(seen, verdict, host));
    case "data":
      if (disk.readOnly) return refused(unusable(seen, { kind: "unfit", what: "it is read-only" }, host));
      break;
  }
  const wanted = nameOfContent(disk);
  if (name === wanted.name) return ok("erase");
  return refused(
    finding(
      "E-DISK-04",
      `${disk.path} on ${host} holds ${verdict.what}; its ${wordOf(wanted.kind)} is "${wanted.name}"${name === "" ? "" : `, not "${name.slice(0, 100)}"`}.`,
      {
        facts: { device: disk.path, host, what: verdict.what, name: wanted.name },
        safe: "Nothing was erased.",
        do: [
          {
            why: "Erase it for good",
            command: `weft disk wipe ${host}:${disk.path} --name ${shellWord(wanted.name)}`,
          },
        ],
      },
    ),
  );
}

export function wordOf(nameKind: string): string {
  switch (nameKind) {
    case "VG":
      return "VG's name";
    case "label":
      return "label";
    case "serial":
      return "serial number";
    default:
      return "device's name";
  }
}

/** What is on it, in words; null: nothing that has a signature. */
function contentOf(disk: Disk): string | null {
  const own = wordsOf(disk);
  const parts = disk.partitions
    .toSorted((a, b) => byText(a.name, b.name))
    .map((part) => `${part.name}: ${wordsOf(part).join(", ") || "nothing known"}`);
  if (parts.length > 0) {
    const table = own.length === 0 ? "a partition table" : own.join(", ");
    const count = `${parts.length} ${parts.length === 1 ? "partition" : "partitions"}`;
    return `${table} with ${count} (${parts.join("; ")})`;
  }
  return own.length === 0 ? null : own.join(", ");
}

function wordsOf({ signatures, volumeGroup }: Content): readonly string[] {
  return signatures.map((signature) =>
    signature.type === "LVM2_member" ? groupWords(volumeGroup) : signatureWords(signature),
  );
}

function groupWords(group: VolumeGroup | null): string {
  if (group === null) return "LVM physical volume without a VG";
  const { name, usedBytes, devices } = group;
  const facts = [
    ...(usedBytes === null ? [] : [`${formatSize(usedBytes)} used`]),
    ...(devices === null || devices === 1 ? [] : [`${devices} devices`]),
  ];
  return `LVM VG "${name}"${facts.length === 0 ? "" : ` (${facts.join(", ")})`}`;
}

const FILE_SYSTEMS = new Set(
  "ext2 ext3 ext4 xfs btrfs vfat exfat ntfs jfs reiserfs f2fs hfs hfsplus ufs iso9660 udf bcachefs squashfs".split(
    " ",
  ),
);

const KINDS: ReadonlyMap<string, string> = new Map([
  ["gpt", "GPT partition table"],
  ["dos", "DOS partition table"],
  ["PMBR", "remains of a GPT partition table"],
  ["swap", "swap space"],
  ["swsuspend", "a suspended system's memory"],
  ["linux_raid_member", "member of a Linux RAID"],
  ["crypto_LUKS", "LUKS encryption"],
  ["zfs_member", "member of a ZFS pool"],
  ["bcache", "bcache"],
  ["ceph_bluestore", "Ceph OSD"],
  ["drbd", "DRBD"],
]);

function signatureWords({ type, label }: Signature): string {
  const words = KINDS.get(type) ?? (FILE_SYSTEMS.has(type) ? `${type} file system` : `${type} signature`);
  return label === null ? words : `${words} "${label}"`;
}

function unusable(
  disk: JudgedDisk,
  verdict: Exclude<DiskVerdict, { kind: "blank" | "data" }>,
  host: string,
): Finding {
  const where = `${disk.path} on ${host}`;
  const facts = { device: disk.path, host, what: verdict.what };
  const safe = "Nothing was changed.";
  switch (verdict.kind) {
    case "pool": {
      const ref = disk.pool;
      const remedy =
        ref === null ? [] : [{ why: "Give up the pool first", command: `weft pool remove ${ref}` }];
      return finding("E-DISK-03", `${where} is ${verdict.what} of weft.`, { facts, safe, do: remedy });
    }
    case "in-use":
      return finding("E-DISK-03", `${where} is in use: ${verdict.what}.`, {
        facts,
        safe,
        do: [{ why: "Use another disk", command: "weft disk list" }],
      });
    case "unfit":
      return finding("E-DISK-05", `${where} can't be a pool: ${verdict.what}.`, { facts, safe });
    case "unread":
      return finding("E-DISK-06", `What is on ${where} is not known: ${verdict.what}.`, { facts, safe });
  }
}

function shellWord(text: string): string {
  return /^[A-Za-z0-9_.:/+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
