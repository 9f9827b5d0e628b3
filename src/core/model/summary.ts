/**
 * The headline of `weft status`: one sentence that says whether data is safe and what one more failure would do.
 *
 * Must always hold:
 * - the worst thing comes first, and the headline never says less than the lines under it;
 * - "data is safe" is said only when every volume has an in-sync copy on a host that answers.
 */
import type { Cluster } from "./cluster.ts";
import { formatDuration } from "./duration.ts";
import type { HostId } from "./ids.ts";
import type { Health } from "./redundancy.ts";
import { insync } from "./volume-record.ts";
import type { VolumeRecord } from "./volume-record.ts";

export type Summary = {
  readonly level: "healthy" | "degraded" | "unavailable";
  readonly headline: string;
  readonly lines: readonly string[];
};

export type SummaryInput = {
  readonly cluster: Cluster;
  readonly storeUp: boolean;
  readonly volumes: readonly {
    readonly name: string;
    readonly health: Health;
    readonly record: VolumeRecord | null;
  }[];
};

export function summarise({ cluster, storeUp, volumes }: SummaryInput, now: number): Summary {
  const of = (kind: Health["kind"]): readonly string[] =>
    volumes.filter(({ health }) => health.kind === kind).map(({ name }) => name);
  const waiting = [...of("unavailable"), ...of("paused")];
  const degraded = of("degraded");
  const away = cluster.hosts.filter(({ liveness }) => liveness.kind === "away");
  const lines = [
    ...(storeUp
      ? []
      : ["The store is out of reach: running volumes go on, nothing can be attached or changed."]),
    ...away.map(({ name, liveness }) =>
      liveness.kind === "away" ? `${name} not answering for ${formatDuration(now - liveness.sinceMs)}.` : "",
    ),
    ...(waiting.length === 0 ? [] : [`${count(waiting)} waiting: ${list(waiting)}.`]),
    ...(degraded.length === 0
      ? []
      : [`${count(degraded)} with fewer copies than wanted: ${list(degraded)}.`]),
  ];
  if (waiting.length > 0) {
    return {
      level: "unavailable",
      headline: `UNAVAILABLE — ${count(waiting)} waiting, nothing is lost by it`,
      lines,
    };
  }
  if (!storeUp) {
    return {
      level: "unavailable",
      headline: "STORE AWAY — running volumes go on, nothing can be changed",
      lines,
    };
  }
  if (degraded.length > 0) {
    return {
      level: "degraded",
      headline: `DEGRADED — data is safe, ${nextFailure(cluster, volumes)}`,
      lines,
    };
  }
  if (away.length > 0) {
    return { level: "degraded", headline: "DEGRADED — data is safe, every volume has its copies", lines };
  }
  const live = volumes.length - of("deleted").length;
  return {
    level: "healthy",
    headline: `HEALTHY — ${live} ${live === 1 ? "volume" : "volumes"}, all copies in sync`,
    lines,
  };
}

/** The host whose failure would stop most volumes. */
function nextFailure(cluster: Cluster, volumes: SummaryInput["volumes"]): string {
  const hit = new Map<HostId, number>();
  for (const { health, record } of volumes) {
    if (health.kind !== "degraded" || record === null) continue;
    const alive = insync(record).filter(({ host }) =>
      cluster.hosts.some(({ id, liveness }) => id === host && liveness.kind !== "away"),
    );
    // alive > minIsr: the volume goes on without any one of them.
    if (alive.length <= Math.max(1, record.minIsr)) {
      for (const { host } of alive) hit.set(host, (hit.get(host) ?? 0) + 1);
    }
  }
  const worst = cluster.hosts
    .filter(({ id }) => hit.has(id))
    .toSorted((a, b) => (hit.get(b.id) ?? 0) - (hit.get(a.id) ?? 0))[0];
  if (worst === undefined) return "one more failure stops no volume";
  const stopped = hit.get(worst.id) ?? 0;
  return `one more failure of ${worst.name} would stop ${stopped} ${stopped === 1 ? "volume" : "volumes"}`;
}

function count(names: readonly string[]): string {
  return `${names.length} ${names.length === 1 ? "volume" : "volumes"}`;
}

function list(names: readonly string[]): string {
  const shown = names.slice(0, 5).join(", ");
  return names.length > 5 ? `${shown} and ${names.length - 5} more` : shown;
}
