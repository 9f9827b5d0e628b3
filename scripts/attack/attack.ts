/**
 * What an attack is: many tries of one idea against one door, and the same with the right credential as its proof.
 *
 * Must always hold:
 * - "accepted" is an effect that was seen (an answer, a key, a frame of the cluster), never the absence of an error;
 * - every attack has a control that must succeed: without it a closed door and a broken attack look alike.
 */
import type { Knowledge } from "./knowledge.ts";

export type Door = "7400" | "7401" | "7402" | "7403" | "unix" | "weftd.sock";

/** From where: the network beside the hosts, or a host itself (its addresses are believed more). */
export type Place = "stranger" | "h3" | "h4";

/** One way of trying. `local` is the address to come from: another one for each try, so that no limit stands in its way. */
export type Way = {
  readonly label: string;
  /** Whether the door let it in. */
  readonly run: (local: string) => Promise<boolean>;
};

export type Attack = {
  readonly name: string;
  readonly door: Door;
  readonly from: Place;
  /** Keys of the store that it changes by its nature. */
  readonly changes?: RegExp;
  /** Tries under way at once, where it is not as many as the attacker likes. */
  readonly atOnce?: number;
  /** As long as there are fewer than tries, they are gone through again with other random numbers. */
  readonly ways: (knowledge: Knowledge, random: () => number) => readonly Way[] | Promise<readonly Way[]>;
  /** Throws when the right credential isn't let in either. */
  readonly control: (knowledge: Knowledge, local: string) => Promise<void>;
};

/** Numbers in [0, 1) that the seed decides (splitmix32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 0x1_0000_0000;
  };
}

export function bytesOf(random: () => number, count: number): Buffer {
  return Buffer.from(Array.from({ length: count }, () => Math.floor(random() * 256)));
}

export function mustBe(held: boolean, what: string): void {
  if (!held) throw new Error(`the control failed: ${what}`);
}
