/** The agent's client: what goes wrong comes back as an error with a code, never as a stack of the transport. */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { AgentClient } from "../../../src/core/wire/agent-client.ts";

type Answer = { readonly status: number; readonly body: string };
type Scope = { readonly teardown: (fn: () => Promise<void>) => void };
type Asked = { method: string; url: string; body: string };

async function serve(t: Scope, answer: Answer): Promise<{ client: AgentClient; asked: Asked[] }> {
  const directory = await mkdtemp(join(tmpdir(), "weft-client-"));
  const socketPath = join(directory, "agent.sock");
  const asked: Asked[] = [];
  const server = createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8");
    request.on("data", (text: string) => (body += text));
    request.on("end", () => {
      asked.push({ method: request.method ?? "", url: request.url ?? "", body });
      response.writeHead(answer.status, { "content-type": "application/json" }).end(answer.body);
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  t.teardown(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    await rm(directory, { recursive: true, force: true });
  });
  return { client: new AgentClient({ socketPath, timeoutMs: 2000 }), asked };
}

void t.test("client: a refusal keeps code, facts, safe and advice", async (t) => {
  const error = {
    code: "E-VOL-12",
    message: '"db" is open on h2. Not deleted.',
    facts: { host: "h2" },
    safe: "Nothing was changed.",
    do: [{ why: "Detach it", command: "weft detach db" }],
  };
  const { client, asked } = await serve(t, { status: 409, body: JSON.stringify({ error }) });
  await t.rejects(client.deleteVolume("a/b c"), { ...error, exitCode: 2 });
  t.same(asked, [{ method: "DELETE", url: "/v1/volumes/a%2Fb%20c", body: "{}" }]);
});

void t.test("client: a request that can't be right is refused before it is sent", async (t) => {
  const { client, asked } = await serve(t, { status: 200, body: "{}" });
  await t.rejects(client.createVolume({ name: "../x", size: 4096n }), {
    code: "E-ARG-02",
    facts: { field: "name" },
  });
  await t.rejects(client.createPool({ path: "relative" }), { code: "E-ARG-02" });
  t.same(asked, []);
});

void t.test("client: sizes are decimal strings on the wire and bigint inside", async (t) => {
  const pool = {
    id: "11111111-1111-4111-8111-111111111111",
    host: "22222222-2222-4222-8222-222222222222",
    hostName: "h1",
    path: "/p",
    kind: "dir",
    state: "serving",
    reason: null,
    free: "18446744073709551615",
    total: null,
    addedByNewerAgent: 1,
  };
  const { client } = await serve(t, { status: 200, body: JSON.stringify([pool]) });
  t.match(await client.pools(), [{ free: 18446744073709551615n, total: null }]);
});

void t.test("client: an answer that isn't understood is E-AGENT-02, no answer E-AGENT-01", async (t) => {
  for (const body of ["<html>", "[1]", JSON.stringify({ kind: "no-cluster" })]) {
    const { client } = await serve(t, { status: 200, body });
    await t.rejects(client.status(), { code: "E-AGENT-02" });
  }
  const { client } = await serve(t, { status: 500, body: "{}" });
  await t.rejects(client.status(), { code: "E-AGENT-02" });
  const nobody = new AgentClient({ socketPath: "/nowhere/agent.sock" });
  await t.rejects(nobody.status(), {
    code: "E-AGENT-01",
    exitCode: 4,
    facts: { socket: "/nowhere/agent.sock" },
  });
});
