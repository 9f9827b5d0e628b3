/**
 * Requests and answers of the agent's REST interface (RUN/agent.sock), as schemas: the agent encodes with them,
 * clients decode with them.
 *
 * Must always hold:
 * - nothing optional in an answer: none is `null`;
 * - sizes and counters that may pass 2^53 are decimal strings on the wire and bigint inside;
 * - a reader ignores fields that it doesn't know, so a newer agent can add some.
 */
import { z } from "zod";

import {
  API_TOKEN_MS,
  API_TOKEN_MS_MAX,
  GROUP_VOLUMES_MAX,
  JOIN_TOKEN_MS_MAX,
  LIMIT_BURST_SECONDS,
  OVERCOMMIT,
  STOP_WAIT_MS_MAX,
} from "../model/limits.ts";
import { roles } from "../model/roles.ts";
import { spreads } from "../model/spread.ts";
import { auditLine } from "./audit-line.ts";
import {
  address,
  clusterName,
  hostName,
  instant,
  label,
  labels,
  snapshotName,
  tokenName,
  u32,
  u64,
  uuid,
  volumeLimits,
  volumeName,
} from "./json-types.ts";

// ---- requests ----

export const initRequest = z.strictObject({
  name: hostName.nullable().default(null),
  address,
  clusterName: clusterName.nullable().default(null),
  /** How hosts speak about volumes: `clear` only where every weftd was built for it. */
  transport: z.enum(["tls", "auth", "clear"]).default("tls"),
});

/** How hosts speak about volumes: docs/SECURITY.md. */
const transport = z.enum(["tls", "auth", "clear"]);

/** What the whole cluster goes by. */
export const settings = z.object({
  transport,
  scrub: z.object({
    /** So long a volume goes without; 0: it is never compared by itself. */
    everyDays: z.int(),
    /** Bytes a second of each volume. */
    rate: u64,
  }),
  pools: z
    .object({
      /** Volumes may grow to so many times a pool's size together before it is called a problem. */
      overcommit: z.int(),
    })
    .default({ overcommit: OVERCOMMIT }),
  snapshots: z
    .object({
      /** Copies that were away or came later are given the snapshots that they missed. */
      copy: z.boolean(),
    })
    .default({ copy: true }),
});

/** What is not named stays as it is. */
export const settingsChange = z
  .strictObject({
    transport: transport.optional(),
    scrub: z.strictObject({ everyDays: z.number().optional(), rate: u64.optional() }).optional(),
    pools: z.strictObject({ overcommit: z.number() }).optional(),
    snapshots: z.strictObject({ copy: z.boolean() }).optional(),
  })
  .refine(
    ({ transport: hosts, scrub, pools, snapshots }) =>
      [hosts, pools, snapshots].some((group) => group !== undefined) || Object.keys(scrub ?? {}).length > 0,
    "expected a setting",
  );

export const joinRequest = z.strictObject({
  from: z.string().min(1).max(255),
  /** As `token create` printed it; never written down, and in no answer or log. */
  token: z.string().min(1).max(1000),
  name: hostName.nullable().default(null),
  address,
});

export const tokenCreateRequest = z.strictObject({
  forMs: z.int().min(1000).max(JOIN_TOKEN_MS_MAX).nullable().default(null),
  /** Only a host of this name can use it; null: any. */
  name: hostName.nullable().default(null),
});

export const apiTokenCreateRequest = z.strictObject({
  /** What it is for: a person or a program. */
  name: tokenName,
  role: z.enum(roles),
  /** Names or ids; null: every volume, and the cluster. */
  volumes: z.array(z.string().min(1).max(256)).min(1).max(64).nullable().default(null),
  forMs: z.int().min(1000).max(API_TOKEN_MS_MAX).default(API_TOKEN_MS),
});

export const poolCreateRequest = z.strictObject({
  /** A directory, or a whole device, which has to be blank and is formatted. */
  path: z.string().startsWith("/").max(4096),
  /** `xfs`, `lvm-thin`: the path is a device; null: what the path is decides. `zfs` is refused: E-POOL-08. */
  kind: z.enum(["dir", "xfs", "lvm-thin", "zfs"]).nullable().default(null),
});

export const diskQuery = z.strictObject({
  /** Null: all of them. */
  device: z.string().startsWith("/").max(4096).nullable().default(null),
});

export const diskWipeRequest = z.strictObject({
  device: z.string().startsWith("/").max(4096),
  /** Name or id of the host that is meant; null: the one that is asked. */
  host: z.string().min(1).max(64).nullable().default(null),
  /** What `GET /v1/disks` says is the name of what is on it. Empty: refused with that name. */
  name: z.string().max(256).default(""),
});

