/**
 * Which guests this host's holder has.
 *
 * Must always hold: no holder is an answer, one that says nothing is an error: who asks must not take a guest for gone.
 */
import { join } from "node:path";
import { z } from "zod";

import { WeftError } from "../wire/errors.ts";
import { holderClient } from "../wire/holder-client.ts";
import { uuid } from "../wire/json-types.ts";

/** It answers from memory. */
const ANSWER_MS = 2000;

const heldJson = z.object({
  /** The virtual disk's UUID. */
  id: z.string(),
  volume: uuid,
  /** Null: the volume itself. */
  snapshot: uuid.nullable(),
  /** A guest's end is connected. */
  connected: z.boolean(),
  /** Why that guest was told that its disk is gone; null: it was not. */
  lost: z.string().nullable(),
});
const listJson = z.object({ entries: z.array(heldJson) });
type Held = z.output<typeof heldJson>;

/** Null: no holder runs here. */
export async function heldHere(runDir: string): Promise<readonly Held[] | null> {
  const path = join(runDir, "holder.sock");
  const answer = await holderClient(path)
    .call("list", {}, ANSWER_MS)
    .catch((error: unknown) => {
      if (isNone(error)) return null;
      throw error;
    });
  if (answer === null) return null;
  const parsed = listJson.safeParse(answer);
  if (parsed.success) return parsed.data.entries;
  throw new WeftError({
    code: "E-AGENT-05",
    message: `The holder on ${path} answers with nothing that this version understands.`,
    facts: { socket: path },
  });
}

/** Nobody listens there: a holder that ended took its guests with it. */
function isNone(error: unknown): boolean {
  const cause: unknown = error instanceof WeftError ? error.cause : null;
  const code = cause instanceof Error && "code" in cause ? cause.code : null;
  return code === "ENOENT" || code === "ECONNREFUSED";
}
