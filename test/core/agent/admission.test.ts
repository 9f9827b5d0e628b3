/**
 * Plot: a host comes to a cluster without a token, since XAPI vouches for it: what it asks and what it is answered travels
 * where others can read it. Nobody may come in by that who has not the key, and what is answered helps nobody else.
 */
import t from "tap";

import type { AdmissionAnswer, AdmissionRequest } from "../../../src/core/wire/admission-api.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { makeJoinCert, makeKey } from "../../../src/core/wire/x509-make.ts";
import { eventually, startCluster, startHost, type TestHost } from "./test-host.ts";

async function request(host: TestHost): Promise<AdmissionRequest> {
  return host.client.requestAdmission({ name: host.name, address: host.address });
}

void t.test(
  "admission: a host is let in by public words only, and asking again is the same host",
  async (t) => {
    const [h1] = await startCluster(t, 1, 141);
    if (h1 === undefined) throw new Error("a host");
    const h2 = await startHost(t, 142);
    const asked = await request(h2);
    // Cut off here, it asks again: the same host with the same key.
    const again = await request(h2);
    t.equal(again.host, asked.host);
    const order = { ...again, vouchedBy: "XAPI host 142" };
    const lost = await h1.client.admit(order);
    // The answer got lost, and the member is asked once more.
    const answer = await h1.client.admit(order);
    t.equal(answer.cluster.host, lost.cluster.host);
    const key = await new IdentityFiles(h2.stateDir).readHostKey();
    const secret = key?.reveal().split("\n")[1] ?? "no key";
    t.notMatch(JSON.stringify([asked, again, lost, answer]), secret, "the key is in none of it");
    t.equal((await h2.client.enter(answer)).host, asked.host);
    const hosts = await eventually(
      "both hosts",
      () => h2.client.hosts(),
      (all) => all.length === 2,
    );
    t.strictSame(hosts.map(({ name }) => name).toSorted(), ["h1", "h2"]);
    await t.rejects(h2.client.enter(answer), { code: "E-HOST-04" }, "a member is nobody's to take in");
    await t.rejects(request(h2), { code: "E-HOST-04" });
  },
);

void t.test(
  "admission: another's name, a key that did not sign, and another's answer are refused",
  async (t) => {
    const [h1] = await startCluster(t, 1, 143);
    if (h1 === undefined) throw new Error("a host");
    const [h2, h3] = [await startHost(t, 144), await startHost(t, 145)];
    const [asked, other] = [await request(h2), await request(h3)];
    const vouchedBy = "XAPI";
    await t.rejects(h1.client.admit({ ...asked, name: h1.name, vouchedBy }), { code: "E-HOST-03" });
    await t.rejects(h1.client.admit({ ...asked, host: other.host, vouchedBy }), { code: "E-ARG-02" });
    const old = await makeJoinCert({
      host: asked.host,
      keyPem: makeKey(),
      nowMs: Date.now() - 5 * 24 * 3600 * 1000,
    });
    await t.rejects(h1.client.admit({ ...asked, cert: old, vouchedBy }), { code: "E-ARG-02" });
    await t.rejects(
      h2.client.admit({ ...other, vouchedBy }),
      { code: "E-AGENT-03" },
      "who is in no cluster lets nobody in",
    );
    const answer = await h1.client.admit({ ...other, vouchedBy });
    await t.rejects(h2.client.enter(answer), { code: "E-HOST-09" }, "an answer is its own host's only");
    const mine: AdmissionAnswer = await h1.client.admit({ ...asked, vouchedBy });
    await t.rejects(h2.client.enter({ ...mine, trust: mine.trust.slice(0, -20) }), { code: /^E-/ });
    await t.rejects(h2.client.enter({ ...mine, cert: answer.cert }), { code: "E-HOST-09" });
    const status = await h2.client.status();
    t.equal(status.kind, "no-cluster", "and nothing of it was kept");
    await h2.client.enter(mine);
  },
);