export const volumeCreateRequest = z
  .strictObject({
    name: volumeName,
    /** Null: as the snapshot's that it is made of. */
    size: u64.nullable().default(null),
    /** The snapshot that it begins as: its id, or `VOLUME@NAME`. Null: it begins empty. */
    from: z.string().min(1).max(256).nullable().default(null),
    copies: z.int().min(1).max(8).nullable().default(null),
    minIsr: z.int().min(1).max(8).nullable().default(null),
    /** Names of the hosts that shall hold the copies; null: the placement decides. */
    hosts: z.array(hostName).min(1).max(8).nullable().default(null),
    /** What its copies must not share. Null, as for `copies` and `minIsr`: of a clone as its snapshot's volume has it. */
    spread: z.enum(spreads).nullable().default(null),
    /** The room of every copy is reserved now, also of those that are added later; E-POOL-06 where it isn't there. */
    thick: z.boolean().default(false),
    /** Token of the request: the same token again answers with the volume made first. */
    createdBy: z.string().min(1).max(128).nullable().default(null),
  })
  .refine(({ size, from }) => size !== null || from !== null, {
    path: ["size"],
    message: "expected a size, or what it is made of (from)",
  })
  .refine(({ thick, from }) => !thick || from === null, {
    path: ["thick"],
    message: "expected not beside from: a clone shares blocks with its snapshot",
  });

const placeChanges = {
  copies: z.int().min(1).max(8).optional(),
  /** With `copies`: fewest in-sync copies under which writes complete. Left away: as it is. */
  minIsr: z.int().min(1).max(8).optional(),
  spread: z.enum(spreads).optional(),
  /** A copy from one host to another, or to another pool of its host. Hosts by name or id. */
  move: z
    .strictObject({
      from: z.string().min(1).max(256),
      to: z.string().min(1).max(256),
      /** Its id, or its path there; null: the one with most room. */
      pool: z.string().min(1).max(4096).nullable().default(null),
    })
    .optional(),
};
/** One of these a request: what is not named stays as it is. */
const isOne = (changes: readonly unknown[]): boolean =>
  changes.filter((change) => change !== undefined).length === 1;
const minIsrAlone = { path: ["minIsr"], message: "expected beside copies" };
type PlaceChanges = z.output<z.ZodObject<typeof placeChanges>>;
const hasCopies = ({ copies, minIsr }: PlaceChanges): boolean => minIsr === undefined || copies !== undefined;

export const placeChangeRequest = z
  .strictObject(placeChanges)
  .refine(
    ({ copies, spread, move }) => isOne([copies, spread, move]),
    "expected one of copies, spread and move",
  )
  .refine(hasCopies, minIsrAlone);

export const volumeChangeRequest = z
  .strictObject({
    ...placeChanges,
    size: u64.optional(),
    /** The volume's name, where it may lose what lies beyond the new end; null: it only grows. */
    loseData: volumeName.nullable().default(null),
    /** All of them anew: one that is not named is none. Null: no limits. */
    limits: z
      .strictObject({
        iops: z.number().nullable().default(null),
        bps: u64.nullable().default(null),
        burstS: z.number().default(LIMIT_BURST_SECONDS),
      })
      .nullable()
      .optional(),
  })
  .refine(
    ({ size, limits: taken, copies, spread, move }) => isOne([size, taken, copies, spread, move]),
    "expected one of size, limits, copies, spread and move",
  )
  .refine(hasCopies, minIsrAlone);

/** Copies may be moved, or taken away. */
export function changesPlaces({ copies, spread, move }: PlaceChanges): boolean {
  return copies !== undefined || spread !== undefined || move !== undefined;
}

export const hostChangeRequest = z.strictObject({
  /** Those that are named; null takes one off. */
  labels: z.strictObject({ rack: label.nullable().optional(), site: label.nullable().optional() }),
});

export const scrubRequest = z.strictObject({
  /** Bytes a second; null: as the settings say. */
  rate: u64.nullable().default(null),
});

export const snapshotCreateRequest = z.strictObject({
  /** Null: by the moment, `snap-20261122-140207`. */
  name: snapshotName.nullable().default(null),
  /** Of the snapshot: asked again by the same one, the answer is the snapshot that was taken first. */
  id: uuid.nullable().default(null),
});

/** Snapshots of several volumes at one moment: all or none. */
export const groupCreateRequest = z.strictObject({
  /** Names or ids. */
  volumes: z.array(z.string().min(1).max(256)).min(1).max(GROUP_VOLUMES_MAX),
  /** Of each of the snapshots. Null: by the moment. */
  name: snapshotName.nullable().default(null),
  /** Of the group: asked again by the same one, the answer is the snapshots that were taken first. */
  id: uuid.nullable().default(null),
});

/** One of these a request. */
export const snapshotChangeRequest = z
  .strictObject({
    name: snapshotName.optional(),
    /** It can't be deleted while it is. */
    protected: z.boolean().optional(),
  })
  .refine(({ name, protected: kept }) => isOne([name, kept]), "expected one of name and protected");

export const attachRequest = z.strictObject({ steal: z.boolean().default(false) });
export const detachRequest = z.strictObject({ abandon: z.boolean().default(false) });
/** With snapshots it is refused, or with `keepSnapshots` its head alone is deleted. */
export const volumeDeleteRequest = z.strictObject({ keepSnapshots: z.boolean().default(false) });
export const replicaAddRequest = z.strictObject({ host: hostName.nullable().default(null) });
export const storeFileRequest = z.strictObject({ path: z.string().startsWith("/").max(4096) });
export const storeRepairRequest = z.strictObject({ assent: z.boolean().default(false) });

