/**
 * Requests of any kind at the door on port 7400 of a whole agent, by a stranger, by somebody who shows a key of his own, and by
 * a host of the cluster that lies.
 *
 * Must always hold: what is answered is JSON; a refusal has a code of docs/errors.md; nothing is ever a bug of ours; a
 * stranger is told who this is and nothing else, and whoever asks, no host is in the list but the one that was.
 */
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { connect, type ConnectionOptions, type TLSSocket } from "node:tls";

import * as fc from "fast-check";

import type { Secret } from "../../src/core/model/secret.ts";
import type { doorRoutes } from "../../src/core/wire/door-api.ts";
import { openFirstTrust } from "../../src/core/wire/signed-trust.ts";
import type { StoreClient } from "../../src/core/wire/store-client.ts";
import { keys } from "../../src/core/wire/store-keys.ts";
import { makeJoinCert, makeKey } from "../../src/core/wire/x509-make.ts";
import { startCluster } from "../core/agent/test-host.ts";
import type { TestHost } from "../core/agent/test-host.ts";
import { assertCode } from "./codes.ts";
import type { OpenDoor } from "./door.ts";
import { anyJson, nearly, textOf } from "./values.ts";

const ANSWER_MS = 20_000;
const CONTINUE = "HTTP/1.1 100 Continue\r\n\r\n";
const HOST = randomUUID();

type Who = "nobody" | "newcomer" | "host";
type Input =
  | {
      readonly kind: "request";
      readonly who: Who;
      readonly method: string;
      readonly path: string;
      readonly headers: readonly string[];
      readonly body: string;
    }
  | { readonly kind: "bytes"; readonly who: Who; readonly bytes: string };

const hex = (bytes: number): string => "5a".repeat(bytes);
const enrol = {
  token: { id: hex(4), key: hex(32), signature: hex(64) },
  host: { id: HOST, name: "h9", address: "10.0.0.9" },
};
const authority = {
  kid: hex(32),
  pem: "-----BEGIN CERTIFICATE-----\n",
  key: "-----BEGIN PRIVATE KEY-----\n",
};
const good: Readonly<Record<keyof typeof doorRoutes, unknown>> = {
  "GET /v1/hello": {},
  "POST /v1/enrol": enrol,
  "POST /v1/identity/renew": {},
  "GET /v1/identity/lists": null,
  "POST /v1/members/credentials": {},
  "POST /v1/identity/bundle-key": {},
  "POST /v1/internal/audit": { sinceMs: null, volume: ["db"], who: null, refusedOnly: false, limit: 10 },
  "POST /v1/internal/volume-users": { volume: "6c1f0a52-3b1d-4e0b-9d52-6f3a0c9e1b77", snapshot: null },
  "POST /v1/internal/volume-work": {
    kind: "grow",
    volume: "6c1f0a52-3b1d-4e0b-9d52-6f3a0c9e1b77",
    size: "1073741824",
  },
  "POST /v1/internal/group-work": {
    group: "6c1f0a52-3b1d-4e0b-9d52-6f3a0c9e1b77",
    name: "nightly",
    by: "root@h9",
    volumes: [{ volume: "6c1f0a52-3b1d-4e0b-9d52-6f3a0c9e1b77", id: "00000000-0000-8000-8000-000000000001" }],
  },
  "POST /v1/internal/stats": { volume: "6c1f0a52-3b1d-4e0b-9d52-6f3a0c9e1b77" },
  "PUT /v1/members/authority": { authorities: [authority], storeAuthorities: [authority], trust: "{}" },
};

const who = fc.constantFrom<Who>("nobody", "newcomer", "host");
const header = fc.constantFrom(
  "transfer-encoding: chunked",
  "transfer-encoding: xchunked",
  "content-length: 0",
  "expect: 100-continue",
  "upgrade: websocket",
  "connection: upgrade",
  "content-encoding: gzip",
  "x: \u00ff",
  "authorization: Bearer wft1.5a5a5a5a.x",
);

