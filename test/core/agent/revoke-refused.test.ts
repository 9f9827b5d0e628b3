/** Revocations that would leave the store to others, or to nobody. */
import t from "tap";

import type { MemberContext } from "../../../src/core/agent/context.ts";
import { peerUrl } from "../../../src/core/agent/etcd-process.ts";
import { revokeHost } from "../../../src/core/agent/revoke.ts";
import type { StoreClient } from "../../../src/core/wire/store-client.ts";
import type { Member } from "../../../src/core/wire/store-members.ts";
import { loopback } from "../wire/etcd-for-tests.ts";
import { listMembers, makeCluster, silent } from "./identity-for-tests.ts";

void t.test("host revoke: not while too few have the new authority's keys to be the store", async (t) => {
  const made = await makeCluster(t);
  // Every etcd answers; h2's agent does not.
  const addresses = [made.address, loopback(2), loopback(3)];
  const [, h3] = listMembers(made, addresses.slice(1));
  const { text } = made.identity;
  const members = addresses.map((address, i): Member => ({
    id: String(i + 1),
    name: `h${i + 1}`,
    peerUrls: [peerUrl(address)],
    clientUrls: [],
    learner: false,
  }));
  const asked: string[] = [];
  const context = {
    ...made,
    log: silent,
    self: { host: made.host, cluster: made.cluster, address: made.address, name: "h1" },
    mirror: { sync: () => Promise.resolve(), entries: () => [], get: () => null },
    store: {
      get: (key: string) => {
        asked.push(key);
        return Promise.resolve(null);
      },
    } as unknown as StoreClient,
    storeKeeper: {
      members: { list: () => Promise.resolve(members), statusOf: () => Promise.resolve({ leader: "1" }) },
    },
  } as unknown as MemberContext;
  await t.rejects(revokeHost(context, "h3", "t"), {
    code: "E-STORE-05",
    facts: { having: 1, needed: 2, missing: ["h2"] },
  });
  t.same(asked, [], "the list was not touched");
  t.equal(made.identity.text, text);
  t.ok(made.identity.trust().hosts.has(h3 ?? made.host));
});
