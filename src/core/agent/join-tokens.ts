/**
 * Join tokens: made by a member, used once by one host, gone after their time.
 *
 *     created ──a host is let in: one transaction──▶ used        (expired, revoked: as if never made)
 *
 * Must always hold:
 * - the secret leaves this process once, in the answer of who asked for it; the store has a hash, signed by an authority, so
 *   that a host that is no member can't write one of its own;
 * - a token that a host has used is no other host's: the key that says so is made once, with the host's own keys.
 */
import { randomBytes, timingSafeEqual } from "node:crypto";
import { z } from "zod";

import type { Decision } from "../model/finding.ts";
import { finding, ok, refused } from "../model/finding.ts";
import { JOIN_TOKEN_MS, JOIN_TOKENS_MAX } from "../model/limits.ts";
import { Secret } from "../model/secret.ts";
import { encodeJoinToken } from "../model/token-code.ts";
import { tokenSigners } from "../model/token-signers.ts";
import type { Trust } from "../model/trust.ts";
import type { TokenAnswer, TokenCreated } from "../wire/agent-api.ts";
import { WeftError } from "../wire/errors.ts";
import { hostName, instant, uuid } from "../wire/json-types.ts";
import { hashOfKey, isProven, type JoinClaim, type JoinProof, tokenHash } from "../wire/join-proof.ts";
import { openSigned } from "../wire/signed.ts";
import type { Entry, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { AuthorityKeeper } from "./authority.ts";
import { readValue } from "./store-value.ts";

const ID = /^[0-9a-f]{8}$/;
/** Records are kept so long after their end, for who asks why a token is refused. */
const KEPT_MS = 24 * 3600 * 1000;

const recordJson = z.object({
  id: z.string().regex(ID),
  hash: z.string().regex(/^[0-9a-f]{64}$/),
  createdAt: instant,
  expiresAt: instant,
  by: z.string().max(200),
  name: hostName.nullable(),
});
const usedJson = z.object({ host: uuid, kid: z.string().regex(/^[0-9a-f]{64}$/), at: instant });

type TokenRecord = z.output<typeof recordJson>;
type TokenUse = z.output<typeof usedJson>;
/** As it stands in the store: believed, and not yet judged. */
export type StoredToken = {
  readonly record: TokenRecord;
  readonly revision: bigint;
  readonly used: TokenUse | null;
};

type Maker = {
  readonly store: StoreClient;
  readonly authority: AuthorityKeeper;
  readonly trust: Trust;
};

export async function createToken(
  { store, authority, trust }: Maker,
  wanted: { readonly forMs: number | null; readonly name: string | null; readonly by: string },
): Promise<TokenCreated> {
  const now = Date.now();
  await forget(store, trust, now);
  const id4 = randomBytes(4);
  const id = id4.toString("hex");
  const secret = randomBytes(12);
  const record: TokenRecord = {
    id,
    hash: tokenHash(trust.cluster, id, secret),
    createdAt: iso(now),
    expiresAt: iso(now + (wanted.forMs ?? JOIN_TOKEN_MS)),
    by: wanted.by,
    name: wanted.name,
  };
  const outcome = await store.cas(
    keys.joinToken(id),
    0n,
    authority.sign(trust, "join-token", JSON.stringify(record)),
  );
  if (outcome.kind === "lost") throw new Error(`a token ${id} exists already`);
  const kid = trust.authorities.find(({ state }) => state === "active")?.kid ?? "";
  return {
    id,
    token: encodeJoinToken({
      fingerprint16: Buffer.from(kid.slice(0, 32), "hex"),
      id4,
      secret12: new Secret(secret),
    }),
    expiresAt: record.expiresAt,
    name: wanted.name,
    authority: kid,
  };
}

/** Those that an authority signed, the newest first. */
export async function listTokens(store: StoreClient, trust: Trust): Promise<readonly TokenAnswer[]> {
  const hosts = new Map(Array.from(trust.hosts, ([host, { name }]) => [String(host), name]));
  return (await allTokens(store, trust))
    .toSorted((a, b) => (a.record.createdAt < b.record.createdAt ? 1 : -1))
    .map(({ record, used }) => ({
      id: record.id,
      name: record.name,
      by: record.by,
      createdAt: record.createdAt,
      expiresAt: record.expiresAt,
      used: used === null ? null : { host: hosts.get(used.host) ?? used.host, at: used.at },
    }));
}

export async function revokeToken(store: StoreClient, id: string): Promise<void> {
  const entry = ID.test(id) ? await store.get(keys.joinToken(id)) : null;
  if (entry === null) {
    throw new WeftError({
      code: "E-ARG-01",
      message: `No join token "${id.slice(0, 100)}".`,
      do: [{ why: "See all", command: "weft token list" }],
    });
  }
  await store.delete(keys.joinToken(id));
  await store.delete(keys.joinTokenUsed(id));
}

/** Null: there is none of this name that an authority signed. */
export async function readToken(store: StoreClient, trust: Trust, id: string): Promise<StoredToken | null> {
  const [entry, used] = [await store.get(keys.joinToken(id)), await store.get(keys.joinTokenUsed(id))];
  return entry === null ? null : storedToken(trust, id, entry, used);
}

/** Whether this proof, by this host and key, is of the token's secret. One refusal for whatever is wrong: it tells nobody more. */
export function judgeToken(
  stored: StoredToken | null,
  proof: JoinProof,
  claim: JoinClaim,
  nowMs: number,
): Decision<StoredToken> {
  const hash = hashOfKey(claim.cluster, proof.id, proof.key);
  // Compared also where there is none, so that the time tells nothing.
  const isTokens = timingSafeEqual(
    Buffer.from(hash, "hex"),
    Buffer.from(stored?.record.hash ?? "0".repeat(64), "hex"),
  );
  if (stored === null || !isTokens || !isProven(proof, claim)) return refusedToken();
  const { record, used } = stored;
  // A host that was let in, and was cut off before it knew, is the same one with the same key.
  if (used !== null) return used.host === claim.host && used.kid === claim.kid ? ok(stored) : refusedToken();
  return nowMs < Date.parse(record.expiresAt) ? ok(stored) : refusedToken();
}

export function refusedToken(): { readonly kind: "refused"; readonly finding: ReturnType<typeof finding> } {
  return refused(
    finding("E-TOKEN-02", "This token is unknown here, used by another host, revoked, or past its time.", {
      safe: "Nothing was changed.",
      do: [{ why: "Make another one, on a host of the cluster", command: "weft token create" }],
    }),
  );
}

function storedToken(trust: Trust, id: string, entry: Entry, use: Entry | null): StoredToken | null {
  const opened = openSigned("join-token", entry.value, tokenSigners(trust));
  const record = opened.kind === "ok" ? readValue(recordJson, opened.value.body) : null;
  // A token that is signed is one of its own name only.
  if (record === null || record.id !== id) return null;
  const used = use === null ? null : (readValue(usedJson, use.value) ?? unreadableUse);
  return { record, revision: entry.modRevision, used };
}

/** A use that can't be read is a use all the same. */
const unreadableUse: TokenUse = {
  host: "00000000-0000-0000-0000-000000000000",
  kid: "0".repeat(64),
  at: iso(0),
};

async function allTokens(store: StoreClient, trust: Trust): Promise<readonly StoredToken[]> {
  const [records, uses] = [await store.list(keys.joinTokens), await store.list(keys.joinTokensUsed)];
  const useOf = new Map(uses.entries.map((entry) => [entry.key, entry]));
  return records.entries.flatMap((entry) => {
    const id = entry.key.slice(keys.joinTokens.length);
    return storedToken(trust, id, entry, useOf.get(keys.joinTokenUsed(id)) ?? null) ?? [];
  });
}

/** Long past their time: they go. E-LIMIT-01 where too many are left. */
async function forget(store: StoreClient, trust: Trust, nowMs: number): Promise<void> {
  const tokens = await allTokens(store, trust);
  const old = tokens.filter(({ record }) => Date.parse(record.expiresAt) + KEPT_MS < nowMs);
  for (const { record } of old) await revokeToken(store, record.id);
  const live = tokens.filter(({ record, used }) => used === null && Date.parse(record.expiresAt) > nowMs);
  if (live.length < JOIN_TOKENS_MAX) return;
  throw new WeftError({
    code: "E-LIMIT-01",
    message: `${live.length} join tokens wait for their hosts, the limit is ${JOIN_TOKENS_MAX}.`,
    facts: { tokens: live.length, limit: JOIN_TOKENS_MAX },
    safe: "Nothing was changed.",
    do: [{ why: "Take one back", command: "weft token revoke ID" }],
  });
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
