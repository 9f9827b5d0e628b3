/**
 * API tokens: what people and programs on other machines prove themselves with.
 *
 *     created ──use, use, …──▶ past its time, or revoked: as if never made
 *
 * Must always hold:
 * - the secret leaves this process once, in the answer of who asked for it; the store has a hash, signed by an authority, so
 *   that a host that is no member can't write one of its own, or a better role into another's;
 * - outwardly a token that is unknown, past its time, or not of this secret is refused alike.
 */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { z } from "zod";

import { API_TOKEN_ID, type ApiTokenText, renderApiToken } from "../model/api-token-text.ts";
import { API_TOKENS_MAX } from "../model/limits.ts";
import { roles, type TokenPrincipal } from "../model/roles.ts";
import { Secret } from "../model/secret.ts";
import { tokenSigners } from "../model/token-signers.ts";
import type { Authority, Trust } from "../model/trust.ts";
import type { ApiTokenAnswer, ApiTokenCreated, ApiTokenCreateRequest } from "../wire/agent-api.ts";
import { reasonOf, WeftError } from "../wire/errors.ts";
import { instant, uuid } from "../wire/json-types.ts";
import { openSigned } from "../wire/signed.ts";
import type { Entry, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { AuthorityKeeper } from "./authority.ts";
import type { IdentityKeeper } from "./identity.ts";
import type { Log } from "./log.ts";
import type { Mirror } from "./mirror.ts";
import { readValue } from "./store-value.ts";

/** A use is written so often at most. */
const USE_NOTED_MS = 60_000;
/** Records are kept so long after their end, for who asks why a token is refused. */
const KEPT_MS = 24 * 3600 * 1000;

const recordJson = z.object({
  id: z.string().regex(API_TOKEN_ID),
  name: z.string().min(1).max(63),
  hash: z.string().regex(/^[0-9a-f]{64}$/),
  role: z.enum(roles),
  volumes: z.array(uuid).max(64).nullable(),
  createdAt: instant,
  expiresAt: instant,
  by: z.string().max(200),
});
const useJson = z.object({ at: instant, from: z.string().max(64), host: uuid });
type TokenRecord = z.output<typeof recordJson>;

export type ApiTokenContext = {
  readonly store: StoreClient;
  readonly mirror: Mirror;
  readonly authority: AuthorityKeeper;
  readonly identity: IdentityKeeper;
  readonly host: string;
  readonly log: Log;
};

export async function createApiToken(
  { store, authority, identity }: ApiTokenContext,
  {
    name,
    role,
    volumes,
    forMs,
  }: Omit<ApiTokenCreateRequest, "volumes"> & {
    readonly volumes: readonly string[] | null;
  },
  { by, address }: { readonly by: string; readonly address: string },
): Promise<ApiTokenCreated> {
  const now = Date.now();
  const trust = identity.trust();
  await makeRoom(store, trust, now);
  const id = randomBytes(4).toString("hex");
  const secret = new Secret(randomBytes(32).toString("base64url"));
  const record: TokenRecord = {
    id,
    name,
    hash: secretHash(trust.cluster, id, secret),
    role,
    volumes: volumes === null ? null : [...volumes],
    createdAt: iso(now),
    expiresAt: iso(now + forMs),
    by,
  };
  const signed = authority.sign(trust, "api-token", JSON.stringify(record));
  const outcome = await store.cas(keys.apiToken(id), 0n, signed);
  if (outcome.kind === "lost") throw new Error(`an API token ${id} exists already`);
  const authorityKid = trust.authorities.find(({ state }) => state === "active")?.kid ?? "";
  const token = renderApiToken({ id, secret });
  return { id, name, role, token, expiresAt: record.expiresAt, address, authority: authorityKid };
}

/** Those that an authority signed, the newest first. */
export async function listApiTokens(store: StoreClient, trust: Trust): Promise<readonly ApiTokenAnswer[]> {
  const [records, uses] = [await recordsOf(store, trust), await store.list(keys.apiTokensUsed)];
  const useOf = new Map(uses.entries.map(({ key, value }) => [key, readValue(useJson, value)]));
  return records
    .toSorted((a, b) => (a.createdAt < b.createdAt ? 1 : -1))
    .map(({ id, name, role, volumes, by, createdAt, expiresAt }) => {
      const use = useOf.get(keys.apiTokenUsed(id)) ?? null;
      return { id, name, role, volumes, by, createdAt, expiresAt, used: use };
    });
}

/** By its id, or by its name where only one has it. */
export async function revokeApiToken(store: StoreClient, trust: Trust, ref: string): Promise<void> {
  const records = await recordsOf(store, trust);
  const found = records.filter(({ id, name }) => id === ref || name === ref);
  const [token] = found;
  if (token === undefined || found.length > 1) {
    const shown = ref.slice(0, 100);
    throw new WeftError({
      code: "E-ARG-01",
      message:
        token === undefined
          ? `No API token "${shown}".`
          : `${found.length} API tokens are named "${shown}": say which one by its id.`,
      safe: "Nothing was changed.",
      do: [{ why: "See all", command: "weft api-token list" }],
    });
  }
  await store.delete(keys.apiToken(token.id));
  await store.delete(keys.apiTokenUsed(token.id));
}

/**
 * Judges what callers show, by the store as this host last saw it: also while the store is away. One that it has not seen is
 * looked for there, so that a token can be used anywhere as soon as it is shown.
 */
export class ApiTokens {
  readonly #context: ApiTokenContext;
  /** Records whose signature was verified, for as long as entry and list are the same. */
  readonly #verified = new Map<string, { readonly at: string; readonly record: TokenRecord }>();
  readonly #noted = new Map<string, number>();
  /** Of the planned change that is under way, or was a moment ago. */
  #former: readonly Authority[] = [];

  constructor(context: ApiTokenContext) {
    this.#context = context;
  }

  /** Null: no token of ours, or not any more. */
  async judge({ id, secret }: ApiTokenText, from: string, nowMs: number): Promise<TokenPrincipal | null> {
    const { mirror, store, identity } = this.#context;
    const trust = identity.trust();
    const key = keys.apiToken(id);
    const entry = mirror.get(key) ?? (await store.get(key).catch(() => null));
    const record = entry === null ? null : this.#record(id, entry, trust);
    // Compared also where there is none, so that the time tells nothing.
    const isIts = timingSafeEqual(
      Buffer.from(secretHash(trust.cluster, id, secret), "hex"),
      Buffer.from(record?.hash ?? "0".repeat(64), "hex"),
    );
    if (record === null || !isIts || nowMs >= Date.parse(record.expiresAt)) return null;
    this.#note(id, from, nowMs);
    const { name, role, volumes } = record;
    return { kind: "token", id, name, role, volumes };
  }

  /**
   * In a planned change of the authority its tokens are signed anew by the next one, where this host has its key: also
   * those that were not reached before the old one was dropped.
   */
  async signAnew(): Promise<void> {
    const { store, authority, identity } = this.#context;
    const trust = identity.trust();
    if (trust.rotation?.why === "asked") this.#former = trust.authorities;
    if (trust.rotation?.why === "revoked") this.#former = [];
    const former = this.#former;
    if (former.length === 0 || !authority.holds(trust)) return;
    const active = trust.authorities.find(({ state }) => state === "active")?.kid;
    for (const entry of (await store.list(keys.apiTokens)).entries) {
      const opened = openSigned("api-token", entry.value, [...tokenSigners(trust), ...former]);
      if (opened.kind !== "ok" || opened.value.by === active) continue;
      // Another member that was faster has done the same.
      await store.cas(entry.key, entry.modRevision, authority.sign(trust, "api-token", opened.value.body));
    }
    if (trust.rotation === null) this.#former = [];
  }

  #record(id: string, entry: Entry, trust: Trust): TokenRecord | null {
    const at = `${entry.modRevision} ${trust.generation}`;
    const known = this.#verified.get(id);
    if (known?.at === at) return known.record;
    const record = storedRecord(id, entry, trust);
    if (this.#verified.size >= API_TOKENS_MAX) this.#verified.clear();
    if (record === null) this.#verified.delete(id);
    else this.#verified.set(id, { at, record });
    return record;
  }

  #note(id: string, from: string, nowMs: number): void {
    const { store, host, log } = this.#context;
    if (nowMs - (this.#noted.get(id) ?? Number.NEGATIVE_INFINITY) < USE_NOTED_MS) return;
    this.#noted.set(id, nowMs);
    if (this.#noted.size > API_TOKENS_MAX) this.#noted.clear();
    const use = JSON.stringify({ at: iso(nowMs), from: from.slice(0, 64), host });
    store.put(keys.apiTokenUsed(id), use).catch((error: unknown) => {
      log.debug({ reason: reasonOf(error) }, "the use of an API token was not noted");
    });
  }
}

function storedRecord(id: string, entry: Entry, trust: Trust): TokenRecord | null {
  const opened = openSigned("api-token", entry.value, tokenSigners(trust));
  const record = opened.kind === "ok" ? readValue(recordJson, opened.value.body) : null;
  // A token that is signed is one of its own name only.
  return record?.id === id ? record : null;
}

async function recordsOf(store: StoreClient, trust: Trust): Promise<readonly TokenRecord[]> {
  const { entries } = await store.list(keys.apiTokens);
  return entries.flatMap((entry) => storedRecord(entry.key.slice(keys.apiTokens.length), entry, trust) ?? []);
}

/** Long past their time: they go. E-LIMIT-01 where too many are left. */
async function makeRoom(store: StoreClient, trust: Trust, nowMs: number): Promise<void> {
  const records = await recordsOf(store, trust);
  for (const { id, expiresAt } of records) {
    if (Date.parse(expiresAt) + KEPT_MS >= nowMs) continue;
    await store.delete(keys.apiToken(id));
    await store.delete(keys.apiTokenUsed(id));
  }
  const live = records.filter(({ expiresAt }) => Date.parse(expiresAt) > nowMs).length;
  if (live < API_TOKENS_MAX) return;
  throw new WeftError({
    code: "E-LIMIT-01",
    message: `There are ${live} API tokens, the limit is ${API_TOKENS_MAX}.`,
    facts: { tokens: live, limit: API_TOKENS_MAX },
    safe: "Nothing was changed.",
    do: [{ why: "Take one back", command: "weft api-token revoke ID" }],
  });
}

function secretHash(cluster: string, id: string, secret: Secret<string>): string {
  return createHash("sha256").update(`weft api v1\0${cluster}${id}${secret.reveal()}`).digest("hex");
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
