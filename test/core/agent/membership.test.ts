/** Who is a member of the store: what the signed list says, whatever a host writes into the store or tells etcd. */
import { randomUUID } from "node:crypto";
import t from "tap";

import { AuthorityKeeper } from "../../../src/core/agent/authority.ts";
import { peerUrl } from "../../../src/core/agent/etcd-process.ts";
import { membersOf } from "../../../src/core/model/trust.ts";
import { HostClient } from "../../../src/core/wire/host-client.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { StoreMembers } from "../../../src/core/wire/store-members.ts";
import { renderTrust } from "../../../src/core/wire/trust.ts";
import type { Trust } from "../../../src/core/model/trust.ts";
import { storeTlsOf } from "./store-tls-of.ts";
import { eventually, startCluster, startWithSpare } from "./test-host.ts";
import type { TestHost } from "./test-host.ts";

async function listIn(host: TestHost): Promise<Trust> {
  const store = await host.store();
  const opened = openFirstTrust((await store.get(keys.trust))?.value ?? "");
  store.call.close();
  if (opened.kind === "refused") throw new Error(opened.finding.message);
  return opened.value.trust;
}

void t.test(
  "membership: what a host tells etcd and the store makes nobody a member, and takes none away",
  async (t) => {
    const { hosts, h1, member: victim, spare: thief } = await startWithSpare(t, 171);
    const idOf = async (host: TestHost): Promise<string> => (await host.client.cluster()).host;
    const trust = await listIn(h1);
    const members = await Promise.all(hosts.filter((host) => host !== thief).map(idOf));
    t.same(membersOf(trust), members.toSorted(), "the list names those that etcd has");
    t.same(
      Array.from(trust.hosts.values(), ({ address }) => address).toSorted(),
      hosts.map(({ address }) => address).toSorted(),
    );

    const shown = storeTlsOf(thief.stateDir).current();
    const askForKeys = (): Promise<unknown> =>
      new HostClient({
        address: h1.address,
        shown,
        expect: { kind: "host", trust, host: null },
      }).credentials();
    const store = await thief.store();
    const etcd = new StoreMembers(store);
    const own = keys.host(await idOf(thief));
    const before = (await store.get(own))?.value ?? "{}";
    await store.put(own, JSON.stringify({ ...(JSON.parse(before) as object), address: victim.address }));
    await etcd.addLearner(peerUrl(thief.address));
    await t.rejects(askForKeys(), { code: "E-CA-07" });
    await store.put(own, before);
    await eventually(
      "what it added to be gone",
      () => etcd.list(),
      (now) => now.length === 3 && !now.some(({ peerUrls }) => peerUrls.includes(peerUrl(thief.address))),
    );
    t.same(membersOf(await listIn(h1)), members.toSorted());

    // It takes a member out, and says that its host is away: its place isn't given to the next one that lives.
    const taken = (await etcd.list()).find(({ peerUrls }) => peerUrls.includes(peerUrl(victim.address)));
    await store.delete(keys.alive(await idOf(victim)));
    await etcd.remove(taken?.id ?? "");
    store.call.close();
    await eventually(
      "it to be a voter again",
      () => h1.client.hosts(),
      (answer) => answer.every(({ name, store: role }) => role === (name === thief.name ? "none" : "voter")),
      60_000,
    );
    await t.rejects(askForKeys(), { code: "E-CA-07" });
    t.same(membersOf(await listIn(h1)), members.toSorted());
  },
);

void t.test(
  "membership: a host whose etcd is the whole store names itself, where the list does not",
  async (t) => {
    const [h1] = await startCluster(t, 1, 178);
    if (h1 === undefined) throw new Error("a host");
    const authority = await AuthorityKeeper.open({ files: new IdentityFiles(h1.stateDir) });
    const store = await h1.store();
    const before = await listIn(h1);
    const hosts = new Map(Array.from(before.hosts, ([id, entry]) => [id, { ...entry, member: false }]));
    const unnamed = { ...before, hosts, generation: before.generation + 1n, nonce: randomUUID() };
    await store.put(keys.trust, authority.sign(before, "trust", renderTrust(unnamed, null)));
    store.call.close();
    const { host } = await h1.client.cluster();
    await eventually(
      "it to be named",
      () => listIn(h1),
      (trust) => trust.generation > unnamed.generation && membersOf(trust).join() === host,
    );
  },
);
