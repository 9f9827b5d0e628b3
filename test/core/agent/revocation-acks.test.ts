/** What a host says about a revocation is believed of its own key alone. */
import { createPrivateKey, createPublicKey } from "node:crypto";
import t from "tap";

import { readAck } from "../../../src/core/agent/revocation-acks.ts";
import { revokeHost, withKey } from "../../../src/core/model/trust.ts";
import { kidOf } from "../../../src/core/wire/certificate.ts";
import { signByHost } from "../../../src/core/wire/signed.ts";
import { makeKey } from "../../../src/core/wire/x509-make.ts";
import { makeCluster, newHostId } from "./identity-for-tests.ts";

void t.test(
  "revocation: an acknowledgement is its host's own, of this revocation, or it is none",
  async (t) => {
    const { identity, host, files } = await makeCluster(t);
    const [gone, other] = [newHostId(), newHostId()];
    const [goneKey, otherKey] = [makeKey(), makeKey()];
    const nowMs = Date.now();
    const listed = [
      { host: gone, name: "h2", address: "10.0.0.2", key: goneKey },
      { host: other, name: "h3", address: "10.0.0.3", key: otherKey },
    ].reduce((trust, { key, ...rest }) => {
      const kid = kidOf(createPublicKey(key.reveal()));
      const added = withKey(trust, { ...rest, kid, nowMs, nonce: "" });
      if (added.kind === "refused") throw new Error(added.finding.message);
      return added.value;
    }, identity.trust());
    const revoked = revokeHost(listed, { host: gone, by: "t", nowMs, nonce: "", replacement: null });
    if (revoked.kind === "refused") throw new Error(revoked.finding.message);
    const trust = revoked.value;
    const said = { agent: true, weftd: true, member: true, revoked: gone, by: host };
    const keyOf = (key: typeof goneKey) => createPrivateKey(key.reveal());
    const own = keyOf(identity.certificate.keyPem);
    const body = JSON.stringify(said);
    t.match(readAck(trust, signByHost("revocation-ack", body, own), gone, host), said);
    const [authority] = (await files.readAuthorities()).host;
    if (authority === undefined) throw new Error("an authority");
    const plots: Readonly<Record<string, string>> = {
      unsigned: body,
      "by the host that is to be cut off": signByHost("revocation-ack", body, keyOf(goneKey)),
      "by another host": signByHost("revocation-ack", body, keyOf(otherKey)),
      "by the authority": signByHost("revocation-ack", body, keyOf(authority.keyPem)),
      "as something else": signByHost("api-token", body, own),
      "of another revocation": signByHost("revocation-ack", JSON.stringify({ ...said, revoked: other }), own),
      "said for another": signByHost("revocation-ack", JSON.stringify({ ...said, by: other }), own),
      "with another body": signByHost("revocation-ack", body, own).replace("true", "false"),
      "no JSON": "{",
      "no key": JSON.stringify({ body, key: "AAAA", sig: "AAAA" }),
    };
    for (const [what, text] of Object.entries(plots)) t.equal(readAck(trust, text, gone, host), null, what);
    const theirs = signByHost("revocation-ack", JSON.stringify({ ...said, by: gone }), keyOf(goneKey));
    t.equal(readAck(trust, theirs, gone, gone), null, "who is revoked says nothing more");
  },
);
