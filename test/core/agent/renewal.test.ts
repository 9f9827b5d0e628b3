/** Certificates of seconds instead of a month: hosts renew them while they go on, and come back when they have ended. */
import { X509Certificate } from "node:crypto";
import t from "tap";

import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { eventually, startCluster } from "./test-host.ts";
import type { TestHost } from "./test-host.ts";

const LIFE_MS = 12_000;

async function shown({ stateDir }: TestHost): Promise<X509Certificate> {
  const identity = await new IdentityFiles(stateDir).readHost();
  if (identity === null) throw new Error("an identity");
  return new X509Certificate(identity.certPem);
}

async function etcdCertificate({ stateDir }: TestHost): Promise<X509Certificate | null> {
  return new IdentityFiles(stateDir).readEtcdCertificate();
}

/** That its certificate has another serial than before, of the same key. */
async function untilRenewed(host: TestHost, before: X509Certificate): Promise<X509Certificate> {
  const now = await eventually(
    `a renewal of ${host.name}`,
    () => shown(host),
    ({ serialNumber }) => serialNumber !== before.serialNumber,
    LIFE_MS * 2,
  );
  return now;
}

void t.test("renewal: members and another host, while the store takes every write", async (t) => {
  const hosts = await startCluster(t, 4, 1, null, LIFE_MS);
  const [h1] = hosts;
  if (h1 === undefined) throw new Error("hosts");
  const first = await Promise.all(hosts.map(shown));
  const etcd = await etcdCertificate(h1);
  const store = await h1.store(10_000);
  const end = new AbortController();
  let writes = 0;
  const writing = (async () => {
    for (; !end.signal.aborted; writes += 1) await store.put("/weft/v1/test", String(writes));
  })();
  const pids = await Promise.all(hosts.map((host) => host.etcd.runningPid()));
  const second = await Promise.all(hosts.map((host, i) => untilRenewed(host, first[i] ?? fail())));
  const third = await Promise.all(hosts.map((host, i) => untilRenewed(host, second[i] ?? fail())));
  end.abort();
  await writing;
  store.call.close();
  t.comment(`${writes} writes`);
  for (const [i, certificate] of third.entries())
    t.same(
      certificate.publicKey.export({ type: "spki", format: "der" }),
      first[i]?.publicKey.export({ type: "spki", format: "der" }),
    );
  t.not((await etcdCertificate(h1))?.serialNumber, etcd?.serialNumber);
  t.same(
    await Promise.all(hosts.map((host) => host.etcd.runningPid())),
    pids,
    "no etcd was restarted for it",
  );
  const listed = await h1.client.authorities();
  t.equal(listed.hosts.length, 4);
  for (const host of hosts)
    t.match(await host.client.status(), { kind: "cluster", store: { writable: true } });
});

void t.test(
  "renewal: a cluster that was off until every certificate had ended comes back by itself",
  async (t) => {
    const hosts = await startCluster(t, 4, 11, null, LIFE_MS);
    const [h1, h2] = hosts;
    if (h1 === undefined || h2 === undefined) throw new Error("hosts");
    await h1.client.createVolume({ name: "db", size: 1n << 30n, copies: 2 });
    for (const host of hosts) {
      await host.stopAgent();
      await host.etcd.stop();
    }
    const ends = (await Promise.all([...hosts.map(shown), ...hosts.map(etcdCertificate)])).map(
      (certificate) => (certificate === null ? 0 : Date.parse(certificate.validTo)),
    );
    const last = Math.max(...ends);
    await eventually(
      "the end of the last certificate",
      async () => Date.now() - last,
      (past) => past > 1000,
    );
    await Promise.all(hosts.map((host) => host.startAgent()));
    for (const host of hosts) {
      const status = await eventually(
        `${host.name} to be back`,
        () => host.client.status(),
        (answer) => answer.kind === "cluster" && answer.health === "healthy" && answer.hosts.length === 4,
        60_000,
      );
      t.match(status, { store: { writable: true }, volumes: [{ name: "db" }] });
      t.ok(Date.parse((await shown(host)).validTo) > Date.now());
    }
  },
);

function fail(): never {
  throw new Error("as many as before");
}
