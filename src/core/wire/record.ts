/**
 * Values of the store, read with distrust: the record that weftd writes, and the keys that agents write.
 *
 * Must always hold:
 * - a value that is not understood is an error that names the key and the place in it, never a guess;
 * - a value that newer software wrote is told apart from a damaged one;
 * - a count near the end of its range is damage: nothing honest gets there, and nothing could be raised above it;
 * - fields that we don't know survive our writing (protocol.md 4.2).
 */
import { z } from "zod";

import type { CreatedFrom, Made, Member, Place, VolumeRecord, Want } from "../model/volume-record.ts";
import {
  parseHostId,
  parsePoolId,
  parseRid,
  parseSessionId,
  parseSnapshotId,
  parseVolumeId,
} from "../model/ids.ts";
import type { HostId, PoolId, Rid, SessionId, SnapshotId, VolumeId } from "../model/ids.ts";
import { GROUP_VOLUMES_MAX } from "../model/limits.ts";
import type { Snapshot } from "../model/snapshot.ts";
import { NO_LABELS, spreads, withLabels } from "../model/spread.ts";
import type { Labels } from "../model/spread.ts";
import { WeftError } from "./errors.ts";
import { checkScrubRate, type ScrubAsk } from "../model/scrub.ts";
import { checkLimits } from "../model/volume-limits.ts";
import { address, counter, epoch, instant, labels, u32, u64, uuid, volumeLimits } from "./json-types.ts";

/** Of a record without anything that older software must not overlook, and of all other values. */
export const RECORD_FORMAT = 1;
/**
 * Of one whose volume is being taken back to a snapshot (2), whose head is deleted (3), or that is a layer (4): who doesn't know
 * that would serve it as it is.
 */
const RECORD_FORMAT_MAX = 4;
/** Of a snapshot whose data was destroyed: who doesn't know that would offer it. */
const SNAPSHOT_FORMAT_MAX = 2;

export type ClusterJson = { readonly id: string; readonly name: string; readonly createdAt: string };
export type StoreJson = { readonly cluster: string; readonly incarnation: bigint };
export type HostJson = {
  readonly id: HostId;
  readonly name: string;
  readonly address: string;
  readonly joinedAt: string;
};
export type PoolJson = {
  readonly node: HostId;
  readonly path: string;
  readonly kind: string;
  readonly inc: bigint;
};
export type PoolUsageJson = {
  readonly free: bigint;
  readonly total: bigint;
  readonly state: string;
  readonly reason: string | null;
  /** The whole device that the pool is on; null: a directory. */
  readonly device: string | null;
  /** What was made of the device. */
  readonly deviceKind: "xfs" | "lvm-thin";
  /** Blocks that its daemon found not to be what was written, since it was started; and those that still are. */
  readonly bitRot: bigint;
  readonly bitRotLeft: bigint;
  /** Why no copy in it can have snapshots, as a sentence; null: they can, or nobody has tried yet. */
  readonly noSnapshots: string | null;
  /** `full`: what may need room is refused there, and writes wait. */
  readonly room: PoolRoom;
};
export type PoolRoom = "plenty" | "low" | "full";
export type NameJson = { readonly volume: VolumeId };
export type AliveJson = { readonly since: string };

const id = <T extends string>(parse: (text: string) => T | null): z.ZodType<T> =>
  z.string().transform((text, context) => {
    const parsed = parse(text);
    if (parsed !== null) return parsed;
    context.addIssue("expected a UUID");
    return z.NEVER;
  });
const volumeId = id<VolumeId>(parseVolumeId);
export const hostId = id<HostId>(parseHostId);
const poolId = id<PoolId>(parsePoolId);
const sessionId = id<SessionId>(parseSessionId);
const snapshotId = id<SnapshotId>(parseSnapshotId);
const rid = u32.transform((value, context): Rid => {
  const parsed = parseRid(value);
  if (parsed !== null) return parsed;
  context.addIssue("expected a replica number");
  return z.NEVER;
});

const clusterJson = z.object({ id: z.string(), name: z.string().default("weft"), createdAt: instant });
const storeJson = z.object({ cluster: z.string(), incarnation: counter });
const hostJson = z.object({ id: hostId, name: z.string().min(1), address, joinedAt: instant });
/** What isn't there is not said. */
const hostLabelsJson = labels.partial().transform((said): Labels => withLabels(NO_LABELS, said));
const poolJson = z.object({
  node: hostId,
  path: z.string().default(""),
  kind: z.string().default("dir"),
  inc: counter,
});
const usageJson = z.object({
  free: u64,
  total: u64,
  state: z.string().default("serving"),
  reason: z.string().nullable().default(null),
  device: z.string().nullable().default(null),
  deviceKind: z.enum(["xfs", "lvm-thin"]).default("xfs"),
  bitRot: u64.default(0n),
  bitRotLeft: u64.default(0n),
  noSnapshots: z.string().nullable().default(null),
  room: z.enum(["plenty", "low", "full"]).default("plenty"),
});
const nameJson = z.object({ volume: volumeId });
const aliveJson = z.object({ since: instant });
const madeJson = z
  .object({ rid, host: hostId, pool: poolId, made: z.literal(true) })
  .transform((m): Made => ({ rid: m.rid, host: m.host, pool: m.pool }));

