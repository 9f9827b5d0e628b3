/**
 * Who may open a disk for a guest that XAPI starts here, when another host has it.
 *
 *     nobody's, a caretaker's, this host's ──▶ open
 *     another host's ──XAPI says it is dead──────────────────────▶ steal
 *           │──its agent: no client is connected─────────────────▶ steal
 *           │──neither its agent nor its daemon answers──────────▶ steal, 4 s later; 10 s where its machine refuses both
 *           └──else──▶ wait for it to close ──too long──▶ refuse
 *
 * Must always hold:
 * - a guest that is connected keeps its disk, unless XAPI says that its host is dead: a steal is safe for the data and still
 *   the end of that guest;
 * - one lost answer is no reason to take a disk: who can't be reached must stay so for a while;
 * - who only reads never takes a disk from a guest, and does not wait for it.
 */
import type { HostId, SessionId } from "./ids.ts";

/** So long a host must have been out of reach. */
export const UNREACHABLE_MS = 4000;
/** Its machine is there and refuses connections: both processes ended, and what restarts them has had its time. */
export const REFUSED_MS = 10_000;
/** So often the owner is asked again while it is waited for. */
export const ASK_OWNER_MS = 1000;

/** What is known of the owner's side. */
export type OwnerReport =
  /** Its agent said so. `connected` null: it could not say. */
  | { readonly kind: "answered"; readonly connected: boolean | null }
  /** Its agent gave no answer; its weftd is there. */
  | { readonly kind: "up" }
  /** Neither its agent nor its weftd did, since then; `refused`: the machine did, by refusing. */
  | { readonly kind: "away"; readonly sinceMs: number; readonly refused: boolean };

export type ActivationInput = {
  readonly here: HostId;
  /** A guest's: a caretaker makes way unasked. */
  readonly guest: { readonly host: HostId; readonly session: SessionId } | null;
  readonly writable: boolean;
  /** By XAPI's word; its hosts are known by another UUID. */
  readonly isOwnerDead: boolean;
  /** Null: it was not asked yet. */
  readonly report: OwnerReport | null;
  /** Until when it is waited. */
  readonly endMs: number;
};

export type Activation =
  | { readonly kind: "open" }
  | { readonly kind: "steal"; readonly why: "its host is dead" | "no guest is connected" | "unreachable" }
  | { readonly kind: "ask" }
  /** For the owner's close, so long at most; then ask again. */
  | { readonly kind: "wait"; readonly forMs: number }
  | { readonly kind: "refuse" };

export function decideActivation(input: ActivationInput, nowMs: number): Activation {
  const { here, guest, report, endMs, writable } = input;
  if (guest === null || guest.host === here) return { kind: "open" };
  if (input.isOwnerDead) return { kind: "steal", why: "its host is dead" };
  if (report === null) return { kind: "ask" };
  if (report.kind === "answered" && report.connected === false)
    return { kind: "steal", why: "no guest is connected" };
  if (report.kind === "away" && nowMs - report.sinceMs >= (report.refused ? REFUSED_MS : UNREACHABLE_MS))
    return { kind: "steal", why: "unreachable" };
  const left = writable ? endMs - nowMs : 0;
  return left <= 0 ? { kind: "refuse" } : { kind: "wait", forMs: Math.min(left, ASK_OWNER_MS) };
}
