/**
 * The trust list in the store, kept as it must be: of hosts that are there, and never older than what hosts accepted.
 *
 * Must always hold:
 * - a list is put back only over an older one, or over what is none: never over one that this host would accept;
 * - a host leaves the list only when the store, in the same transaction, says that it is registered no more.
 */
import type { HostId } from "../model/ids.ts";
import { ok } from "../model/finding.ts";
import { withoutHost } from "../model/trust.ts";
import { openNextTrust } from "../wire/signed-trust.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { IdentityKeeper } from "./identity.ts";
import type { Mirror } from "./mirror.ts";
import { changeTrust } from "./trust-change.ts";
import type { TrustWriter } from "./trust-change.ts";

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

/** Hosts that were removed in order. */
export async function forgetRemoved(writer: TrustWriter, mirror: Mirror): Promise<readonly HostId[]> {
  const { store, identity, authority } = writer;
  if (!authority.holds(identity.trust()) || mirror.get(keys.cluster) === null) return [];
  const listed = Array.from(identity.trust().hosts.keys());
  const gone: HostId[] = [];
  for (const host of listed.filter((id) => mirror.get(keys.host(id)) === null)) {
    // The mirror may not have seen yet that it joined.
    if ((await store.get(keys.host(host))) !== null) continue;
    const compares = [{ key: keys.host(host), modRevision: 0n }];
    const change = await changeTrust(writer, (trust) => ok(withoutHost(trust, { host, nonce: "" })), {
      compares,
      ops: [],
    });
    if (change.kind === "changed") gone.push(host);
  }
  return gone;
}
