/**
 * A change of the trust list in the store: read, decided, signed, swapped in.
 *
 * Must always hold:
 * - what is changed is a list that this host accepted: a list that somebody without an authority's key wrote into the
 *   store is never signed by us;
 * - where another authority takes over, the list that says so can be found by the one before it;
 * - one swap of the key `trust`, with whatever belongs to the change in the same transaction;
 * - an unknown outcome is settled by reading: the list that is there tells by its very text.
 */
import { randomUUID } from "node:crypto";

import type { Decision } from "../model/finding.ts";
import { TRUST_BYTES } from "../model/limits.ts";
import { signerOf, withoutEnded } from "../model/trust.ts";
import type { SignedTrust, Trust } from "../model/trust.ts";
import { decided, WeftError } from "../wire/errors.ts";
import { openNextTrust } from "../wire/signed-trust.ts";
import type { Compare, Op, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { renderTrust } from "../wire/trust.ts";
import type { AuthorityKeeper } from "./authority.ts";
import type { IdentityKeeper } from "./identity.ts";

/** What a signed text has besides its body, at most. */
const SIGNATURE_BYTES = 256;

export type TrustWriter = {
  readonly store: StoreClient;
  readonly authority: AuthorityKeeper;
  readonly identity: IdentityKeeper;
};

/** What goes with the list: all of it in the same transaction, or nothing. */
export type TrustExtra = { readonly compares: readonly Compare[]; readonly ops: readonly Op[] };

export type TrustChange =
  /** `text` is what stands in the store: the list with its signature. */
  | { readonly kind: "changed"; readonly signed: SignedTrust; readonly text: string }
  /** One of `extra.compares` doesn't hold; nothing was changed. */
  | { readonly kind: "compare-failed" };

/**
 * `change` may be called several times: a race that was lost begins anew, and so does a write that another one followed
 * before its outcome was known. It gives back the list it was given where nothing is to be changed; then only `extra`
 * is done. `generation` and `nonce` are set here. Throws what `change` refuses, E-CA-01, E-LIMIT-01, E-TRUST-01..03, E-STORE-01.
 */
export async function changeTrust(
  { store, authority, identity }: TrustWriter,
  change: (trust: Trust) => Decision<Trust>,
  extra: TrustExtra = { compares: [], ops: [] },
): Promise<TrustChange> {
  for (;;) {
    // Before the read: what the store shows then is no older, unless it went back.
    const { known } = identity;
    const entry = await store.get(keys.trust);
    if (entry === null) throw noTrustYet();
    const before = decided(openNextTrust(known, entry.value));
    const wanted = decided(change(before.trust));
    const isSame = wanted === before.trust;
    const shrunk = withoutEnded(wanted, Date.now());
    const after: Trust = { ...shrunk, generation: before.trust.generation + 1n, nonce: randomUUID() };
    const body = isSame ? "" : renderTrust(after, before.body);
    if (!isSame)
      refuseTooLong(before.trust, after, Buffer.byteLength(JSON.stringify(body)) + SIGNATURE_BYTES);
    const text = isSame ? entry.value : authority.sign(before.trust, "trust", body);
    const compares = [{ key: keys.trust, modRevision: entry.modRevision }, ...extra.compares] as const;
    const put: readonly Op[] = isSame ? [] : [{ kind: "put", key: keys.trust, value: text }];
    const link = linkOf(before.trust, after, text);
    const won =
      isSame && extra.ops.length === 0
        ? true
        : await swap(store, compares, [...put, ...link, ...extra.ops], text);
    if (won === true) {
      const signed = isSame ? before : decided(openNextTrust(before, text));
      if (signed.trust.generation > identity.trust().generation) identity.offer(text);
      return { kind: "changed", signed, text };
    }
    if (won === entry.modRevision) return { kind: "compare-failed" };
  }
}

/**
 * The last list that an authority signed stays for hosts that were away: the next ones are signed by one that they have
 * never heard of.
 */
function linkOf(before: Trust, after: Trust, text: string): readonly Op[] {
  const [from, to] = [signerOf(before), signerOf(after)];
  return from === to ? [] : [{ kind: "put", key: keys.trustLink(from), value: text }];
}

/** True: done. Else the revision at which the list is now. */
async function swap(
  store: StoreClient,
  compares: readonly [Compare, ...(readonly Compare[])],
  ops: readonly Op[],
  text: string,
): Promise<true | bigint> {
  for (;;) {
    const outcome = await store.txn(compares, ops);
    if (outcome.kind === "succeeded") return true;
    const now = await store.get(keys.trust);
    const [{ modRevision }] = compares;
    if (now !== null && now.modRevision > modRevision && now.value === text) return true;
    // In doubt, and nothing has happened: the same transaction again, which at most one of them can win.
    if (outcome.kind === "unknown" && now?.modRevision === modRevision) continue;
    return now?.modRevision ?? 0n;
  }
}

/** Before the store would refuse it, or a host could not read it. */
function refuseTooLong(before: Trust, after: Trust, bytes: number): void {
  const [joins, takesOver] = [after.hosts.size > before.hosts.size, signerOf(after) !== signerOf(before)];
  const limit = takesOver ? TRUST_BYTES.takeOver : joins ? TRUST_BYTES.join : TRUST_BYTES.most;
  if (bytes <= limit) return;
  throw new WeftError({
    code: "E-LIMIT-01",
    message: `The list of trusted hosts would have ${bytes} bytes, the limit is ${limit}: it has ${after.hosts.size} hosts and ${after.revoked.size} that were revoked.`,
    facts: { bytes, limit, hosts: after.hosts.size, revoked: after.revoked.size },
    safe: "Nothing was changed.",
    do: [{ why: "Take hosts away that are not needed any more", command: "weft host list" }],
  });
}

function noTrustYet(): WeftError {
  return new WeftError({
    code: "E-TRUST-05",
    message: "The store has no list of who belongs to the cluster.",
    safe: "Nothing was changed. Every host goes on by the list that it has.",
    do: [
      { why: "Write the newest list that any host has back into the store", command: "weft store repair" },
    ],
  });
}