const replicaState = z.enum(["INSYNC", "STALE", "JOINING", "REMOVING", "QUARANTINED"]);
/** A later moment is nobody's: shown, or counted a day further, it would be no date any more. */
const YEAR_9000_MS = Date.UTC(9000, 0);
const TOO_LATE = "expected a moment before the year 9000";
const moment = instant.refine((text) => Date.parse(text) < YEAR_9000_MS, TOO_LATE);
const milliseconds = u64.transform(Number).refine((ms) => ms < YEAR_9000_MS, TOO_LATE);
const seconds = u64.transform((value) => Number(value) * 1000).refine((ms) => ms < YEAR_9000_MS, TOO_LATE);

const memberJson = z
  .object({
    rid,
    node: hostId,
    pool: poolId,
    pool_inc: counter.default(0n),
    state: replicaState,
    reason: z.string().nullable().default(null),
    since: milliseconds.nullable().catch(null),
  })
  .transform((m): Member => ({
    rid: m.rid,
    host: m.node,
    pool: m.pool,
    state: m.state,
    reason: m.reason,
    sinceMs: m.since,
  }));

const recordJson = z
  .object({
    vol: volumeId,
    size: u64,
    policy: z.object({
      copies: z.int().min(1).max(255),
      min_isr: z.int().min(1).max(255),
      spread: z.string().default("host"),
    }),
    epoch,
    rev: counter,
    next_rid: u32,
    deleted: seconds.nullable().default(null),
    owner: z.object({ node: hostId, session: sessionId }).nullable().default(null),
    clean: z.boolean().default(false),
    head: z
      .object({ deleted: seconds, data: z.enum(["kept", "releasing", "released"]) })
      .nullable()
      .default(null),
    snaps: z.object({ count: u32 }).default({ count: 0 }),
    reverting: z
      .object({ snap: snapshotId, since: milliseconds.nullable().catch(null) })
      .nullable()
      .default(null),
    replicas: z.array(memberJson).max(255),
  })
  .transform((r): VolumeRecord => ({
    volume: r.vol,
    sizeBytes: r.size,
    epoch: r.epoch,
    rev: r.rev,
    nextRid: r.next_rid,
    copies: r.policy.copies,
    minIsr: r.policy.min_isr,
    spread: r.policy.spread,
    owner: r.owner === null ? null : { host: r.owner.node, session: r.owner.session },
    clean: r.clean,
    deletedAtMs: r.deleted,
    head: r.head === null ? null : { deletedAtMs: r.head.deleted, data: r.head.data },
    snapshots: r.snaps.count,
    reverting: r.reverting === null ? null : { snapshot: r.reverting.snap, sinceMs: r.reverting.since },
    replicas: r.replicas.toSorted((a, b) => a.rid - b.rid),
  }));

const placeJson = z
  .object({ rid, host: hostId, pool: poolId, remove: z.literal(true).optional() })
  .transform((p): Place => ({ rid: p.rid, host: p.host, pool: p.pool, remove: p.remove ?? false }));

const limits = volumeLimits.superRefine((value, context) => {
  const checked = checkLimits(value);
  if (checked.kind === "refused") context.addIssue(checked.finding.message);
});

const scrubAskJson = z
  .object({
    id: z.string().min(1).max(64),
    at: moment,
    by: z.string().max(256),
    rate: u64.refine((rate) => checkScrubRate(rate).kind === "ok", "expected a rate that is possible"),
    session: sessionId.nullable().default(null),
  })
  .transform(({ at, ...rest }): ScrubAsk => ({ ...rest, atMs: Date.parse(at) }));

const scrubResultJson = z.object({
  startedAt: moment,
  endedAt: moment,
  host: hostId,
  /** False: it was stopped before its end. */
  whole: z.boolean(),
  comparedBytes: u64,
  /** Blocks, counted once a copy. */
  rotten: u64,
  repaired: u64,
  /** Blocks whose copies are all valid and not the same. */
  divergent: u64,
  /** Blocks that no copy gave. */
  lost: u64,
  members: z.array(z.object({ rid, host: hostId, pool: poolId, rotten: u64, repaired: u64 })).max(255),
});
export type ScrubResult = z.output<typeof scrubResultJson>;

