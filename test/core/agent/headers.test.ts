/**
 * Plot: a request with more headers than Node keeps, the one that says where its body ends among those that it would drop.
 * At both doors it is refused as a whole, and nothing that follows it on the connection is read.
 */
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect as connectUnix, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import t from "tap";

import { Door } from "../../../src/core/agent/door.ts";
import type { AskedAgent } from "../../../src/core/agent/handlers.ts";
import { listenLocal } from "../../../src/core/agent/local-socket.ts";
import { createApp } from "../../../src/core/agent/rest.ts";
import { HEADERS_MAX } from "../../../src/core/model/limits.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { loopback } from "../wire/etcd-for-tests.ts";
import { HeardAudit, makeCluster, silent } from "./identity-for-tests.ts";

type Asserts = Pick<typeof t, "match" | "equal">;

/** `more` stand behind so many that the request has `count`. */
function request(line: string, count: number, more: readonly string[], body: string = ""): string {
  const first = ["host: weft"];
  const filled = Array.from({ length: count - first.length - more.length }, (_, i) => `x${i}: 1`);
  return [`${line} HTTP/1.1`, ...first, ...filled, ...more, "", body].join("\r\n");
}

/** What came back until the other end closed the connection. */
async function said(socket: Socket, ready: string, text: string): Promise<string> {
  let answer = "";
  socket.on("error", () => undefined);
  socket.on("data", (chunk: Buffer) => (answer += chunk.toString()));
  socket.once(ready, () => socket.write(text));
  await once(socket, "close");
  return answer;
}

const smuggled = "0\r\n\r\nGET /v1/hello HTTP/1.1\r\nhost: weft\r\n\r\n";

/** With `line` for a request that is answered with 200 or 409 where it has no fault. */
function shapes(line: string): Readonly<Record<string, string>> {
  const coding = "transfer-encoding: chunked";
  return {
    "one too many": request(line, HEADERS_MAX + 1, []),
    "a length behind them": request(line, HEADERS_MAX + 1, ["content-length: 2"], "{}"),
    "a coding behind them": request(line, HEADERS_MAX + 1, [coding], smuggled),
    "a coding far behind them": request(line, HEADERS_MAX + 200, [coding], smuggled),
    "an unknown coding behind them": request(line, HEADERS_MAX + 1, ["transfer-encoding: xchunked"]),
  };
}

function isRefused(t: Asserts, answer: string, name: string): void {
  t.match(answer, /^HTTP\/1\.1 (?:431|400) /, name);
  // Of some the parser itself refuses to read on.
  if (!/unknown|far/.test(name)) t.match(answer, /^HTTP\/1\.1 431 [^]*"code":"E-LIMIT-02"/, name);
  t.equal(answer.split("HTTP/1.1 ").length, 2, `${name}: one answer`);
}

void t.test("door at 7400: too many headers are 431, and nothing is done", async (t) => {
  const made = await makeCluster(t);
  const address = loopback(12);
  const audit = new HeardAudit();
  let reached = 0;
  const door = await Door.listen({
    address,
    tls: made.identity.tls,
    isHostAddress: () => true,
    rest: null,
    audit,
    log: silent,
    handlers: {
      "GET /v1/hello": async () => {
        reached += 1;
        return {
          cluster: made.cluster,
          members: [],
          version: "1",
          generation: 1n,
          now: new Date().toISOString(),
        };
      },
    },
  });
  t.teardown(() => door.close());
  const ask = (text: string): Promise<string> => {
    const socket = connectTls({ host: address, port: 7400, rejectUnauthorized: false });
    return said(socket, "secureConnect", text);
  };
  for (const [name, text] of Object.entries(shapes("GET /v1/hello"))) isRefused(t, await ask(text), name);
  t.equal(reached, 0);
  t.ok(audit.lines.includes("refused GET /v1/hello E-LIMIT-02"), "it stands in the audit");
  t.match(await ask(request("GET /v1/hello", HEADERS_MAX, ["connection: close"])), /^HTTP\/1\.1 200 /);
  t.equal(reached, 1);
});

void t.test("unix socket: too many headers are 431, and nothing is done", async (t) => {
  let reached = 0;
  const member = (): never => {
    reached += 1;
    throw new WeftError({ code: "E-AGENT-03", message: "reached" });
  };
  const audit = new HeardAudit();
  const app = createApp({
    agent: { member, audit } as unknown as AskedAgent,
    log: silent,
    names: ["GET /v1/hosts"],
    principalOf: () => ({ kind: "root", uid: 0, pid: 1 }),
  });
  const directory = await mkdtemp(join(tmpdir(), "weft-headers-"));
  t.teardown(async () => {
    await app.close();
    await rm(directory, { recursive: true });
  });
  await listenLocal(app, directory, null);
  const ask = (text: string): Promise<string> =>
    said(connectUnix(join(directory, "agent.sock")), "connect", text);
  for (const [name, text] of Object.entries(shapes("GET /v1/hosts"))) isRefused(t, await ask(text), name);
  // So many that Node's own bound would have dropped the last ones, in a head that is small enough.
  const many = `GET /v1/hosts HTTP/1.1\r\nhost: weft\r\n${"a:\r\n".repeat(3000)}transfer-encoding: chunked\r\n\r\n`;
  isRefused(t, await ask(many + smuggled), "far more than may be");
  t.equal(reached, 0);
  t.ok(audit.lines.includes("refused GET /v1/hosts E-LIMIT-02"), "it stands in the audit");
  t.match(await ask(request("GET /v1/hosts", HEADERS_MAX, ["connection: close"])), /^HTTP\/1\.1 409 /);
  t.equal(reached, 1);
});
