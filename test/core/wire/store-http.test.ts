/**
 * What is known of a request that failed. "Not executed" said of one that was would let a swap be made twice
 * (protocol.md R14): so each case is tried on real sockets, and the server tells whether a byte of HTTP reached it.
 */
import { once } from "node:events";
import { createServer as createHttp, type RequestListener } from "node:http";
import { createServer as createHttps } from "node:https";
import { type AddressInfo, createServer as createTcp, type Server, type Socket } from "node:net";
import { createServer as createTls, type TlsOptions } from "node:tls";
import t from "tap";

import { post, type PostAnswer, PostFailure, type StoreTls } from "../../../src/core/wire/store-http.ts";
import { StoreCall } from "../../../src/core/wire/store-call.ts";
import { type Leaf, TestAuthority } from "./certificates-for-tests.ts";
import { z } from "zod";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

/** Listens on loopback; the number of its port. All its connections end with the test. */
async function listen(t: Scope, server: Server): Promise<number> {
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await once(server, "close");
  });
  return (server.address() as AddressInfo).port;
}

type Outcome = { readonly kind: string; readonly reason: string };

async function outcome(url: string, tls: StoreTls | null, deadlineMs: number = 2000): Promise<Outcome> {
  try {
    const answer = await post(url, "/v3/kv/txn", "{}", { signal: AbortSignal.timeout(deadlineMs), tls });
    return { kind: "answered", reason: await textOf(answer) };
  } catch (error) {
    if (!(error instanceof PostFailure)) throw error;
    return { kind: error.kind, reason: error.message };
  }
}

async function textOf(answer: PostAnswer): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of answer.body) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

void t.test("store: http: nobody listens: not executed", async (t) => {
  const server = createTcp().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  const found = await outcome(`http://127.0.0.1:${port}`, null);
  t.match(found, { kind: "not-executed", reason: /ECONNREFUSED/ });
  const named = await outcome("http://no-such-host.invalid:7402", null);
  t.equal(named.kind, "not-executed", named.reason);
});

void t.test("store: http: accepted and closed, before or after reading: unknown", async (t) => {
  const atOnce = await listen(
    t,
    createTcp((socket) => socket.destroy()),
  );
  t.match(await outcome(`http://127.0.0.1:${atOnce}`, null), { kind: "unknown" });
  for (const end of ["destroy", "end", "resetAndDestroy"] as const) {
    const port = await listen(
      t,
      createTcp((socket) => socket.once("data", () => socket[end]())),
    );
    t.match(await outcome(`http://127.0.0.1:${port}`, null), { kind: "unknown" }, end);
  }
});

void t.test("store: http: no answer, half an answer, nonsense: unknown", async (t) => {
  const silent = await listen(
    t,
    createTcp((socket) => socket.resume()),
  );
  t.match(await outcome(`http://127.0.0.1:${silent}`, null, 200), { kind: "unknown", reason: /timeout/ });
  const nonsense = await listen(
    t,
    createTcp((socket) => socket.once("data", () => socket.write("nonsense\r\n\r\n"))),
  );
  t.match(await outcome(`http://127.0.0.1:${nonsense}`, null), { kind: "unknown" });
  const half = await listen(
    t,
    createTcp((socket) =>
      socket.once("data", () => socket.end("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")),
    ),
  );
  const answer = await post(`http://127.0.0.1:${half}`, "/", "{}", { signal: null, tls: null });
  t.equal(answer.status, 200);
  await t.rejects(textOf(answer), "a body that is cut is an error, not a short body");
  const call = new StoreCall({ endpoints: [`http://127.0.0.1:${half}`], patienceMs: 0 });
  const changed = await call.change({ path: "/", body: {}, answer: z.object({}) });
  t.equal(changed.kind, "unknown");
});

