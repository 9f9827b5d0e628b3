/** The trust list after a store that went back. */
import t from "tap";

import { changeTrust } from "../../../src/core/agent/trust-change.ts";
import { putTrustBack } from "../../../src/core/agent/trust-upkeep.ts";
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
  const key = { kid: "ab".repeat(32), address: "10.0.0.2", nowMs: Date.now() };
  const add = { host: newHostId(), name: "h2", ...key, nonce: "" };
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
