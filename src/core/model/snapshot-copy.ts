/**
 * Which snapshots a host brings to its own copies of volumes: those that others have and it has not, since its copy was away
 * or came later (protocol.md 4.19).
 *
 * Must always hold:
 * - a copy is level before it gets what it missed: guests' data first, also that of other volumes on the host;
 * - one at a time on a host, the oldest first, so that two looks at the same facts choose alike;
 * - what was refused is asked for again later and later, and keeps no other waiting.
 */
import { isAlive } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import { byText } from "./ids.ts";
import type { HostId, Rid, SnapshotId, VolumeId } from "./ids.ts";
import { SNAPSHOT_COPY_AGAIN_MS, SNAPSHOT_COPY_AGAIN_MS_MAX } from "./limits.ts";
import { hasData, holders, ready } from "./snapshot.ts";
import type { Snapshot } from "./snapshot.ts";
import type { Member, VolumeRecord, Want } from "./volume-record.ts";

/** This copy of the host shall have this snapshot. */
export type SnapshotCopy = {
  readonly volume: VolumeId;
  readonly snapshot: SnapshotId;
  readonly rid: Rid;
};

/** How often it was refused since it came to anything, and when the last time. */
export type Refusal = { readonly times: number; readonly atMs: number };

export type SnapshotCopyInput = {
  readonly host: HostId;
  readonly cluster: Cluster;
  /** All of the cluster, those without a copy here among them. */
  readonly volumes: readonly {
    readonly want: Want;
    readonly record: VolumeRecord;
    readonly snapshots: readonly Snapshot[];
  }[];
  /** A copy is being made level, to or by this host. */
  readonly isResyncing: boolean;
  /** By `copyKey`. */
  readonly refusals: ReadonlyMap<string, Refusal>;
};

export function copyKey({ snapshot, rid }: SnapshotCopy): string {
  return `${snapshot} ${rid}`;
}

/** In the order in which they are brought; what was refused just now is not among them. */
export function dueSnapshotCopies(input: SnapshotCopyInput, nowMs: number): readonly SnapshotCopy[] {
  const { volumes, isResyncing, refusals } = input;
  if (isResyncing) return [];
  return volumes
    .flatMap((volume) => lackedHere(input, volume))
    .filter(({ copy }) => {
      const refusal = refusals.get(copyKey(copy));
      return refusal === undefined || nowMs >= refusal.atMs + pauseAfter(refusal.times);
    })
    .toSorted(
      (a, b) =>
        a.createdMs - b.createdMs || byText(a.copy.snapshot, b.copy.snapshot) || a.copy.rid - b.copy.rid,
    )
    .map(({ copy }) => copy);
}

/** So long nothing is asked for again that was refused so often. */
function pauseAfter(times: number): number {
  return Math.min(SNAPSHOT_COPY_AGAIN_MS_MAX, SNAPSHOT_COPY_AGAIN_MS * 2 ** Math.max(0, times - 1));
}

function lackedHere(
  { host, cluster }: SnapshotCopyInput,
  { want, record, snapshots }: SnapshotCopyInput["volumes"][number],
): readonly { readonly copy: SnapshotCopy; readonly createdMs: number }[] {
  if (want.deletedAtMs !== null || record.deletedAtMs !== null || record.reverting !== null) return [];
  const here = record.replicas.filter((member) => member.host === host && mayHave(want, member, cluster));
  return ready(snapshots)
    .filter(hasData)
    .flatMap((snapshot) => {
      const having = holders(snapshot, record);
      if (!having.some((member) => isAlive(cluster, member.host))) return [];
      return here
        .filter(({ rid }) => !having.some((member) => member.rid === rid))
        .map(({ rid }) => ({
          copy: { volume: record.volume, snapshot: snapshot.id, rid },
          createdMs: snapshot.createdMs,
        }));
    });
}

/** It stays, has what guests have written, and its pool can keep snapshots. */
function mayHave(want: Want, { rid, state, pool }: Member, { pools }: Cluster): boolean {
  const isLeaving = want.placements.some((place) => place.rid === rid && place.remove);
  const found = pools.find(({ id }) => id === pool);
  return state === "INSYNC" && !isLeaving && found?.serving === true && found.noSnapshots === null;
}