void t.test("store: http: a kept connection that the server closes when it is used: unknown", async (t) => {
  const port = await listen(
    t,
    createTcp((socket) => {
      socket.once("data", () => {
        socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        socket.once("data", () => socket.destroy());
      });
    }),
  );
  const url = `http://127.0.0.1:${port}`;
  t.same(await outcome(url, null), { kind: "answered", reason: "ok" });
  t.match(await outcome(url, null), { kind: "unknown" });
  t.same(await outcome(url, null), { kind: "answered", reason: "ok" }, "a new connection");
});

void t.test(
  "store: http: the signal ends a request, and a body in the middle, with its reason",
  async (t) => {
    const server = createHttp((_, answer) => answer.write("first\n"));
    const url = `http://127.0.0.1:${await listen(t, server)}`;
    const stop = new AbortController();
    const { body } = await post(url, "/v3/watch", "{}", { signal: stop.signal, tls: null });
    const chunks = body[Symbol.asyncIterator]();
    t.equal(Buffer.from((await chunks.next()).value as Uint8Array).toString(), "first\n");
    const next = chunks.next();
    stop.abort(new Error("no sign of life"));
    await t.rejects(next, { message: "no sign of life" });
    const late = post(url, "/v3/watch", "{}", { signal: stop.signal, tls: null });
    await t.rejects(late, { kind: "not-executed", message: "no sign of life" });
  },
);

type Pki = {
  readonly ours: TestAuthority;
  readonly other: TestAuthority;
  readonly server: Leaf;
  readonly client: Leaf;
};

async function makePki(t: Scope): Promise<Pki> {
  const ours = await TestAuthority.make(t, "ours");
  const [server, client] = await Promise.all([
    ours.issue({ names: "IP:127.0.0.1" }),
    ours.issue({ names: "URI:weft://c/host/h" }),
  ]);
  return { ours, other: await TestAuthority.make(t, "other"), server, client };
}

const tlsOf = (leaf: Pick<Leaf, "cert" | "key">, ca: string): StoreTls => ({
  current: () => leaf,
  storeCa: () => ca,
});

const serverOptions = ({ server, ours }: Pki): TlsOptions => ({
  cert: server.cert,
  key: server.key,
  ca: ours.cert,
  requestCert: true,
  rejectUnauthorized: true,
});

void t.test("store: https: what the two sides refuse in the handshake was not executed", async (t) => {
  const pki = await makePki(t);
  let requests = 0;
  const listener: RequestListener = (request, answer) => {
    requests += 1;
    request.resume();
    answer.end("ok");
  };
  const good = tlsOf(pki.client, pki.ours.cert);
  const url = `https://127.0.0.1:${await listen(t, createHttps(serverOptions(pki), listener))}`;
  t.same(await outcome(url, good), { kind: "answered", reason: "ok" });
  t.equal(requests, 1);
  t.match(await outcome(url, tlsOf(pki.client, pki.other.cert)), {
    kind: "not-executed",
    reason: /self-signed/,
  });
  // The alert comes after our request was written: the server never read it.
  const without = await outcome(url, tlsOf({ cert: "", key: "" }, pki.ours.cert));
  t.match(without, { kind: "not-executed", reason: "tlsv13 alert certificate required" });
  const elsewhere = await pki.ours.issue({ names: "IP:127.9.9.9" });
  const wrong = createHttps({ ...serverOptions(pki), cert: elsewhere.cert, key: elsewhere.key }, listener);
  const stranger = await outcome(`https://127.0.0.1:${await listen(t, wrong)}`, good);
  t.match(stranger, { kind: "not-executed", reason: /127\.9\.9\.9/ });
  const old = createHttps({ ...serverOptions(pki), maxVersion: "TLSv1.2" }, listener);
  t.match(await outcome(`https://127.0.0.1:${await listen(t, old)}`, good), { kind: "not-executed" });
  t.equal(requests, 1, "no other was read");
});

