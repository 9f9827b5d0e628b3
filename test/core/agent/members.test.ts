/** Hosts with a good certificate that ask for, or hand over, what is not theirs. */
import t from "tap";

import { takeAuthorities } from "../../../src/core/agent/members.ts";
import { makeAuthority } from "../../../src/core/wire/x509-make.ts";
import { makeCluster, newHostId } from "./identity-for-tests.ts";

void t.test(
  "members: keys are taken from hosts only that have the authority's, and only such as fit",
  async (t) => {
    const { authority, identity, host, cluster, files } = await makeCluster(t);
    const [made, other] = await Promise.all(
      [1, 2].map(() => makeAuthority({ kind: "host", cluster, nowMs: Date.now() })),
    );
    if (made === undefined || other === undefined) throw new Error("two authorities");
    const sent = { kid: made.kid, pem: made.pem, key: made.keyPem.reveal() };
    const body = { authorities: [sent], storeAuthorities: [], trust: identity.known.body };
    const holds = { authority, identity };
    await t.rejects(takeAuthorities(holds, newHostId(), body), { code: "E-CA-07" });
    for (const wrong of [
      { ...sent, key: "garbage" },
      { ...sent, key: sent.pem },
      { ...sent, pem: other.pem },
    ])
      await t.rejects(takeAuthorities(holds, host, { ...body, authorities: [wrong] }), { code: "E-CA-05" });
    t.equal((await files.readAuthorities()).host.length, 1, "nothing of it was written");
    await takeAuthorities(holds, host, body);
    t.equal((await files.readAuthorities()).host.length, 2);
  },
);
