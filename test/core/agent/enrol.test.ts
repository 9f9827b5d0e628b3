/** Tokens and who uses them: one host is let in by one token, once, and nobody learns anything on the way. */
import { createPublicKey, randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import t from "tap";

import { AuthorityKeeper } from "../../../src/core/agent/authority.ts";
import { Door } from "../../../src/core/agent/door.ts";
import type { JoinContext } from "../../../src/core/agent/entering.ts";
import { Enrolment } from "../../../src/core/agent/enrol.ts";
import { EtcdProcess } from "../../../src/core/agent/etcd-process.ts";
import { HostFiles } from "../../../src/core/agent/host-file.ts";
import { createToken, listTokens, revokeToken } from "../../../src/core/agent/join-tokens.ts";
import { changeTrust } from "../../../src/core/agent/trust-change.ts";
import { joinCluster } from "../../../src/core/agent/join.ts";
import { ok } from "../../../src/core/model/finding.ts";
import { Secret } from "../../../src/core/model/secret.ts";
import { decodeJoinToken, encodeJoinToken } from "../../../src/core/model/token-code.ts";
import type { TokenCreated } from "../../../src/core/wire/agent-api.ts";
import { kidOf } from "../../../src/core/wire/certificate.ts";
import { HostClient } from "../../../src/core/wire/host-client.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { proveToken } from "../../../src/core/wire/join-proof.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { makeHostCert, makeJoinCert, makeKey } from "../../../src/core/wire/x509-make.ts";
import { loopback, startStore } from "../wire/etcd-for-tests.ts";
import { emptyFiles, HeardAudit, makeCluster, silent, type TestCluster } from "./identity-for-tests.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

type TestMember = {
  readonly made: TestCluster;
  readonly store: StoreClient;
  readonly address: string;
  readonly audit: HeardAudit;
  readonly token: (wanted?: { readonly forMs?: number; readonly name?: string }) => Promise<TokenCreated>;
  readonly hosts: () => readonly string[];
};

/** A member's door on an address of its own, over a store of its own. */
async function startMember(t: Scope, n: number): Promise<TestMember> {
  const made = await makeCluster(t);
  const { endpoints } = await startStore(t, 1, n);
  const store = new StoreClient({ endpoints });
  const { identity, authority, cluster, host } = made;
  await store.put(keys.trust, made.text);
  const own = { id: host, name: "h1", address: "10.0.0.1", joinedAt: new Date().toISOString() };
  await store.put(keys.host(host), JSON.stringify(own));
  await store.put(keys.hostName("h1"), JSON.stringify({ host }));
  await store.put(keys.hostAddress(own.address), JSON.stringify({ host }));
  const createdAt = new Date().toISOString();
  const answer = { id: cluster, name: "lab", createdAt, host, endpoints: [...endpoints] };
  const enrolment = new Enrolment({
    store,
    authority,
    identity,
    cluster: () => answer,
    members: () => [],
  });
  const address = loopback(n);
  const audit = new HeardAudit();
  const door = await Door.listen({
    address,
    tls: identity.tls,
    isHostAddress: () => true,
    rest: null,
    handlers: { "POST /v1/enrol": (call) => enrolment.enrol(call) },
    audit,
    log: silent,
  });
  t.teardown(() => door.close());
  return {
    made,
    audit,
    store,
    address,
    token: ({ forMs = 60_000, name } = {}) =>
      createToken(
        { store, authority, trust: identity.trust() },
        { forMs, name: name ?? null, by: "root@h1" },
      ),
    hosts: () => Array.from(identity.trust().hosts.values(), ({ name }) => name).toSorted(),
  };
}

/** A host's directory and what it joins with; `n` is the last part of its loopback address. */
async function newcomer(t: Scope): Promise<JoinContext> {
  const directory = await mkdtemp(join(tmpdir(), "weft-join-"));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const stateDir = join(directory, "state");
  await mkdir(stateDir);
  return {
    files: new HostFiles(stateDir),
    identityFiles: new IdentityFiles(stateDir),
    etcd: new EtcdProcess({ stateDir, runDir: directory, program: "/usr/bin/etcd" }),
    bootIdFile: null,
    certificateLifeMs: null,
    log: silent,
  };
}

void t.test("token: a host that has one is let in with its own key, once", async (t) => {
  const member = await startMember(t, 1);
  const { made, store } = member;
  const { token, id } = await member.token();
  const context = await newcomer(t);
  const request = { from: member.address, token, name: "h2", address: loopback(51) };
  const file = await joinCluster(context, request);
  t.equal(file.cluster, made.cluster);
  const identity = await context.identityFiles.readHost();
  const kid = identity?.facts.kid ?? "";
  t.same(identity?.facts.uris, [`weft://${made.cluster}/host/${file.host}`]);
  const listed = Array.from(made.identity.trust().hosts).find(([host]) => host === file.host)?.[1];
  t.same(
    listed?.keys.map((key) => key.kid),
    [kid],
    "the key that it made is the one that is listed",
  );
  t.equal(listed?.certs.length, 1);
  t.same(listed?.held, [], "no authority's key is given away by that");
  t.match(await listTokens(store, made.identity.trust()), [{ id, used: { host: "h2" } }]);
  const second = await newcomer(t);
  await t.rejects(joinCluster(second, { ...request, name: "h3", address: loopback(52) }), {
    code: "E-TOKEN-02",
    status: 403,
  });
  t.equal(await second.files.readHost(), null);
  t.same(member.hosts(), ["h1", "h2"]);
  t.same(member.audit.lines, [
    "begin POST /v1/enrol nobody",
    "end POST /v1/enrol ok",
    "refused POST /v1/enrol E-TOKEN-02",
  ]);
});

void t.test(
  "token: expired, revoked, for another name, guessed, and planted ones let nobody in",
  async (t) => {
    const member = await startMember(t, 2);
    const { made, store } = member;
    const context = await newcomer(t);
    const attempt = (token: string, name = "h2"): Promise<unknown> =>
      joinCluster(context, { from: member.address, token, name, address: loopback(53) });

    const named = await member.token({ name: "h9" });
    await t.rejects(attempt(named.token), { code: "E-TOKEN-02", message: /for a host named "h9"/ });

    const expired = await member.token({ forMs: -1 });
    await t.rejects(attempt(expired.token), { code: "E-TOKEN-02" });

    const revoked = await member.token();
    await revokeToken(store, revoked.id);
    await t.rejects(attempt(revoked.token), { code: "E-TOKEN-02" });

    // Somebody who may write to the store, and has no authority's key, makes one of his own: unsigned, and signed by himself.
    const other = await makeCluster(t);
    const planted = await createToken(
      { store, authority: other.authority, trust: other.identity.trust() },
      { forMs: 60_000, name: null, by: "thief" },
    );
    const decoded = decodeJoinToken(planted.token);
    if (decoded.kind === "refused") throw new Error("a token");
    const authority16 = Buffer.from((made.identity.trust().authorities[0]?.kid ?? "").slice(0, 32), "hex");
    const aimed = encodeJoinToken({ ...decoded.value, fingerprint16: authority16 });
    await t.rejects(attempt(aimed), { code: "E-TOKEN-02" });
    t.same(member.hosts(), ["h1"]);
    t.equal(await context.files.readHost(), null);
  },
);

void t.test(
  "token: five wrong ones from an address are looked at in a minute, and then not even a right one",
  async (t) => {
    const member = await startMember(t, 3);
    const right = await member.token();
    const context = await newcomer(t);
    const request = { from: member.address, name: "h2", address: loopback(54) };
    const decoded = decodeJoinToken(right.token);
    if (decoded.kind === "refused") throw new Error("a token");
    const guess = (n: number): string =>
      encodeJoinToken({ ...decoded.value, secret12: new Secret(new Uint8Array(12).fill(n)) });
    // At the same time: they count from their begin.
    const keyPem = makeKey();
    const host = randomUUID();
    const shown = { cert: await makeJoinCert({ host, keyPem, nowMs: Date.now() }), key: keyPem.reveal() };
    const kid = kidOf(createPublicKey(keyPem.reveal()));
    const outcomes = await Promise.all(
      Array.from({ length: 12 }, async (_, n) => {
        const wrong = decodeJoinToken(guess(n));
        if (wrong.kind === "refused") throw new Error("a token");
        const claim = { cluster: member.made.cluster, kid, host, name: "h2", address: loopback(54) };
        const client = new HostClient({
          address: member.address,
          from: loopback(54),
          shown,
          expect: { kind: "authority", fingerprint16: decoded.value.fingerprint16 },
        });
        const body = {
          token: proveToken(wrong.value, claim),
          host: { id: host, name: "h2", address: loopback(54) },
        };
        return client
          .enrol(() => body)
          .then(
            () => "in",
            (error: unknown) => (error instanceof Error && "code" in error ? error.code : "?"),
          );
      }),
    );
    t.same(outcomes.filter((code) => code === "E-TOKEN-02").length, 5);
    t.same(outcomes.filter((code) => code === "E-TOKEN-03").length, 7);
    await t.rejects(joinCluster(context, { ...request, token: right.token }), {
      code: "E-TOKEN-03",
      status: 429,
    });
    const elsewhere = await joinCluster(context, { ...request, token: right.token, address: loopback(55) });
    t.ok(elsewhere.host, "others are not kept out by that");
  },
);

void t.test("token: of ten hosts that use one at the same moment one gets in", async (t) => {
  const member = await startMember(t, 4);
  const { token } = await member.token();
  const outcomes = await Promise.all(
    Array.from({ length: 10 }, async (_, n) => {
      const context = await newcomer(t);
      const request = { from: member.address, token, name: `h${n + 10}`, address: loopback(60 + n) };
      return joinCluster(context, request).then(
        () => "in",
        (error: unknown) => (error instanceof Error && "code" in error ? error.code : error),
      );
    }),
  );
  t.equal(outcomes.filter((code) => code === "in").length, 1);
  t.equal(outcomes.filter((code) => code === "E-TOKEN-02").length, 9);
  t.equal(member.hosts().length, 2);
});

void t.test("token: who has one becomes no host that is there already", async (t) => {
  const member = await startMember(t, 5);
  const { made } = member;
  const { token } = await member.token();
  const decoded = decodeJoinToken(token);
  if (decoded.kind === "refused") throw new Error("a token");
  const keyPem = makeKey();
  const kid = kidOf(createPublicKey(keyPem.reveal()));
  const as = async (host: { id: string; name: string; address: string }): Promise<unknown> => {
    const shown = {
      cert: await makeJoinCert({ host: host.id, keyPem, nowMs: Date.now() }),
      key: keyPem.reveal(),
    };
    const expect = { kind: "authority" as const, fingerprint16: decoded.value.fingerprint16 };
    const client = new HostClient({ address: member.address, from: loopback(56), shown, expect });
    return client.enrol(({ cluster }) => ({
      token: proveToken(decoded.value, { cluster, kid, host: host.id, ...host }),
      host,
    }));
  };
  const before = made.identity.known.body;
  const { host: id } = made;
  for (const victim of [
    { id, name: "h1", address: "10.0.0.1" },
    { id, name: "h2", address: "10.0.0.2" },
    { id: randomUUID(), name: "h1", address: "10.0.0.2" },
    { id: randomUUID(), name: "h2", address: "10.0.0.1" },
  ])
    await t.rejects(as(victim), { code: "E-HOST-03" }, JSON.stringify(victim));
  // Also where somebody took the names out of the store, who can't take them out of the list.
  await member.store.delete(keys.host(id));
  await member.store.delete(keys.hostName("h1"));
  await member.store.delete(keys.hostAddress("10.0.0.1"));
  await t.rejects(as({ id, name: "h1", address: "10.0.0.1" }), { code: "E-HOST-03" });
  await t.rejects(as({ id: randomUUID(), name: "h1", address: "10.0.0.3" }), { code: "E-HOST-03" });
  t.equal(made.identity.known.body, before, "the list is what it was");
});

void t.test("token: a proof is good for the host and key that it was made for", async (t) => {
  const member = await startMember(t, 6);
  const { token } = await member.token();
  const decoded = decodeJoinToken(token);
  if (decoded.kind === "refused") throw new Error("a token");
  // What a host of the cluster sees that stands between, having been stolen: a whole request.
  const [honest, thief] = [makeKey(), makeKey()];
  const host = { id: randomUUID(), name: "h2", address: "10.0.0.2" };
  const expect = { kind: "authority" as const, fingerprint16: decoded.value.fingerprint16 };
  const kidOfKey = (key: typeof honest): string => kidOf(createPublicKey(key.reveal()));
  const { cluster } = member.made;
  const seen = {
    token: proveToken(decoded.value, { cluster, kid: kidOfKey(honest), host: host.id, ...host }),
    host,
  };
  const shown = {
    cert: await makeJoinCert({ host: host.id, keyPem: thief, nowMs: Date.now() }),
    key: thief.reveal(),
  };
  const client = new HostClient({ address: member.address, from: loopback(57), shown, expect });
  await t.rejects(
    client.enrol(() => seen),
    { code: "E-TOKEN-02" },
    "with a key of his own",
  );
  const other = { ...host, name: "h7" };
  await t.rejects(
    client.enrol(() => ({ ...seen, host: other })),
    { code: "E-TOKEN-02" },
  );
  const unproven = new HostClient({
    address: member.address,
    from: loopback(57),
    shown: member.made.identity.current(),
    expect,
  });
  await t.rejects(
    unproven.enrol(() => seen),
    { code: "E-AUTH-01" },
    "with a certificate that is not for that",
  );
  t.same(member.hosts(), ["h1"]);
});

void t.test("join: who stands between with an authority of his own sees not one byte of HTTP", async (t) => {
  const member = await startMember(t, 7);
  const thief = await makeCluster(t);
  const [stolen] = (await member.made.files.readAuthorities()).host;
  const [own] = (await thief.files.readAuthorities()).host;
  if (stolen === undefined || own === undefined) throw new Error("authorities");
  const key = makeKey();
  const publicKey = createPublicKey(key.reveal());
  const leaf = async (authority: typeof own, cluster: string): Promise<string> =>
    (await makeHostCert({ authority, cluster, host: thief.host, publicKey, nowMs: Date.now() })).pem;
  const { cluster } = member.made;
  const [byOwn, byStolen] = [await leaf(own, cluster), await leaf(stolen, randomUUID())];
  // His own authority; his own, with the real one's certificate beside it; none at all; a leaf that is an authority.
  const chains = [byOwn + own.pem, byOwn + stolen.pem, byStolen, byOwn];
  const address = loopback(70);
  for (const cert of chains) {
    let seen = 0;
    const server = createTlsServer({ cert, key: key.reveal(), minVersion: "TLSv1.3" }, (socket) => {
      socket.on("data", (chunk: Buffer) => (seen += chunk.length));
      socket.on("error", () => undefined);
    });
    await listening(server, address);
    const { token } = await member.token();
    const context = await newcomer(t);
    const request = { from: address, token, name: "h2", address: loopback(58) };
    await t.rejects(joinCluster(context, request), { code: "E-TOKEN-04", safe: /secret was not sent/ });
    t.equal(seen, 0);
    t.equal(await context.files.readHost(), null);
    await new Promise((resolve) => server.close(resolve));
  }
});

void t.test("join: what answers and is no door is told apart from a cluster", async (t) => {
  const member = await startMember(t, 8);
  const { token } = await member.token();
  const context = await newcomer(t);
  const request = { from: loopback(71), token, name: "h2", address: loopback(59) };
  await t.rejects(joinCluster(context, request), { code: "E-HOST-09", message: /refused/i });
  const open: Socket[] = [];
  const server = createServer((socket) => {
    open.push(socket);
    socket.on("error", () => undefined);
    socket.write("HTTP/1.1 200 OK\r\n\r\n");
  });
  await listening(server, loopback(71));
  await t.rejects(joinCluster(context, request), { code: "E-HOST-09" });
  for (const socket of open) socket.destroy();
  await new Promise((resolve) => server.close(resolve));
  await t.rejects(joinCluster(context, { ...request, token: `${token.slice(0, -1)}0` }), {
    code: "E-TOKEN-01",
  });
});

void t.test(
  "join: a host that is no member names those that are, and each of them has to prove itself",
  async (t) => {
    const member = await startMember(t, 9);
    const { identity } = member.made;
    const without = await AuthorityKeeper.open({ files: await emptyFiles(t) });
    const asked: string[] = [];
    const enrolment = new Enrolment({
      store: member.store,
      authority: without,
      identity,
      cluster: () => {
        throw new Error("it lets nobody in");
      },
      members: () => [loopback(73), member.address],
    });
    const door = await Door.listen({
      address: loopback(72),
      tls: identity.tls,
      isHostAddress: () => true,
      rest: null,
      handlers: {
        "POST /v1/enrol": (call) => {
          asked.push(call.body.host.name);
          return enrolment.enrol(call);
        },
      },
      audit: new HeardAudit(),
      log: silent,
    });
    t.teardown(() => door.close());
    const { token } = await member.token();
    const context = await newcomer(t);
    const request = { from: `${loopback(72)}:7400`, token, name: "h2", address: loopback(59) };
    const file = await joinCluster(context, request);
    t.equal(file.cluster, member.made.cluster);
    t.same(asked, ["h2"]);
    t.same(member.hosts(), ["h1", "h2"]);
  },
);

void t.test(
  "join: cut short anywhere, the same command ends it as the same host, by the same token",
  async (t) => {
    const member = await startMember(t, 10);
    const dies = (): Promise<never> => Promise.reject(new Error("the power is gone"));
    const cuts: readonly ((context: JoinContext) => JoinContext)[] = [
      (context) => ({ ...context, files: broken(context.files, "writeIntent") }),
      // It was let in, and heard nothing of it.
      (context) => ({ ...context, identityFiles: broken(context.identityFiles, "writeHost") }),
      (context) => ({ ...context, identityFiles: broken(context.identityFiles, "writeTrustFirst") }),
      (context) => ({ ...context, files: broken(context.files, "writeHost") }),
    ];
    function broken<Files extends HostFiles | IdentityFiles>(files: Files, method: keyof Files): Files {
      return new Proxy(files, {
        get: (target, name) => {
          if (name === method) return dies;
          const value: unknown = Reflect.get(target, name, target);
          return typeof value === "function" ? (value.bind(target) as unknown) : value;
        },
      });
    }
    for (const [n, cut] of cuts.entries()) {
      const { token } = await member.token();
      const context = await newcomer(t);
      const request = { from: member.address, token, name: `h${n + 2}`, address: loopback(80 + n) };
      await t.rejects(joinCluster(cut(context), request), { message: "the power is gone" });
      t.equal(await context.files.readHost(), null, "in no cluster until the end");
      const intent = await context.files.readIntent();
      const file = await joinCluster(context, request);
      if (intent !== null) t.equal(file.host, intent.host);
      t.equal(await context.files.readIntent(), null);
      const listed = Array.from(member.made.identity.trust().hosts.values()).filter(
        (host) => host.name === request.name,
      );
      t.equal(listed.length, 1);
      t.equal(listed[0]?.keys.length, 1);
    }
  },
);

void t.test("token: a host that was taken out is not let in again by the one it has used", async (t) => {
  const member = await startMember(t, 11);
  const { made, store } = member;
  const { token } = await member.token();
  const context = await newcomer(t);
  const request = { from: member.address, token, name: "h2", address: loopback(90) };
  const { host: id } = await joinCluster(context, request);
  // As if it had joined a moment ago and never heard of it; but for what was taken out of the list and the store.
  await context.files.retireHost();
  await context.files.writeIntent({
    kind: "join",
    authority: (made.identity.trust().authorities[0]?.kid ?? "").slice(0, 32),
    host: id,
    name: "h2",
    address: request.address,
  });
  const { authority, identity } = made;
  const own = [keys.host(id), keys.hostName("h2"), keys.hostAddress(request.address)];
  await changeTrust(
    { store, authority, identity },
    (trust) => ok({ ...trust, hosts: new Map(Array.from(trust.hosts).filter(([host]) => host !== id)) }),
    { compares: [], ops: own.map((key) => ({ kind: "delete", key })) },
  );
  await t.rejects(joinCluster(context, request), { code: "E-TOKEN-02" });
  t.same(member.hosts(), ["h1"]);
  const { token: another } = await member.token();
  const file = await joinCluster(context, { ...request, token: another });
  t.equal(file.host, id, "a token that nobody has used lets it in");
});

async function listening(server: Server, address: string): Promise<void> {
  server.listen(7400, address);
  await once(server, "listening");
}
