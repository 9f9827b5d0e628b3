/** etcd's own files: made anew when they must be, and proof that a revoked certificate is refused. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { clientUrl, EtcdProcess, peerUrl } from "../../../src/core/agent/etcd-process.ts";
import { StoreIdentity } from "../../../src/core/agent/store-identity.ts";
import { revokeHost, withCert, withKey } from "../../../src/core/model/trust.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { changeTrust } from "../../../src/core/agent/trust-change.ts";
import { loopback } from "../wire/etcd-for-tests.ts";
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
  const other = { host: newHostId(), name: "h2" };
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
  await etcd.ensureRunning();
  await shown.prove();
  t.equal(shown.finding, null, "nothing is proven while it doesn't serve");
  const store = new StoreClient({ endpoints: [clientUrl(address)], tls: identity.tls, patienceMs: 20_000 });
  await store.get(keys.trust);
  await shown.prove();
  t.match(shown.finding, { code: "E-CA-06" });
  await shown.prepare();
  await shown.prove();
  t.equal(shown.finding, null, "a right list later, without a restart");
});
