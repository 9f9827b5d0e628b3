/**
 * Requests and answers about storage repositories and their virtual disks, as XAPI's door asks them: schemas, as in
 * agent-api.ts.
 *
 * Must always hold:
 * - everything is asked by UUID, and may be asked again: XAPI repeats what was cut short;
 * - labels are free text: what has to be unique are UUIDs alone;
 * - a list is whole, or it is an error: who misses a disk in it forgets the disk.
 */
import { z } from "zod";

import { COPIES_MAX } from "../model/limits.ts";
import { ACTIVATE_MS_MAX, isKeptConfig, SR_TEXT_MAX } from "../model/vdi.ts";
import { instant, u64, uuid } from "./json-types.ts";

/** XAPI's name_label and name_description: whatever people write. */
export const label = z.string().max(SR_TEXT_MAX.label);
export const description = z.string().max(SR_TEXT_MAX.description);
/** XAPI's word for what a disk is for (`user`, `system`, `ephemeral`, …): it comes back as it was given. */
export const vdiType = z.string().min(1).max(SR_TEXT_MAX.type);
const smConfig = z.record(z.string(), z.string()).refine(isKeptConfig, "expected less of it");

const host = z.object({ uuid, name: z.string() });

// ---- requests ----

export const srCreateRequest = z.strictObject({
  uuid,
  label: label.default(""),
  description: description.default(""),
  /** Of each disk; null: as a volume has it for which nobody says a number. */
  copies: z.int().min(1).max(COPIES_MAX).nullable().default(null),
});

/** What is not named stays as it is. */
export const srChangeRequest = z.strictObject({
  label: label.optional(),
  description: description.optional(),
});

export const vdiCreateRequest = z.strictObject({
  uuid,
  /** In bytes: made a multiple of 4 KiB, upwards. */
  size: u64,
  label: label.default(""),
  description: description.default(""),
  type: vdiType.default("user"),
  readOnly: z.boolean().default(false),
  sharable: z.boolean().default(false),
  isSnapshot: z.boolean().default(false),
  /** The disk that it is a snapshot of, as XAPI says; null: of none. */
  snapshotOf: uuid.nullable().default(null),
  snapshotTime: instant.nullable().default(null),
  smConfig: smConfig.default({}),
});

/** `uuid`: of a volume that was made elsewhere, or of a snapshot of one. */
export const vdiIntroduceRequest = z.strictObject({
  uuid,
  /** Null: the volume's name. */
  label: label.nullable().default(null),
});

/** `uuid`: of what is made. What is not named is as the disk's it is made of. */
export const vdiCopyRequest = z.strictObject({
  uuid,
  label: label.optional(),
  description: description.optional(),
});

/** What is not named stays as it is. */
export const vdiChangeRequest = z.strictObject({
  /** It only grows; a multiple of 4 KiB is made of it, upwards. */
  size: u64.optional(),
  label: label.optional(),
  description: description.optional(),
  type: vdiType.optional(),
  cbt: z.boolean().optional(),
  managed: z.boolean().optional(),
  sharable: z.boolean().optional(),
  readOnly: z.boolean().optional(),
  /** All of it anew. */
  smConfig: smConfig.optional(),
  /** XAPI knows of it. */
  settled: z.boolean().optional(),
  isSnapshot: z.boolean().optional(),
  snapshotOf: uuid.nullable().optional(),
  snapshotTime: instant.nullable().optional(),
});

export const vdiRevertRequest = z.strictObject({
  /** A snapshot of it. */
  snapshot: uuid,
});

export const vdiComposeRequest = z.strictObject({
  /** The disk below, which is this one's volume afterwards and a disk no more. */
  parent: uuid,
});

export const vdiResetRequest = z.strictObject({
  /**
   * True: what is written from now on goes with the next reset. False: nothing does any more. Null: back to what it was
   * when that was said; where nobody has, it is said now.
   */
  mark: z.boolean().nullable().default(null),
});

export const vdiChangedRequest = z.strictObject({
  /** Of an older snapshot of the same disk. */
  since: uuid,
});

export const vdiActivateRequest = z.strictObject({
  writable: z.boolean(),
  /** XAPI's UUIDs of hosts that XAPI says are dead. */
  deadHosts: z.array(uuid).max(256).default([]),
  /** So long it is waited for that another host closes the disk. */
  waitMs: z.int().min(0).max(ACTIVATE_MS_MAX).default(30_000),
});

