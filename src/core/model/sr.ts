/**
 * A storage repository as XAPI has it: a name for some of the cluster's volumes, and what more of them there is room for.
 *
 * Must always hold:
 * - what is said to be placeable can be placed: no two copies of a byte on one host;
 * - nothing is said of bytes that a pool keeps for its own repairs.
 */
import type { Cluster } from "./cluster.ts";
import type { HostId, PoolId } from "./ids.ts";
import { poolReserveBytes } from "./limits.ts";
import { defaultCopies } from "./placement.ts";

export type Sr = {
  readonly uuid: string;
  readonly label: string;
  readonly description: string;
  /** Of each of its disks; null: as a volume has it for which nobody says a number. */
  readonly copies: number | null;
  readonly createdAt: string;
  /** Somebody looks whether it has disks, to delete it: meanwhile none comes. Null: nobody does. */
  readonly deletingAt: string | null;
};

/** Whoever looks is done by then, or has died. */
export const SR_DELETE_MS = 30_000;

/**
 * Bytes of volumes that pools have room for, each byte `copies` times on distinct hosts. `trashBytes`: what deleted volumes
 * take of a pool, which is given up when somebody needs it. Pools count as their hosts said last: one that is away for a
 * moment is no smaller for it.
 */
export function placeableBytes(
  cluster: Cluster,
  copies: number | null,
  trashBytes: ReadonlyMap<PoolId, bigint>,
): bigint {
  const room = new Map<HostId, bigint>();
  for (const { id, host, serving, freeBytes, totalBytes } of cluster.pools) {
    if (!serving) continue;
    const free = freeBytes + (trashBytes.get(id) ?? 0n) - poolReserveBytes(totalBytes);
    if (free > 0n) room.set(host, (room.get(host) ?? 0n) + free);
  }
  return spreadBytes([...room.values()], copies ?? defaultCopies(cluster, "host"));
}

/**
 * The most bytes of which `copies` copies each find room on distinct hosts. The largest hosts hold one copy of everything
 * while they have more than that; the others share what is left (McNaughton's rule).
 */
export function spreadBytes(rooms: readonly bigint[], copies: number): bigint {
  const sorted = rooms.toSorted((a, b) => (a < b ? 1 : a > b ? -1 : 0));
  let rest = sorted.reduce((sum, room) => sum + room, 0n);
  for (let left = copies, i = 0; left > 0; left -= 1, i += 1) {
    const share = rest / BigInt(left);
    const largest = sorted[i];
    if (largest === undefined) return 0n;
    if (largest <= share) return share;
    rest -= largest;
  }
  return 0n;
}
