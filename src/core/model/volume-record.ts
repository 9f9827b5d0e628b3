/**
 * What the store says about a volume: desire (`want`, written by agents) and fact (`state`, written by weftd only).
 * Rooms above parse the JSON of the store into these types; the model only reads them.
 *
 * Must always hold:
 * - desire and fact are two keys with two writers, so that nobody fights (protocol.md 4.1);
 * - `replicas` of a record are in order of rid; a rid below `nextRid` that is not in it was removed for ever.
 */
import type { HostId, PoolId, Rid, SessionId, SnapshotId, VolumeId } from "./ids.ts";
import type { ScrubAsk } from "./scrub.ts";
import type { Spread } from "./spread.ts";
import type { VolumeLimits } from "./volume-limits.ts";

export type ReplicaState = "INSYNC" | "STALE" | "JOINING" | "REMOVING" | "QUARANTINED";

export type Member = {
  readonly rid: Rid;
  readonly host: HostId;
  readonly pool: PoolId;
  readonly state: ReplicaState;
  readonly reason: string | null;
  /** When it came into this state; null when the record does not say. */
  readonly sinceMs: number | null;
};

export type VolumeRecord = {
  readonly volume: VolumeId;
  readonly sizeBytes: bigint;
  readonly epoch: bigint;
  readonly rev: bigint;
  readonly nextRid: number;
  readonly copies: number;
  readonly minIsr: number;
  /** As it stands there, maybe by newer software. */
  readonly spread: string;
  readonly owner: { readonly host: HostId; readonly session: SessionId } | null;
  readonly clean: boolean;
  readonly deletedAtMs: number | null;
  /** Its head is deleted and it lives on in its snapshots: no guest opens it (docs/model.md R31). Null: it isn't. */
  readonly head: DeletedHead | null;
  /** How many keys of snapshots there are, also of those that are being deleted. */
  readonly snapshots: number;
  /** It is being taken back to a snapshot: whoever opens it ends that before it serves (docs/model.md R30). Null: it is not. */
  readonly reverting: { readonly snapshot: SnapshotId; readonly sinceMs: number | null } | null;
  readonly replicas: readonly Member[];
};

/** `data`: what only the head has is all there, so that it can be restored; is being given back; or was. */
export type DeletedHead = {
  readonly deletedAtMs: number;
  readonly data: "kept" | "releasing" | "released";
};

export type Place = {
  readonly rid: Rid;
  readonly host: HostId;
  readonly pool: PoolId;
  /** Asked to go; it goes when the others suffice. */
  readonly remove: boolean;
};

export type Want = {
  readonly volume: VolumeId;
  readonly name: string;
  readonly sizeBytes: bigint;
  readonly copies: number;
  readonly minIsr: number;
  /** What its copies must not share. */
  readonly spread: Spread;
  /** The room of every copy is reserved when it is made, and kept. */
  readonly thick: boolean;
  readonly placements: readonly Place[];
  /** What its guests may take, wherever it is attached; null: as much as they like. */
  readonly limits: VolumeLimits | null;
  /** Its copies shall be compared with each other; null: nobody asks for it. */
  readonly scrub: ScrubAsk | null;
  readonly deletedAtMs: number | null;
  /** Its head is deleted: it shall live on in its snapshots, and its name is free. Null: it has its head. */
  readonly headDeletedAtMs: number | null;
  readonly createdBy: string;
  /** The snapshot that it began as; null: it began empty. */
  readonly createdFrom: CreatedFrom | null;
  /** A copy can't be made, so that the volume never was one; null: nobody said so. */
  readonly refused: Refused | null;
};

/** A clone's beginning, noted when it was asked for: the snapshot may be renamed or gone since. */
export type CreatedFrom = {
  readonly volume: VolumeId;
  readonly volumeName: string;
  readonly snapshot: SnapshotId;
  readonly snapshotName: string;
  readonly takenMs: number;
  readonly generation: bigint;
  /** Of the source's owner that took it. */
  readonly epoch: bigint;
  readonly regionShift: number;
  /** The copies that are made of it; the others are filled from these, as any that joins. */
  readonly rids: readonly Rid[];
};

/** What the daemon of a host said when it was to make a copy: for good, and before anything was promised. */
export type Refused = { readonly host: HostId; readonly code: string; readonly message: string };

/** A replica that its host made durable but that is not necessarily a member yet. */
export type Made = {
  readonly rid: Rid;
  readonly host: HostId;
  readonly pool: PoolId;
};

/** Those that a volume's first record names. */
export function firstPlaces({ placements, createdFrom }: Want): readonly Place[] {
  return placements.filter(({ rid, remove }) => !remove && (createdFrom?.rids.includes(rid) ?? true));
}

export function memberOf(record: VolumeRecord, rid: Rid): Member | null {
  return record.replicas.find((member) => member.rid === rid) ?? null;
}

export function insync(record: VolumeRecord): readonly Member[] {
  return record.replicas.filter((member) => member.state === "INSYNC");
}

/** A rid that was in the record once and is not any more: it never comes back (protocol.md 4.13). */
export function isOver(record: VolumeRecord, rid: Rid): boolean {
  return rid < record.nextRid && memberOf(record, rid) === null;
}