const request = fc.constantFrom(...(Object.keys(good) as (keyof typeof good)[])).chain((name) => {
  const [method = "", path = ""] = name.split(" ");
  return fc.record({
    kind: fc.constant("request" as const),
    who,
    method: fc.oneof(
      { weight: 12, arbitrary: fc.constant(method) },
      { weight: 1, arbitrary: fc.constantFrom("PUT", "PATCH", "HEAD", "OPTIONS", "DELETE", "TRACE") },
    ),
    path: fc.oneof(
      { weight: 12, arbitrary: fc.constant(path) },
      {
        weight: 1,
        arbitrary: fc.constantFrom("/v1/status", "/v1/tokens", "//v1/hello", "/v1/enrol/%2e%2e", "/%00", "*"),
      },
    ),
    headers: fc.oneof(
      { weight: 8, arbitrary: fc.constant([]) },
      { weight: 1, arbitrary: fc.array(header, { maxLength: 3 }) },
    ),
    body: fc.oneof(
      { weight: 2, arbitrary: fc.constant(JSON.stringify(good[name])) },
      { weight: 4, arbitrary: textOf(nearly(good[name])) },
      { weight: 1, arbitrary: textOf(anyJson) },
      { weight: 1, arbitrary: fc.string({ maxLength: 200, unit: "binary" }) },
    ),
  });
});

const bytes = fc.record({
  kind: fc.constant("bytes" as const),
  who,
  bytes: fc.oneof(
    fc.string({ maxLength: 100, unit: "binary" }),
    fc.tuple(fc.string({ maxLength: 20, unit: "binary" }), fc.nat(60)).map(([noise, at]) => {
      const line = "GET /v1/hello HTTP/1.1\r\nhost: weft\r\nx: y\r\n\r\n";
      return line.slice(0, at) + noise + line.slice(at);
    }),
  ),
});

export async function openHostDoor(): Promise<OpenDoor> {
  const teardowns: (() => Promise<void>)[] = [];
  const [host] = await startCluster({ teardown: (fn) => void teardowns.push(fn) }, 1, 21);
  if (host === undefined) throw new Error("no host");
  const callers = await callersOf(host);
  const store = await host.store(60_000);
  return {
    arbitrary: fc.oneof({ weight: 6, arbitrary: request }, { weight: 1, arbitrary: bytes }),
    judge: (input: Input) => judge(host, callers, store, input),
    kept: [],
    shrinks: false,
    close: async () => {
      store.call.close();
      for (const caller of callers.values()) caller.end();
      for (const teardown of teardowns.toReversed()) await teardown();
    },
  };
}

/** One connection at a time; a handshake for each request would be more than the door takes. */
class Caller {
  readonly #options: ConnectionOptions;
  #socket: TLSSocket | null = null;

  constructor(options: ConnectionOptions) {
    this.#options = options;
  }

  /** What was answered until the answer was whole or the connection ended. */
  async say(input: Input): Promise<string> {
    const text = bytesOf(input);
    const isHead = input.kind === "request" && input.method === "HEAD";
    const socket = await this.#open();
    let said = "";
    const heard = new Promise<void>((resolve) => {
      const timer = setTimeout(() => socket.destroy(), ANSWER_MS);
      const done = (): void => {
        clearTimeout(timer);
        socket.removeAllListeners("data");
        socket.off("close", done);
        resolve();
      };
      socket.on("data", (chunk: Buffer) => {
        said += chunk.toString("latin1");
        if (isWhole(said, isHead)) done();
      });
      socket.once("close", done);
    });
    // Whatever is missing of a request will not come: nobody waits for it.
    if (input.kind === "bytes") socket.end(text);
    else socket.write(text);
    await heard;
    if (!isWhole(said, isHead) || input.kind === "bytes" || /connection: close/i.test(said)) this.end();
    return said;
  }

  end(): void {
    this.#socket?.destroy();
    this.#socket = null;
  }

