/**
 * From attacks to figures and a judgement.
 *
 * Must always hold: what did not come to its end, and a control that failed, is a failure of the run, never left out.
 */
import { table } from "../lib/table.ts";

/** No guest may wait longer while an attack goes on. */
export const STALL_MAX_MS = 500;

export type Played = {
  readonly attack: string;
  readonly door: string;
  readonly tries: number;
  /** Labels of what was let in. */
  readonly accepted: readonly string[];
  /** The longest that a request of a guest waited during the attack. */
  readonly guestStallMs: number;
  /** What held the right credential back, a broken attack, a store that changed, memory past its bound. */
  readonly faults: readonly string[];
};

export type Figure = {
  readonly attack: string;
  readonly door: string;
  readonly tries: number;
  readonly accepted: number;
  readonly guest_stall_ms_max: number;
};

export function figuresOf(played: readonly Played[]): readonly Figure[] {
  return played.map(({ attack, door, tries, accepted, guestStallMs }) => ({
    attack,
    door,
    tries,
    accepted: accepted.length,
    guest_stall_ms_max: guestStallMs,
  }));
}

export function isGood({ accepted, guestStallMs, faults, tries }: Played): boolean {
  return tries > 0 && accepted.length === 0 && guestStallMs <= STALL_MAX_MS && faults.length === 0;
}

export function render(played: readonly Played[]): string {
  const rows = played.map((one) => [
    one.attack,
    one.door,
    String(one.tries),
    String(one.accepted.length),
    one.guestStallMs.toFixed(0),
    isGood(one) ? "" : "FAILED",
  ]);
  return table([["ATTACK", "DOOR", "TRIES", "ACCEPTED", "LONGEST WAIT MS", ""], ...rows]);
}

/** What was wrong with one, line by line. */
export function complaints(one: Played): readonly string[] {
  return [
    ...one.accepted.map((label) => `accepted: ${label}`),
    ...(one.guestStallMs > STALL_MAX_MS ? [`a guest waited ${one.guestStallMs.toFixed(0)} ms`] : []),
    ...one.faults,
  ];
}