/** What stands behind `?`: texts all of them. */
export const auditQuery = z.strictObject({
  since: instant.nullable().default(null),
  /** Name or id. */
  volume: z.string().max(256).nullable().default(null),
  /** Name or id of the host that did it. */
  host: z.string().max(256).nullable().default(null),
  /** Name or id of who asked. */
  who: z.string().max(256).nullable().default(null),
  refused: z.stringbool().default(false),
  limit: z
    .string()
    .regex(/^[0-9]{1,4}$/, "expected a number from 1 to 1000")
    .transform(Number)
    .pipe(z.int().min(1).max(1000))
    .default(200),
});

/** What stands behind `?`. */
export const changedQuery = z.strictObject({
  /** Another snapshot of the volume: `VOLUME@NAME`, `NAME` or its id. */
  since: z.string().min(1).max(256),
  /** A multiple of 64 KiB. */
  offset: u64.default(0n),
  /** Null: up to the snapshot's end. */
  len: u64
    .refine((bytes) => bytes > 0n, "expected at least 1")
    .nullable()
    .default(null),
});

// ---- answers ----

/** What a host has to know of its cluster. */
export const clusterAnswer = z.object({
  id: uuid,
  name: z.string(),
  createdAt: instant,
  host: uuid,
  /** Client addresses of the store's members, `https://ADDRESS:7402`. */
  endpoints: z.array(z.string()),
});

export const enteredAnswer = clusterAnswer.extend({
  /** SHA-256 of the key of the authority that signed this host's certificate, hex. */
  authority: z.string(),
  certificateUntil: instant,
});

/** The only time that the token is shown. */
export const tokenCreated = z.object({
  id: z.string(),
  token: z.string(),
  expiresAt: instant,
  name: z.string().nullable(),
  /** SHA-256 of the key of the authority that it is bound to, hex. */
  authority: z.string(),
});

export const tokenAnswer = z.object({
  id: z.string(),
  name: z.string().nullable(),
  by: z.string(),
  createdAt: instant,
  expiresAt: instant,
  used: z.object({ host: z.string(), at: instant }).nullable(),
});

export const apiTokenCreated = z.object({
  id: z.string(),
  name: z.string(),
  role: z.enum(roles),
  /** Shown this once. */
  token: z.string(),
  expiresAt: instant,
  /** For who logs in with it: a host's address, and SHA-256 of the authority's key, hex. */
  address: z.string(),
  authority: z.string(),
});

export const apiTokenAnswer = z.object({
  id: z.string(),
  name: z.string(),
  role: z.enum(roles),
  volumes: z.array(uuid).nullable(),
  by: z.string(),
  createdAt: instant,
  expiresAt: instant,
  used: z.object({ at: instant, from: z.string(), host: uuid }).nullable(),
});

/** Who asks, as the agent sees it. */
export const meAnswer = z.object({
  cluster: z.object({ id: uuid, name: z.string() }),
  host: z.object({ id: uuid, name: z.string() }),
  name: z.string(),
  role: z.enum(roles).nullable(),
  volumes: z.array(uuid).nullable(),
});

export const hostAnswer = z.object({
  id: uuid,
  name: z.string(),
  address: z.string(),
  joinedAt: instant,
  self: z.boolean(),
  /** A hint: its agent renewed its lease within 10 s. */
  alive: z.boolean(),
  /** Since when it is as `alive` says; null while the store is away and nothing is known. */
  aliveSince: instant.nullable(),
  /** voter and learner: a member of the store; none: it isn't (yet). */
  store: z.enum(["voter", "learner", "none"]),
  labels,
});

export const poolAnswer = z.object({
  id: uuid,
  host: uuid,
  hostName: z.string(),
  path: z.string(),
  kind: z.string(),
  /** As its own host's daemon last said; `unknown` while that host is silent. */
  state: z.string(),
  reason: z.string().nullable(),
  free: u64.nullable(),
  total: u64.nullable(),
  /** The whole device that it is on, as it was called when the pool was made; null: a directory. */
  device: z.string().nullable().default(null),
  /** Blocks that weren't what was written when they were read, since its daemon started; and those that still aren't. */
  bitRot: z.object({ found: u64, left: u64 }).nullable().default(null),
  /** Why volumes with a copy here can't have snapshots, as a sentence; null: they can, or it was not tried yet. */
  noSnapshots: z.string().nullable().default(null),
  /** `low`: at 95 %. `full`: at 98 % and not yet below 97 % again, writes that need room wait. Null: not known. */
  room: z.enum(["plenty", "low", "full"]).nullable().default(null),
});

