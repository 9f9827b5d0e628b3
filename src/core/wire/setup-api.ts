/**
 * `weft init` on a host of XAPI's pool: what is asked of the host's agent, which has a door to XAPI, and what it answers.
 *
 * Must always hold: what is done is the plan that was shown, or nothing.
 */
import { z } from "zod";

const words = z.string().max(4096).nullable().default(null);

export const setupRequest = z.strictObject({
  /** `auto`, `none`, or `HOST:/dev/DISK,…`. */
  disks: words,
  copies: words,
  /** A network's UUID, as XAPI has it. */
  network: words,
  /** Name of the SR. */
  sr: z.string().min(1).max(256),
});

export const setupRunRequest = z.strictObject({
  ...setupRequest.shape,
  /** The text of the plan that was shown. */
  shown: z.string().max(1 << 20),
});

export const setupPlanAnswer = z.discriminatedUnion("kind", [
  /** This host is not one of XAPI's. */
  z.object({ kind: z.literal("no-xapi") }),
  z.object({
    kind: z.literal("refused"),
    /** For people. */
    text: z.string(),
    codes: z.array(z.string()),
  }),
  z.object({
    kind: z.literal("plan"),
    text: z.string(),
    steps: z.array(z.object({ kind: z.enum(["init", "join", "pool"]), host: z.string(), what: z.string() })),
    /** Toolstacks have to take up the driver first. */
    restarts: z.boolean(),
    copies: z.int(),
    usableBytes: z.string(),
    /** The SR that is there already; null: it is to be made. */
    sr: z.string().nullable(),
  }),
]);

export const setupRunAnswer = z.object({
  /** XAPI's uuid of the SR. */
  sr: z.string(),
  hosts: z.int(),
  /** Of toolstacks. */
  restarted: z.int(),
});

export type SetupRequest = z.output<typeof setupRequest>;
export type SetupRunRequest = z.output<typeof setupRunRequest>;
export type SetupPlanAnswer = z.output<typeof setupPlanAnswer>;
export type SetupRunAnswer = z.output<typeof setupRunAnswer>;
