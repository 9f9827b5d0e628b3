/**
 * Plot: a host was off while a member was revoked, and comes back. The members lead it to the list of now, also where the
 * store has lost the lists in between; a list that the revoked member signed in the meantime is believed by nobody.
 */
import { createPrivateKey, createPublicKey, randomUUID, X509Certificate } from "node:crypto";
import t from "tap";

import { catchUp, followHosts, renewOwn } from "../../../src/core/agent/ask-members.ts";
import type { AuthorityKeeper } from "../../../src/core/agent/authority.ts";
import { Door } from "../../../src/core/agent/door.ts";
import type { HostFile } from "../../../src/core/agent/host-file.ts";
import { IdentityKeeper } from "../../../src/core/agent/identity.ts";
import { listsFor } from "../../../src/core/agent/renew.ts";
import { revokeHost, type Trust } from "../../../src/core/model/trust.ts";
import { kidOf } from "../../../src/core/wire/certificate.ts";
import type { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { followTrust, newestTrust, openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import { sign } from "../../../src/core/wire/signed.ts";
import type { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import type { ClientTls } from "../../../src/core/wire/tls-context.ts";
import { renderTrust } from "../../../src/core/wire/trust.ts";
import {
  type AuthorityKeys,
  makeAuthority,
  makeHostCert,
  makeKey,
} from "../../../src/core/wire/x509-make.ts";
import { loopback } from "../wire/etcd-for-tests.ts";
import {
  emptyFiles,
  HeardAudit,
  makeCluster,
  newHostId,
  silent,
  type TestCluster,
} from "./identity-for-tests.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

const signed = (trust: Trust, { keyPem }: AuthorityKeys): string =>
  sign("trust", renderTrust(trust, null), createPrivateKey(keyPem.reveal()));

/** Members are at these addresses of loopback, the first of them is to be revoked; h3 is off. Each list is the text that was signed. */
async function world(t: Scope, addresses: readonly number[] = [180]) {
  const made = await makeCluster(t);
  const { cluster, authority } = made;
  const [old] = (await made.files.readAuthorities()).host;
  const h1 = made.identity.trust().hosts.get(made.host);
  if (old === undefined || h1 === undefined) throw new Error("an authority and a host");
  const nowMs = Date.now();
  const [next, store] = [
    await makeAuthority({ kind: "host", cluster, nowMs }),
    await makeAuthority({ kind: "store", cluster, nowMs }),
  ];
  const away = newHostId();
  const keyPem = makeKey();
  const publicKey = createPublicKey(keyPem.reveal());
  const entry = (name: string, address: string, kid: string, held: readonly string[]) =>
    ({ ...h1, name, address, keys: [{ kid, sinceMs: nowMs }], certs: [], held }) satisfies typeof h1;
  const members = await Promise.all(
    addresses.map(async (n) => {
      const [host, key] = [newHostId(), makeKey()];
      const owned = createPublicKey(key.reveal());
      const { pem } = await makeHostCert({ authority: old, cluster, host, publicKey: owned, nowMs });
      const named = entry(`m${n}`, loopback(n), kidOf(owned), [old.kid]);
      return { host, address: loopback(n), named, shown: { cert: pem + old.pem, key: key.reveal() } };
    }),
  );
  const thief = members[0]?.host ?? away;
  const before: Trust = {
    ...made.identity.trust(),
    generation: 2n,
    nonce: randomUUID(),
    hosts: new Map([
      ...members.map(({ host, named }) => [host, named] as const),
      [away, entry("h3", loopback(179), kidOf(publicKey), [])],
    ]),
  };
  const begun = signed(before, old);
  const known = openFirstTrust(begun);
  if (known.kind === "refused") throw new Error(known.finding.message);
  const named = ({ kid, pem }: AuthorityKeys) => ({ kid, pem, state: "active" as const, sinceMs: nowMs });
  const gone = revokeHost(before, {
    host: thief,
    by: "root",
    nowMs,
    replacement: { id: randomUUID(), authority: named(next), storeAuthority: named(store) },
    nonce: randomUUID(),
  });
  if (gone.kind === "refused") throw new Error(gone.finding.message);
  const link = signed(gone.value, old);
  const after = signed({ ...gone.value, generation: 4n, nonce: randomUUID() }, next);
  /** By who was revoked: it makes itself the only member. */
  const forged = (generation: bigint): string =>
    signed({ ...before, generation, nonce: randomUUID(), transport: "auth" }, old);
  const identityOf = async (files?: IdentityFiles): Promise<IdentityKeeper> => {
    files ??= await emptyFiles(t);
    const { pem } = await makeHostCert({ authority: old, cluster, host: away, publicKey, nowMs });
    await files.writeHostKey(keyPem);
    await files.writeHost({ certPem: pem, chainPem: old.pem, keyPem });
    await files.writeTrustFirst(begun);
    return IdentityKeeper.open({ files, cluster, host: away, log: silent });
  };
  /** Shown by the member at that address. */
  const tlsOf = (address: string): ClientTls => ({
    current: () => members.find((one) => one.address === address)?.shown ?? made.identity.current(),
    storeCa: () => "",
    peerTrust: () => before,
  });
  return {
    made,
    tlsOf,
    authority,
    old,
    next,
    publicKey,
    away,
    known: known.value,
    begun,
    link,
    after,
    forged,
    identityOf,
  };
}

void t.test("catching up: lists that lead to each other are one way, whoever is behind on it", async (t) => {
  const { known, begun, link, after, forged } = await world(t);
  const newest = (...said: readonly (readonly string[])[]): number | string | null => {
    const decision = newestTrust(known, said);
    return decision.kind === "ok" ? decision.value : decision.finding.code;
  };
  t.equal(followTrust(known, [link, after]).trust.generation, 4n);
  t.equal(followTrust(known, [after]), known, "without the list between them it is not reached");
  t.equal(newest([link, after]), 0);
  t.equal(newest([link], [link, after], [begun]), 1);
  t.equal(newest([link, after], [link, after]), 1);
  t.equal(newest([begun], ["{}"], []), null);
  for (const generation of [3n, 4n, 5n, 1000n]) {
    const fork = forged(generation);
    t.equal(newest([fork], [link, after]), "E-TRUST-06", `of generation ${generation}`);
    t.equal(newest([link], [begun], [fork]), "E-TRUST-06", "in any order");
    t.equal(newest([fork], [forged(generation)]), "E-TRUST-06", "two of one generation");
  }
});

/** A member's door that says this. */
async function member(
  t: Scope,
  made: TestCluster,
  address: string,
  says: () => Promise<readonly string[]>,
  by: AuthorityKeys,
  asks: Awaited<ReturnType<typeof world>>,
): Promise<void> {
  const texts = await says();
  const door = await Door.listen({
    address,
    tls: asks.tlsOf(address),
    isHostAddress: () => true,
    rest: null,
    audit: new HeardAudit(),
    log: silent,
    handlers: {
      "GET /v1/hello": async () => ({
        cluster: made.cluster,
        members: [],
        version: "1",
        generation: 1000n,
        now: new Date().toISOString(),
      }),
      "GET /v1/identity/lists": async () => ({ trust: texts.at(-1) ?? "", links: texts.slice(0, -1) }),
      "POST /v1/identity/renew": async () => {
        const { cluster } = made;
        const { away: host, publicKey } = asks;
        const { pem } = await makeHostCert({ authority: by, cluster, host, publicKey, nowMs: Date.now() });
        return { cert: pem, authority: by.pem, trust: texts.at(-1) ?? "", links: texts.slice(0, -1) };
      },
    },
  });
  t.teardown(() => door.close());
}

/** Of the host that is back; `members` have a vote in the store, as it knew them. */
function contextOf(identity: IdentityKeeper, members: readonly number[], kept: bigint[] = []) {
  const self = { name: "h3", address: loopback(179) } as HostFile;
  const endpoints = members.map((n) => `https://${loopback(n)}:7402`);
  const store = { call: { endpoints } } as unknown as StoreClient;
  const hear = () => followHosts({ self, identity, store }, "all", { roundMs: 1500, isRecent: true });
  return {
    self,
    identity,
    store,
    hear,
    follow: async (): Promise<void> => void (await hear()),
    keep: async (): Promise<void> => void kept.push(identity.trust().generation),
  };
}

void t.test(
  "catching up: what the revoked member says alone, or beside one other, is not believed",
  async (t) => {
    const all = await world(t, [181, 182, 183]);
    const { made, old, next, link, after, forged, identityOf } = all;
    const identity = await identityOf();
    const context = contextOf(identity, [181, 182, 183]);
    await member(t, made, loopback(181), async () => [forged(50n)], old, all);
    t.match(await context.hear(), { agreed: { kind: "too-few", backing: 1, needed: 2 } });
    t.equal(identity.trust().generation, 2n);
    await member(t, made, loopback(182), async () => [link, after], next, all);
    t.match(await context.hear(), { agreed: { kind: "forked", finding: { code: "E-TRUST-06" } } });
    t.equal(identity.trust().generation, 2n, "neither is believed");
    await member(t, made, loopback(183), async () => [link], old, all);
    t.equal(await catchUp(context), true, "but a majority is, beside it");
    t.equal(identity.trust().generation, 4n);
    t.equal(identity.issuerOf(identity.trust()), next.kid, "with a certificate of the new authority");
    await identity.stop();
  },
);

void t.test("catching up: a member's renewal brings no list that the others don't know", async (t) => {
  const all = await world(t, [191, 192]);
  const { made, next, link, after, identityOf } = all;
  const identity = await identityOf();
  await member(t, made, loopback(191), async () => [link, after], next, all);
  const context = { ...contextOf(identity, [191, 192]), isAway: () => false };
  const renewal = renewOwn({ ...context, authority: { holds: () => false } as unknown as AuthorityKeeper });
  await t.rejects(renewal, { code: "E-TRUST-01" });
  t.equal(identity.trust().generation, 2n);
  await identity.stop();
});

void t.test(
  "catching up: a list is kept although nobody gives the certificate yet, which is asked for again",
  async (t) => {
    const all = await world(t, [184, 186, 187]);
    const { made, old, next, link, after, identityOf } = all;
    const kept: bigint[] = [];
    const identity = await identityOf();
    await member(t, made, loopback(186), async () => [link, after], old, all);
    await member(t, made, loopback(187), async () => [link, after], next, all);
    const asking = (n: number) => contextOf(identity, [n], kept);
    await t.rejects(catchUp(asking(186)), { code: "E-TRUST-01" }, "that one has not got the new key");
    await t.rejects(catchUp(asking(186)), { code: "E-TRUST-01" });
    t.equal(await catchUp(asking(187)), true);
    t.equal(identity.issuerOf(identity.trust()), next.kid);
    t.ok(kept.length > 0 && kept.every((generation) => generation === 4n));
    await identity.stop();
  },
);

void t.test("catching up: nothing is asked for where the list and the certificate are of now", async (t) => {
  const all = await world(t, [189]);
  const { made, old, begun, identityOf } = all;
  const identity = await identityOf();
  const kept: bigint[] = [];
  await member(t, made, loopback(189), async () => [begun], old, all);
  const { certPem } = identity.certificate;
  t.equal(await catchUp(contextOf(identity, [189], kept)), false);
  t.same(kept, [], "nothing to keep");
  t.equal(identity.certificate.certPem, certPem, "no certificate was made");
  await identity.stop();
});

void t.test(
  "catching up: a member gives the lists in between also where the store has lost them",
  async (t) => {
    const { link, after, identityOf, away } = await world(t);
    const files = await emptyFiles(t);
    const follower = await identityOf(files);
    const { cluster } = follower.trust();
    follower.offerAll([link, after]);
    await follower.stop();
    // As it is after a restart of the agent: weftd has written the list meanwhile.
    await files.writeTrustFirst(after);
    const again = await IdentityKeeper.open({ files, cluster, host: away, log: silent });
    t.same(again.links, [link]);
    const junk = Array.from({ length: 40 }, (_, i) => ({
      key: `${keys.trustLinks}${i}`,
      value: JSON.stringify({ body: JSON.stringify({ generation: String(10 ** 9 + i) }), by: "", sig: "" }),
      modRevision: BigInt(1000 + i),
    }));
    const context = {
      store: { list: () => Promise.resolve({ entries: junk, revision: 1n }) } as unknown as StoreClient,
      identity: again,
    };
    await t.rejects(listsFor(context, null), { code: "E-AUTH-01" });
    const answer = await listsFor(context, new X509Certificate(again.certificate.certPem));
    t.ok(answer.links.includes(link), "what others wrote into the store does not push it out");
    t.ok(answer.links.length <= 16);
    const behind = await identityOf();
    behind.offerAll([...answer.links, answer.trust]);
    t.equal(behind.text, again.text);
    await behind.stop();
  },
);