export const diskAnswer = z.object({
  hostName: z.string(),
  device: z.string(),
  /** lsblk's word: disk, part, loop, lvm, … */
  kind: z.string(),
  size: u64,
  model: z.string().nullable(),
  serial: z.string().nullable(),
  /** `weft pool add` takes it. */
  blank: z.boolean(),
  /** `pool`: one of weft's; `unfit`: blank, but no pool can be on it; `unread`: nobody could look at it. */
  state: z.enum(["blank", "data", "in-use", "pool", "unfit", "unread"]),
  /** Why it isn't blank, or not usable. */
  what: z.string().nullable(),
  /** What `weft disk wipe` asks for, and what kind of name that is. */
  name: z.string(),
  nameKind: z.string(),
  pool: uuid.nullable(),
});

export const diskWipeAnswer = z.object({
  disk: diskAnswer,
  /** What was on it; null: it was blank. */
  held: z.string().nullable(),
});

export const replicaAnswer = z.object({
  rid: u32,
  host: uuid,
  hostName: z.string(),
  pool: uuid,
  /** The record's word; WANTED: placed but not in the record yet. */
  state: z.enum(["INSYNC", "STALE", "JOINING", "REMOVING", "QUARANTINED", "WANTED"]),
  reason: z.string().nullable(),
  /** Its host's agent answers (a hint). */
  alive: z.boolean(),
  /** It goes as soon as those that stay are in sync. */
  leaving: z.boolean(),
  /** Bytes that its data takes of its pool, without snapshots, as its host said some seconds ago; null: not yet. */
  used: u64.nullable().default(null),
});

export const volumeHealth = z.enum([
  /** As many in-sync copies as wanted. */
  "healthy",
  /** Fewer in-sync copies than wanted, guests go on. */
  "degraded",
  /** Writes wait: fewer than min_isr in-sync copies are on hosts that answer, or its session waits for what `reason` says. */
  "paused",
  /** No in-sync copy on a host that answers. */
  "unavailable",
  /** Its replicas are being made. */
  "creating",
  /** In the trash. */
  "deleted",
  /** Its record can't be read (newer software, or damaged). */
  "unreadable",
]);

export const snapshotAnswer = z.object({
  id: uuid,
  name: z.string(),
  volume: uuid,
  volumeName: z.string(),
  /** Of the volume when it was taken. */
  size: u64,
  takenAt: instant,
  createdBy: z.string(),
  /** `deleting`: nobody can use it any more, and its space comes back. */
  state: z.enum(["ready", "deleting"]),
  protected: z.boolean(),
  /** What it held is gone for good: it can't be read, cloned or gone back to; what changed since can be told still. */
  dataDestroyed: z.boolean().default(false),
  /** Bytes that its own files take in the pool of the copy where they take most, as told some seconds ago; null: not yet. */
  ownBytes: u64.nullable().default(null),
  /** Copies of the volume that have it, and as many as the volume shall have. */
  copies: z.int(),
  wantedCopies: z.int(),
  /** The copies that took part; `left`: it is no copy of the volume any more. */
  members: z.array(
    z.object({
      rid: u32,
      host: uuid,
      hostName: z.string(),
      pool: uuid,
      alive: z.boolean(),
      left: z.boolean(),
      ownBytes: u64.nullable().default(null),
      /** Parts of it, a region of the volume each (1 MiB in most), that can't be read there any more. */
      damagedRegions: u64.default(0n),
    }),
  ),
  /** Names of hosts whose copy of the volume has it not. */
  missedBy: z.array(z.string()),
  /** Hosts that bring it to their copy now. */
  copying: z.array(z.object({ hostName: z.string(), doneBytes: u64, totalBytes: u64 })).default([]),
  /** Names of hosts where it is attached. */
  openOn: z.array(z.string()),
  /** Taken at one moment with those of these volumes, its own among them; null: alone. A volume that is gone has no name. */
  group: z
    .object({ id: uuid, volumes: z.array(z.object({ id: uuid, name: z.string().nullable() })) })
    .nullable()
    .default(null),
});

export const snapshotCreated = snapshotAnswer.extend({
  /** How long the guest's writes waited for it. */
  heldMs: u64,
});

export const groupCreated = z.object({
  /** Of the group. */
  id: uuid,
  name: z.string(),
  takenAt: instant,
  /** How long guests' writes waited for it. */
  heldMs: u64,
  /** In the order asked. */
  snapshots: z.array(snapshotAnswer),
});

export const snapshotAttached = z.object({ snapshot: uuid, volume: uuid, path: z.string() });

/** Blocks that differ between two snapshots of a volume, as far as one answer goes. */
export const changedAnswer = z.object({
  snapshot: uuid,
  since: uuid,
  volume: uuid,
  /** Of the snapshot: nothing behind it is asked about. */
  size: u64,
  /** Bytes that one bit stands for. */
  grain: z.int().min(512),
  /** True: a block differs if its bit is set, and only then. False: where none is set nothing differs. */
  exact: z.boolean(),
  /** What this answer covers. It may be less than was asked for: ask again from `offset + len` on. */
  offset: u64,
  len: u64,
  /** One bit a block from `offset` on, the highest bit of each byte first; base64. */
  bitmap: z.base64(),
});