void t.test("store: https: one that accepts, hangs, closes or speaks no TLS was told nothing", async (t) => {
  const pki = await makePki(t);
  const good = tlsOf(pki.client, pki.ours.cert);
  const seen: Buffer[] = [];
  for (const behave of ["hang", "destroy", "end", "clear"] as const) {
    const server = createTcp((socket) =>
      socket.on("data", (data) => {
        seen.push(data);
        if (behave === "clear") socket.end("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        else if (behave !== "hang") socket[behave]();
      }),
    );
    const found = await outcome(`https://127.0.0.1:${await listen(t, server)}`, good, 300);
    t.match(found, { kind: "not-executed" }, behave);
  }
  t.notOk(Buffer.concat(seen).includes("v3/kv/txn"), "not a byte of HTTP left");
});

void t.test(
  "store: https: after the handshake the connection is cut, or nothing comes: unknown",
  async (t) => {
    const pki = await makePki(t);
    const good = tlsOf(pki.client, pki.ours.cert);
    for (const behave of ["destroy at once", "destroy", "end", "hang"] as const) {
      const server = createTls(serverOptions(pki), (socket) => {
        socket.on("error", () => undefined);
        if (behave === "destroy at once") socket.destroy();
        socket.on("data", () => {
          if (behave === "destroy" || behave === "end") socket[behave]();
        });
      });
      const found = await outcome(`https://127.0.0.1:${await listen(t, server)}`, good, 500);
      t.match(found, { kind: "unknown" }, behave);
    }
  },
);

void t.test(
  "store: https: with a certificate nothing goes in clear, without one nothing over TLS",
  async (t) => {
    const pki = await makePki(t);
    let requests = 0;
    const server = createHttp((_, answer) => {
      requests += 1;
      answer.end();
    });
    const port = await listen(t, server);
    const found = await outcome(`http://127.0.0.1:${port}`, tlsOf(pki.client, pki.ours.cert));
    t.match(found, { kind: "not-executed", reason: /https:/ });
    t.match(await outcome(`https://127.0.0.1:${port}`, null), { kind: "not-executed", reason: /http:/ });
    t.equal(requests, 0);
    const unusable = await outcome(
      `https://127.0.0.1:${port}`,
      tlsOf({ cert: "x", key: "y" }, pki.ours.cert),
    );
    t.equal(unusable.kind, "not-executed");
  },
);

void t.test(
  "store: https: a renewed certificate is shown to the same server by the next request",
  async (t) => {
    const pki = await makePki(t);
    const shown: string[] = [];
    const connections = new Set<unknown>();
    const server = createHttps(serverOptions(pki), (request, answer) => {
      const socket = request.socket as Socket & {
        getPeerX509Certificate(): { readonly serialNumber: string };
      };
      shown.push(socket.getPeerX509Certificate().serialNumber);
      connections.add(socket);
      request.resume();
      if (request.url === "/v3/watch") answer.write("held\n");
      else answer.end("ok");
    });
    const url = `https://127.0.0.1:${await listen(t, server)}`;
    let leaf = pki.client;
    const tls: StoreTls = { current: () => leaf, storeCa: () => pki.ours.cert };
    const stop = new AbortController();
    const held = await post(url, "/v3/watch", "{}", { signal: stop.signal, tls });
    const chunks = held.body[Symbol.asyncIterator]();
    await chunks.next();
    t.equal((await outcome(url, tls)).kind, "answered");
    t.equal((await outcome(url, tls)).kind, "answered");
    t.equal(connections.size, 2, "a stream, and one kept connection for calls");
    leaf = await pki.ours.issue({ names: "URI:weft://c/host/h" });
    t.equal((await outcome(url, tls)).kind, "answered");
    t.equal(connections.size, 3);
    t.equal(new Set(shown).size, 2);
    const next = chunks.next();
    stop.abort(new Error("the stream lived on until here"));
    await t.rejects(next, { message: "the stream lived on until here" });
  },
);
