/**
 * Commands that a guest waits with for what passes by itself: the store has no majority yet, or this host's weftd is being started
 * again. XAPI starts a VM once, at a power-up with the first host that is there, and asks nobody again.
 *
 * Must always hold: only what may be done any number of times is done again, and never so late that its deadline cuts off a wait for
 * another host's owner (plug-commands.ts).
 */
import { setTimeout as delay } from "node:timers/promises";

import { isWeftError, reasonOf } from "../core/wire/errors.ts";
import type { Command, SmContext } from "./call.ts";

const COMMANDS: ReadonlySet<string> = new Set(
  "vdi_epoch_begin vdi_attach vdi_activate vdi_deactivate vdi_detach vdi_compose".split(" "),
);
/** No majority; what came of a change is not known; weftd doesn't answer. */
const PASSING = ["E-STORE-01", "E-STORE-06", "E-AGENT-05"] as const;
/** With the 30 s of a handover after it the whole is within a command's deadline. */
export const PATIENCE_MS = 25_000;
const AGAIN_MS = 250;

export function patient(command: string, perform: Command, patienceMs: number): Command {
  if (!COMMANDS.has(command)) return perform;
  return async (context) => {
    const endMs = performance.now() + patienceMs;
    for (;;) {
      try {
        return await perform(context);
      } catch (error) {
        if (!PASSING.some((code) => isWeftError(error, code))) throw error;
        if (performance.now() >= endMs || context.deadline.aborted) throw error;
        note(context, command, error);
        await delay(AGAIN_MS);
      }
    }
  };
}

function note({ log, call }: SmContext, command: string, error: unknown): void {
  log.debug({ command, vdi: call.vdiUuid, reason: reasonOf(error) }, "a command waits for what passes");
}