/** What a scrub found. Blocks are counted once a copy. */
const scrubResult = z.object({
  startedAt: instant,
  endedAt: instant,
  /** Whose session did it. */
  hostName: z.string(),
  /** False: it was stopped before its end. */
  whole: z.boolean(),
  /** Holes are not among them. */
  comparedBytes: u64,
  rotten: u64,
  repaired: u64,
  /** Blocks whose copies are all valid and not the same: none is written over. */
  divergent: u64,
  /** Blocks that no copy gave. */
  lost: u64,
  members: z.array(z.object({ rid: u32, hostName: z.string(), pool: uuid, rotten: u64, repaired: u64 })),
});

const reverting = z.object({
  snapshot: uuid,
  /** Null: its key can't be read. */
  name: z.string().nullable(),
  since: instant.nullable(),
  /** As its owner's host said some seconds ago; null: nobody works on it now. */
  progress: z
    .object({
      hostName: z.string(),
      doneBytes: u64,
      /** Null: it is not known yet what has changed. */
      totalBytes: u64.nullable(),
      /** Null: it goes on. */
      waitsFor: z.string().nullable(),
    })
    .nullable(),
});

export const volumeAnswer = z.object({
  id: uuid,
  name: z.string(),
  size: u64,
  /** More than `size` while it grows. */
  wantedSize: u64,
  /** Of the copy in sync that takes most of its pool, without snapshots; null: not known yet. */
  used: u64.nullable().default(null),
  /** What its guests may take, wherever it is attached; null: as much as they like. */
  limits: volumeLimits.nullable(),
  /** How its copies are compared with each other. */
  scrub: z.object({
    /** Null: nobody asks for it. */
    asked: z.object({ at: instant, by: z.string(), rate: u64 }).nullable(),
    progress: z.object({ hostName: z.string(), doneBytes: u64, totalBytes: u64 }).nullable(),
    last: scrubResult.nullable(),
  }),
  snapshots: z.object({
    /** Those that can be used, and those that are being deleted. */
    count: z.int(),
    deleting: z.int(),
    /** Those with fewer copies than the volume; the youngest of them are named. */
    fewerCount: z.int(),
    fewer: z.array(z.object({ name: z.string(), copies: z.int(), missedBy: z.array(z.string()) })),
    /** Those of which a copy has lost something; the youngest of them are named. */
    damagedCount: z.int().default(0),
    damaged: z
      .array(z.object({ name: z.string(), hosts: z.array(z.string()), wholeOn: z.array(z.string()) }))
      .default([]),
    /** Why it can't have any: the pool of one of its copies can't. Null: as far as is known it can. */
    unable: z.object({ hostName: z.string(), path: z.string(), why: z.string() }).nullable(),
  }),
  /** It is being taken back to this snapshot: who opens it waits until that is done. Null: it is not. */
  reverting: reverting.nullable().default(null),
  copies: z.int(),
  minIsr: z.int(),
  /** What its copies must not share. */
  spread: z.enum(spreads),
  /** The room of every copy is reserved. */
  thick: z.boolean().default(false),
  inSync: z.int(),
  health: volumeHealth,
  /** One sentence why it isn't healthy. */
  reason: z.string().nullable(),
  epoch: u64.nullable(),
  rev: u64.nullable(),
  owner: z.object({ host: uuid, hostName: z.string(), session: uuid, caretaker: z.boolean() }).nullable(),
  replicas: z.array(replicaAnswer),
  createdBy: z.string(),
  /** The snapshot that it began as, by the names of then; null: it began empty. */
  createdFrom: z
    .object({
      volume: uuid,
      volumeName: z.string(),
      snapshot: uuid,
      snapshotName: z.string(),
      takenAt: instant,
    })
    .nullable()
    .default(null),
  /** The virtual disk that it is for XAPI; null: it is none. Labels are whatever people write. */
  disk: z.object({ label: z.string(), sr: uuid, srLabel: z.string().nullable() }).nullable().default(null),
  deletedAt: instant.nullable(),
  /** Its head is deleted, and it lives on in its snapshots; null: it has its head. */
  head: z
    .object({
      deletedAt: instant,
      /** What only the head has: all there, being given back, gone. */
      data: z.enum(["kept", "releasing", "released"]),
      /** Until then it can be restored; null: not any more. */
      keptUntil: instant.nullable(),
    })
    .nullable()
    .default(null),
});

export const storeMember = z.object({
  /** Decimal, as etcd's gateway says it. */
  id: z.string(),
  name: z.string(),
  address: z.string(),
  learner: z.boolean(),
  leader: z.boolean(),
  answers: z.boolean(),
  version: z.string().nullable(),
  dbBytes: u64.nullable(),
});

export const storeStatus = z.object({
  /** A linearizable read succeeds. */
  writable: z.boolean(),
  reason: z.string().nullable(),
  incarnation: u64.nullable(),
  revision: u64.nullable(),
  quotaBytes: u64,
  members: z.array(storeMember),
  /** etcd's own words, such as NOSPACE, CORRUPT. */
  alarms: z.array(z.string()),
});

