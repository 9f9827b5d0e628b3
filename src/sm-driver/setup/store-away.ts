/**
 * That the store of weft has no majority, told to XAPI once: what weft's hosts can't write in their store stands in XAPI's
 * database, where all of a pool's hosts agree as well. A key of the pool's other_config says who told it.
 *
 *     no key ──add──▶ "telling" ──message made──▶ "told" ──the store is back──▶ no key
 *
 * Must always hold:
 * - who has not added the key tells nothing; one whose owner ended before it told is taken over after a minute;
 * - who ends between message and note has it told twice rather than never.
 */
import type { Message } from "../../core/model/alerts.ts";
import type { XenApi } from "../xen-api.ts";
import { createMessages } from "./messages.ts";
import { addToPool, poolRef, readFromPool, readPool } from "./pool-records.ts";
import { thisHost } from "./session.ts";

const KEY = "weft-store-away";
/** XAPI's own call for a message takes far less. */
const TELLING_MS = 60_000;

type Note = { readonly isTold: boolean; readonly atMs: number; readonly host: string };

/** False: another host is telling it. */
export async function tellAway(xapi: XenApi, message: Message, nowMs: number): Promise<boolean> {
  const pool = await poolRef(xapi);
  const host = await xapi.text("host.get_uuid", await thisHost(xapi));
  const note = (word: "telling" | "told"): string => `${word} ${new Date(nowMs).toISOString()} ${host}`;
  if (!(await addToPool(xapi, pool, KEY, note("telling")))) {
    const held = noteOf(await readFromPool(xapi, pool, KEY));
    if (held?.isTold === true) return true;
    if (held !== null && Math.abs(nowMs - held.atMs) < TELLING_MS) return false;
    await xapi.call("pool.remove_from_other_config", pool, KEY);
    if (!(await addToPool(xapi, pool, KEY, note("telling")))) return false;
  }
  try {
    await createMessages(xapi, [message]);
  } catch (error) {
    await xapi.call("pool.remove_from_other_config", pool, KEY);
    throw error;
  }
  await xapi.call("pool.remove_from_other_config", pool, KEY);
  await addToPool(xapi, pool, KEY, note("told"));
  return true;
}

/** Who told it; null: nobody did. */
export async function whoToldAway(
  xapi: XenApi,
): Promise<{ readonly host: string; readonly isUp: boolean } | null> {
  const note = noteOf(await readFromPool(xapi, await poolRef(xapi), KEY));
  if (note?.isTold !== true) return null;
  const { hosts } = await readPool(xapi);
  return { host: note.host, isUp: hosts.some(({ uuid, isUp }) => uuid === note.host && isUp) };
}

export async function tellBack(xapi: XenApi, message: Message): Promise<void> {
  await createMessages(xapi, [message]);
  await xapi.call("pool.remove_from_other_config", await poolRef(xapi), KEY);
}

/** Null: it isn't there, or nobody wrote it that we know. */
function noteOf(text: string | null): Note | null {
  const [word, at = "", host = ""] = text?.split(" ") ?? [];
  const atMs = Date.parse(at);
  if ((word !== "telling" && word !== "told") || Number.isNaN(atMs)) return null;
  return { isTold: word === "told", atMs, host };
}
