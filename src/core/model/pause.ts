/**
 * Why a volume's session waits: its host's daemon says it with identifiers, people know copies by hosts and paths.
 *
 * Must always hold: only the session that owns the volume now is believed; what another one said is over.
 */
import { type Cluster, hostName } from "./cluster.ts";
import { parseHostId, type Rid, type SessionId } from "./ids.ts";
import { memberOf, type VolumeRecord } from "./volume-record.ts";

export type Pause = {
  readonly session: SessionId;
  /** In the daemon's words. */
  readonly reason: string;
};

const UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}";
const FULL = new RegExp(`\\bpool (${UUID}) of host (${UUID})`, "g");
const POOL = new RegExp(`\\bpool (${UUID})`, "g");
const HOST = new RegExp(`\\bhost (${UUID})`, "g");
const SNAPSHOT = new RegExp(`\\bsnapshot (${UUID})`, "g");
const COPY = /\br(\d{1,9})\b/g;

/**
 * `waits for copy 1 on h2: the pool /srv/weft on h2 is full`; null: its session does not wait. `refOf`: how people call a
 * snapshot, null where nobody knows it.
 */
export function pauseReason(
  pause: Pause | null,
  record: VolumeRecord | null,
  cluster: Cluster,
  refOf: (snapshot: string) => string | null = () => null,
): string | null {
  if (pause === null || record === null || record.owner?.session !== pause.session) return null;
  const named = (id: string): string => {
    const host = parseHostId(id);
    return host === null ? id : hostName(cluster, host);
  };
  const pathOf = (id: string): string => cluster.pools.find((pool) => pool.id === id)?.path ?? id.slice(0, 8);
  return pause.reason
    .replaceAll(FULL, (_, pool: string, host: string) => `the pool ${pathOf(pool)} on ${named(host)}`)
    .replaceAll(POOL, (_, pool: string) => `the pool ${pathOf(pool)}`)
    .replaceAll(HOST, (_, host: string) => named(host))
    .replaceAll(SNAPSHOT, (_, id: string) => refOf(id) ?? `snapshot ${id.slice(0, 8)}`)
    .replaceAll(COPY, (_, rid: string) => {
      const member = memberOf(record, Number(rid) as Rid);
      return member === null ? `copy ${rid}` : `copy ${rid} on ${hostName(cluster, member.host)}`;
    });
}