export const daemonStatus = z.object({
  reachable: z.boolean(),
  reason: z.string().nullable(),
  version: z.string().nullable(),
  driver: z.string().nullable(),
});

/** A fact worth a line under the headline of `weft status`. */
export const problem = z.object({
  code: z.string(),
  message: z.string(),
  do: z.array(z.object({ why: z.string(), command: z.string().nullable() })),
});

export const statusAnswer = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("no-cluster"),
    agent: z.object({ version: z.string(), pid: z.int() }),
    daemon: daemonStatus,
  }),
  z.object({
    kind: z.literal("cluster"),
    now: instant,
    agent: z.object({ version: z.string(), pid: z.int() }),
    daemon: daemonStatus,
    /** createdAt is null until the store has been reached once. */
    cluster: z.object({ id: uuid, name: z.string(), createdAt: instant.nullable() }),
    self: z.object({ host: uuid, name: z.string(), address: z.string() }),
    /** healthy; degraded: data is safe but a failure more hurts; unavailable: something waits now. */
    health: z.enum(["healthy", "degraded", "unavailable"]),
    store: storeStatus,
    hosts: z.array(hostAnswer),
    pools: z.array(poolAnswer),
    volumes: z.array(volumeAnswer),
    problems: z.array(problem),
  }),
]);

export const stopRequest = z.strictObject({
  /** So long the answer may take, while something holds the host back. */
  waitMs: z.int().min(0).max(STOP_WAIT_MS_MAX).default(0),
});

/** Whether the host that is asked may stop now. */
export const stopAnswer = z.object({
  held: z.boolean(),
  /** In words. */
  because: z.string(),
  /** Those of which it has the only copy in sync, and will not have it once others are. */
  volumes: z.array(z.object({ id: uuid, name: z.string() })),
  /** The store would lose its majority. */
  store: z.boolean(),
  /** Guests on other hosts would feel it. */
  urgent: z.boolean(),
});

export const attachAnswer = z.object({ volume: uuid, session: uuid, epoch: u64, path: z.string() });
export const detachAnswer = z.object({ volume: uuid, lostWrites: z.int() });

export const resyncProgress = z.object({
  rid: u32,
  hostName: z.string(),
  copiedBytes: u64,
  totalBytes: u64,
});

export const progressAnswer = z.object({
  volume: uuid,
  health: volumeHealth,
  /** Host whose session does the work: the owner's, or a caretaker's; null: nobody works on it now. */
  workedOnBy: z.string().nullable(),
  resync: resyncProgress.nullable(),
  /** As in the volume's answer. */
  reverting: reverting.nullable().default(null),
  /** Sentences: what is waited for. */
  waitingFor: z.array(z.string()),
});

export const whyAnswer = z.object({
  volume: uuid,
  name: z.string(),
  health: volumeHealth,
  /** From the general to the particular, one sentence each. */
  because: z.array(z.string()),
  do: z.array(z.object({ why: z.string(), command: z.string().nullable() })),
  /** What the daemon of the owner's host says, unchanged; null when it isn't this host. */
  daemon: z.record(z.string(), z.unknown()).nullable(),
});

/** How often something took how long (core/model/histogram.ts). */
const histogram = z.object({
  leUs: z.array(z.number()),
  counts: z.array(u64),
  count: u64,
  sumUs: u64,
});

/** What a session's guests did and waited for since it was opened. */
export const sessionStats = z.object({
  session: uuid,
  /** When they were counted, by the clock of its host. */
  at: instant,
  /** Those in force. */
  limits: volumeLimits.nullable(),
  /** Requests that wait for them now. */
  held: z.int(),
  reads: u64,
  /** Trims and zeroes are among them. */
  writes: u64,
  trims: u64,
  readBytes: u64,
  writtenBytes: u64,
  /** The longest time without any answer while there was something to answer. */
  gapMsMax: u64,
  waits: z.object({
    /** As the guest saw them. */
    reads: histogram,
    writes: histogram,
    /** Requests that waited 100 ms or longer, without what the limits made them wait. */
    stalls: histogram,
    /** What the limits made requests wait. */
    limited: histogram,
  }),
});

export const statsAnswer = z.object({
  volume: uuid,
  name: z.string(),
  /** Those wanted. */
  limits: volumeLimits.nullable(),
  /** Where a guest uses it; null: nowhere. */
  host: z.object({ id: uuid, name: z.string() }).nullable(),
  /** Null: no guest uses it, or its session ended in this moment. */
  open: sessionStats.nullable(),
});

const planPlace = { rid: u32, host: uuid, hostName: z.string(), pool: uuid, poolPath: z.string() };

