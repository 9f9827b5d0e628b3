/** Hosts with a good certificate that ask for, or hand over, what is not theirs. */
import t from "tap";

import { memberCredentials, takeAuthorities } from "../../../src/core/agent/members.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import type { StoreClient } from "../../../src/core/wire/store-client.ts";
import { makeAuthority } from "../../../src/core/wire/x509-make.ts";
import { listMembers, makeCluster, newHostId, relist } from "./identity-for-tests.ts";

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

void t.test(
  "members: without the store they are given what the list says that they had, and no more",
  async (t) => {
    const made = await makeCluster(t);
    const { authority, identity } = made;
    const [h2] = listMembers(made, ["10.0.0.2"]);
    if (h2 === undefined) throw new Error("a member");
    let code: "E-STORE-01" | "E-STORE-06" = "E-STORE-01";
    const get = () => Promise.reject(new WeftError({ code, message: "no majority" }));
    const context = { authority, identity, store: { get } as unknown as StoreClient };
    const given = await memberCredentials(context, h2);
    t.equal(given.trust, identity.text);
    t.same(
      [...given.authorities, ...given.storeAuthorities].map(({ kid }) => kid),
      authority.kids(),
    );
    await t.rejects(memberCredentials(context, newHostId()), { code: "E-STORE-01" }, "a stranger");
    code = "E-STORE-06";
    await t.rejects(memberCredentials(context, h2), { code: "E-STORE-06" });
    code = "E-STORE-01";
    const entry = identity.trust().hosts.get(h2);
    if (entry === undefined) throw new Error("h2 is listed");
    const shown = (change: Partial<typeof entry>) =>
      relist(made, (trust) => ({ ...trust, hosts: new Map(trust.hosts).set(h2, { ...entry, ...change }) }));
    shown({ member: false });
    await t.rejects(memberCredentials(context, h2), { code: "E-STORE-01" }, "no member");
    shown({ held: entry.held.slice(1) });
    await t.rejects(memberCredentials(context, h2), { code: "E-STORE-01" }, "it had one of them only");
  },
);
