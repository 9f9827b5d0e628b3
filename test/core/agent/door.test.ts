/** Strangers, liars and floods at the door on port 7400: who is not a host of the cluster gets nothing, and keeps nobody waiting. */
import { createPublicKey, randomUUID } from "node:crypto";
import { once } from "node:events";
import { connect as connectTcp, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions, type TLSSocket } from "node:tls";
import t from "tap";

import { Door, type DoorHandlers } from "../../../src/core/agent/door.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { DOOR_LIMITS, DOOR_REQUESTS } from "../../../src/core/model/limits.ts";
import { revokeHost, type Trust, withKey } from "../../../src/core/model/trust.ts";
import { kidOf } from "../../../src/core/wire/certificate.ts";
import { HostClient } from "../../../src/core/wire/host-client.ts";
import { renderTrust } from "../../../src/core/wire/trust.ts";
import { makeAuthority, makeHostCert, makeJoinCert, makeKey } from "../../../src/core/wire/x509-make.ts";
import { loopback } from "../wire/etcd-for-tests.ts";
import { HeardAudit, makeCluster, newHostId, silent, type TestCluster } from "./identity-for-tests.ts";

type Shown = { readonly cert: string; readonly key: string };
type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

const hello = {
  cluster: randomUUID(),
  members: ["10.0.0.1"],
  version: "1",
  generation: 7n,
  now: new Date().toISOString(),
};
const credentials = { authorities: [], storeAuthorities: [], trust: "the list" };

/** A door that counts what reaches its handlers. */
async function openDoor(
  t: Scope,
  made: TestCluster,
  address: string,
  more: { readonly isHost?: boolean; readonly handlers?: Partial<DoorHandlers> } = {},
) {
  const reached: string[] = [];
  const door = await Door.listen({
    address,
    tls: made.identity.tls,
    isHostAddress: () => more.isHost ?? false,
    rest: null,
    audit: new HeardAudit(),
    log: silent,
    handlers: {
      "GET /v1/hello": async () => {
        reached.push("hello");
        return hello;
      },
      "POST /v1/members/credentials": async () => {
        reached.push("credentials");
        return credentials;
      },
      ...more.handlers,
    },
  });
  t.teardown(() => door.close());
  return { door, reached };
}

type Second = { readonly host: HostId; readonly shown: Shown };

/** A second host: listed, with a certificate by the cluster's authority. */
async function secondHost(made: TestCluster, lifeMs?: number): Promise<Second> {
  const host = newHostId();
  const keyPem = makeKey();
  const publicKey = createPublicKey(keyPem.reveal());
  const nowMs = Date.now();
  change(made, (trust) => {
    const added = withKey(trust, {
      host,
      name: `h-${host.slice(0, 4)}`,
      address: "10.0.0.2",
      kid: kidOf(publicKey),
      nowMs,
      nonce: randomUUID(),
    });
    if (added.kind === "refused") throw new Error(added.finding.message);
    return added.value;
  });
  const authority = (await made.files.readAuthorities()).host[0];
  if (authority === undefined) throw new Error("an authority");
  const { cluster } = made;
  const life = lifeMs === undefined ? {} : { lifeMs };
  const { pem } = await makeHostCert({ authority, cluster, host, publicKey, nowMs, ...life });
  return { host, shown: { cert: pem + authority.pem, key: keyPem.reveal() } };
}

function change(made: TestCluster, by: (trust: Trust) => Trust): void {
  const { identity, authority } = made;
  const { trust, body } = identity.known;
  const taken = identity.offer(authority.sign(trust, "trust", renderTrust(by(trust), body)));
  if (taken.kind === "refused") throw new Error(taken.finding.message);
}

/** By hand: node's client refuses to send half of what is to be tried. */
async function raw(address: string, shown: Partial<Shown>, text: string): Promise<string> {
  const socket = tlsTo(address, shown);
  let said = "";
  socket.on("data", (chunk: Buffer) => (said += chunk.toString()));
  socket.once("secureConnect", () => socket.write(text));
  await once(socket, "close");
  return said;
}