const createdFromJson = z
  .object({
    volume: volumeId,
    volumeName: z.string().min(1),
    snapshot: snapshotId,
    snapshotName: z.string().min(1),
    taken: moment,
    gen: u64,
    epoch,
    regionShift: z.int().min(16).max(32),
    rids: z.array(rid).min(1).max(255),
  })
  .transform(({ taken, gen, ...rest }): CreatedFrom => ({
    ...rest,
    takenMs: Date.parse(taken),
    generation: gen,
  }));

const wantJson = z
  .object({
    id: volumeId,
    name: z.string().min(1),
    size: u64,
    copies: z.int().min(1).max(255),
    minIsr: z.int().min(1).max(255),
    spread: z.enum(spreads).default("host"),
    thick: z.boolean().default(false),
    placements: z.array(placeJson).max(255),
    limits: limits.nullable().default(null),
    scrub: scrubAskJson.nullable().default(null),
    deletedAt: moment.nullable().default(null),
    headDeletedAt: moment.nullable().default(null),
    createdBy: z.string(),
    createdFrom: createdFromJson.nullable().default(null),
    refused: z.object({ host: hostId, code: z.string(), message: z.string() }).nullable().default(null),
  })
  .transform((w): Want => ({
    volume: w.id,
    name: w.name,
    sizeBytes: w.size,
    copies: w.copies,
    minIsr: w.minIsr,
    spread: w.spread,
    thick: w.thick,
    placements: w.placements.toSorted((a, b) => a.rid - b.rid),
    limits: w.limits,
    scrub: w.scrub,
    deletedAtMs: w.deletedAt === null ? null : Date.parse(w.deletedAt),
    headDeletedAtMs: w.headDeletedAt === null ? null : Date.parse(w.headDeletedAt),
    createdBy: w.createdBy,
    createdFrom: w.createdFrom,
    refused: w.refused,
  }));

const snapshotJson = z
  .object({
    id: snapshotId,
    vol: volumeId,
    name: z.string().min(1).max(256),
    gen: u64,
    epoch,
    region_shift: z.int().min(16).max(32),
    size: u64,
    state: z.enum(["READY", "DELETING"]),
    logged: z.boolean(),
    members: z.array(z.object({ rid, node: hostId, pool: poolId })).max(255),
    created: milliseconds,
    created_by: z.string().max(256),
    protected: z.boolean().default(false),
    data: z.enum(["destroying", "destroyed"]).nullable().default(null),
    group: z
      .object({ id: uuid, volumes: z.array(volumeId).max(GROUP_VOLUMES_MAX) })
      .nullable()
      .default(null),
  })
  .transform((s): Snapshot => ({
    id: s.id,
    volume: s.vol,
    name: s.name,
    state: s.state,
    isLogged: s.logged,
    members: s.members.map((m) => ({ rid: m.rid, host: m.node, pool: m.pool })),
    generation: s.gen,
    epoch: s.epoch,
    regionShift: s.region_shift,
    sizeBytes: s.size,
    createdMs: s.created,
    createdBy: s.created_by,
    isProtected: s.protected,
    data: s.data ?? "kept",
    group: s.group,
  }));

/** What the model doesn't need: read by those who act on the record. */
export type RecordExtra = {
  /** The owner has no guest: anybody may take the volume over. */
  readonly caretaker: boolean;
  readonly regionShift: number;
  /** What is written to it is to be laid over another volume (docs/model.md R34). */
  readonly layer: boolean;
};

const extraJson = z
  .object({
    owner: z
      .object({ caretaker: z.boolean().default(false) })
      .nullable()
      .default(null),
    region_shift: z.int().min(16).max(32),
    layer: z.looseObject({}).nullable().default(null),
  })
  .transform((r): RecordExtra => ({
    caretaker: r.owner?.caretaker ?? false,
    regionShift: r.region_shift,
    layer: r.layer !== null,
  }));

export const parseRecordExtra = reader<RecordExtra>(extraJson, RECORD_FORMAT_MAX);
export const parseCluster = reader<ClusterJson>(clusterJson);
export const parseStore = reader<StoreJson>(storeJson);
export const parseHost = reader<HostJson>(hostJson);
export const parseHostLabels = reader<Labels>(hostLabelsJson);
export const parsePool = reader<PoolJson>(poolJson);
export const parsePoolUsage = reader<PoolUsageJson>(usageJson);
export const parseNameKey = reader<NameJson>(nameJson);
export const parseAlive = reader<AliveJson>(aliveJson);
export const parseMade = reader<Made>(madeJson);
export const parseScrubResult = reader<ScrubResult>(scrubResultJson);
export const parseWant = reader<Want>(wantJson);
export const parseSnapshot = reader<Snapshot>(snapshotJson, SNAPSHOT_FORMAT_MAX);
export const parseRecord = reader<VolumeRecord>(recordJson, RECORD_FORMAT_MAX);

