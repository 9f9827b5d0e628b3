/**
 * Members of the store are restarted one after the other: who holds the key `member-turn` may restart its own.
 *
 * Must always hold: a holder that dies loses its turn within seconds; one that loses its turn has restarted one member at
 * most, so the others' majority never depends on it.
 */
import { randomUUID } from "node:crypto";

import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";

/** A restart takes half a second with a member's notice of its end, one without. */
const TURN_SECONDS = 3;

/** Does `work` in this host's turn; false: another one has it. */
export async function inTurn(
  store: StoreClient,
  turn: { readonly host: string; readonly why: string },
  work: () => Promise<void>,
): Promise<boolean> {
  const lease = await store.grantLease(TURN_SECONDS);
  const value = JSON.stringify({ ...turn, nonce: randomUUID() });
  const isOurs = await take(store, value, lease);
  try {
    if (isOurs) await work();
  } finally {
    // The key goes with it, if it was ours.
    await store.revokeLease(lease);
  }
  return isOurs;
}

async function take(store: StoreClient, value: string, lease: bigint): Promise<boolean> {
  const key = keys.memberTurn;
  for (;;) {
    const outcome = await store.txn([{ key, modRevision: 0n }], [{ kind: "put", key, value, lease }]);
    if (outcome.kind === "succeeded") return true;
    const now = await store.get(key);
    if (now !== null) return now.value === value;
    if (outcome.kind === "compare-failed") return false;
  }
}
