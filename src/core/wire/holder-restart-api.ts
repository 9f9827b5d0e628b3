/** The planned restart of a host's holder, as its agent is asked for it. */
import { z } from "zod";

export const holderRestartRequest = z.strictObject({});

export const holderRestartAnswer = z.object({
  /** Of the holder that runs now. */
  version: z.string(),
  /** Disks whose tapdisk was paused. */
  paused: z.int(),
  pausedMs: z.int(),
});

export type HolderRestartAnswer = z.output<typeof holderRestartAnswer>;
