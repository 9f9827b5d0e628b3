/** A small cluster to decide about: hosts h1, h2 … with one pool each, values instead of mocks. */
import type { Cluster, Host, Liveness, Pool } from "../../../src/core/model/cluster.ts";
import type { HostId, PoolId, Rid, SessionId, SnapshotId, VolumeId } from "../../../src/core/model/ids.ts";
import type { Snapshot } from "../../../src/core/model/snapshot.ts";
import { NO_LABELS } from "../../../src/core/model/spread.ts";
import type { Labels } from "../../../src/core/model/spread.ts";
import type { Made, Member, Place, VolumeRecord, Want } from "../../../src/core/model/volume-record.ts";

export const GIB = 1n << 30n;
export const alive: Liveness = { kind: "alive" };

export function away(sinceMs: number): Liveness {
  return { kind: "away", sinceMs };
}

export function hostId(number: number): HostId {
  return `${number}0000000-0000-4000-8000-000000000000` as HostId;
}

export function poolId(number: number): PoolId {
  return `${number}0000000-0000-4000-9000-000000000000` as PoolId;
}

const volumeId = "d0000000-0000-4000-a000-000000000000" as VolumeId;

export function rid(number: number): Rid {
  return number as Rid;
}

export function host(number: number, liveness: Liveness = alive, labels: Labels = NO_LABELS): Host {
  const name = `h${number}`;
  const address = `10.0.9.${10 + number}`;
  return { id: hostId(number), name, address, joinedAtMs: number, liveness, labels };
}

export function pool(number: number, rest: Partial<Pool> = {}): Pool {
  return {
    id: poolId(number),
    host: hostId(number),
    path: "/srv/weft",
    serving: true,
    freeBytes: 900n * GIB,
    totalBytes: 900n * GIB,
    committedBytes: 0n,
    noSnapshots: null,
    canReserve: true,
    ...rest,
  };
}

/** Hosts by number, each with a pool; a number in `silent` went away at time 0. */
export function cluster(numbers: readonly number[], silent: readonly number[] = []): Cluster {
  return {
    hosts: numbers.map((number) => host(number, silent.includes(number) ? away(0) : alive)),
    pools: numbers.map((number) => pool(number)),
  };
}

export function place(number: number, onHost: number, remove: boolean = false): Place {
  return { rid: rid(number), host: hostId(onHost), pool: poolId(onHost), remove };
}

export function made(number: number, onHost: number): Made {
  return { rid: rid(number), host: hostId(onHost), pool: poolId(onHost) };
}

export function member(number: number, onHost: number, state: Member["state"] = "INSYNC"): Member {
  return { ...made(number, onHost), state, reason: null, sinceMs: 0 };
}

export function want(placements: readonly Place[], rest: Partial<Want> = {}): Want {
  return {
    volume: volumeId,
    name: "db",
    sizeBytes: 3n * GIB,
    copies: placements.length,
    minIsr: 1,
    spread: "host",
    thick: false,
    placements,
    limits: null,
    scrub: null,
    deletedAtMs: null,
    headDeletedAtMs: null,
    createdBy: "test",
    createdFrom: null,
    refused: null,
    ...rest,
  };
}

export function record(replicas: readonly Member[], rest: Partial<VolumeRecord> = {}): VolumeRecord {
  return {
    volume: volumeId,
    sizeBytes: 3n * GIB,
    epoch: 7n,
    rev: 12n,
    nextRid: Math.max(0, ...replicas.map((replica) => replica.rid + 1)),
    copies: replicas.length,
    minIsr: 1,
    spread: "host",
    owner: null,
    clean: true,
    deletedAtMs: null,
    head: null,
    snapshots: 0,
    reverting: null,
    replicas,
    ...rest,
  };
}

export function owner(number: number): VolumeRecord["owner"] {
  return { host: hostId(number), session: "50000000-0000-4000-b000-000000000000" as SessionId };
}

export function snapshotId(number: number): SnapshotId {
  return `e0000000-0000-4000-a000-${String(number).padStart(12, "0")}` as SnapshotId;
}

/** Taken on these copies, of which number `n` is on host `n + 1`. */
export function snapshot(number: number, rids: readonly number[], rest: Partial<Snapshot> = {}): Snapshot {
  return {
    id: snapshotId(number),
    volume: volumeId,
    name: `s${number}`,
    state: "READY",
    isLogged: true,
    members: rids.map((n) => ({ rid: rid(n), host: hostId(n + 1), pool: poolId(n + 1) })),
    generation: BigInt(number),
    epoch: BigInt(number),
    regionShift: 20,
    sizeBytes: GIB,
    createdMs: number * 1000,
    createdBy: "root@h1",
    isProtected: false,
    data: "kept",
    group: null,
    ...rest,
  };
}
