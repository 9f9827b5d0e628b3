/** What members give to hosts that have proven a key: new certificates, and to members the authorities' keys. */
import { createPrivateKey, createPublicKey, X509Certificate } from "node:crypto";
import t from "tap";

import { AuthorityKeeper } from "../../../src/core/agent/authority.ts";
import { peerUrl } from "../../../src/core/agent/etcd-process.ts";
import { memberCredentials, receivedAuthorities } from "../../../src/core/agent/members.ts";
import { listsFor, listIssued, renewIdentity } from "../../../src/core/agent/renew.ts";
import { changeTrust } from "../../../src/core/agent/trust-change.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { HOST_CERTS_MAX } from "../../../src/core/model/limits.ts";
import { crlSerials, revokeHost, withKey, withMember } from "../../../src/core/model/trust.ts";
import { judgeCertificate, kidOf } from "../../../src/core/wire/certificate.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { StoreMembers } from "../../../src/core/wire/store-members.ts";
import { makeHostCert, makeKey } from "../../../src/core/wire/x509-make.ts";
import { loopback, startStore } from "../wire/etcd-for-tests.ts";
import { emptyFiles, makeCluster, newHostId } from "./identity-for-tests.ts";
import type { TestCluster } from "./identity-for-tests.ts";

const DAY_MS = 24 * 3600 * 1000;

type Guest = {
  readonly host: HostId;
  /** Ended ten days ago. */
  readonly certificate: X509Certificate;
  readonly listing: {
    readonly host: HostId;
    readonly name: string;
    readonly address: string;
    readonly kid: string;
    readonly nowMs: number;
    readonly nonce: string;
  };
};

async function guestOf({ authority, identity, cluster }: TestCluster, name: string): Promise<Guest> {
  const keyPem = makeKey();
  const publicKey = createPublicKey(createPrivateKey(keyPem.reveal()));
  const host = newHostId();
  const [keysOfA] = authority.give(identity.trust()).host;
  if (keysOfA === undefined) throw new Error("an authority");
  const then = Date.now() - 40 * DAY_MS;
  const { pem } = await makeHostCert({ authority: keysOfA, cluster, host, publicKey, nowMs: then });
  const address = `10.0.0.${name.slice(1)}`;
  const listing = { host, name, address, kid: kidOf(publicKey), nowMs: then, nonce: "" };
  return { host, certificate: new X509Certificate(pem), listing };
}

void t.test("renewal: by the listed key alone, whatever became of the certificate", async (t) => {
  const { endpoints } = await startStore(t, 1, 63);
  const store = new StoreClient({ endpoints });
  const made = await makeCluster(t);
  const { authority, identity, files } = made;
  const context = { store, authority, identity, files };
  await store.put(keys.trust, made.text);
  const guest = await guestOf(made, "h2");
  t.equal(judgeCertificate(identity.trust(), guest.certificate.raw, Date.now()).kind, "not-listed");
  await t.rejects(renewIdentity(context, null), { code: "E-AUTH-01" });
  await t.rejects(renewIdentity(context, guest.certificate), { code: "E-AUTH-01" }, "its key is not listed");
  await changeTrust(context, (trust) => withKey(trust, guest.listing));
  t.equal(judgeCertificate(identity.trust(), guest.certificate.raw, Date.now()).kind, "expired");
  const answer = await renewIdentity(context, guest.certificate);
  const renewed = new X509Certificate(answer.cert);
  t.match(judgeCertificate(identity.trust(), renewed.raw, Date.now()), { kind: "ok", host: guest.host });
  t.equal(kidOf(renewed.publicKey), guest.listing.kid, "of the same key");
  const listed = identity
    .trust()
    .hosts.get(guest.host)
    ?.certs.map(({ serial }) => serial);
  t.same(listed, [renewed.serialNumber.toLowerCase()]);
  t.equal((await store.get(keys.trust))?.value, answer.trust);

  const other = await makeCluster(t);
  const stranger = await guestOf(other, "h2");
  await t.rejects(renewIdentity(context, stranger.certificate), { code: "E-AUTH-01" });
  await changeTrust(context, (trust) =>
    revokeHost(trust, { host: guest.host, by: "t", nowMs: Date.now(), nonce: "", replacement: null }),
  );
  await t.rejects(renewIdentity(context, guest.certificate), { code: "E-HOST-14" });
  await t.rejects(renewIdentity(context, renewed), { code: "E-HOST-14" });
  const told = { code: "E-HOST-14", facts: { host: guest.host, trust: identity.text, links: [] } };
  await t.rejects(listsFor(context, renewed), told, "with the list that says so, which is believed");

  const spectator = await AuthorityKeeper.open({ files: await emptyFiles(t) });
  const listing = { ...guest.listing, host: newHostId(), kid: stranger.listing.kid };
  await changeTrust(context, (trust) => withKey(trust, listing));
  const { publicKey } = stranger.certificate;
  const now = await authority.issueHost(identity.trust(), { host: listing.host, publicKey });
  const elsewhere = { ...context, authority: spectator };
  await t.rejects(renewIdentity(elsewhere, new X509Certificate(now.pem)), { code: "E-CA-01" });
});

