/** A host that answers is taken out of the cluster: it destroys its identity, and what it kept of it is good for nothing. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { peerUrl } from "../../../src/core/agent/etcd-process.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { StoreMembers } from "../../../src/core/wire/store-members.ts";
import { tlsOf } from "../wire/etcd-for-tests.ts";
import { storeTlsOf } from "./store-tls-of.ts";
import { eventually, joinHost, startCluster } from "./test-host.ts";

void t.test(
  "host remove: a member that lives is revoked, with the authority that it held, and destroys what it has",
  async (t) => {
    const [h1, h2, h3] = await startCluster(t, 3, 181);
    if (h1 === undefined || h2 === undefined || h3 === undefined) throw new Error("three hosts");
    await eventually(
      "three voters",
      () => h1.client.hosts(),
      (list) => list.every(({ store }) => store === "voter"),
      60_000,
    );
    const { host: id } = await h3.client.cluster();
    const before = await h1.client.authorities();
    const kept = storeTlsOf(h3.stateDir).current();
    const removed = await h1.client.removeHost("h3");
    t.match(removed, { host: id, name: "h3", storeMemberRemoved: true, authority: /^[0-9a-f]{64}$/ });
    t.equal(removed.complete, true);
    t.same({ on: removed.keyOn, missing: removed.keyMissing }, { on: ["h1", "h2"], missing: [] });

    const store = await h1.store();
    const opened = openFirstTrust((await store.get(keys.trust))?.value ?? "");
    if (opened.kind === "refused") throw new Error(opened.finding.message);
    const [[gone, entry] = [], ...others] = Array.from(opened.value.trust.revoked);
    t.equal(gone, id);
    t.same(others, []);
    t.ok((entry?.keys.length ?? 0) > 0 && (entry?.serials.length ?? 0) > 0, "its key and its certificates");
    const old = before.authorities.map(({ kid }) => kid);
    const signing = (await h1.client.authorities()).authorities.filter(({ state }) => state === "active");
    t.ok(signing.length === 2 && signing.every(({ kid }) => !old.includes(kid)), "new authorities sign");
    t.notOk(
      (await new StoreMembers(store).list()).some(({ peerUrls }) => peerUrls.includes(peerUrl(h3.address))),
    );
    const { endpoints } = await h1.client.cluster();
    const thief = new StoreClient({
      endpoints,
      tls: tlsOf(kept, storeTlsOf(h1.stateDir).storeCa()),
      patienceMs: 1000,
    });
    await t.rejects(thief.get(keys.cluster), { code: "E-STORE-01" }, "what it kept opens nothing");
    store.call.close();

    const files = new IdentityFiles(h3.stateDir);
    await eventually(
      "h3 to be in no cluster, without identity",
      async () => [(await h3.client.status()).kind, await files.readHost(), await h3.etcd.runningPid()],
      ([kind, identity, etcd]) => kind === "no-cluster" && identity === null && etcd === null,
    );
    t.same((await readdir(join(h3.stateDir, "authority")).catch(() => [])).filter(isKey), []);
    t.match(await h1.client.revokeHost("h3"), { name: "h3", authority: null }, "revoked it is already");
    const left = await eventually(
      "two hosts, and a store that works",
      () => h2.client.status(),
      (status) => status.kind === "cluster" && status.hosts.length === 2 && status.store.writable,
    );
    t.equal(left.kind, "cluster");

    // The last but one: the new authority's key is on one host, and the answer says so.
    await eventually(
      "voter and learner",
      () => h1.client.hosts(),
      (list) =>
        list
          .map(({ store: role }) => role)
          .toSorted()
          .join() === "learner,voter",
      60_000,
    );
    const [stays, goes] =
      (await h1.client.hosts()).find(({ name }) => name === "h1")?.store === "voter" ? [h1, h2] : [h2, h1];
    const { host: goneId } = await goes.client.cluster();
    t.match(await stays.client.removeHost(goes.name), {
      name: goes.name,
      storeMemberRemoved: true,
      complete: true,
      keyOn: [stays.name],
      keyMissing: [],
    });
    await eventually(
      "one host, and a store that works",
      () => stays.client.status(),
      (status) => status.kind === "cluster" && status.hosts.length === 1 && status.store.writable,
    );
    await eventually(
      "it to be out",
      () => goes.client.status(),
      ({ kind }) => kind === "no-cluster",
    );
    t.not(await joinHost(goes, stays), goneId, "it may join anew, as another host of the same name");
    t.equal((await stays.client.hosts()).length, 2);
  },
);

function isKey(name: string): boolean {
  return name.endsWith(".key");
}