type More = ConnectionOptions & { readonly localAddress?: string };

function tlsTo(address: string, shown: Partial<Shown>, more: More = {}): TLSSocket {
  const options = { host: address, port: 7400, ...shown, rejectUnauthorized: false, ...more };
  const socket = connectTls(options);
  socket.on("error", () => undefined);
  return socket;
}

function tcpTo(address: string): Socket {
  const socket = connectTcp(7400, address);
  socket.on("error", () => undefined);
  return socket;
}

const request = (name: string, body = "{}", headers: readonly string[] = []): string => {
  const [method = "", path = ""] = name.split(" ");
  const lines = [
    `${method} ${path} HTTP/1.1`,
    "host: weft",
    "connection: close",
    "content-type: application/json",
  ];
  return [...lines, `content-length: ${body.length}`, ...headers, "", body].join("\r\n");
};
const ask = "POST /v1/members/credentials";

void t.test("door: a host of the cluster is answered, by whichever connection", async (t) => {
  const made = await makeCluster(t);
  const address = loopback(1);
  const { reached } = await openDoor(t, made, address);
  const { shown } = await secondHost(made);
  const expect = { kind: "host" as const, trust: made.identity.trust(), host: made.host };
  const client = new HostClient({ address, shown, expect });
  t.same((await client.credentials()).answer, credentials);
  t.same((await client.hello()).answer, hello);
  t.same(reached, ["credentials", "hello"]);
});

void t.test(
  "door: whoever is no host of this cluster reaches no handler, and is told one sentence",
  async (t) => {
    const made = await makeCluster(t);
    const other = await makeCluster(t);
    const address = loopback(2);
    const { reached } = await openDoor(t, made, address);
    const nowMs = Date.now();
    const { cluster, host } = made;
    const keyPem = makeKey();
    const own = { publicKey: createPublicKey(keyPem.reveal()), nowMs };
    const [authority] = (await made.files.readAuthorities()).host;
    const [store] = (await made.files.readAuthorities()).store;
    if (authority === undefined || store === undefined) throw new Error("authorities");
    const stranger = await makeAuthority({ kind: "host", cluster, nowMs });
    const by = async (options: Partial<Parameters<typeof makeHostCert>[0]>): Promise<Shown> => {
      const used = { authority, cluster, host, ...own, ...options };
      return { cert: (await makeHostCert(used)).pem + used.authority.pem, key: keyPem.reveal() };
    };
    const attackers: Readonly<Record<string, Partial<Shown>>> = {
      "no certificate": {},
      "signed by itself": { cert: await makeJoinCert({ host, keyPem, nowMs }), key: keyPem.reveal() },
      "another cluster's host": other.identity.current(),
      "another authority, this cluster's name": await by({ authority: stranger }),
      "the store's authority": await by({ authority: store }),
      "a key that is not listed, minted by the stolen authority": await by({}),
      "listed, another host's name": await by({ host: newHostId() }),
      "the authority itself": { cert: authority.pem, key: authority.keyPem.reveal() },
      expired: (await secondHost(made, -1000)).shown,
      "not valid yet": await by({ nowMs: nowMs + 26 * 3600_000 }),
    };
    for (const [name, shown] of Object.entries(attackers)) {
      const said = await raw(address, shown, request(ask));
      t.match(said, /^HTTP\/1\.1 401 /, name);
      t.match(said, /"code":"E-AUTH-01"/, name);
    }
    t.match(
      await raw(address, attackers["expired"] ?? {}, request(ask)),
      /was valid until .*; this host's clock says/,
    );
    t.same(reached, [], "nothing was done for any of them");
  },
);

