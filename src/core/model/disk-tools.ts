/**
 * What the tools of util-linux and LVM, the kernel's tables and the first bytes of a device say, as values.
 *
 * Formats are those that EL7's util-linux (2.23) writes as well as today's: pairs and lines, not JSON.
 *
 * Must always hold: text that can't be understood is left out or thrown at whoever asked; it never becomes "nothing there".
 */

/** A line of `lsblk --pairs`. A device that is made of several others has one for each. */
export type BlockRow = {
  /** The kernel's: `sdb`, `dm-0`. */
  readonly name: string;
  /** What people call it: `vg-root` of `dm-0`; else the same. */
  readonly title: string;
  /** The device that it is a part of, or made of. */
  readonly parent: string | null;
  /** `8:16` */
  readonly number: string;
  /** disk, part, lvm, loop, crypt, mpath, rom, raid1, … */
  readonly kind: string;
  readonly sizeBytes: bigint;
  readonly readOnly: boolean;
  readonly model: string | null;
  readonly serial: string | null;
};

/** The columns that `parseLsblk` wants. */
export const LSBLK_COLUMNS = "NAME,KNAME,PKNAME,MAJ:MIN,TYPE,SIZE,RO,MODEL,SERIAL";

/** Something on a device that says what it is. */
export type Signature = {
  /** libblkid's word: ext4, LVM2_member, gpt, … */
  readonly type: string;
  readonly label: string | null;
};

export type Mount = {
  /** `8:16`, the device's number; `0:…` for file systems without one. */
  readonly number: string;
  readonly at: string;
  readonly kind: string;
  readonly source: string;
};

/** A volume group of LVM, as far as it is known. */
export type VolumeGroup = {
  readonly name: string;
  readonly usedBytes: bigint | null;
  readonly devices: number | null;
};

export type XfsSuperblock = {
  readonly uuid: string;
  readonly label: string;
  /** Its mkfs has not come to its end: it writes this mark first, and takes it away last. */
  readonly inProgress: boolean;
};

export function parseLsblk(text: string): readonly BlockRow[] {
  return text
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => {
      const pairs = new Map<string, string>();
      // Newer versions write MAJ_MIN for MAJ:MIN.
      for (const [, key = "", value = ""] of line.matchAll(/([A-Z:_%-]+)="([^"]*)"/g))
        pairs.set(key.replace(/[^A-Z]/g, "_"), unescaped(value).trim());
      const field = (key: string): string => {
        const value = pairs.get(key);
        if (value === undefined) throw new Error(`lsblk says no ${key}: ${line.slice(0, 200)}`);
        return value;
      };
      const size = field("SIZE");
      if (!/^\d+$/.test(size)) throw new Error(`lsblk says a size of "${size}"`);
      return {
        name: field("KNAME").replaceAll("!", "/"),
        title: field("NAME"),
        parent: orNull(field("PKNAME")),
        number: field("MAJ_MIN"),
        kind: field("TYPE"),
        sizeBytes: BigInt(size),
        readOnly: field("RO") === "1",
        model: orNull(field("MODEL")),
        serial: orNull(field("SERIAL")),
      };
    });
}

/** `blkid -p -o export`: one device, a file system or another content, and a table of partitions. */
export function parseBlkid(text: string): readonly Signature[] {
  const pairs = new Map<string, string>();
  for (const line of text.split("\n")) {
    const at = line.indexOf("=");
    // It quotes for a shell.
    if (at > 0) pairs.set(line.slice(0, at), line.slice(at + 1).replaceAll(/\\(.)/g, "$1"));
  }
  const types = [pairs.get("TYPE"), pairs.get("PTTYPE")].filter((type) => type !== undefined);
  return types.map((type, index) => ({ type, label: index === 0 ? orNull(pairs.get("LABEL") ?? "") : null }));
}

/** `wipefs --parsable`: every place that says what it is, `offset,uuid,label,type`; a label may have commas. */
export function parseWipefs(text: string): readonly Signature[] {
  return text
    .split("\n")
    .filter((line) => line.trim() !== "" && !line.startsWith("#"))
    .map((line) => {
      const [, , ...rest] = line.split(",");
      const type = rest.pop();
      if (type === undefined || type === "") throw new Error(`wipefs says "${line.slice(0, 200)}"`);
      return { type, label: orNull(unescaped(rest.join(","))) };
    });
}

