/**
 * Which hosts seem alive: a machine over the lease keys of the store.
 *
 *     alive ──key gone──▶ away(since) ──key back──▶ alive
 *       └────────────store out of reach────────▶ unknown ──store back──▶ alive | away(store's return)
 *
 * Must always hold:
 * - while the store is out of reach nothing is concluded about anybody;
 * - a host that is missing after a store outage counts as away from the store's return, not from before: its lease
 *   could not be renewed, so its absence says nothing (protocol.md 4.13, 6).
 */
import type { Liveness } from "./cluster.ts";
import { formatDuration } from "./duration.ts";
import { byText } from "./ids.ts";
import type { HostId } from "./ids.ts";

export type LivenessState = {
  readonly store:
    | { readonly kind: "up"; readonly sinceMs: number }
    | { readonly kind: "down"; readonly sinceMs: number };
  readonly hosts: ReadonlyMap<HostId, Liveness>;
};

export type LivenessEvent =
  | { readonly kind: "host-joined"; readonly host: HostId }
  | { readonly kind: "host-removed"; readonly host: HostId }
  | { readonly kind: "lease-seen"; readonly host: HostId }
  | { readonly kind: "lease-gone"; readonly host: HostId }
  | { readonly kind: "store-lost" }
  /** With every lease that was found then. */
  | { readonly kind: "store-back"; readonly leases: readonly HostId[] };

export type LivenessEffect = {
  readonly kind: "host-changed";
  readonly host: HostId;
  readonly from: Liveness["kind"];
  readonly to: Liveness["kind"];
};

export function initialLiveness(now: number): LivenessState {
  return { store: { kind: "down", sinceMs: now }, hosts: new Map() };
}

export function stepLiveness(
  state: LivenessState,
  event: LivenessEvent,
  now: number,
): readonly [LivenessState, readonly LivenessEffect[]] {
  const next = apply(state, event, now);
  const effects: LivenessEffect[] = [];
  for (const [host, { kind }] of next.hosts) {
    const before = state.hosts.get(host)?.kind ?? "unknown";
    if (before !== kind) effects.push({ kind: "host-changed", host, from: before, to: kind });
  }
  return [next, effects];
}

function apply(state: LivenessState, event: LivenessEvent, now: number): LivenessState {
  const hosts = new Map(state.hosts);
  const absent: Liveness = state.store.kind === "up" ? { kind: "away", sinceMs: now } : { kind: "unknown" };
  switch (event.kind) {
    case "host-joined":
      if (!hosts.has(event.host)) hosts.set(event.host, absent);
      return { ...state, hosts };
    case "host-removed":
      hosts.delete(event.host);
      return { ...state, hosts };
    case "lease-seen":
      if (hosts.has(event.host)) hosts.set(event.host, { kind: "alive" });
      return { ...state, hosts };
    case "lease-gone":
      if (hosts.get(event.host)?.kind === "alive") hosts.set(event.host, absent);
      return { ...state, hosts };
    case "store-lost":
      if (state.store.kind === "down") return state;
      for (const host of hosts.keys()) hosts.set(host, { kind: "unknown" });
      return { store: { kind: "down", sinceMs: now }, hosts };
    case "store-back":
      for (const host of hosts.keys()) {
        hosts.set(host, event.leases.includes(host) ? { kind: "alive" } : { kind: "away", sinceMs: now });
      }
      return { store: { kind: "up", sinceMs: now }, hosts };
  }
}

/** `store up 5 min; 1a2b3c4d alive, 5e6f7a8b away 10 s` */
export function livenessLine(state: LivenessState, now: number): string {
  const hosts = [...state.hosts]
    .toSorted(([a], [b]) => byText(a, b))
    .map(([host, live]) =>
      live.kind === "away"
        ? `${host.slice(0, 8)} away ${formatDuration(now - live.sinceMs)}`
        : `${host.slice(0, 8)} ${live.kind}`,
    );
  return `store ${state.store.kind} ${formatDuration(now - state.store.sinceMs)}; ${hosts.join(", ")}`;
}
