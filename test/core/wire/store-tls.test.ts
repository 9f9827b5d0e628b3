/** Who may speak to a store with mutual TLS, and on which port: against real etcd. */
import { createHash, X509Certificate } from "node:crypto";
import t from "tap";

import { post, PostFailure, type StoreTls } from "../../../src/core/wire/store-http.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { StoreMembers } from "../../../src/core/wire/store-members.ts";
import { TestAuthority } from "./certificates-for-tests.ts";
import { HOST_NAMES, loopback, makePki, PEER_PORT, startStore, tlsOf } from "./etcd-for-tests.ts";

type Tried = { readonly kind: "answered" | "not-executed" | "unknown"; readonly said: string };

/** One request; what etcd says at this port to who shows this. */
async function tried(url: string, path: string, tls: StoreTls): Promise<Tried> {
  const put = JSON.stringify({ key: "aw==", value: "dg==" });
  try {
    const { status, body } = await post(url, path, put, { signal: AbortSignal.timeout(3000), tls });
    for await (const _ of body);
    return { kind: "answered", said: String(status) };
  } catch (error) {
    if (!(error instanceof PostFailure)) throw error;
    return { kind: error.kind, said: error.message };
  }
}

void t.test("store: tls: only a valid certificate of this cluster's authority is served", async (t) => {
  const pki = await makePki(t);
  const { endpoints, tls } = await startStore(t, 1, 1, [], pki);
  const [url = ""] = endpoints;
  const peer = `https://${loopback(1)}:${PEER_PORT}`;
  const other = await TestAuthority.make(t, "hosts");
  const [stranger, expired, server] = await Promise.all([
    other.issue({ names: HOST_NAMES }),
    pki.hosts.issue({ names: HOST_NAMES, days: -1 }),
    pki.store.issue({ names: `IP:${loopback(1)},IP:127.0.0.1` }),
  ]);
  const believed = pki.store.cert;
  const put = "/v3/kv/put";
  t.same(await tried(url, put, tlsOf(pki.host, believed)), { kind: "answered", said: "200" }, "the control");
  const refused: readonly (readonly [string, string, string, StoreTls])[] = [
    ["no certificate", url, put, tlsOf({ cert: "", key: "" }, believed)],
    ["another authority's", url, put, tlsOf(stranger, believed)],
    ["an expired one", url, put, tlsOf(expired, believed)],
    ["no certificate, peers' port", peer, "/members", tlsOf({ cert: "", key: "" }, believed)],
    ["a host's certificate, peers' port", peer, "/members", tlsOf(pki.host, believed)],
    ["the store is another authority's", url, put, tlsOf(pki.host, other.cert)],
  ];
  for (const [what, at, path, shown] of refused) {
    const found = await tried(at, path, shown);
    t.equal(found.kind, "not-executed", `${what}: ${found.said}`);
  }
  t.match(await tried(peer, "/members", tlsOf(server, believed)), { kind: "answered" }, "a member's may");
  // Nobody of them has left a trace: one put, the control's.
  const found = await new StoreClient({ endpoints, tls }).list("k");
  t.same(
    found.entries.map((e) => [e.key, e.createRevision, e.modRevision, found.revision]),
    [["k", 2n, 2n, 2n]],
  );
  await t.rejects(new StoreClient({ endpoints, tls: tlsOf(stranger, believed), patienceMs: 0 }).get("k"), {
    code: "E-STORE-01",
    message: /bad certificate/,
  });
  await t.rejects(new StoreClient({ endpoints: [url.replace("https", "http")], patienceMs: 0 }).get("k"), {
    code: "E-STORE-01",
  });
});

void t.test("store: tls: members, and a backup of one, are asked over TLS too", async (t) => {
  const pki = await makePki(t);
  const { endpoints, tls } = await startStore(t, 1, 11, [], pki);
  const members = new StoreMembers(new StoreClient({ endpoints, tls }));
  t.match(await members.list(), [{ name: "m11", clientUrls: endpoints }]);
  t.match(await members.statusOf(endpoints[0] ?? ""), { version: /^3\./ });
  const chunks: Buffer[] = [];
  for await (const chunk of members.snapshot(endpoints[0] ?? "")) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  const digest = createHash("sha256").update(bytes.subarray(0, -32)).digest();
  t.ok(digest.equals(bytes.subarray(-32)));
});

void t.test("store: tls: the certificates of these tests are what they say", async (t) => {
  const { hosts, host } = await makePki(t);
  const seen = new X509Certificate(host.cert);
  t.ok(seen.verify(new X509Certificate(hosts.cert).publicKey));
  t.equal(seen.subjectAltName, HOST_NAMES);
  const expired = new X509Certificate((await hosts.issue({ names: HOST_NAMES, days: -1 })).cert);
  t.ok(Date.parse(expired.validTo) < Date.now());
});
