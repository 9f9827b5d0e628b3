/**
 * Disks as XAPI has them, beside the volumes and snapshots that they are.
 *
 * Must always hold:
 * - a disk's UUID is its volume's id, or its snapshot's, until it is composed: then its volume is the one that it was laid
 *   over (docs/adr/0027), so that whoever wants the volume goes by the key's `volume`;
 * - a disk is gone only where the store says that its volume or snapshot is gone; what can't be read is not gone.
 */
import { finding, type Finding } from "./finding.ts";
import type { SnapshotId, VolumeId } from "./ids.ts";
import { parseSnapshotId, parseUuid, parseVolumeId } from "./ids.ts";
import { BLOCK_BYTES } from "./limits.ts";
import type { Snapshot } from "./snapshot.ts";
import type { VolumeRecord, Want } from "./volume-record.ts";

/** Free text that XAPI's door keeps with them, in characters: a list of thousands still is one answer. */
export const SR_TEXT_MAX = { label: 1024, description: 4096, type: 64 };
/** Of XAPI's sm_config, all of its keys and values together: a request with it still is one. */
const SM_CONFIG_MAX = 15_360;
/** What an entry of it takes beside its letters. */
const ENTRY_LETTERS = 8;

/** As much of it as is kept with a disk, whatever the order in which it is given: all of it, unless it is huge. */
export function keptConfig(given: Iterable<readonly [key: string, value: string]>): Record<string, string> {
  let left = SM_CONFIG_MAX;
  const kept: (readonly [string, string])[] = [];
  for (const entry of [...given].toSorted(([one], [other]) => (one < other ? -1 : 1))) {
    const letters = lettersOf(entry);
    if (letters > left) continue;
    left -= letters;
    kept.push(entry);
  }
  return Object.fromEntries(kept);
}

/** Can all of it be kept? */
export function isKeptConfig(given: Readonly<Record<string, string>>): boolean {
  return Object.entries(given).reduce((sum, entry) => sum + lettersOf(entry), 0) <= SM_CONFIG_MAX;
}

function lettersOf([key, value]: readonly [string, string]): number {
  return key.length + value.length + ENTRY_LETTERS;
}

/** Nobody waits longer for another host to close a disk: the agent's answers have a deadline of their own. */
export const ACTIVATE_MS_MAX = 45_000;

export type Vdi = {
  readonly uuid: string;
  readonly sr: string;
  readonly volume: VolumeId;
  /** Null: it is the volume itself. */
  readonly snapshot: SnapshotId | null;
  readonly label: string;
  readonly description: string;
  /** XAPI's word. */
  readonly type: string;
  readonly readOnly: boolean;
  readonly sharable: boolean;
  readonly managed: boolean;
  readonly cbt: boolean;
  readonly isSnapshot: boolean;
  /** The disk that it is a snapshot of, by XAPI's word. */
  readonly snapshotOf: string | null;
  readonly snapshotTime: string | null;
  readonly smConfig: Readonly<Record<string, string>>;
  /** XAPI has been told of it. */
  readonly settled: boolean;
  readonly createdAt: string;
  /** A snapshot that is nobody's disk: what the disk goes back to with a reset. Null: nothing was marked. */
  readonly resetTo: SnapshotId | null;
  /** A snapshot that is nobody's disk: what hosts read of a disk while nobody writes it. Null: nobody has read it yet. */
  readonly reader: SnapshotId | null;
  /** The disk over whose volume this one was laid: that volume is its own since. Null: its volume has its UUID. */
  readonly composedFrom: string | null;
  /** A layer that somebody has opened for a guest: without what lies below nobody opens it again. */
  readonly layerOpened: boolean;
};

/** What may be changed of one. */
export type VdiFields = Omit<Vdi, "uuid" | "sr" | "volume" | "snapshot" | "createdAt">;

/** What XAPI says of a disk that is new. */
export type NewVdi = Pick<Vdi, "uuid" | "sr" | "label" | "createdAt"> & Partial<VdiFields>;

export function diskOf(given: NewVdi): Vdi {
  const volume = parseVolumeId(given.uuid);
  if (volume === null) throw new Error(`"${given.uuid}" is no UUID`);
  return { ...plain, ...given, volume, snapshot: null };
}

export function snapshotDiskOf(given: NewVdi, volume: VolumeId): Vdi {
  const snapshot = parseSnapshotId(given.uuid);
  if (snapshot === null) throw new Error(`"${given.uuid}" is no UUID`);
  return { ...plain, ...given, readOnly: true, isSnapshot: true, volume, snapshot };
}

const plain: Omit<VdiFields, "label"> = {
  description: "",
  type: "user",
  readOnly: false,
  sharable: false,
  managed: true,
  cbt: false,
  isSnapshot: false,
  snapshotOf: null,
  snapshotTime: null,
  smConfig: {},
  settled: false,
  resetTo: null,
  reader: null,
  composedFrom: null,
  layerOpened: false,
};

/** What a disk's volume is called: people's labels need not be unique. */
export function vdiName(uuid: string): string {
  return `vdi-${uuid}`;
}

/** The UUID of the disk whose volume is called so; null: it is no disk's name. */
export function uuidOfName(name: string): string | null {
  const [, uuid = ""] = /^vdi-(.{36})$/.exec(name) ?? [];
  return parseUuid(uuid);
}

/** What the disk's volume or snapshot is, as far as the store says. */
export type VdiBacking = {
  readonly want: Want | null;
  readonly record: VolumeRecord | null;
  readonly snapshot: Snapshot | null;
};