void t.test("door: a host that is revoked loses what it has open, and gets nothing new", async (t) => {
  const made = await makeCluster(t);
  const address = loopback(3);
  const { door, reached } = await openDoor(t, made, address);
  const thief = await secondHost(made);
  const honest = await secondHost(made);
  const [idle, bystander] = [tlsTo(address, thief.shown), tlsTo(address, honest.shown)];
  await Promise.all([once(idle, "secureConnect"), once(bystander, "secureConnect")]);
  // A connection's first request tells that the door has seen it.
  for (const socket of [idle, bystander]) {
    socket.write(request("GET /v1/hello").replace("connection: close\r\n", ""));
    await once(socket, "data");
  }
  change(made, (trust) => {
    const gone = revokeHost(trust, {
      host: thief.host,
      by: "root",
      nowMs: Date.now(),
      replacement: null,
      nonce: randomUUID(),
    });
    if (gone.kind === "refused") throw new Error(gone.finding.message);
    return gone.value;
  });
  const cut = once(idle, "close");
  door.dropPeer(thief.host);
  await cut;
  bystander.write(request("GET /v1/hello"));
  const [answer] = (await once(bystander, "data")) as [Buffer];
  t.match(answer.toString(), /^HTTP\/1\.1 200 /, "others keep theirs");
  reached.length = 0;
  const again = await raw(address, thief.shown, request(ask));
  t.match(again, /^HTTP\/1\.1 403 /);
  t.match(again, /"code":"E-HOST-14"/);
  t.same(reached, []);
});

void t.test("door: TLS below 1.3 and resumed sessions are refused", async (t) => {
  const made = await makeCluster(t);
  const address = loopback(4);
  await openDoor(t, made, address);
  const { shown } = await secondHost(made);
  const older = tlsTo(address, shown, { maxVersion: "TLSv1.2" });
  const [error] = (await once(older, "error")) as [Error];
  t.match(error.message, /protocol version|unsupported protocol/i);
  const sessions: Buffer[] = [];
  const first = tlsTo(address, shown);
  first.on("session", (session: Buffer) => sessions.push(session));
  await once(first, "secureConnect");
  first.resume();
  first.write(request("GET /v1/hello"));
  await once(first, "close");
  // Whatever the server gave to resume with: a connection with it proves its key anew, or is nobody's.
  for (const session of sessions) {
    const again = tlsTo(address, {}, { session });
    await once(again, "secureConnect");
    t.notOk(again.isSessionReused());
    again.write(request(ask));
    const [answer] = (await once(again, "data")) as [Buffer];
    t.match(answer.toString(), /^HTTP\/1\.1 401 /);
  }
});

void t.test("door: a renewed certificate is shown to new connections, and open ones go on", async (t) => {
  const made = await makeCluster(t);
  const address = loopback(5);
  const { door } = await openDoor(t, made, address);
  const open = tlsTo(address, {});
  await once(open, "secureConnect");
  const before = open.getPeerX509Certificate()?.serialNumber;
  const publicKey = made.identity.publicKey();
  const { pem, chainPem } = await made.authority.issueHost(made.identity.trust(), {
    host: made.host,
    publicKey,
  });
  await made.identity.take({ certPem: pem, chainPem });
  door.renew();
  const fresh = tlsTo(address, {});
  await once(fresh, "secureConnect");
  t.not(fresh.getPeerX509Certificate()?.serialNumber, before);
  open.write(request("GET /v1/hello"));
  const [answer] = (await once(open, "data")) as [Buffer];
  t.match(answer.toString(), /^HTTP\/1\.1 200 /);
});