export const xapiHostRequest = z.strictObject({ uuid });
/** `host`: weft's id of it; null: none of the cluster's hosts is known to be it. */
export const xapiHostDead = z.object({ host: uuid.nullable() });

// ---- answers ----

export const srAnswer = z.object({
  uuid,
  label: z.string(),
  description: z.string(),
  copies: z.int().nullable(),
  createdAt: instant,
  /** Bytes: what one copy of its disks takes now, and what more could be placed at `copies`. */
  physicalSize: u64,
  /** One copy's bytes of its disks and their snapshots. */
  physicalUtilisation: u64,
  /** Its disks' sizes together. */
  virtualAllocation: u64,
});

export const vdiAnswer = z.object({
  /** Of the volume, or of the snapshot. */
  uuid,
  sr: uuid,
  volume: uuid,
  /** Null: it is the volume itself. */
  snapshot: uuid.nullable(),
  label: z.string(),
  description: z.string(),
  type: z.string(),
  size: u64,
  physicalUtilisation: u64,
  readOnly: z.boolean(),
  sharable: z.boolean(),
  managed: z.boolean(),
  cbt: z.boolean(),
  dataDestroyed: z.boolean(),
  isSnapshot: z.boolean(),
  snapshotOf: uuid.nullable(),
  snapshotTime: instant.nullable(),
  smConfig: z.record(z.string(), z.string()),
  createdAt: instant,
  /** XAPI has been told of it. */
  settled: z.boolean(),
  /** What was written since its mark goes with the next reset. */
  resets: z.boolean(),
  /** It was made for the disk, and nobody has opened it ever since: certainly nothing was written to it. */
  untouched: z.boolean().default(false),
  /** What is written to it is to be laid over another disk, by sectors. */
  layer: z.boolean().default(false),
  /** The disk over which it was laid: its volume is that one's since. */
  composedFrom: uuid.nullable().default(null),
  /** False: it is still being made. */
  whole: z.boolean(),
  /** Who has it open for a guest; of a snapshot the first one. */
  openOn: host.nullable(),
});

/** Of one look at the store. */
export const vdiListAnswer = z.object({
  sr: srAnswer,
  vdis: z.array(vdiAnswer),
  /** Of disks that may be the repository's and can't be read: damaged, or newer software's. */
  unread: z.array(z.string().max(256)).default([]),
});

/** All blocks that differ: one bit for 64 KiB, the highest bit of each byte first; base64. */
export const vdiChangedAnswer = z.object({
  /** Of the disk asked about. */
  size: u64,
  granularity: z.int(),
  bitmap: z.base64(),
});

export const vdiActivated = z.object({
  /** weftd's NBD socket on this host. */
  path: z.string(),
  size: u64,
  volume: uuid,
  /** Null: it is only read, and nobody's. */
  session: uuid.nullable(),
  /** What is read; null: the volume itself is open. */
  snapshot: uuid.nullable(),
});

/** Who has it open. */
export const vdiUsersAnswer = z.object({
  users: z.array(
    z.object({
      host,
      /** By which UUID XAPI knows that host; null: it has not said. */
      xapiHost: uuid.nullable(),
      /** Whether a guest's end is connected to it there; null: its host does not say. */
      connected: z.boolean().nullable(),
    }),
  ),
});

export type SrCreateRequest = z.output<typeof srCreateRequest>;
export type SrChange = z.output<typeof srChangeRequest>;
export type SrAnswer = z.output<typeof srAnswer>;
export type VdiCreateRequest = z.output<typeof vdiCreateRequest>;
export type VdiIntroduceRequest = z.output<typeof vdiIntroduceRequest>;
export type VdiCopyRequest = z.output<typeof vdiCopyRequest>;
export type VdiChange = z.output<typeof vdiChangeRequest>;
export type VdiActivateRequest = z.output<typeof vdiActivateRequest>;
export type VdiAnswer = z.output<typeof vdiAnswer>;
export type VdiListAnswer = z.output<typeof vdiListAnswer>;
export type VdiChangedAnswer = z.output<typeof vdiChangedAnswer>;
export type VdiActivated = z.output<typeof vdiActivated>;
export type VdiUsersAnswer = z.output<typeof vdiUsersAnswer>;
