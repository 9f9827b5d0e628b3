/** The trust list is changed by one swap and never goes back; a certificate is renewed while the host goes on. */
import { X509Certificate } from "node:crypto";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { IdentityKeeper } from "../../../src/core/agent/identity.ts";
import { Mirror } from "../../../src/core/agent/mirror.ts";
import { changeTrust } from "../../../src/core/agent/trust-change.ts";
import { ok } from "../../../src/core/model/finding.ts";
import { revokeHost, withKey } from "../../../src/core/model/trust.ts";
import type { Trust } from "../../../src/core/model/trust.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { renderTrust } from "../../../src/core/wire/trust.ts";
import { startStore } from "../wire/etcd-for-tests.ts";
import { makeCluster, newHostId, silent } from "./identity-for-tests.ts";
import { eventually as eventuallyAnswers } from "./test-host.ts";

const KID = "ab".repeat(32);

function eventually(what: string, isSo: () => boolean): Promise<boolean> {
  return eventuallyAnswers(
    what,
    () => Promise.resolve(isSo()),
    (so) => so,
    5000,
  );
}

function renamed(trust: Trust): Trust {
  return { ...trust, transport: trust.transport === "tls" ? "auth" : "tls" };
}

void t.test("identity: authority's keys only sign for a list that names them", async (t) => {
  const [one, other] = [await makeCluster(t), await makeCluster(t)];
  t.equal(one.authority.holds(one.identity.trust()), true);
  t.equal(one.authority.holds(other.identity.trust()), false);
  t.throws(() => one.authority.sign(other.identity.trust(), "trust", "{}"), { code: "E-CA-01" });
  const request = { host: one.host, publicKey: one.identity.publicKey() };
  await t.rejects(one.authority.issueHost(other.identity.trust(), request), { code: "E-CA-01" });
  t.same(
    one.authority.give(one.identity.trust()).host.map(({ kid }) => kid),
    one.identity.trust().authorities.map(({ kid }) => kid),
  );
  await other.authority.take(one.authority.give(one.identity.trust()));
  t.equal(other.authority.holds(one.identity.trust()), true, "handed to a member");
  await other.authority.drop();
  t.equal(other.authority.holds(other.identity.trust()), false);
});

void t.test("identity: only of this host and cluster; none is E-HOST-11", async (t) => {
  const { files, cluster, host } = await makeCluster(t);
  const open = (options: { readonly cluster: string; readonly host: typeof host }): Promise<IdentityKeeper> =>
    IdentityKeeper.open({ files, log: silent, ...options });
  await t.rejects(open({ cluster, host: newHostId() }), { code: "E-HOST-06" });
  await t.rejects(open({ cluster: newHostId(), host }), { code: "E-HOST-06" });
  await rm(join(files.stateDir, "identity", "trust.json"));
  await t.rejects(open({ cluster, host }), { code: "E-HOST-11", safe: /^Nothing was changed/ });
});

void t.test("trust list: changed by one swap, followed by others, never taken back", async (t) => {
  const { endpoints } = await startStore(t, 1, 61);
  const store = new StoreClient({ endpoints });
  const made = await makeCluster(t);
  const { authority, identity, files, cluster, host } = made;
  const writer = { store, authority, identity };
  await t.rejects(
    changeTrust(writer, (trust) => ok(trust)),
    { code: "E-TRUST-05" },
  );
  await store.put(keys.trust, made.text);
  const follower = await IdentityKeeper.open({ files, cluster, host, log: silent });
  const mirror = new Mirror(store);
  await mirror.sync();
  mirror.start();
  t.teardown(() => mirror.stop());
  follower.start({ mirror, renew: () => Promise.reject(new Error("nothing to renew")) });
  t.teardown(() => follower.stop());

  const add = { host: newHostId(), name: "h2", address: "10.0.0.2", kid: KID, nowMs: Date.now(), nonce: "" };
  const extra = {
    compares: [{ key: "/weft/v1/token-used", modRevision: 0n }],
    ops: [{ kind: "put" as const, key: "/weft/v1/token-used", value: "h2" }],
  };
  const joined = await changeTrust(writer, (trust) => withKey(trust, add), extra);
  t.equal(joined.kind, "changed");
  t.equal(identity.trust().generation, 2n, "the writer believes what it wrote at once");
  t.equal((await store.get("/weft/v1/token-used"))?.value, "h2");
  const before = await store.get(keys.trust);
  const replayed = await changeTrust(
    writer,
    (trust) => withKey(trust, { ...add, host: newHostId(), kid: "cd".repeat(32) }),
    extra,
  );
  t.equal(replayed.kind, "compare-failed");
  t.equal((await store.get(keys.trust))?.modRevision, before?.modRevision, "nothing was changed");
  const same = await changeTrust(writer, (trust) => withKey(trust, add));
  t.equal(same.kind === "changed" ? same.signed.trust.generation : null, 2n);

  // Ten at once: each one's change is in the list in the end.
  const crowd = Array.from({ length: 10 }, (_, i) => i.toString(16).repeat(64));
  await Promise.all(
    crowd.map((kid, i) =>
      changeTrust(writer, (trust) => withKey(trust, { ...add, host: newHostId(), name: `c${i}`, kid })),
    ),
  );
  const names = Array.from(identity.trust().hosts.values(), ({ name }) => name);
  t.same(
    names.filter((name) => name.startsWith("c")).toSorted(),
    crowd.map((_, i) => `c${i}`),
  );
  t.equal(identity.trust().generation, 12n);
  await mirror.until("the list", 5000, () => (follower.trust().generation === 12n ? true : null));

  const old = await store.get(keys.trust);
  await changeTrust(writer, (trust) =>
    revokeHost(trust, { host: add.host, by: "t", nowMs: Date.now(), nonce: "", replacement: null }),
  );
  await mirror.until("the revocation", 5000, () => (follower.trust().revoked.has(add.host) ? true : null));
  // Somebody with a host's certificate, but no authority's key, puts the old list back, and then a forged one.
  await store.put(keys.trust, old?.value ?? "");
  await t.rejects(
    changeTrust(writer, (trust) => ok(renamed(trust))),
    { code: "E-TRUST-02" },
  );
  t.equal(follower.trust().revoked.has(add.host), true);
  await eventually("the store's list is refused", () => follower.refused?.code === "E-TRUST-02");
  const other = await makeCluster(t);
  const body = renderTrust({ ...identity.trust(), generation: 99n }, null);
  await store.put(keys.trust, other.authority.sign(other.identity.trust(), "trust", body));
  await eventually("the forged list is refused", () => follower.refused?.code === "E-TRUST-01");
  t.equal(follower.trust().generation, 13n);
  await store.put(keys.trust, identity.known.body);
  await t.rejects(
    changeTrust(writer, (trust) => ok(renamed(trust))),
    { code: "E-TRUST-01" },
  );
});

