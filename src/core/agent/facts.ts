/**
 * The mirror's keys as the model's words: hosts, pools, volumes.
 *
 * Must always hold: a value that can't be read hides nothing but itself; it is reported with its key.
 */
import type { Cluster, Host, Pool } from "../model/cluster.ts";
import type { HostId, PoolId, SnapshotId, VolumeId } from "../model/ids.ts";
import { parseHostId, parsePoolId, parseVolumeId } from "../model/ids.ts";
import type { LivenessState } from "../model/liveness.ts";
import type { Snapshot } from "../model/snapshot.ts";
import type { Made, VolumeRecord, Want } from "../model/volume-record.ts";
import { NO_LABELS } from "../model/spread.ts";
import type { Labels } from "../model/spread.ts";
import { WeftError } from "../wire/errors.ts";
import type { ClusterJson, HostJson, PoolJson, PoolUsageJson, RecordExtra } from "../wire/record.ts";
import * as record from "../wire/record.ts";
import type { Entry } from "../wire/store-client.ts";
import { keys, parseKey } from "../wire/store-keys.ts";
import type { Mirror } from "./mirror.ts";
import { readOnce } from "./read-once.ts";

const readCluster = readOnce(record.parseCluster);
const readHost = readOnce(record.parseHost);
const readLabels = readOnce(record.parseHostLabels);
const readAlive = readOnce(record.parseAlive);
const readPool = readOnce(record.parsePool);
const readUsage = readOnce(record.parsePoolUsage);
const readMade = readOnce(record.parseMade);
export const readSnapshot = readOnce(record.parseSnapshot);
/** With every change of the store all volumes are looked at. */
export const readWant = readOnce(record.parseWant);
export const readRecord = readOnce(record.parseRecord);
export const readExtra = readOnce(record.parseRecordExtra);

export type VolumeFacts = {
  readonly id: VolumeId;
  readonly want: Want | null;
  readonly wantEntry: Entry | null;
  readonly made: readonly Made[];
  readonly record: VolumeRecord | null;
  readonly extra: RecordExtra | null;
  /** What could not be read. */
  readonly unreadable: WeftError | null;
};

export type PoolFacts = PoolJson & { readonly id: PoolId; readonly usage: PoolUsageJson | null };

export function hostsOf(mirror: Mirror): readonly HostJson[] {
  return mirror.entries(keys.hosts).flatMap((entry) => readable(() => readHost(entry)) ?? []);
}

export function labelsOf(mirror: Mirror, host: HostId): Labels {
  const entry = mirror.get(keys.hostLabels(host));
  if (entry === null) return NO_LABELS;
  return readable(() => readLabels(entry)) ?? NO_LABELS;
}

/** Present as soon as the mirror has listed a cluster's store once. */
export function clusterJsonOf(mirror: Mirror): ClusterJson {
  const entry = mirror.get(keys.cluster);
  if (entry !== null) return readCluster(entry);
  throw new WeftError({
    code: "E-STORE-01",
    message: "The store has not been reached since this agent started.",
  });
}

/** Hosts whose lease is alive, with the moment since when. */
export function aliveOf(mirror: Mirror): ReadonlyMap<HostId, string> {
  const alive = new Map<HostId, string>();
  for (const entry of mirror.entries(keys.alive(""))) {
    const parsed = parseKey(entry.key);
    const id = parsed?.kind === "alive" ? parseHostId(parsed.id) : null;
    const value = readable(() => readAlive(entry));
    if (id !== null) alive.set(id, value?.since ?? new Date(0).toISOString());
  }
  return alive;
}

export function poolsOf(mirror: Mirror): readonly PoolFacts[] {
  return mirror.entries(keys.pools).flatMap((entry) => {
    const id = parsePoolId(entry.key.slice(keys.pools.length));
    const pool = readable(() => readPool(entry));
    if (id === null || pool === null) return [];
    const usage = mirror.get(keys.poolUsage(id));
    return {
      ...pool,
      id,
      usage: usage === null ? null : readable(() => readUsage(usage)),
    };
  });
}