  async #open(): Promise<TLSSocket> {
    for (;;) {
      const open = this.#socket;
      if (open !== null && !open.destroyed && open.readyState === "open") return open;
      const socket = connect(this.#options);
      socket.on("error", () => undefined);
      this.#socket = socket;
      // Refused before TLS where it comes too often: the door is right, and we come again.
      const isOpen = await new Promise<boolean>((resolve) => {
        socket.once("secureConnect", () => resolve(true));
        socket.once("close", () => resolve(false));
      });
      if (isOpen) return socket;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

async function callersOf(host: TestHost): Promise<ReadonlyMap<Who, Caller>> {
  const to = { host: host.address, port: 7400, rejectUnauthorized: false };
  const key: Secret<string> = makeKey();
  const own = readFileSync(join(host.stateDir, "identity/host.pem"), "utf8");
  const cert = await makeJoinCert({ host: HOST, keyPem: key, nowMs: Date.now() });
  return new Map<Who, Caller>([
    ["nobody", new Caller(to)],
    ["newcomer", new Caller({ ...to, cert, key: key.reveal() })],
    ["host", new Caller({ ...to, cert: own, key: own, localAddress: host.address } as typeof to)],
  ]);
}

async function judge(
  host: TestHost,
  callers: ReadonlyMap<Who, Caller>,
  store: StoreClient,
  input: Input,
): Promise<void> {
  const shown = JSON.stringify(input).slice(0, 600);
  const caller = callers.get(input.who);
  if (caller === undefined) throw new Error(`no ${input.who}`);
  const said = await caller.say(input);
  const text = `${shown} -> ${said.slice(0, 500)}`;
  const answer = said.replace(CONTINUE, "");
  if (answer !== "") judgeAnswer(input, answer, text);
  const entry = await store.get(keys.trust);
  const opened = entry === null ? null : openFirstTrust(entry.value);
  if (opened === null || opened.kind === "refused") throw new Error(`the trust list is gone: ${text}`);
  const { hosts, revoked } = opened.value.trust;
  const names = Array.from(hosts.values(), ({ name }) => name);
  if (names.join() !== host.name || revoked.size > 0) throw new Error(`hosts ${names.join()}: ${text}`);
}

function judgeAnswer(input: Input, said: string, text: string): void {
  const [head = "", ...rest] = said.split("\r\n\r\n");
  const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1] ?? 0);
  if (input.kind === "request" && input.method === "HEAD") return;
  const body = Buffer.from(rest.join("\r\n\r\n"), "latin1").toString("utf8");
  if (status >= 200 && status < 300) {
    const isHello = said.includes('"members"') && said.includes('"version"');
    if (input.who !== "host" && !isHello) throw new Error(`a stranger was served: ${text}`);
    return;
  }
  // What Node itself refuses before there is a request has no body of ours.
  if ([400, 408, 413, 414, 417, 431].includes(status) && !body.includes('"error":{')) return;
  const json: unknown = JSON.parse(body);
  if (typeof json !== "object" || json === null || !("error" in json))
    throw new Error(`no error body: ${text}`);
  const { code } = json.error as { readonly code: unknown };
  assertCode(code, text);
  if (![400, 401, 403, 404, 409, 413, 415, 421, 429, 431, 503].includes(status))
    throw new Error(`status ${status}: ${text}`);
}

function bytesOf(input: Input): Buffer {
  if (input.kind === "bytes") return Buffer.from(`${input.bytes}\r\n\r\n`, "latin1");
  const body = Buffer.from(input.body);
  const own = input.headers.some((line) => /^(?:transfer-encoding|content-length)/.test(line));
  const head = [
    `${input.method} ${input.path} HTTP/1.1`,
    "host: weft",
    "content-type: application/json",
    ...(own ? [] : [`content-length: ${body.length}`]),
    ...input.headers,
  ];
  return Buffer.concat([Buffer.from(`${head.join("\r\n")}\r\n\r\n`, "latin1"), body]);
}

function isWhole(all: string, isHead: boolean): boolean {
  const said = all.replace(CONTINUE, "");
  const end = said.indexOf("\r\n\r\n");
  if (end < 0 || isHead) return isHead && end >= 0;
  const length = /content-length: (\d+)/i.exec(said.slice(0, end))?.[1];
  return length !== undefined && said.length >= end + 4 + Number(length);
}