/** What a change would do, and nothing is done yet. */
export const planAnswer = z.object({
  volume: uuid,
  name: z.string(),
  /** In this order. Empty: it is so already. */
  steps: z.array(
    z.discriminatedUnion("kind", [
      z.object({
        kind: z.literal("policy"),
        copies: z.int(),
        minIsr: z.int(),
        spread: z.string(),
      }),
      /** `bytes`: at most; what was never written is not copied. */
      z.object({ kind: z.literal("add"), ...planPlace, bytes: u64 }),
      /** One that was to go stays. */
      z.object({ kind: z.literal("keep"), ...planPlace }),
      /** Until these are in sync; what comes after it waits. */
      z.object({ kind: z.literal("wait"), rids: z.array(u32) }),
      z.object({ kind: z.literal("remove"), ...planPlace }),
    ]),
  ),
  /** Moved at most, all copies together. */
  bytes: u64,
  /** What that takes at most, when nothing else is to be done. */
  seconds: z.number(),
  /** Copies in sync on hosts that answer: now, at the least on the way, and in the end. */
  inSync: z.object({ now: z.int(), least: z.int(), after: z.int() }),
  /** Sentences, the gravest first. */
  risks: z.array(z.string()),
});

export const trashAnswer = z.object({
  volume: uuid,
  name: z.string(),
  size: u64,
  deletedAt: instant,
  /** After this moment its replicas may go. */
  keptUntil: instant,
  /** It is a head: the volume lives on in so many snapshots; 0: all of it was deleted. */
  snapshots: z.int().default(0),
  /** Of the virtual disk that it was for XAPI; null: it was none. */
  diskLabel: z.string().nullable().default(null),
});

export const backupAnswer = z.object({ path: z.string(), bytes: u64, revision: u64, sha256: z.string() });

export const repairAnswer = z.object({
  incarnation: u64,
  /** Hosts whose replicas answered, by name. */
  answered: z.array(z.string()),
  missing: z.array(z.string()),
  volumes: z.array(z.object({ volume: uuid, epoch: u64, rev: u64, from: z.string() })),
  /** Snapshots whose keys were made again from what copies keep. */
  snapshots: z.int().default(0),
});

const replacedAuthority = {
  /** KID of the authority that took the place of the one whose key the host held; null: it held none. */
  authority: z.string().nullable().default(null),
  /** Names of the hosts that have its key now. Empty without a new authority. */
  keyOn: z.array(z.string()).default([]),
  /** Names of the members that did not answer: they are given it when they are back, by one that has it. */
  keyMissing: z.array(z.string()).default([]),
};

export const hostRemoveAnswer = z.object({
  host: uuid,
  name: z.string(),
  storeMemberRemoved: z.boolean(),
  /** Every host that is alive said that it refuses it. Where one has not, revoking it by its name goes on. */
  complete: z.boolean().default(true),
  ...replacedAuthority,
});
export const caRotateRequest = z.strictObject({
  /** Hosts that the change of the authority does not wait for, by name or id. */
  without: z.array(z.string().min(1).max(64)).max(1000).default([]),
});

export const caFileRequest = z.strictObject({
  path: z.string().startsWith("/").max(4096),
  /** It guards keys that guard everything: not a word. */
  passphrase: z.string().min(12).max(1024),
});
/** The file, and the authorities whose keys are in it or were taken from it. */
export const caFileAnswer = z.object({ path: z.string(), kids: z.array(z.string()) });

export const caAnswer = z.object({
  /** Of the list of trusted hosts. */
  generation: u64,
  transport: z.enum(["tls", "auth", "clear"]),
  authorities: z.array(
    z.object({
      kind: z.enum(["host", "store"]),
      /** SHA-256 of its public key, hex. */
      kid: z.string(),
      state: z.enum(["active", "incoming", "outgoing"]),
      since: instant,
      /** Hosts that have a certificate of it. */
      signed: z.number(),
    }),
  ),
  rotation: z
    .object({
      phase: z.enum(["announce", "bundle", "issue", "drop"]),
      why: z.enum(["asked", "revoked"]),
      since: instant,
      without: z.array(z.string()),
      awaited: z.array(z.object({ host: z.string(), what: z.enum(["list", "bundle", "certificate"]) })),
    })
    .nullable(),
  hosts: z.array(
    z.object({
      host: uuid,
      name: z.string(),
      keys: z.array(z.string()),
      notAfter: instant.nullable(),
      /** Of the list that it acknowledged last; null: it never had to. */
      generation: u64.nullable(),
    }),
  ),
  revoked: z.array(z.object({ host: uuid, name: z.string(), at: instant, by: z.string() })),
});

/** What a revocation did; times are from the decision on, null: not said in time. */
export const hostRevokeAnswer = z.object({
  host: uuid,
  name: z.string(),
  generation: u64,
  ...replacedAuthority,
  hosts: z.array(
    z.object({
      host: uuid,
      name: z.string(),
      /** Its agent and its weftd refuse the host, and have cut what it had open. */
      refusedMs: z.number().nullable(),
      /** It has a member of the store. */
      member: z.boolean(),
      /** That member has no connection of the host any more. */
      storeMs: z.number().nullable(),
    }),
  ),
  /** Every host that is alive said all of it. Where one has not, its sessions may not be fenced yet: revoke it again. */
  complete: z.boolean(),
  /** Volumes that were open there, and are nobody's now; at this epoch. */
  fenced: z.array(z.object({ volume: uuid, name: z.string(), epoch: u64 })),
  /** Volumes that are still its own: a member of the store did not say that it is cut off, or the daemon here is away. */
  open: z.array(z.object({ volume: uuid, name: z.string() })),
});
export const okAnswer = z.object({});