/** Each kind once, a label if any of them has one. */
export function mergeSignatures(...lists: readonly (readonly Signature[])[]): readonly Signature[] {
  const merged = new Map<string, Signature>();
  for (const signature of lists.flat()) {
    const known = merged.get(signature.type);
    if (known === undefined || known.label === null) merged.set(signature.type, signature);
  }
  // Only there for those who don't know GPT.
  if (merged.has("gpt")) merged.delete("PMBR");
  return [...merged.values()];
}

/** The columns that `parsePvs` wants. */
export const PVS_COLUMNS = "pv_name,vg_name,pv_used,pv_count";

/** `pvs --noheadings --separator , --units b --nosuffix`: by the device's path. No group: the device is in none. */
export function parsePvs(text: string): ReadonlyMap<string, VolumeGroup> {
  const groups = new Map<string, VolumeGroup>();
  for (const line of text.split("\n")) {
    const [path = "", name = "", used = "", count = ""] = line.trim().split(",");
    if (path === "" || name === "") continue;
    groups.set(path, {
      name,
      usedBytes: /^\d+$/.test(used) ? BigInt(used) : null,
      devices: /^\d+$/.test(count) ? Number(count) : null,
    });
  }
  return groups;
}

/** Where pvs isn't installed: LVM2 keeps its metadata as text in the first MiB, and says where the newest begins. */
export function volumeGroupOf(start: Uint8Array): VolumeGroup | null {
  const view = new DataView(start.buffer, start.byteOffset, start.byteLength);
  const label = [0, 512, 1024, 1536].find((at) => ascii(start, at, 8) === "LABELONE");
  if (label === undefined || ascii(start, label + 24, 8) !== "LVM2 001") return null;
  // After the header come lists of {offset, length}, each ended by zeroes: of data, then of metadata.
  let at = label + view.getUint32(label + 20, true) + 40;
  for (let lists = 0; lists < 1; at += 16) {
    if (at + 32 > start.length) return null;
    if (view.getBigUint64(at, true) === 0n && view.getBigUint64(at + 8, true) === 0n) lists += 1;
  }
  const area = Number(view.getBigUint64(at, true));
  if (area === 0 || area + 64 > start.length || ascii(start, area + 4, 16) !== " LVM2 x[5A%r0N*>")
    return null;
  const from = area + Number(view.getBigUint64(area + 40, true));
  const [, name = ""] = /^([A-Za-z0-9+_.-]{1,127}) \{\n/.exec(ascii(start, from, 256)) ?? [];
  return name === "" ? null : { name, usedBytes: null, devices: null };
}

export function parseMounts(mountinfo: string): readonly Mount[] {
  return mountinfo.split("\n").flatMap((line) => {
    const [before = "", after = ""] = line.split(" - ");
    const [, , number, , at] = before.split(" ");
    const [kind, source] = after.split(" ");
    if (number === undefined || at === undefined || kind === undefined || source === undefined) return [];
    return [{ number, at: octal(at), kind, source: octal(source) }];
  });
}

/** Paths of `/proc/swaps`. */
export function parseSwaps(text: string): readonly string[] {
  return text
    .split("\n")
    .slice(1)
    .flatMap((line) => (line.trim() === "" ? [] : [octal(line.split(/\s+/)[0] ?? "")]));
}

/** Null: it is none. */
export function xfsSuperblock(start: Uint8Array): XfsSuperblock | null {
  if (start.length < 512 || ascii(start, 0, 4) !== "XFSB") return null;
  const hex = Array.from(start.subarray(32, 48), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const uuid = hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  return { uuid, label: ascii(start, 108, 12).replace(/\0+$/, ""), inProgress: start[126] !== 0 };
}

function ascii(bytes: Uint8Array, at: number, length: number): string {
  return String.fromCharCode(...bytes.subarray(at, at + length));
}

function orNull(text: string): string | null {
  return text === "" ? null : text;
}

/** libblkid and libsmartcols write what could mislead as `\x20`, byte by byte. */
function unescaped(text: string): string {
  return text.replaceAll(/(?:\\x[0-9a-fA-F]{2})+/g, (run) => {
    const bytes = run.slice(2).split("\\x");
    try {
      return decodeURIComponent(bytes.map((hex) => `%${hex}`).join(""));
    } catch {
      return "?".repeat(bytes.length);
    }
  });
}

/** The kernel writes blanks in paths as `\040`. */
function octal(text: string): string {
  return text.replaceAll(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}