void t.test(
  "door: requests that two readers could read as two are refused, and so is what is too large",
  async (t) => {
    const made = await makeCluster(t);
    const address = loopback(6);
    const { reached } = await openDoor(t, made, address, { isHost: true });
    const { shown } = await secondHost(made);
    const head = `POST /v1/members/credentials HTTP/1.1\r\nhost: weft\r\ncontent-type: application/json\r\n`;
    const shapes: Readonly<Record<string, string>> = {
      "length and chunked": `${head}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`,
      "two lengths": `${head}content-length: 2\r\ncontent-length: 3\r\n\r\n{} `,
      "an unknown coding": `${head}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n`,
      "two codings": `${head}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n`,
      "a coding twice": `${head}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n`,
      "a blank before the colon": `POST /v1/members/credentials HTTP/1.1\r\nhost : weft\r\ncontent-length: 2\r\n\r\n{}`,
      "a folded line": `${head}x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}`,
      "bare line feeds": head.replaceAll("\r\n", "\n") + "content-length: 2\n\n{}",
      "no host": "POST /v1/members/credentials HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
      "a negative length": `${head}content-length: -2\r\n\r\n{}`,
      "a NUL in a header": `${head}x: a\0b\r\ncontent-length: 2\r\n\r\n{}`,
      "another protocol": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "a tunnel": "CONNECT 127.0.0.1:7402 HTTP/1.1\r\nhost: weft\r\n\r\n",
      "100 headers": `${head}${Array.from({ length: 100 }, (_, i) => `x${i}: 1\r\n`).join("")}content-length: 2\r\n\r\n{}`,
      "headers of 10 KiB": `${head}x: ${"a".repeat(10240)}\r\ncontent-length: 2\r\n\r\n{}`,
      "a body of 65 KiB": request(ask, JSON.stringify({ x: "a".repeat(65 * 1024) })),
      "an unknown field": request(ask, `{"x":1}`),
    };
    for (const [name, text] of Object.entries(shapes)) {
      const said = await raw(address, shown, text);
      t.match(said, /^(?:HTTP\/1\.1 (?:400|413|431) |$)/, name);
      t.same(reached, [], name);
    }
    t.match(await raw(address, shown, request(ask)), /^HTTP\/1\.1 200 /, "the same, well formed");
    t.same(reached, ["credentials"]);
  },
);

void t.test("door: a second request before the first one's answer ends the connection", async (t) => {
  const made = await makeCluster(t);
  const address = loopback(7);
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => (release = resolve));
  let asked = 0;
  await openDoor(t, made, address, {
    handlers: {
      "GET /v1/hello": async () => {
        asked += 1;
        await held;
        return hello;
      },
    },
  });
  const get = request("GET /v1/hello").replace("connection: close\r\n", "");
  t.equal(await raw(address, {}, get + get), "", "neither is answered");
  t.equal(asked, 1);
  release();
});

void t.test("door: requests that were given up take no place of their caller", async (t) => {
  const made = await makeCluster(t);
  const address = loopback(91);
  const waiting: Array<() => void> = [];
  const { reached } = await openDoor(t, made, address, {
    handlers: {
      "GET /v1/hello": async () => {
        await new Promise<void>((resolve) => waiting.push(resolve));
        return hello;
      },
    },
  });
  const second = await secondHost(made);
  // More than may be asked at once, and fewer than an address may shake hands in a second.
  for (let i = 0; i < DOOR_REQUESTS.atOnce + 2; i += 1) {
    const socket = tlsTo(address, second.shown);
    await once(socket, "secureConnect");
    socket.write("GET /v1/hello HTTP/1.1\r\nhost: weft\r\n\r\n");
    while (waiting.length === 0) await new Promise((resolve) => setImmediate(resolve));
    socket.destroy();
    await once(socket, "close");
    waiting.pop()?.();
  }
  const served = await raw(address, second.shown, request(ask));
  t.match(served, /^HTTP\/1\.1 200 /);
  t.strictSame(reached, ["credentials"]);
});