export const auditAnswer = z.object({
  /** In the order of their clocks, the last ones that match. */
  lines: z.array(auditLine),
  /** Names of hosts whose audit is not among them, with the reason. */
  missing: z.array(z.object({ host: z.string(), reason: z.string() })),
  /** Names of the hosts by id, as far as they are known. */
  names: z.record(z.string(), z.string()),
});

export const auditVerdict = z.object({
  /** Lines that are there, and the number of the first and last. */
  lines: z.int(),
  first: u64.nullable(),
  last: u64.nullable(),
  broken: z.object({ file: z.string(), line: z.int(), what: z.string() }).nullable(),
  /** What the store says of the last line, a minute ago or less; null: it says nothing, or is away. */
  kept: z.object({ seq: u64, agrees: z.boolean() }).nullable(),
  /** The store has something there that this host has not signed: another host wrote it, and it says nothing of the lines. */
  foreign: z.boolean().default(false),
});

export const errorAnswer = z.object({
  error: z.object({
    code: z.string(),
    message: z.string(),
    facts: z.record(
      z.string(),
      z.union([z.string(), z.number(), z.boolean(), z.null(), z.array(z.string())]),
    ),
    safe: z.string().nullable(),
    do: z.array(z.object({ why: z.string(), command: z.string().nullable() })),
  }),
});

export type InitRequest = z.input<typeof initRequest>;
export type GroupCreated = z.output<typeof groupCreated>;
export type ChangedQuery = z.output<typeof changedQuery>;
export type ChangedAnswer = z.output<typeof changedAnswer>;
export type Settings = z.output<typeof settings>;
export type SettingsChange = z.output<typeof settingsChange>;
export type JoinRequest = z.input<typeof joinRequest>;
export type VolumeCreateRequest = z.output<typeof volumeCreateRequest>;
export type ClusterAnswer = z.output<typeof clusterAnswer>;
export type EnteredAnswer = z.output<typeof enteredAnswer>;
export type ApiTokenCreateRequest = z.output<typeof apiTokenCreateRequest>;
export type ApiTokenCreated = z.output<typeof apiTokenCreated>;
export type ApiTokenAnswer = z.output<typeof apiTokenAnswer>;
export type MeAnswer = z.output<typeof meAnswer>;
export type TokenCreated = z.output<typeof tokenCreated>;
export type TokenAnswer = z.output<typeof tokenAnswer>;
export type HostAnswer = z.output<typeof hostAnswer>;
export type PoolAnswer = z.output<typeof poolAnswer>;
export type DiskAnswer = z.output<typeof diskAnswer>;
export type DiskWipeAnswer = z.output<typeof diskWipeAnswer>;
export type ReplicaAnswer = z.output<typeof replicaAnswer>;
export type VolumeHealth = z.output<typeof volumeHealth>;
export type SnapshotChange = z.output<typeof snapshotChangeRequest>;
export type SnapshotAnswer = z.output<typeof snapshotAnswer>;
export type SnapshotCreated = z.output<typeof snapshotCreated>;
export type SnapshotAttached = z.output<typeof snapshotAttached>;
export type ScrubResultAnswer = z.output<typeof scrubResult>;
export type RevertingAnswer = z.output<typeof reverting>;
export type VolumeAnswer = z.output<typeof volumeAnswer>;
export type StoreMember = z.output<typeof storeMember>;
export type StoreStatus = z.output<typeof storeStatus>;
export type DaemonStatus = z.output<typeof daemonStatus>;
export type Problem = z.output<typeof problem>;
export type StatusAnswer = z.output<typeof statusAnswer>;
export type StopAnswer = z.output<typeof stopAnswer>;
export type AttachAnswer = z.output<typeof attachAnswer>;
export type DetachAnswer = z.output<typeof detachAnswer>;
export type ProgressAnswer = z.output<typeof progressAnswer>;
export type WhyAnswer = z.output<typeof whyAnswer>;
export type VolumeChange = z.output<typeof volumeChangeRequest>;
export type SessionStats = z.output<typeof sessionStats>;
export type StatsAnswer = z.output<typeof statsAnswer>;
export type PlaceChangeRequest = z.output<typeof placeChangeRequest>;
export type PlanAnswer = z.output<typeof planAnswer>;
export type TrashAnswer = z.output<typeof trashAnswer>;
export type BackupAnswer = z.output<typeof backupAnswer>;
export type RepairAnswer = z.output<typeof repairAnswer>;
export type HostRevokeAnswer = z.output<typeof hostRevokeAnswer>;
export type CaFileAnswer = z.output<typeof caFileAnswer>;
export type CaAnswer = z.output<typeof caAnswer>;
export type HostRemoveAnswer = z.output<typeof hostRemoveAnswer>;
export type AuditQuery = z.output<typeof auditQuery>;
export type AuditAnswer = z.output<typeof auditAnswer>;
export type AuditVerdict = z.output<typeof auditVerdict>;
