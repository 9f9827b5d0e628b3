/** What the attack's main program and the attackers say to each other: lines of JSON over standard input and output. */
import { z } from "zod";

export const order = z.object({
  attack: z.string(),
  door: z.string(),
  tries: z.number().int().positive(),
  seed: z.number().int(),
});

export const answer = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("try"), label: z.string(), accepted: z.boolean() }),
  /** The end of an order. `control`: what kept the right credential out. `broken`: the attack itself did not work. */
  z.object({ kind: z.literal("done"), control: z.string().nullable(), broken: z.string().nullable() }),
]);

export type Order = z.output<typeof order>;
export type Answer = z.output<typeof answer>;
