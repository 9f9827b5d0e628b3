/**
 * One setup of a pool at a time: two that begin on two hosts at once would make two clusters. XAPI's database is where all of
 * a pool's hosts agree, so the lock is a key of the pool's other_config, which XAPI adds only where it isn't there.
 *
 * Must always hold:
 * - who has not added the key does nothing;
 * - a lock whose holder died ends by its age, which is above what any setup takes.
 */
import { WeftError } from "../../core/wire/errors.ts";
import type { XenApi } from "../xen-api.ts";
import { addToPool, poolRef, readFromPool } from "./pool-records.ts";

const KEY = "weft-setup";
const STALE_MS = 3_600_000;

/** `by` is for people: a host's name. */
export async function alone<T>(xapi: XenApi, by: string, nowMs: number, work: () => Promise<T>): Promise<T> {
  const pool = await poolRef(xapi);
  await take(xapi, pool, `${new Date(nowMs).toISOString()} ${by}`, nowMs);
  try {
    return await work();
  } finally {
    await xapi.call("pool.remove_from_other_config", pool, KEY);
  }
}

async function take(xapi: XenApi, pool: string, value: string, nowMs: number): Promise<void> {
  if (await addToPool(xapi, pool, KEY, value)) return;
  const [at = "", by = "another host"] = (await readFromPool(xapi, pool, KEY))?.split(" ") ?? [];
  const ageMs = nowMs - Date.parse(at);
  // What can't be read has no age, and is nobody's.
  if (Number.isNaN(ageMs) || ageMs > STALE_MS || ageMs < -STALE_MS) {
    await xapi.call("pool.remove_from_other_config", pool, KEY);
    if (await addToPool(xapi, pool, KEY, value)) return;
  }
  throw new WeftError({
    code: "E-SETUP-16",
    message: `Another setup of this pool is under way, begun on ${by} at ${at}.`,
    facts: { by, at },
    safe: "Nothing was changed.",
    do: [
      { why: "When it is done", command: "weft init" },
      {
        why: "If that one was killed",
        command: `xe pool-param-remove uuid=POOL param-name=other-config param-key=${KEY}`,
      },
    ],
  });
}