void t.test("door: who is slow is cut, at every stage, and takes no place for long", async (t) => {
  const made = await makeCluster(t);
  const address = loopback(8);
  await openDoor(t, made, address);
  const stages: Readonly<Record<string, { readonly limitMs: number; readonly socket: () => Socket }>> = {
    "nothing but a connection": { limitMs: 3000, socket: () => tcpTo(address) },
    "half a handshake": {
      limitMs: 3000,
      socket: () => {
        const socket = tcpTo(address);
        socket.once("connect", () => socket.write(Buffer.from("1603010200010001fc0303", "hex")));
        return socket;
      },
    },
    "a handshake and no request": { limitMs: 4000, socket: () => tlsTo(address, {}) },
    "headers drop by drop": {
      limitMs: 4000,
      socket: () => {
        const socket = tlsTo(address, {});
        socket.once("secureConnect", () => socket.write("GET /v1/hello HTTP/1.1\r\nhost: weft\r\n"));
        const drip = setInterval(() => socket.write("x: 1\r\n"), 300);
        socket.once("close", () => clearInterval(drip));
        return socket;
      },
    },
    "a body drop by drop": {
      limitMs: 7000,
      socket: () => {
        const socket = tlsTo(address, {});
        const head = "POST /v1/members/credentials HTTP/1.1\r\nhost: weft\r\ncontent-length: 1000\r\n\r\n";
        socket.once("secureConnect", () => socket.write(head));
        const drip = setInterval(() => socket.write("x"), 300);
        socket.once("close", () => clearInterval(drip));
        return socket;
      },
    },
  };
  await Promise.all(
    Object.entries(stages).map(async ([name, { limitMs, socket }]) => {
      const begun = performance.now();
      const slow = socket();
      slow.resume();
      await once(slow, "close");
      t.ok(performance.now() - begun < limitMs, `${name}: ${Math.round(performance.now() - begun)} ms`);
    }),
  );
});

void t.test(
  "door: a flood from one address takes no more than its share, and hosts are let in through it",
  async (t) => {
    const made = await makeCluster(t);
    const address = loopback(9);
    const hostAddress = loopback(10);
    const { shown } = await secondHost(made);
    const door = await Door.listen({
      address,
      tls: made.identity.tls,
      isHostAddress: (from) => from === hostAddress,
      rest: null,
      audit: new HeardAudit(),
      log: silent,
      handlers: { "POST /v1/members/credentials": async () => credentials },
    });
    t.teardown(() => door.close());
    let open = 0;
    let most = 0;
    const flood = Array.from({ length: 300 }, () => {
      const socket = tcpTo(address);
      let counted = false;
      // What is still there a moment later was taken.
      const timer = setTimeout(() => {
        counted = true;
        open += 1;
        most = Math.max(most, open);
      }, 500);
      socket.once("close", () => {
        clearTimeout(timer);
        if (counted) open -= 1;
      });
      return socket;
    });
    await Promise.all(flood.map((socket) => once(socket, "connect").catch(() => null)));
    const host = tlsTo(address, shown, { localAddress: hostAddress });
    await once(host, "secureConnect");
    host.write(request(ask));
    const [answer] = (await once(host, "data")) as [Buffer];
    t.match(answer.toString(), /^HTTP\/1\.1 200 /);
    await Promise.all(flood.filter((socket) => !socket.closed).map((socket) => once(socket, "close")));
    t.ok(most <= DOOR_LIMITS.perStranger, `${most} at most`);
    t.ok(most > 0);
  },
);

void t.test("client: it says nothing to a server that is not the host it looks for", async (t) => {
  const made = await makeCluster(t);
  const other = await makeCluster(t);
  const address = loopback(11);
  let bytes = 0;
  const { reached } = await openDoor(t, other, address);
  const shown = made.identity.current();
  const trust = made.identity.trust();
  const fingerprint16 = Buffer.from((trust.authorities[0]?.kid ?? "").slice(0, 32), "hex");
  const byToken = new HostClient({ address, shown, expect: { kind: "authority", fingerprint16 } });
  await t.rejects(
    byToken.enrol(() => {
      bytes += 1;
      throw new Error("asked for what is secret");
    }),
    { code: "E-TOKEN-04" },
  );
  t.equal(bytes, 0);
  const byList = new HostClient({ address, shown, expect: { kind: "host", trust, host: null } });
  await t.rejects(byList.credentials(), { code: "E-NET-01" });
  const itself = new HostClient({
    address,
    shown,
    expect: { kind: "host", trust: other.identity.trust(), host: newHostId() },
  });
  await t.rejects(itself.hello(), { code: "E-NET-01" });
  t.same(reached, []);
});
