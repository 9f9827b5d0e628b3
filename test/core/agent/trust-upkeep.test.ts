/** The trust list after a store that went back, and after a host was removed in order. */
import t from "tap";

import { Mirror } from "../../../src/core/agent/mirror.ts";
import { changeTrust } from "../../../src/core/agent/trust-change.ts";
import { forgetRemoved, putTrustBack } from "../../../src/core/agent/trust-upkeep.ts";
import { revokeHost, withKey } from "../../../src/core/model/trust.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { startStore } from "../wire/etcd-for-tests.ts";
import { makeCluster, newHostId } from "./identity-for-tests.ts";

void t.test("trust list: put back over an older one, a forged one or none, never over a newer", async (t) => {
  const { endpoints } = await startStore(t, 1, 67);
  const store = new StoreClient({ endpoints });
  const made = await makeCluster(t);
  const { authority, identity, text } = made;
  t.equal(await putTrustBack(store, identity), true, "none was there");
  t.equal((await store.get(keys.trust))?.value, text);
  t.equal(await putTrustBack(store, identity), false);
  const writer = { store, authority, identity };
  const add = { host: newHostId(), name: "h2", kid: "ab".repeat(32), nowMs: Date.now(), nonce: "" };
  await changeTrust(writer, (trust) => withKey(trust, add));
  await changeTrust(writer, (trust) =>
    revokeHost(trust, { host: add.host, by: "t", nowMs: Date.now(), nonce: "", replacement: null }),
  );
  for (const bad of [text, "{}", identity.known.body]) {
    await store.put(keys.trust, bad);
    t.equal(await putTrustBack(store, identity), true);
    t.equal((await store.get(keys.trust))?.value, identity.text);
  }
  const behind = await makeCluster(t);
  t.equal(behind.identity.offer(identity.text).kind, "refused", "another cluster's");
});

void t.test(
  "trust list: forgets a host that is registered no more, not one that the mirror has not seen",
  async (t) => {
    const { endpoints } = await startStore(t, 1, 68);
    const store = new StoreClient({ endpoints });
    const made = await makeCluster(t);
    const { authority, identity, text, host } = made;
    const writer = { store, authority, identity };
    await store.put(keys.cluster, "{}");
    await store.put(keys.trust, text);
    await store.put(keys.host(host), "{}");
    const mirror = new Mirror(store);
    t.same(await forgetRemoved(writer, mirror), [], "nothing is known yet");
    await mirror.sync();
    const fresh = { host: newHostId(), name: "h2", kid: "ab".repeat(32), nowMs: Date.now(), nonce: "" };
    await changeTrust(writer, (trust) => withKey(trust, fresh), {
      compares: [],
      ops: [{ kind: "put", key: keys.host(fresh.host), value: "{}" }],
    });
    t.same(await forgetRemoved(writer, mirror), []);
    t.ok(identity.trust().hosts.has(fresh.host));
    await store.delete(keys.host(fresh.host));
    t.same(await forgetRemoved(writer, mirror), [fresh.host]);
    t.notOk(identity.trust().hosts.has(fresh.host));
    t.ok(identity.trust().hosts.has(host));
  },
);
