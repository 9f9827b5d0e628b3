/** etcd's own files: made anew when they must be, and proof that a revoked certificate is refused. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { clientUrl, EtcdProcess, peerUrl } from "../../../src/core/agent/etcd-process.ts";
import { inTurn } from "../../../src/core/agent/member-turn.ts";
import { StoreIdentity } from "../../../src/core/agent/store-identity.ts";
import { revokeHost, withCert, withKey } from "../../../src/core/model/trust.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { watchPrefix } from "../../../src/core/wire/store-watch.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { changeTrust } from "../../../src/core/agent/trust-change.ts";
import { loopback, startStore } from "../wire/etcd-for-tests.ts";
import { emptyFiles, makeCluster, newHostId, silent } from "./identity-for-tests.ts";

void t.test("store identity: a revoked certificate is refused, and the proof of it is real", async (t) => {
  const { files, authority, identity, cluster, host, text } = await makeCluster(t);
  const address = loopback(81);
  const shown = new StoreIdentity({ files, authority, identity, address, log: silent });
  const runDir = join((await emptyFiles(t)).stateDir, "run");
  const etcd = new EtcdProcess({ stateDir: files.stateDir, runDir, program: "/usr/bin/etcd" });
  t.teardown(() => etcd.stop());
  etcd.prepareBy(() => shown.prepare());
  const plan = { identity: { host, address, cluster }, initialCluster: `${host}=${peerUrl(address)}` };
  await etcd.configure({ ...plan, initialState: "new" });
  await etcd.ensureRunning();
  const endpoints = [clientUrl(address)];
  const store = new StoreClient({ endpoints, tls: identity.tls, patienceMs: 20_000 });
  await store.put(keys.trust, text);
  await shown.prove();
  t.equal(shown.finding, null);

  // Another host, listed; then revoked.
  const other = { host: newHostId(), name: "h2", address: "10.0.0.2" };
  const issued = await authority.issueHost(identity.trust(), {
    host: other.host,
    publicKey: identity.publicKey(),
  });
  const writer = { store, authority, identity };
  const listing = { ...other, kid: "ab".repeat(32), nonce: "", nowMs: Date.now() };
  await changeTrust(writer, (trust) => {
    const listed = withKey(trust, listing);
    return listed.kind === "refused" ? listed : withCert(listed.value, { ...listing, cert: issued });
  });
  const revoked = { cert: issued.pem + issued.chainPem, key: identity.tls.current().key };
  const theirs = { endpoints, tls: { current: () => revoked, storeCa: identity.tls.storeCa } };
  const allowed = new StoreClient(theirs);
  t.not(await allowed.get(keys.trust), null);
  // A stream that it has open: etcd goes on serving it, whatever its list of the revoked says.
  const [ended, over] = [new AbortController(), Promise.withResolvers<string>()];
  t.teardown(() => ended.abort());
  const opened = Promise.withResolvers<null>();
  const watched = watchPrefix({
    store: allowed,
    prefix: "/weft/v1/",
    signal: ended.signal,
    onUpdate: (update) => {
      if (update.kind === "listing") opened.resolve(null);
      if (update.kind === "interrupted") over.resolve(update.reason);
    },
  });
  await opened.promise;
  await changeTrust(writer, (trust) =>
    revokeHost(trust, { host: other.host, by: "t", nowMs: Date.now(), nonce: "", replacement: null }),
  );
  const before = await readFile(join(files.stateDir, "authority", "tls", "etcd.pem"), "utf8");
  await shown.follow();
  t.equal(await readFile(join(files.stateDir, "authority", "tls", "etcd.pem"), "utf8"), before);
  const refused = new StoreClient({ ...theirs, tls: { ...theirs.tls }, patienceMs: 500 });
  await t.rejects(refused.get(keys.trust), { code: "E-STORE-01" });
  await shown.prove();
  t.equal(shown.finding, null);
  t.equal(await shown.restartDue(), "cut");
  const [old, started] = [await etcd.runningPid(), performance.now()];
  t.not(await etcd.restart("at-once"), old);
  await shown.untilServed();
  t.comment(`etcd was away for ${Math.round(performance.now() - started)} ms`);
  t.ok((await over.promise) !== "", "its stream was cut");
  t.equal(await shown.restartDue(), null);
  t.not(await store.get(keys.trust), null);
  ended.abort();
  await watched;
  const followed = await readFile(join(files.stateDir, "authority", "tls", "crl.der"));
  await shown.follow();
  t.ok(followed.equals(await readFile(join(files.stateDir, "authority", "tls", "crl.der"))), "nothing new");

  // Its address, as the certificate has it, is another one: made anew, taken without a restart.
  const moved = new StoreIdentity({ files, authority, identity, address: loopback(83), log: silent });
  await moved.follow();
  t.not(await readFile(join(files.stateDir, "authority", "tls", "etcd.pem"), "utf8"), before);
});

void t.test("store identity: an etcd that ignores the list of the revoked is found", async (t) => {
  const { files, authority, identity, cluster, host } = await makeCluster(t);
  const address = loopback(82);
  const shown = new StoreIdentity({ files, authority, identity, address, log: silent });
  const runDir = join((await emptyFiles(t)).stateDir, "run");
  const etcd = new EtcdProcess({ stateDir: files.stateDir, runDir, program: "/usr/bin/etcd" });
  t.teardown(() => etcd.stop());
  etcd.prepareBy(async () => {
    await shown.prepare();
    // Another canary: to this proof the list is one that etcd ignores.
    const trust = identity.trust();
    const { crl } = await authority.crl(trust);
    await files.writeCrl(crl);
  });
  const plan = { identity: { host, address, cluster }, initialCluster: `${host}=${peerUrl(address)}` };
  await etcd.configure({ ...plan, initialState: "new" });
  await shown.prepare();
  await shown.prove();
  t.equal(shown.finding, null, "nothing is proven while it doesn't serve");
  await etcd.ensureRunning();
  const store = new StoreClient({ endpoints: [clientUrl(address)], tls: identity.tls, patienceMs: 20_000 });
  await store.get(keys.trust);
  await shown.prove();
  t.match(shown.finding, { code: "E-CA-06" });
  await shown.prepare();
  await shown.prove();
  t.equal(shown.finding, null, "a right list later, without a restart");
});

void t.test("member's turn: one has it, and who ends it or dies gives it away", async (t) => {
  const { endpoints } = await startStore(t, 1, 84);
  const store = new StoreClient({ endpoints });
  const order: string[] = [];
  const first = await inTurn(store, { host: "h1", why: "cut" }, async () => {
    order.push("h1");
    t.equal(await inTurn(store, { host: "h2", why: "cut" }, async () => void order.push("h2")), false);
  });
  t.equal(first, true);
  t.equal(await inTurn(store, { host: "h2", why: "cut" }, async () => void order.push("h2")), true);
  await t.rejects(
    inTurn(store, { host: "h3", why: "cut" }, () => Promise.reject(new Error("it did not start"))),
    /it did not start/,
  );
  t.equal(await store.get(keys.memberTurn), null);
  t.same(order, ["h1", "h2"]);
});