/** `want` as JSON; `before` is the value that it replaces, so that fields of newer software stay. */
export function renderWant(want: Want, before: string | null): string {
  const {
    limits: limitsBefore = {},
    scrub: scrubBefore = {},
    ...old
  } = before === null ? {} : objectOf(before);
  const oldLimits = isObject(limitsBefore) ? limitsBefore : {};
  const oldScrub = isObject(scrubBefore) && scrubBefore["id"] === want.scrub?.id ? scrubBefore : {};
  const oldPlaces = Array.isArray(old["placements"]) ? old["placements"].filter(isObject) : [];
  const placements = want.placements.map((place) => {
    const { remove: _, ...rest } = oldPlaces.find((p) => p["rid"] === place.rid) ?? {};
    return {
      ...rest,
      rid: place.rid,
      host: place.host,
      pool: place.pool,
      ...(place.remove ? { remove: true } : {}),
    };
  });
  return JSON.stringify({
    ...old,
    id: want.volume,
    name: want.name,
    size: String(want.sizeBytes),
    copies: want.copies,
    minIsr: want.minIsr,
    // Left away where it is the rule of all: as it was before there were others.
    spread: want.spread === "host" ? undefined : want.spread,
    thick: want.thick ? true : undefined,
    placements,
    ...(want.limits === null ? {} : { limits: { ...oldLimits, ...volumeLimits.encode(want.limits) } }),
    ...(want.scrub === null ? {} : { scrub: { ...oldScrub, ...renderScrub(want.scrub) } }),
    deletedAt: want.deletedAtMs === null ? null : new Date(want.deletedAtMs).toISOString(),
    headDeletedAt: want.headDeletedAtMs === null ? undefined : new Date(want.headDeletedAtMs).toISOString(),
    createdBy: want.createdBy,
    createdFrom: want.createdFrom === null ? undefined : renderOrigin(want.createdFrom, old["createdFrom"]),
    refused: want.refused ?? undefined,
  });
}

function renderOrigin(from: CreatedFrom, before: unknown): Record<string, unknown> {
  const { takenMs, generation, epoch: taken, ...rest } = from;
  return {
    ...(isObject(before) ? before : {}),
    ...rest,
    taken: new Date(takenMs).toISOString(),
    gen: String(generation),
    epoch: String(taken),
  };
}

function renderScrub({ id, atMs, by, rate, session }: ScrubAsk): Record<string, unknown> {
  return { id, at: new Date(atMs).toISOString(), by, rate: String(rate), session };
}

/** What a scrub found, for the store. */
export function renderScrubResult(result: ScrubResult): string {
  return JSON.stringify(result, (_, part: unknown) => (typeof part === "bigint" ? String(part) : part));
}

/**
 * A parser of one kind of value, up to that format. `key` is named in the error: E-STORE-07, or E-STORE-13 from newer
 * software.
 */
export function reader<T>(
  schema: z.ZodType<T>,
  newest: number = RECORD_FORMAT,
): (key: string, text: string) => T {
  return (key, text) => {
    const json = parseJson(key, text);
    refuseNewer(key, json, newest);
    const parsed = schema.safeParse(json);
    if (parsed.success) return parsed.data;
    const issue = parsed.error.issues[0];
    const place = issue?.path.join(".") ?? "";
    throw damaged(key, `${place === "" ? "" : `"${place}": `}${issue?.message ?? "not understood"}`, place);
  };
}

function refuseNewer(key: string, json: unknown, newest: number): void {
  if (!isObject(json)) return;
  const oldest = json["min_reader"] ?? 1;
  if (typeof oldest !== "number") throw damaged(key, `"min_reader": expected a number`, "min_reader");
  if (oldest <= newest) return;
  throw new WeftError({
    code: "E-STORE-13",
    message: `${key} was written by newer software: it asks for readers of format ${oldest}, this one reads ${newest}.`,
    facts: { key, wants: oldest, reads: newest },
    safe: "Nothing was changed.",
    do: [{ why: "Bring this host to the version of the others", command: "weft --version" }],
  });
}

function parseJson(key: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw damaged(key, `it is not JSON`, "", cause);
  }
}

function damaged(key: string, what: string, path: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-STORE-07",
    message: `${key} in the store can't be understood: ${what}.`,
    facts: { key, path },
    safe: "Nothing was changed.",
    ...(cause === undefined ? {} : { cause }),
  });
}

export function objectOf(text: string): Record<string, unknown> {
  const json: unknown = JSON.parse(text);
  return isObject(json) ? json : {};
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
