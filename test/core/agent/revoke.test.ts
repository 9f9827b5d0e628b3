/** A host is revoked: what it had open is cut everywhere, and the authority whose key it held goes with it. */
import { createPublicKey } from "node:crypto";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { HostClient } from "../../../src/core/wire/host-client.ts";
import { openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { watchPrefix } from "../../../src/core/wire/store-watch.ts";
import { makeHostCert } from "../../../src/core/wire/x509-make.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { parseHostId } from "../../../src/core/model/ids.ts";
import { tlsOf } from "../wire/etcd-for-tests.ts";
import { eventually, startWithSpare } from "./test-host.ts";
import type { TestHost } from "./test-host.ts";
import { storeTlsOf } from "./store-tls-of.ts";

type Scope = { readonly teardown: (fn: () => void) => void };

/** A stolen host's: a stream that it has open at the store, and what becomes of it. */
async function thief(
  t: Scope,
  host: TestHost,
  endpoints: readonly string[],
): Promise<{ readonly cut: Promise<string> }> {
  // What a thief copied: nothing of it changes any more.
  const [{ cert, key }, ca] = [storeTlsOf(host.stateDir).current(), storeTlsOf(host.stateDir).storeCa()];
  const store = new StoreClient({ endpoints, tls: tlsOf({ cert, key }, ca), patienceMs: 1000 });
  const stop = new AbortController();
  t.teardown(() => stop.abort());
  const [opened, cut] = [Promise.withResolvers<null>(), Promise.withResolvers<string>()];
  void watchPrefix({
    store,
    prefix: "/weft/v1/",
    signal: stop.signal,
    onUpdate: (update) => {
      if (update.kind === "listing") opened.resolve(null);
      if (update.kind === "interrupted") cut.resolve(update.reason);
    },
  });
  await opened.promise;
  return { cut: cut.promise };
}

/** `written`: these keys in the order in which they are written next, when each of them was. */
async function watchOf(
  t: Scope,
  host: TestHost,
  wanted: readonly string[],
): Promise<{ readonly written: Promise<readonly string[]> }> {
  const store = await host.store();
  const stop = new AbortController();
  t.teardown(() => stop.abort());
  const [opened, all] = [Promise.withResolvers<null>(), Promise.withResolvers<readonly string[]>()];
  const seen: string[] = [];
  void watchPrefix({
    store,
    prefix: "/weft/v1/",
    signal: stop.signal,
    onUpdate: (update) => {
      if (update.kind === "listing") opened.resolve(null);
      if (update.kind !== "events") return;
      for (const event of update.events)
        if (event.kind === "put" && wanted.includes(event.entry.key)) seen.push(event.entry.key);
      if (wanted.every((key) => seen.includes(key))) all.resolve(seen);
    },
  });
  await opened.promise;
  return { written: all.promise };
}

/** The bar of 5 s is test/scenario/identity.test.ts' matter, which measures the store beside it; here others are tested at the same time. */
const WITHIN_MS = 20_000;

void t.test("host revoke: one that is no member, then a member, both out everywhere", async (t) => {
  const { h1, member, spare, list } = await startWithSpare(t, 1);
  await t.rejects(h1.client.revokeHost("h1"), { code: "E-HOST-12" });
  await t.rejects(h1.client.revokeHost("h9"), { code: "E-ARG-01" });
  await t.rejects(spare.client.revokeHost("h1"), { code: "E-CA-01" });
  const { endpoints } = await h1.client.cluster();
  const before = await h1.client.authorities();

  // No member: the list of the revoked, and each member of the store once anew.
  const stolen = storeTlsOf(spare.stateDir).current();
  const stream = await thief(t, spare, endpoints);
  const spareId = (await spare.client.cluster()).host;
  // It foresaw that members restart in turn, and took the turn for good.
  const taken = await spare.store();
  await taken.put(keys.memberTurn, JSON.stringify({ host: spare.name, why: "cut" }));
  // And says in every host's name, before and after, that it is cut off.
  const lie = JSON.stringify({ agent: true, weftd: true, member: true });
  for (const other of list) await taken.put(keys.revocationBy(spareId, other.id), lie);
  // And it has exchanged its name with a member's, in the keys that say how hosts are called.
  const memberId = (await member.client.cluster()).host;
  const members = (await taken.get(keys.host(memberId)))?.value ?? "{}";
  for (const [id, name] of [
    [spareId, member.name],
    [memberId, spare.name],
  ] as const) {
    const said = (await taken.get(keys.host(id)))?.value ?? "{}";
    await taken.put(keys.host(id), JSON.stringify({ ...(JSON.parse(said) as object), name }));
  }
  taken.call.close();
  // Asked for at two members at once: one decides, and the other one deletes nothing of what is said since.
  const [answer, other] = await Promise.all([
    h1.client.revokeHost(spare.name),
    member.client.revokeHost(spare.name),
  ]);
  t.match(other, { host: spareId, complete: true, authority: null });
  t.equal(answer.host, spareId, "who is meant says the signed list");
  const tidy = await h1.store();
  await tidy.put(keys.host(memberId), members);
  await tidy.delete(keys.memberTurn);
  tidy.call.close();
  t.match(answer, { name: spare.name, complete: true, authority: null, open: [] });
  t.comment(JSON.stringify(answer.hosts));
  t.ok(answer.hosts.every(({ refusedMs }) => refusedMs !== null && refusedMs < WITHIN_MS));
  t.ok(answer.hosts.filter(({ storeMs }) => storeMs !== null && storeMs < WITHIN_MS).length === 3);
  t.ok((await stream.cut) !== "", "its stream at the store was cut");
  const late = new StoreClient({
    endpoints,
    tls: tlsOf(stolen, storeTlsOf(h1.stateDir).storeCa()),
    patienceMs: 1000,
  });
  await t.rejects(late.get(keys.cluster), { code: "E-STORE-01" });
  const trust = openFirstTrust((await (await h1.store()).get(keys.trust))?.value ?? "");
  if (trust.kind === "refused") throw new Error(trust.finding.message);
  const expect = { kind: "host" as const, trust: trust.value.trust, host: null };
  const asked = new HostClient({ address: h1.address, shown: stolen, expect });
  await t.rejects(asked.credentials(), { code: "E-HOST-14" });
  await t.rejects(asked.renew(), { code: "E-HOST-14" });
  t.match(await h1.client.authorities(), { revoked: [{ name: spare.name }] });
  const again = await h1.client.revokeHost(spare.name);
  t.match(again, { name: spare.name, authority: null }, "twice is once");

  // A member: it has the authorities' keys, and may have made certificates of its own.
  const files = new IdentityFiles(member.stateDir);
  const [stolenA] = (await files.readAuthorities()).host;
  const identity = await files.readHost();
  const h1Id = parseHostId((await h1.client.cluster()).host);
  if (stolenA === undefined || identity === null || h1Id === null) throw new Error("a member's files");
  const publicKey = createPublicKey(identity.keyPem.reveal());
  const { cluster } = trust.value.trust;
  const minted = await makeHostCert({
    authority: stolenA,
    cluster,
    host: h1Id,
    publicKey,
    nowMs: Date.now(),
  });
  const forged = { cert: minted.pem + stolenA.pem, key: identity.keyPem.reveal() };
  const forger = new StoreClient({
    endpoints: [endpoints[0] ?? ""],
    tls: tlsOf(forged, storeTlsOf(h1.stateDir).storeCa()),
    patienceMs: 1000,
  });
  t.not(
    await forger.get(keys.cluster),
    null,
    "until it is revoked the store believes what its authority signed",
  );
  const db = await h1.client.createVolume({ name: "db", size: 1n << 30n, copies: 1, hosts: ["h1"] });
  const attached = await member.client.attach("db");
  const { written } = await watchOf(t, h1, [keys.state(db.id), keys.trust]);
  const revoked = await h1.client.revokeHost(member.name);
  t.equal((await written)[0], keys.state(db.id), "it is fenced before it is cut");
  t.match(revoked, { open: [], fenced: [{ volume: db.id, name: "db", epoch: attached.epoch + 1n }] });
  t.equal((await h1.client.volume("db")).owner, null);
  t.comment(JSON.stringify(revoked.hosts));
  t.match(revoked, { name: member.name, complete: true, authority: /^[0-9a-f]{64}$/ });
  const staying = list.map(({ name }) => name).filter((name) => name !== member.name && name !== spare.name);
  t.same({ on: revoked.keyOn, missing: revoked.keyMissing }, { on: staying.toSorted(), missing: [] });
  t.ok(revoked.hosts.every(({ refusedMs }) => refusedMs !== null && refusedMs < WITHIN_MS));
  t.ok(revoked.hosts.filter(({ storeMs }) => storeMs !== null && storeMs < WITHIN_MS).length === 2);
  const [own = ""] = (await h1.client.cluster()).endpoints;
  const after = new StoreClient({
    endpoints: [own],
    tls: tlsOf(forged, storeTlsOf(h1.stateDir).storeCa()),
    patienceMs: 1000,
  });
  await t.rejects(
    after.get(keys.cluster),
    { code: "E-STORE-01" },
    "the store believes the new authority alone",
  );
  const changed = await eventually(
    "the old authority to be gone",
    () => h1.client.authorities(),
    ({ rotation, authorities }) => rotation === null && authorities.length === 2,
    60_000,
  );
  const old = before.authorities.map(({ kid }) => kid);
  t.notOk(changed.authorities.some(({ kid }) => old.includes(kid)));
  await eventually(
    "the old keys to be destroyed",
    async () => (await readdir(join(h1.stateDir, "authority"))).filter((name) => name.endsWith(".key")),
    (names) => names.length === 2,
  );
  const left = await eventually(
    "two hosts, and a store that works",
    () => h1.client.status(),
    (status) => status.kind === "cluster" && status.hosts.length === 2 && status.store.writable,
    30_000,
  );
  t.match(left, { health: "healthy" });
  const made = await h1.client.createVolume({ name: "after", size: 1n << 30n, copies: 2 });
  t.equal(made.replicas.length, 2);
});

void t.test("host revoke: a host that was off meanwhile comes back by its key", async (t) => {
  const { h1, member, spare, list } = await startWithSpare(t, 11);
  await spare.stopAgent();
  await spare.weftd.stop();
  // Who is alive is waited for.
  await eventually(
    "it to be away",
    () => h1.client.hosts(),
    (answer) => answer.some(({ name, alive }) => name === spare.name && !alive),
  );
  // The member says in its name that all is done.
  const forged = await member.store();
  const idOf = (host: TestHost): string => list.find(({ name }) => name === host.name)?.id ?? "";
  const lie = JSON.stringify({ agent: true, weftd: true, member: null });
  await forged.put(keys.revocationBy(idOf(member), idOf(spare)), lie);
  forged.call.close();
  const revoked = await h1.client.revokeHost(member.name);
  t.match(revoked, { complete: true, authority: /./ });
  t.equal(revoked.hosts.find(({ host }) => host === idOf(spare))?.refusedMs, null, "it has said nothing");
  await t.rejects(h1.client.revokeHost(h1.name), { code: "E-HOST-12" });
  // The change of the authority waits for it: the old one's chains are good until every host has a new certificate.
  const awaiting = await eventually(
    "the others to have new certificates",
    () => h1.client.authorities(),
    ({ rotation }) => rotation?.awaited.every(({ host }) => host === spare.name) === true,
  );
  t.match(awaiting.rotation, { phase: "issue", awaited: [{ host: spare.name }] });
  await spare.weftd.daemon.start();
  await spare.startAgent();
  await eventually(
    "it to see the store",
    () => spare.client.status(),
    (status) => status.kind === "cluster" && status.store.writable && status.hosts.length === 3,
    60_000,
  );
  t.match((await spare.client.authorities()).revoked, [{ name: member.name }]);
  await eventually(
    "the end of the rotation: its weftd has the list too",
    () => spare.client.authorities(),
    ({ rotation }) => rotation === null,
    60_000,
  );
});