void t.test("trust list: a host that was away while two authorities took over catches up", async (t) => {
  const { endpoints } = await startStore(t, 1, 69);
  const store = new StoreClient({ endpoints });
  const { authority, identity, files, cluster, host, text } = await makeCluster(t);
  await store.put(keys.trust, text);
  const asleep = await IdentityKeeper.open({ files, cluster, host, log: silent });
  const writer = { store, authority, identity };
  for (const name of ["h2", "h3"]) {
    const next = await authority.makeNext(cluster);
    const sinceMs = Date.now();
    await changeTrust(writer, (trust) =>
      ok({
        ...trust,
        authorities: [
          { kid: next.host.kid, pem: next.host.pem, state: "active", sinceMs },
          ...trust.authorities.map((old) => ({ ...old, state: "outgoing" as const })),
        ],
        rotation: { id: newHostId(), phase: "issue", why: "asked", sinceMs, without: [] },
      }),
    );
    const kid = name === "h2" ? KID : "cd".repeat(32);
    const add = { host: newHostId(), name, address: "10.0.0.2", kid, nowMs: sinceMs };
    await changeTrust(writer, (trust) => withKey(trust, { ...add, nonce: "" }));
    await changeTrust(writer, ({ authorities, ...trust }) =>
      ok({ ...trust, authorities: authorities.slice(0, 1), rotation: null }),
    );
  }
  const entry = await store.get(keys.trust);
  t.match(asleep.offer(entry?.value ?? ""), { kind: "refused", finding: { code: "E-TRUST-01" } });
  const mirror = new Mirror(store);
  await mirror.sync();
  asleep.start({ mirror, renew: () => Promise.reject(new Error("nothing to renew")) });
  t.teardown(() => asleep.stop());
  t.equal(asleep.trust().generation, identity.trust().generation);
  t.equal(asleep.refused, null);
});

void t.test("renewal: at two thirds of the life, again when it fails, the key stays", async (t) => {
  const { endpoints } = await startStore(t, 1, 62);
  const store = new StoreClient({ endpoints });
  const { authority, identity, host, files } = await makeCluster(t, 6000);
  const before = identity.certificate;
  const changes: string[] = [];
  let tries = 0;
  const renewed = new Promise<void>((resolve) => {
    identity.onChange(({ kind }) => {
      changes.push(kind);
      resolve();
    });
  });
  identity.start({
    mirror: new Mirror(store),
    renew: async () => {
      tries += 1;
      if (tries === 1) throw new Error("no member answers");
      const publicKey = identity.publicKey();
      const { pem, chainPem } = await authority.issueHost(identity.trust(), { host, publicKey });
      return { certPem: pem, chainPem };
    },
  });
  const life = 6000;
  const planned = identity.renewAtMs - before.facts.notAfterMs;
  t.ok(planned > -life / 3 - life / 100 && planned < -life / 3 + life / 100);
  await renewed;
  t.equal(tries, 2);
  const after = await files.readHost();
  t.same(after?.keyPem.reveal(), before.keyPem.reveal());
  t.not(
    new X509Certificate(after?.certPem ?? "").serialNumber,
    new X509Certificate(before.certPem).serialNumber,
  );
  t.same(changes, ["certificate"]);
  t.match(identity.tls.current().cert, after?.certPem ?? "");
  t.match(await readFile(join(files.stateDir, "identity", "host.pem"), "utf8"), after?.certPem ?? "");
});
