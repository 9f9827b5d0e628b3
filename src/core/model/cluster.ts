/**
 * The cluster as the store shows it: hosts, pools, and how sure we are of who is alive.
 *
 * Must always hold:
 * - `alive` is a hint from a lease. It decides where a copy goes and what a person is told; it never fences, and no
 *   promise about data rests on it (architecture.md, "Records");
 * - ids are unique; a pool's host may be missing from `hosts` (it was removed), then the pool counts as away.
 */
import type { HostId, PoolId } from "./ids.ts";
import type { Labels } from "./spread.ts";

export type Liveness =
  | { readonly kind: "alive" }
  | { readonly kind: "away"; readonly sinceMs: number }
  /** The store is out of reach, so nothing is known. */
  | { readonly kind: "unknown" };

export type Host = {
  readonly id: HostId;
  readonly name: string;
  readonly address: string;
  readonly joinedAtMs: number;
  readonly liveness: Liveness;
  /** Where it stands, by the operator's word. */
  readonly labels: Labels;
};

export type Pool = {
  readonly id: PoolId;
  readonly host: HostId;
  readonly path: string;
  readonly serving: boolean;
  readonly freeBytes: bigint;
  readonly totalBytes: bigint;
  /** Sum of the sizes of the volumes that have a replica here: what it must hold if all fill up. */
  readonly committedBytes: bigint;
  /** Why no copy here can have snapshots, as a sentence; null: they can, or nobody has tried yet. */
  readonly noSnapshots: string | null;
  /** A copy's room can be reserved here: not on LVM's thin volumes, which have no blocks before they are written. */
  readonly canReserve: boolean;
};

export type Cluster = {
  readonly hosts: readonly Host[];
  readonly pools: readonly Pool[];
};

export function hostById(cluster: Cluster, id: HostId): Host | null {
  return cluster.hosts.find((host) => host.id === id) ?? null;
}

export function isAlive(cluster: Cluster, id: HostId): boolean {
  return hostById(cluster, id)?.liveness.kind === "alive";
}

/** Name of a host for a sentence; the id's beginning when the host is gone. */
export function hostName(cluster: Cluster, id: HostId): string {
  return hostById(cluster, id)?.name ?? id.slice(0, 8);
}
