/**
 * A host gets its place: keys in the store and in the trust list, and a certificate.
 *
 * Must always hold:
 * - what lets it in (the token's use, where there is one), its own keys and its place in the trust list are one transaction: a
 *   host is in the cluster with all of them or not at all;
 * - who is listed already is nobody else: a host in the list is the newcomer only if its key is the newcomer's;
 * - the same host with the same key may ask again, after a crash of either end, and is let in as the same one.
 */
import type { KeyObject } from "node:crypto";

import type { Decision } from "../model/finding.ts";
import type { HostId } from "../model/ids.ts";
import { mayIssue, type Trust, withCert, withKey } from "../model/trust.ts";
import { WeftError } from "../wire/errors.ts";
import { parseHost } from "../wire/record.ts";
import type { Compare, Entry, Op, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { AuthorityKeeper } from "./authority.ts";
import { registration, takenBy } from "./entering.ts";
import type { IdentityKeeper } from "./identity.ts";
import { readToken, refusedToken, type StoredToken } from "./join-tokens.ts";
import { changeTrust } from "./trust-change.ts";

export type Newcomer = {
  readonly host: HostId;
  readonly name: string;
  readonly address: string;
  readonly kid: string;
};

export type LetInContext = {
  readonly store: StoreClient;
  readonly authority: AuthorityKeeper;
  readonly identity: IdentityKeeper;
};

/** The host's own keys in the transaction. `isAgain`: they are there, and say the same. */
type Places = {
  readonly isAgain: boolean;
  readonly compares: readonly Compare[];
  readonly ops: readonly Op[];
};

/** `token` null: whoever asks for it has vouched for the host in another way. */
export async function letIn(
  { store, authority, identity }: LetInContext,
  newcomer: Newcomer,
  publicKey: KeyObject,
  token: StoredToken | null,
): Promise<{ readonly cert: string; readonly trust: string }> {
  const { host, name, address, kid } = newcomer;
  for (;;) {
    const before = await placesOf(store, newcomer);
    const issued = await authority.issueHost(identity.trust(), { host, publicKey });
    const cert = { serial: issued.serial, by: issued.by, notAfterMs: issued.notAfterMs };
    const nowMs = Date.now();
    const listed = (trust: Trust): Decision<Trust> => {
      const taken = takenIn(trust, newcomer, before.isAgain);
      if (taken !== null) throw takenBy(name, address, taken === "name");
      // A token lets its own host in again only while that is in: one that was taken out has used it up.
      if (token !== null && token.used !== null && !isListed(trust, newcomer)) return refusedToken();
      const allowed = mayIssue(trust, { host, pending: 0, nowMs });
      if (allowed.kind === "refused") return allowed;
      const keyed = withKey(trust, { host, name, address, kid, nowMs, nonce: "" });
      return keyed.kind === "ok" ? withCert(keyed.value, { host, cert, nowMs, nonce: "" }) : keyed;
    };
    const use = token === null ? { compares: [], ops: [] } : useOf(token, newcomer, nowMs);
    const change = await changeTrust({ store, authority, identity }, listed, {
      compares: [...before.compares, ...use.compares],
      ops: [...before.ops, ...use.ops],
    });
    if (change.kind === "changed") return { cert: issued.pem, trust: change.text };
    // Somebody was faster, or we were, in a transaction whose outcome was in doubt: what is there now tells.
    if (token === null) continue;
    const now = await readToken(store, identity.trust(), token.record.id);
    const isOurs = now !== null && now.used?.host === host && now.used.kid === kid;
    if (now === null || (now.used !== null && !isOurs)) throw WeftError.fromFinding(refusedToken().finding);
    token = now;
  }
}

/** What the transaction needs of the host's own keys; E-HOST-03 when they are another host's. */
async function placesOf(store: StoreClient, { host, name, address }: Newcomer): Promise<Places> {
  const own = [keys.host(host), keys.hostName(name), keys.hostAddress(address)] as const;
  const [itself, named, addressed] = await Promise.all(own.map((key) => store.get(key)));
  const isOwn = (entry: Entry | null | undefined): boolean => entry?.value === JSON.stringify({ host });
  if (named && !isOwn(named)) throw takenBy(name, address, true);
  if (addressed && !isOwn(addressed)) throw takenBy(name, address, false);
  // It was let in before, as this very host, and did not hear of it.
  if (itself) {
    const known = parseHost(itself.key, itself.value);
    if (!named || !addressed || known.name !== name || known.address !== address)
      throw takenBy(name, address, known.name !== name);
    return { isAgain: true, compares: [{ key: itself.key, modRevision: itself.modRevision }], ops: [] };
  }
  return { isAgain: false, ...registration({ host, name, address, joinedAt: new Date().toISOString() }) };
}

/**
 * Who is let in may become a host, and none that is there already: a host in the list is this one only if its key is
 * this one's. Names and addresses count too, whatever somebody took out of the store. Null: all of it is free, or its own.
 */
function takenIn(trust: Trust, newcomer: Newcomer, isAgain: boolean): "name" | "address" | null {
  const { host, name, address } = newcomer;
  const known = trust.hosts.get(host);
  if (known !== undefined || isAgain) {
    const isSame = known !== undefined && isAgain && isListed(trust, newcomer);
    if (!isSame || known.name !== name) return "name";
    return known.address === address ? null : "address";
  }
  const others = Array.from(trust.hosts.values());
  if (others.some((other) => other.name === name)) return "name";
  return others.some((other) => other.address === address) ? "address" : null;
}

function isListed(trust: Trust, { host, kid }: Newcomer): boolean {
  return trust.hosts.get(host)?.keys.some((key) => key.kid === kid) ?? false;
}

function useOf(
  { record, revision, used }: StoredToken,
  { host, kid }: Newcomer,
  nowMs: number,
): { readonly compares: readonly Compare[]; readonly ops: readonly Op[] } {
  if (used !== null) return { compares: [], ops: [] };
  const key = keys.joinTokenUsed(record.id);
  return {
    // Neither revoked nor used meanwhile.
    compares: [
      { key: keys.joinToken(record.id), modRevision: revision },
      { key, modRevision: 0n },
    ],
    ops: [{ kind: "put", key, value: JSON.stringify({ host, kid, at: new Date(nowMs).toISOString() }) }],
  };
}
