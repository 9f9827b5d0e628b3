/** A cluster is made with its authorities: a store that answers nobody else, and every step of it may be cut short. */
import { X509Certificate } from "node:crypto";
import { readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import type { JoinContext } from "../../../src/core/agent/entering.ts";
import { clientUrl, EtcdProcess, peerUrl } from "../../../src/core/agent/etcd-process.ts";
import { HostFiles } from "../../../src/core/agent/host-file.ts";
import { initCluster } from "../../../src/core/agent/init.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { post } from "../../../src/core/wire/store-http.ts";
import type { StoreTls } from "../../../src/core/wire/store-http.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { makePki, tlsOf } from "../wire/etcd-for-tests.ts";
import { silent } from "./identity-for-tests.ts";
import { startHost } from "./test-host.ts";
import type { TestHost } from "./test-host.ts";

function contextOf(host: TestHost, program: string): JoinContext {
  const { stateDir, directory } = host;
  return {
    files: new HostFiles(stateDir),
    identityFiles: new IdentityFiles(stateDir),
    etcd: new EtcdProcess({ stateDir, runDir: join(directory, "run"), program }),
    bootIdFile: null,
    certificateLifeMs: null,
    log: silent,
  };
}

async function hostTls(files: IdentityFiles): Promise<StoreTls> {
  const [identity, text] = [await files.readHost(), await files.readTrust()];
  const trust = openFirstTrust(text ?? "");
  if (identity === null || trust.kind === "refused") throw new Error("an identity");
  const { certPem, chainPem, keyPem } = identity;
  const ca = trust.value.trust.storeAuthorities.map(({ pem }) => pem).join("");
  return tlsOf({ cert: certPem + chainPem, key: keyPem.reveal() }, ca);
}

async function asked(url: string, tls: StoreTls | null): Promise<number | string> {
  try {
    const signal = AbortSignal.timeout(3000);
    const answer = await post(url, "/v3/maintenance/status", "{}", { signal, tls });
    for await (const _ of answer.body);
    return answer.status;
  } catch (error) {
    return error instanceof Error ? error.name : "?";
  }
}

void t.test("init: an identity, a signed list, and a store that answers nobody else", async (t) => {
  const host = await startHost(t, 1);
  const made = await host.client.init({ name: "h1", address: host.address, clusterName: "lab" });
  const files = new IdentityFiles(host.stateDir);
  const tls = await hostTls(files);
  const store = new StoreClient({ endpoints: [clientUrl(host.address)], tls });
  t.teardown(() => store.call.close());
  const text = await files.readTrust();
  t.equal((await store.get(keys.trust))?.value, text, "the store's list is the file's");
  const first = openFirstTrust(text ?? "");
  if (first.kind === "refused") throw new Error(first.finding.message);
  const { trust } = first.value;
  t.match(trust, { cluster: made.id, generation: 1n, transport: "tls", rotation: null });
  const [shown, etcd] = [(await files.readHost())?.certPem ?? "", await files.readEtcdCertificate()];
  const serials = [new X509Certificate(shown), etcd].map((read) => read?.serialNumber.toLowerCase());
  const [own] = trust.hosts.values();
  t.same(
    own?.certs.map(({ serial }) => serial),
    serials,
  );
  t.same(
    own?.held,
    [...trust.authorities, ...trust.storeAuthorities].map(({ kid }) => kid),
  );

  const modes = await Promise.all(
    ["identity", "authority", "authority/tls", "etcd", "identity/host.key", "identity/host.pem"].map(
      async (path) => (await stat(join(host.stateDir, path))).mode & 0o777,
    ),
  );
  t.same(modes, [0o700, 0o700, 0o700, 0o700, 0o600, 0o600]);

  const [client, peer] = [clientUrl(host.address), peerUrl(host.address)];
  t.equal(await asked(client, tls), 200);
  t.equal(await asked(client.replace("https", "http"), null), "PostFailure", "in clear");
  const other = await makePki(t);
  t.equal(await asked(client, tlsOf(other.host, tls.storeCa())), "PostFailure", "another cluster's host");
  t.equal(await asked(peer, tls), "PostFailure", "a host's certificate at the port of members");
  const storeLeaf = await readFile(join(host.stateDir, "authority", "tls", "etcd.pem"), "utf8");
  t.equal(
    await asked(peer, tlsOf({ cert: storeLeaf, key: storeLeaf }, tls.storeCa())),
    404,
    "a member's is served",
  );
});

void t.test("init: cut short anywhere, it continues with the same identifiers and authorities", async (t) => {
  const host = await startHost(t, 11);
  const context = contextOf(host, "/nowhere/etcd");
  const request = { name: "h1", address: host.address, clusterName: "lab", transport: "tls" as const };
  await t.rejects(initCluster(context, request), { code: "E-STORE-09" });
  const { files, identityFiles } = context;
  const intent = await files.readIntent();
  t.equal(await files.readHost(), null, "in no cluster until the end");
  const text = await identityFiles.readTrust();
  const authorities = await identityFiles.readAuthorities();
  // As if it had ended before the list was written.
  await rm(join(host.stateDir, "identity", "trust.json"));
  await rm(join(host.stateDir, "identity", "host.pem"));
  await t.rejects(initCluster(context, request), { code: "E-STORE-09" });
  t.not(await identityFiles.readTrust(), text);
  t.same(
    (await identityFiles.readAuthorities()).host.map(({ kid }) => kid),
    authorities.host.map(({ kid }) => kid),
  );
  const second = await identityFiles.readTrust();
  const made = await host.client.init(request);
  t.equal(made.id, intent?.kind === "init" ? intent.cluster : null);
  t.equal(made.host, intent?.host);
  t.equal(await files.readIntent(), null);
  t.equal(await identityFiles.readTrust(), second);
});

void t.test("init: after the store was made, and under another name", async (t) => {
  const host = await startHost(t, 21);
  const context = contextOf(host, "/usr/bin/etcd");
  const request = { name: "h1", address: host.address, clusterName: null, transport: "auth" as const };
  const made = await initCluster(context, request);
  const intent = {
    kind: "init",
    cluster: made.cluster,
    host: made.host,
    clusterName: "weft",
    name: "h1",
  } as const;
  const again = { ...intent, address: host.address, createdAt: new Date().toISOString() };
  // As a crash right before host.json leaves it.
  await rm(join(host.stateDir, "host.json"));
  await context.files.writeIntent(again);
  const second = await initCluster(context, request);
  t.same(second, made);
  await rm(join(host.stateDir, "host.json"));
  await context.files.writeIntent(again);
  const renamed = await initCluster(context, { ...request, name: "h7" });
  t.match(renamed, { name: "h7", cluster: made.cluster });
  const trust = openFirstTrust((await context.identityFiles.readTrust()) ?? "");
  t.match(trust, { value: { trust: { transport: "auth" } } });
  t.same(trust.kind === "ok" ? Array.from(trust.value.trust.hosts.values(), ({ name }) => name) : [], ["h7"]);
});

void t.test("agent: a state directory of before identity is refused, and left as it is", async (t) => {
  const host = await startHost(t, 31);
  await host.client.init({ name: "h1", address: host.address });
  await host.stopAgent();
  await rm(join(host.stateDir, "identity"), { recursive: true });
  const before = await readFile(join(host.stateDir, "host.json"), "utf8");
  await t.rejects(host.startAgent(), { code: "E-HOST-11", safe: /^Nothing was changed/ });
  t.equal(await readFile(join(host.stateDir, "host.json"), "utf8"), before);
});