void t.test(
  "renewal: without the store it is served too, and listed later, or named among the revoked",
  async (t) => {
    const made = await makeCluster(t);
    const { authority, identity, files, text } = made;
    const away = new StoreClient({ endpoints: [`http://${loopback(64)}:7402`], patienceMs: 100 });
    const [h2, h3] = [await guestOf(made, "h2"), await guestOf(made, "h3")];
    const { endpoints } = await startStore(t, 1, 65);
    const store = new StoreClient({ endpoints });
    await store.put(keys.trust, text);
    const context = { store, authority, identity, files };
    await changeTrust(context, (trust) => withKey(trust, h2.listing));
    await changeTrust(context, (trust) => withKey(trust, h3.listing));
    const offline = { ...context, store: away };
    const [second, third] = [
      await renewIdentity(offline, h2.certificate),
      await renewIdentity(offline, h3.certificate),
    ].map(({ cert }) => new X509Certificate(cert).serialNumber.toLowerCase());
    t.equal((await authority.unlisted()).length, 2);
    t.same(identity.trust().hosts.get(h2.host)?.certs, []);
    await changeTrust(context, (trust) =>
      revokeHost(trust, { host: h3.host, by: "t", nowMs: Date.now(), nonce: "", replacement: null }),
    );
    await listIssued(context);
    t.same(
      identity
        .trust()
        .hosts.get(h2.host)
        ?.certs.map(({ serial }) => serial),
      [second],
    );
    t.ok(crlSerials(identity.trust(), Date.now()).includes(third ?? ""), "etcd refuses it");
    t.same(await authority.unlisted(), []);
    const { generation } = identity.trust();
    await listIssued(context);
    t.equal(identity.trust().generation, generation, "once");
  },
);

void t.test(
  "members: the authorities' keys are for a host that the signed list names as a member",
  async (t) => {
    const { endpoints } = await startStore(t, 1, 66);
    const store = new StoreClient({ endpoints });
    const made = await makeCluster(t);
    const { authority, identity, text } = made;
    await store.put(keys.trust, text);
    const guest = await guestOf(made, "h2");
    const context = { store, authority, identity };
    await changeTrust(context, (trust) => withKey(trust, guest.listing));
    await t.rejects(memberCredentials(context, newHostId()), { code: "E-CA-07" });
    // What it can write by itself: that its address is a member's, and that etcd has it as one.
    const own = { id: guest.host, name: "h2", address: made.address, joinedAt: new Date().toISOString() };
    await store.put(keys.host(guest.host), JSON.stringify(own));
    await new StoreMembers(store).addLearner(peerUrl(guest.listing.address));
    await t.rejects(memberCredentials(context, guest.host), { code: "E-CA-07" });
    t.same(identity.trust().hosts.get(guest.host)?.held, [], "a refusal gave nothing");
    const named = { host: guest.host, member: true, nonce: "" };
    await changeTrust(context, (trust) => withMember(trust, named));
    const given = await memberCredentials(context, guest.host);
    const theirs = await AuthorityKeeper.open({ files: await emptyFiles(t) });
    await theirs.take(receivedAuthorities(given));
    t.equal(theirs.holds(identity.trust()), true);
    const { authorities, storeAuthorities } = identity.trust();
    t.same(
      identity.trust().hosts.get(guest.host)?.held,
      [...authorities, ...storeAuthorities].map(({ kid }) => kid),
    );
    const again = await memberCredentials({ ...context, store: new StoreClient({ endpoints }) }, guest.host);
    t.equal(again.trust, given.trust, "nothing to write the second time");
    const [first] = given.authorities;
    if (first === undefined) throw new Error("an authority");
    const mixed = { ...given, authorities: [{ ...first, pem: given.storeAuthorities[0]?.pem ?? "" }] };
    const victim = await AuthorityKeeper.open({ files: await emptyFiles(t) });
    await t.rejects(victim.take(receivedAuthorities(mixed)), { code: "E-CA-05" });
  },
);

void t.test(
  "renewal: a host that asks without end gets an end, and the list stays one that all can read",
  async (t) => {
    const { endpoints } = await startStore(t, 1, 66);
    const store = new StoreClient({ endpoints });
    const made = await makeCluster(t);
    const { authority, identity, files } = made;
    const context = { store, authority, identity, files };
    await store.put(keys.trust, made.text);
    const [greedy, modest] = [await guestOf(made, "h2"), await guestOf(made, "h3")];
    await changeTrust(context, (trust) => withKey(trust, greedy.listing));
    await changeTrust(context, (trust) => withKey(trust, modest.listing));
    const ask = (): Promise<unknown> => renewIdentity(context, greedy.certificate);
    for (let n = 0; n < HOST_CERTS_MAX; n += 1) await ask();
    await t.rejects(ask(), { code: "E-LIMIT-01", status: 413 });
    t.equal(identity.trust().hosts.get(greedy.host)?.certs.length, HOST_CERTS_MAX);
    await renewIdentity(context, modest.certificate);
  },
);
