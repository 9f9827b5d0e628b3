/**
 * `RUN/holder-restart.json`: what the holder offered when its planned restart began, for whoever goes on with it.
 *
 * Must always hold: it is there from before the first tapdisk is paused until each of them goes on, or has ended; it is gone
 * after a boot, as they are.
 */
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";

import { writeDurably } from "../../core/wire/durable-file.ts";
import { uuid } from "../../core/wire/json-types.ts";

const entryJson = z.object({
  id: z.string(),
  listen: z.string(),
  volume: uuid,
  /** The session that began the ownership; null: it is a snapshot. */
  session: uuid.nullable(),
  snapshot: uuid.nullable(),
  writable: z.boolean(),
  /** Bytes: what its tapdisk takes for the disk's size, and none other. */
  told_size: z.string().nullable(),
});
const noteJson = z.object({ version: z.literal(1), entries: z.array(entryJson) });

export type HeldEntry = z.output<typeof entryJson>;

const pathOf = (runDir: string): string => join(runDir, "holder-restart.json");

/** Null: no restart is under way. One that can't be understood is an error: guests may be paused. */
export async function readHolderNote(runDir: string): Promise<readonly HeldEntry[] | null> {
  const text = await readFile(pathOf(runDir), "utf8").catch((error: unknown) => {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null;
    throw error;
  });
  return text === null ? null : noteJson.parse(JSON.parse(text)).entries;
}

export async function writeHolderNote(runDir: string, entries: readonly HeldEntry[]): Promise<void> {
  await writeDurably(pathOf(runDir), `${JSON.stringify({ version: 1, entries })}\n`);
}

export async function removeHolderNote(runDir: string): Promise<void> {
  await rm(pathOf(runDir), { force: true });
}
