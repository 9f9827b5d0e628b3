/**
 * The headline of `weft status`: one sentence that says whether data is safe and what one more failure would do.
 *
 * Must always hold:
 * - the worst thing comes first, and the headline never says less than the lines under it;
 * - "data is safe" is said only when every volume has enough in-sync copies on hosts that answer.
 */
import { formatDuration } from "./duration.ts";
import type { Health } from "./redundancy.ts";

export type Summary = {
  readonly level: "healthy" | "degraded" | "unavailable";
  readonly headline: string;
  readonly lines: readonly string[];
};

export type SummaryVolume = {
  readonly name: string;
  /** `unreadable`: its record can't be understood by this software. */
  readonly health: Health["kind"] | "unreadable";
  readonly minIsr: number;
  /** Names of the hosts that answer and have an in-sync copy. */
  readonly insyncOn: readonly string[];
};

export type SummaryInput = {
  /** `awayMs`: null when it is not known for how long. */
  readonly hosts: readonly {
    readonly name: string;
    readonly alive: boolean;
    readonly awayMs: number | null;
  }[];
  readonly storeUp: boolean;
  readonly volumes: readonly SummaryVolume[];
};

export function summarise({ hosts, storeUp, volumes }: SummaryInput): Summary {
  const of = (...kinds: readonly SummaryVolume["health"][]): readonly string[] =>
    volumes.filter(({ health }) => kinds.includes(health)).map(({ name }) => name);
  const waiting = of("unavailable", "paused");
  const unreadable = of("unreadable");
  const degraded = of("degraded");
  // Without the store nobody's lease is known, so nobody is called away.
  const away = storeUp ? hosts.filter(({ alive }) => !alive) : [];
  const lines = [
    ...(storeUp
      ? []
      : ["The store is out of reach: running volumes go on, nothing can be attached or changed."]),
    ...away.map(({ name, awayMs }) =>
      awayMs === null ? `${name} not answering.` : `${name} not answering for ${formatDuration(awayMs)}.`,
    ),
    ...(waiting.length === 0 ? [] : [`${count(waiting)} waiting: ${list(waiting)}.`]),
    ...(unreadable.length === 0
      ? []
      : [`${count(unreadable)} with a record that can't be read: ${list(unreadable)}.`]),
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
  if (unreadable.length > 0) {
    return {
      level: "unavailable",
      headline: `UNAVAILABLE — ${count(unreadable)} can't be opened by this software`,
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
    return { level: "degraded", headline: `DEGRADED — data is safe, ${nextFailure(volumes)}`, lines };
  }
  if (away.length > 0) {
    return { level: "degraded", headline: "DEGRADED — data is safe, every volume has its copies", lines };
  }
  const live = volumes.length - of("deleted").length;
  if (live === 0) return { level: "healthy", headline: "HEALTHY — no volumes yet", lines };
  return {
    level: "healthy",
    headline: `HEALTHY — ${live} ${live === 1 ? "volume" : "volumes"}, all copies in sync`,
    lines,
  };
}

/** The host whose failure would stop most volumes; the first in text order of those. */
function nextFailure(volumes: readonly SummaryVolume[]): string {
  const stopped = new Map<string, number>();
  for (const { health, minIsr, insyncOn } of volumes) {
    // With more than min_isr it goes on without any one of them.
    if (health !== "degraded" || insyncOn.length > Math.max(1, minIsr)) continue;
    for (const host of insyncOn) stopped.set(host, (stopped.get(host) ?? 0) + 1);
  }
  const [worst] = [...stopped].toSorted(([a, left], [b, right]) => right - left || (a < b ? -1 : 1));
  if (worst === undefined) return "one more failure stops no volume";
  return `one more failure of ${worst[0]} would stop ${worst[1]} ${worst[1] === 1 ? "volume" : "volumes"}`;
}

function count(names: readonly string[]): string {
  return `${names.length} ${names.length === 1 ? "volume" : "volumes"}`;
}

function list(names: readonly string[]): string {
  const shown = names.slice(0, 5).join(", ");
  return names.length > 5 ? `${shown} and ${names.length - 5} more` : shown;
}
