/**
 * The trust list in the store is never older than what hosts accepted.
 *
 * Must always hold: a list is put back only over an older one, or over what is none: never over one that this host would
 * accept.
 */
import { openNextTrust } from "../wire/signed-trust.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { IdentityKeeper } from "./identity.ts";

/** After the store went back in time: every host does it, so that the newest list of all is there in the end. */
export async function putTrustBack(store: StoreClient, identity: IdentityKeeper): Promise<boolean> {
  for (;;) {
    const { known, text } = identity;
    const entry = await store.get(keys.trust);
    if (entry !== null && openNextTrust(known, entry.value).kind === "ok") return false;
    const outcome = await store.cas(keys.trust, entry?.modRevision ?? 0n, text);
    if (outcome.kind === "won") return true;
  }
}