/** `making`: not whole yet. `gone`: the store says so. */
export function stageOf(vdi: Vdi, { want, record, snapshot }: VdiBacking): "making" | "whole" | "gone" {
  if (vdi.snapshot !== null) {
    if (snapshot === null) return vdi.settled ? "gone" : "making";
    if (snapshot.state === "DELETING") return "gone";
    return snapshot.isLogged ? "whole" : "making";
  }
  if (want === null) return record === null ? "gone" : wholeUnlessDeleted(record);
  if (want.deletedAtMs !== null || want.headDeletedAtMs !== null || want.refused !== null) return "gone";
  return record === null ? "making" : wholeUnlessDeleted(record);
}

function wholeUnlessDeleted({ deletedAtMs, head }: VolumeRecord): "whole" | "gone" {
  return deletedAtMs === null && head === null ? "whole" : "gone";
}

/** A volume's size has whole blocks: XAPI asks for any number of bytes and takes more. */
export function wholeBlocks(bytes: bigint): bigint {
  return ((bytes + BLOCK_BYTES - 1n) / BLOCK_BYTES) * BLOCK_BYTES;
}

/** What a snapshot that is nobody's disk is for. */
export type Helper = "clone" | "changed" | "reset" | "reader";

/** Who takes such snapshots: no principal is called so, for theirs have a host's name. */
export const HELPER_BY = "weft-vdi";
/** So long one stands that no disk names: whoever took it has an answer, or has gone, by then. */
export const HELPER_MS = 15 * 60 * 1000;

const HELPER = /^(clone|changed|reset|reader)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

export function helperName(helper: Helper, uuid: string): string {
  return `${helper}-${uuid}`;
}

/** A snapshot that is nobody's disk, and that no person asked for. */
export function isHelper({ name, createdBy }: Pick<Snapshot, "name" | "createdBy">): boolean {
  return createdBy === HELPER_BY && HELPER.test(name);
}

/** What hosts read of a disk. */
export function isReader(snapshot: Pick<Snapshot, "name" | "createdBy">): boolean {
  return isHelper(snapshot) && snapshot.name.startsWith(helperName("reader", ""));
}

/** One that a disk's key names, not one for a moment. */
export function isNamed({ name }: Pick<Snapshot, "name">): boolean {
  return ["reset", "reader"].some((helper) => name.startsWith(`${helper}-`));
}

/** Taken for a moment and left behind by who was cut short. `named`: by a disk, that goes back to it or reads it. */
export function isLeftHelper(snapshot: Snapshot, named: ReadonlySet<SnapshotId>, nowMs: number): boolean {
  const { id, createdMs, state } = snapshot;
  if (state !== "READY" || !isHelper(snapshot)) return false;
  return !named.has(id) && nowMs - createdMs >= HELPER_MS;
}

/** A disk's key whose snapshot never came, or went by another door. `ageMs`: of the key. */
export function isLeftKey(vdi: Vdi, { snapshot }: Pick<VdiBacking, "snapshot">, ageMs: number): boolean {
  if (vdi.snapshot === null || snapshot !== null) return false;
  return vdi.settled || ageMs >= HELPER_MS;
}

/** Made by the very request for the disk, and never opened by anybody since: certainly nothing was written to it. */
export function isUntouched({ uuid, snapshot }: Vdi, { want, record }: VdiBacking): boolean {
  if (snapshot !== null || want === null || record === null || want.createdBy !== vdiName(uuid)) return false;
  return record.epoch === (want.createdFrom?.epoch ?? 0n) + 1n;
}

/** `live`: there is a volume or snapshot of this id, and only nothing that makes it a disk. */
export function noVdi(uuid: string, live: boolean): Finding {
  return finding(
    "E-VDI-01",
    live ? `${uuid} is a volume, or a snapshot, and no virtual disk.` : `No virtual disk ${uuid}.`,
    { facts: { vdi: uuid, live }, safe: "Nothing was changed." },
  );
}

export function takenOtherwise(uuid: string, how: string): Finding {
  return finding("E-VDI-02", `The UUID ${uuid} is taken: ${how}.`, {
    facts: { vdi: uuid },
    safe: "Nothing was changed.",
  });
}

export function stillMade({ uuid, label }: Vdi): Finding {
  return finding("E-VDI-05", `The virtual disk "${label}" (${uuid}) is still being made.`, {
    facts: { vdi: uuid },
  });
}

export type ComposeInput = {
  readonly vdi: Vdi;
  readonly sizeBytes: bigint;
  /** Its volume is a layer: what was written in it is known by sectors (docs/model.md R34). */
  readonly isLayer: boolean;
};

/** Null: the leaf may be laid over its parent. Both are whole disks. E-VDI-03, E-VDI-08. */
export function checkCompose(leaf: ComposeInput, parent: ComposeInput): Finding | null {
  if (leaf.vdi.uuid === parent.vdi.uuid) return wrongKind(leaf.vdi, "another disk, to be laid over");
  if (leaf.vdi.sr !== parent.vdi.sr)
    return wrongKind(parent.vdi, "a disk of the same repository, to be laid over");
  if (parent.sizeBytes > leaf.sizeBytes)
    return wrongKind(parent.vdi, `a disk of at most ${leaf.sizeBytes} bytes, and it has ${parent.sizeBytes}`);
  return leaf.isLayer ? null : noLayer(leaf.vdi, "it was not made to be laid over another disk");
}

export function noLayer({ uuid, label }: Vdi, why: string): Finding {
  return finding("E-VDI-08", `The virtual disk "${label}" (${uuid}): ${why}.`, {
    facts: { vdi: uuid },
    safe: "Nothing was changed.",
  });
}

/** `wants`: `takes a snapshot`, … */
export function wrongKind({ uuid, label }: Vdi, wants: string): Finding {
  return finding("E-VDI-03", `The virtual disk "${label}" (${uuid}): this takes ${wants}.`, {
    facts: { vdi: uuid },
    safe: "Nothing was changed.",
  });
}
