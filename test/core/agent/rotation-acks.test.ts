/** How far a host followed a change of the authority is believed of its own key alone. */
import { createPrivateKey, createPublicKey } from "node:crypto";
import t from "tap";

import { acksOf } from "../../../src/core/agent/rotation-keeper.ts";
import { withKey } from "../../../src/core/model/trust.ts";
import { kidOf } from "../../../src/core/wire/certificate.ts";
import { signByHost } from "../../../src/core/wire/signed.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { makeKey } from "../../../src/core/wire/x509-make.ts";
import { makeCluster, newHostId } from "./identity-for-tests.ts";

void t.test("rotation: an acknowledgement is its host's own, or it is none", async (t) => {
  const { identity, host } = await makeCluster(t);
  const [other, otherKey] = [newHostId(), createPrivateKey(makeKey().reveal())];
  const kid = kidOf(createPublicKey(otherKey));
  const listing = { host: other, name: "h2", address: "10.0.0.2", kid, nowMs: Date.now(), nonce: "" };
  const listed = withKey(identity.trust(), listing);
  if (listed.kind === "refused") throw new Error(listed.finding.message);
  const trust = listed.value;
  const said = { host, generation: "7", certBy: kid, member: null };
  const read = (value: string): unknown => {
    const entry = { key: keys.trustAck(host), value, modRevision: 1n, createRevision: 1n, lease: 0n };
    return acksOf({ entries: () => [entry] }, trust).get(host);
  };
  t.same(read(identity.sign("trust-ack", JSON.stringify(said))), {
    generation: 7n,
    certBy: kid,
    member: null,
  });
  const plots: Readonly<Record<string, string>> = {
    unsigned: JSON.stringify(said),
    "by another host": signByHost("trust-ack", JSON.stringify(said), otherKey),
    "as something else": identity.sign("revocation-ack", JSON.stringify(said)),
    "of another host": identity.sign("trust-ack", JSON.stringify({ ...said, host: other })),
  };
  for (const [what, value] of Object.entries(plots)) t.equal(read(value), undefined, what);
});
