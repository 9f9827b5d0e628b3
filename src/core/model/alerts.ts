/**
 * Which alerts a hypervisors' pool is to hear, and which it heard already.
 *
 *     quiet ──holds for some time──▶ said once ──over──▶ said that it is over (where that is worth a line) ──▶ quiet
 *
 * Must always hold:
 * - one alert for one trouble, whoever notices it and however often: what was said is kept where all hosts see it;
 * - what comes and goes within seconds (a host that reboots quickly) is never said;
 * - nothing is said to be over before it was said to be.
 */

/** `degraded`: fewer copies than wanted. `unavailable`: something waits. `full`: a pool takes nothing more, or soon. */
export const alertKinds = ["unavailable", "full", "degraded", "ejected", "stopping"] as const;
export type AlertKind = (typeof alertKinds)[number];

export type Trouble = { readonly kind: AlertKind; readonly text: string };

/** As it is kept: since when, and whether it was said. */
export type KnownAlert = { readonly kind: AlertKind; readonly sinceMs: number; readonly said: boolean };

export type Message = {
  /** What programs filter by. */
  readonly name: string;
  /** XAPI's: 1 is the gravest, 5 the least. */
  readonly priority: number;
  readonly text: string;
};

export type AlertStep = {
  /** To be kept; null: forget it. In the order of kinds. */
  readonly keep: readonly { readonly kind: AlertKind; readonly known: KnownAlert | null }[];
  readonly say: readonly Message[];
};

/** A host's reboot that goes well is over by then for most of its volumes; nobody is woken for less. */
export const ALERT_AFTER_MS: Readonly<Record<AlertKind, number>> = {
  unavailable: 15_000,
  full: 15_000,
  degraded: 60_000,
  ejected: 60_000,
  stopping: 0,
};

const MESSAGES: Readonly<
  Record<AlertKind, { readonly name: string; readonly priority: number; readonly over: string | null }>
> = {
  unavailable: { name: "WEFT_UNAVAILABLE", priority: 1, over: "All volumes go on again." },
  full: { name: "WEFT_FULL", priority: 2, over: "There is room again." },
  degraded: {
    name: "WEFT_DEGRADED",
    priority: 3,
    over: "All volumes have their copies again: the resync is done.",
  },
  ejected: { name: "WEFT_EJECTED", priority: 3, over: null },
  stopping: { name: "WEFT_STOP_WAITS", priority: 2, over: null },
};
const OVER_PRIORITY = 5;

/** A pool that is switched on, or a store that changes its leader, takes less. */
export const STORE_AWAY_AFTER_MS = 60_000;

/** What no store can keep: it has no majority, as far as this host sees. */
export function storeAwayMessage(host: string): Message {
  return {
    name: "WEFT_STORE_AWAY",
    priority: 2,
    text: `${host} has had no answer of the store's majority for a minute. Running guests go on as long as their copies do; nothing can be started, moved or mended until enough hosts are back. See: weft status`,
  };
}

/** The host goes down all the same; `because` as the stop guard says it. */
export function stopsMessage(host: string, because: string): Message {
  return {
    name: "WEFT_STOPS",
    priority: 2,
    text: `${host} stops now, though ${because}. What waits for it goes on when it is back. See: weft status, on another host`,
  };
}

export const STORE_BACK_MESSAGE: Message = {
  name: "WEFT_STORE_AWAY_OVER",
  priority: OVER_PRIORITY,
  text: "The store has its majority again.",
};

export function stepAlerts(
  known: readonly KnownAlert[],
  troubles: readonly Trouble[],
  nowMs: number,
): AlertStep {
  const keep: { kind: AlertKind; known: KnownAlert | null }[] = [];
  const say: Message[] = [];
  for (const kind of alertKinds) {
    const trouble = troubles.find((one) => one.kind === kind) ?? null;
    const before = known.find((one) => one.kind === kind) ?? null;
    const { name, priority, over } = MESSAGES[kind];
    if (trouble === null) {
      if (before === null) continue;
      keep.push({ kind, known: null });
      if (before.said && over !== null)
        say.push({ name: `${name}_OVER`, priority: OVER_PRIORITY, text: over });
      continue;
    }
    // A clock that was set back begins anew, rather than waiting for years.
    const sinceMs = before === null || before.sinceMs > nowMs ? nowMs : before.sinceMs;
    const isDue = before?.said !== true && nowMs - sinceMs >= ALERT_AFTER_MS[kind];
    if (isDue) say.push({ name, priority, text: trouble.text });
    const now = { kind, sinceMs, said: isDue || before?.said === true };
    if (before === null || before.said !== now.said || before.sinceMs !== sinceMs)
      keep.push({ kind, known: now });
  }
  return { keep, say };
}

export type AlertFacts = {
  readonly volumes: readonly { readonly name: string; readonly health: string }[];
  /** Findings of the whole cluster. */
  readonly problems: readonly { readonly code: string; readonly message: string }[];
  /** Hosts of the cluster that are in the hypervisors' pool no more. */
  readonly ejected: readonly string[];
  /** Hosts that wait with their stop, and for what. */
  readonly stopping: readonly { readonly host: string; readonly why: string }[];
};

const FULL: ReadonlySet<string> = new Set(["E-POOL-09", "E-POOL-10"]);
const WAITING: ReadonlySet<string> = new Set(["paused", "unavailable", "unreadable"]);

/** What is wrong, in one sentence of each kind. */
export function troublesOf({ volumes, problems, ejected, stopping }: AlertFacts): readonly Trouble[] {
  const waiting = volumes.filter(({ health }) => WAITING.has(health)).map(({ name }) => name);
  const degraded = volumes.filter(({ health }) => health === "degraded").map(({ name }) => name);
  const full = problems.filter(({ code }) => FULL.has(code)).map(({ message }) => message);
  return [
    ...(waiting.length === 0
      ? []
      : [
          {
            kind: "unavailable" as const,
            text: `${shown(waiting)} waiting; nothing is lost by it. Explained by: weft why VOLUME`,
          },
        ]),
    ...(full.length === 0 ? [] : [{ kind: "full" as const, text: full.join(" ") }]),
    ...(degraded.length === 0
      ? []
      : [
          {
            kind: "degraded" as const,
            text: `${shown(degraded)} with fewer copies than wanted. Data is safe. See: weft status`,
          },
        ]),
    ...(ejected.length === 0
      ? []
      : [
          {
            kind: "ejected" as const,
            text: `${ejected.join(", ")} left the pool and is a host of weft still. Take it out: ${ejected.map((name) => `weft host remove ${name}`).join("; ")}`,
          },
        ]),
    ...(stopping.length === 0
      ? []
      : [
          {
            kind: "stopping" as const,
            text: stopping.map(({ host, why }) => `${host} waits with its stop: ${why}.`).join(" "),
          },
        ]),
  ];
}

function shown(names: readonly string[]): string {
  const some = names.slice(0, 5).join(", ");
  const more = names.length > 5 ? ` and ${names.length - 5} more` : "";
  return `${names.length} ${names.length === 1 ? "volume" : "volumes"} (${some}${more})`;
}
