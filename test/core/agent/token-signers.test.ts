/**
 * Plot: a host that held the authority's key was revoked. It may have signed tokens for its friends, and they lie in the
 * store; so do those that were made in earnest before.
 */
import { createPrivateKey } from "node:crypto";

import t from "tap";

import { listApiTokens } from "../../../src/core/agent/api-tokens.ts";
import { listTokens } from "../../../src/core/agent/join-tokens.ts";
import type { Trust } from "../../../src/core/model/trust.ts";
import { sign, type SignedKind } from "../../../src/core/wire/signed.ts";
import type { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { makeAuthority } from "../../../src/core/wire/x509-make.ts";

const at = "2026-11-21T12:00:00.000Z";
const cluster = "c0000000-0000-4000-8000-000000000000";

void t.test(
  "tokens: what the old authority signed counts in a planned change, and not after a revocation",
  async (t) => {
    const nowMs = Date.parse(at);
    const [old, next] = [
      await makeAuthority({ kind: "host", cluster, nowMs }),
      await makeAuthority({ kind: "host", cluster, nowMs }),
    ];
    const record = (id: string) => ({
      id,
      hash: "0".repeat(64),
      createdAt: at,
      expiresAt: at,
      by: "root@h1",
    });
    const signed = (kind: SignedKind, by: typeof old, body: object): string =>
      sign(kind, JSON.stringify(body), createPrivateKey(by.keyPem.reveal()));
    const values = new Map(
      [old, next].flatMap((by, n) => {
        const id = `0000000${n}`;
        const api = { ...record(id), name: `api${n}`, role: "admin", volumes: null };
        return [
          [keys.apiToken(id), signed("api-token", by, api)],
          [keys.joinToken(id), signed("join-token", by, { ...record(id), name: null })],
        ] as const;
      }),
    );
    const store = {
      list: async (prefix: string) => ({
        entries: Array.from(values, ([key, value]) => ({ key, value, modRevision: 1n })).filter(({ key }) =>
          key.startsWith(prefix),
        ),
      }),
    } as unknown as StoreClient;
    const authority = ({ kid, pem }: typeof old, state: string) => ({ kid, pem, state, sinceMs: nowMs });
    const trust = (why: string): Trust =>
      ({
        cluster,
        authorities: [authority(old, "outgoing"), authority(next, "active")],
        hosts: new Map(),
        rotation: { why },
      }) as never;
    const counted = async (why: string) => [
      (await listApiTokens(store, trust(why))).map(({ id }) => id).toSorted(),
      (await listTokens(store, trust(why))).map(({ id }) => id).toSorted(),
    ];
    const both = ["00000000", "00000001"];
    t.same(await counted("asked"), [both, both]);
    t.same(await counted("revoked"), [["00000001"], ["00000001"]]);
  },
);