export function volumeIdsOf(mirror: Mirror): readonly VolumeId[] {
  const ids = new Set<VolumeId>();
  for (const { key } of mirror.entries(keys.volumes)) {
    const id = parseVolumeId(key.slice(keys.volumes.length).split("/")[0] ?? "");
    if (id !== null) ids.add(id);
  }
  return [...ids];
}

export function volumeOf(mirror: Mirror, id: VolumeId): VolumeFacts {
  const wantEntry = mirror.get(keys.want(id));
  const state = mirror.get(keys.state(id));
  let unreadable: WeftError | null = null;
  const read = <T>(entry: Entry | null, parse: (entry: Entry) => T): T | null => {
    if (entry === null) return null;
    try {
      return parse(entry);
    } catch (error) {
      if (!(error instanceof WeftError)) throw error;
      unreadable ??= error;
      return null;
    }
  };
  const want = read(wantEntry, readWant);
  const found = read(state, readRecord);
  const extra = found === null ? null : read(state, readExtra);
  const made = mirror
    .entries(`${keys.volume(id)}replica/`)
    .flatMap((entry) => read(entry, readMade) ?? [])
    .toSorted((a, b) => a.rid - b.rid);
  return { id, want, wantEntry, made, record: found, extra, unreadable };
}

export type SnapshotFacts = {
  readonly known: readonly Snapshot[];
  /** What could not be read. */
  readonly unreadable: readonly WeftError[];
};

/** Of a volume: all of them, those that are not shown among them. */
export function snapshotsOf(mirror: Mirror, id: VolumeId): SnapshotFacts {
  const all = mirror.entries(keys.snapshots(id)).map(snapshotOf);
  return {
    known: all.filter((one): one is Snapshot => !(one instanceof WeftError)),
    unreadable: all.filter((one): one is WeftError => one instanceof WeftError),
  };
}

function snapshotOf(entry: Entry): Snapshot | WeftError {
  try {
    return readSnapshot(entry);
  } catch (error) {
    if (error instanceof WeftError) return error;
    throw error;
  }
}

/** Hosts that offer this snapshot. */
export function openOn(mirror: Mirror, snapshot: SnapshotId): readonly HostId[] {
  const prefix = keys.snapshotOpen(snapshot);
  return mirror.entries(prefix).flatMap(({ key }) => parseHostId(key.slice(prefix.length)) ?? []);
}

export function volumesOf(mirror: Mirror): readonly VolumeFacts[] {
  return volumeIdsOf(mirror).map((id) => volumeOf(mirror, id));
}

/** Hosts and pools as the model wants them. */
export function clusterOf(mirror: Mirror, liveness: LivenessState): Cluster {
  const committed = new Map<PoolId, bigint>();
  for (const entry of mirror.entries(keys.volumes)) {
    if (!entry.key.endsWith("/want")) continue;
    const want = readable(() => readWant(entry));
    for (const { pool } of want?.placements ?? []) {
      committed.set(pool, (committed.get(pool) ?? 0n) + (want?.sizeBytes ?? 0n));
    }
  }
  const hosts = hostsOf(mirror).map((host): Host => ({
    id: host.id,
    name: host.name,
    address: host.address,
    joinedAtMs: Date.parse(host.joinedAt),
    liveness: liveness.hosts.get(host.id) ?? { kind: "unknown" },
    labels: labelsOf(mirror, host.id),
  }));
  const pools = poolsOf(mirror).map((pool): Pool => ({
    id: pool.id,
    host: pool.node,
    path: pool.path,
    serving: pool.usage?.state === "serving",
    freeBytes: pool.usage?.free ?? 0n,
    totalBytes: pool.usage?.total ?? 0n,
    committedBytes: committed.get(pool.id) ?? 0n,
    noSnapshots: pool.usage?.noSnapshots ?? null,
    canReserve: pool.usage?.deviceKind !== "lvm-thin",
  }));
  return { hosts, pools };
}

/** What can't be understood is as if it were not there. */
export function readable<T>(parse: () => T): T | null {
  try {
    return parse();
  } catch (error) {
    if (error instanceof WeftError) return null;
    throw error;
  }
}
