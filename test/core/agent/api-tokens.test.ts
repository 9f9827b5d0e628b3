/** Plot: people and programs at the door of a whole host, with tokens of every role, and with none. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import t from "tap";

import { connectPinned, AgentClient } from "../../../src/core/wire/agent-client.ts";
import type { ApiTokenCreated } from "../../../src/core/wire/agent-api.ts";
import { isWeftError, WeftError } from "../../../src/core/wire/errors.ts";
import { exchange } from "../../../src/core/wire/host-client.ts";
import { Secret } from "../../../src/core/model/secret.ts";
import { mayDo } from "../../../src/core/model/roles.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { methodAndPath, routeNames, routes, type RouteSpec } from "../../../src/core/wire/routes.ts";
import { eventually, joinHost, startCluster, startHost, type TestHost } from "./test-host.ts";

const audited = { since: null, volume: null, host: null, who: null, refused: "true", limit: "1000" };

/** A host with a cluster, asked from elsewhere. */
function remote(host: TestHost, made: ApiTokenCreated | null, authority: string): AgentClient {
  const token = made === null ? null : new Secret(made.token);
  return new AgentClient({ remote: { address: host.address, port: 7400, fingerprint: authority, token } });
}

void t.test("api token: opens what its role may do, until it is revoked or its time is over", async (t) => {
  const [host] = await startCluster(t, 1, 141);
  if (host === undefined) throw new Error("a host");
  const made = await host.client.createApiToken({ name: "ci", role: "operator" });
  t.match(made, { name: "ci", role: "operator", address: host.address, token: /^wft1\.[0-9a-f]{8}\./ });
  const ci = remote(host, made, made.authority);
  t.match(await ci.me(), { name: "ci", role: "operator", volumes: null, cluster: { name: "lab" } });
  const db = await ci.createVolume({ name: "db", size: 1n << 20n, copies: 1 });
  t.match(await ci.attach("db"), { volume: db.id });
  await ci.detach("db");
  const denied = { code: "E-AUTH-02", status: 403 };
  await t.rejects(ci.deleteVolume("db"), denied);
  await t.rejects(ci.attach("db", { steal: true }), denied);
  await t.rejects(ci.detach("db", { abandon: true }), denied);
  await t.rejects(ci.apiTokens(), denied);
  await t.rejects(ci.createToken(), denied);
  await t.rejects(ci.audit(audited), denied);
  t.equal((await host.client.volume("db")).name, "db", "it is still there");

  // Its uses are noted, its text and secret are nowhere.
  const listed = await eventually(
    "its use",
    () => host.client.apiTokens(),
    ([first]) => first !== undefined && first.used !== null,
  );
  t.match(listed, [{ id: made.id, name: "ci", by: "root@h1", used: { from: "127.0.0.1" } }]);
  const secret = made.token.split(".")[2] ?? "";
  const store = await host.store();
  const dump = JSON.stringify((await store.list("/weft/v1/")).entries, (_, v: unknown) =>
    typeof v === "bigint" ? String(v) : v,
  );
  const log = await readFile(join(host.stateDir, "audit/audit.log"), "utf8");
  for (const [where, text] of [
    ["the store", dump],
    ["the audit", log],
  ] as const) {
    t.ok(text.includes(made.id), `${where} has its id`);
    t.notOk(text.includes(secret), `${where} has not its secret`);
  }
  const refusals = (await host.client.audit(audited)).lines;
  t.match(refusals[0], {
    who: { kind: "token", name: "ci", role: "operator", id: made.id },
    outcome: "E-AUTH-02",
  });

  await host.client.revokeApiToken("ci");
  await eventually(
    "the end of the token",
    async () =>
      ci.me().then(
        () => null,
        (error: unknown) => error,
      ),
    (error) => isWeftError(error, "E-AUTH-01"),
  );
  await t.rejects(host.client.revokeApiToken("ci"), { code: "E-ARG-01" });

  const short = await host.client.createApiToken({ name: "short", role: "viewer", forMs: 4000 });
  const brief = remote(host, short, short.authority);
  await eventually(
    "the end of its time",
    async () =>
      brief.volumes().then(
        () => null,
        (error: unknown) => error,
      ),
    (error) => isWeftError(error, "E-AUTH-01"),
  );
});

void t.test("api token: one that is bound to volumes sees and changes nothing else", async (t) => {
  const [host] = await startCluster(t, 1, 142);
  if (host === undefined) throw new Error("a host");
  const db = await host.client.createVolume({ name: "db", size: 1n << 20n, copies: 1 });
  await host.client.createVolume({ name: "web", size: 1n << 20n, copies: 1 });
  await t.rejects(host.client.createApiToken({ name: "x", role: "operator", volumes: ["dbb"] }), {
    code: "E-ARG-01",
  });
  const made = await host.client.createApiToken({ name: "db-only", role: "operator", volumes: ["db"] });
  const bound = remote(host, made, made.authority);
  t.same((await bound.me()).volumes, [db.id]);
  t.same(
    (await bound.volumes()).map(({ name }) => name),
    ["db"],
  );
  t.equal((await bound.volume("db")).id, db.id);
  await bound.attach("db");
  await bound.detach(db.id);
  const denied = { code: "E-AUTH-02" };
  const own = await bound.createSnapshot("db", { name: "own" });
  const other = await host.client.createSnapshot("web", { name: "other" });
  t.same(
    (await bound.snapshots()).map(({ id }) => id),
    [own.id],
  );
  for (const ref of ["db@own", own.id]) t.equal((await bound.snapshot(ref)).id, own.id);
  for (const ref of ["web@other", other.id, "web@nothing", "db@nothing"])
    await t.rejects(bound.snapshot(ref), denied, ref);
  t.equal((await bound.changeSnapshot(own.id, { name: "mine" })).name, "mine");
  await t.rejects(bound.changeSnapshot(own.id, { protected: true }), denied, "that is an admin's");
  await t.rejects(bound.deleteSnapshot("db@mine"), denied);
  await t.rejects(bound.attachSnapshot("web@other"), denied);
  await t.rejects(bound.volume("web"), denied);
  await t.rejects(bound.volume("nothing"), denied, "whether it exists is not said");
  await t.rejects(bound.attach("web"), denied);
  await t.rejects(bound.status(), denied);
  await t.rejects(bound.createVolume({ name: "more", size: 1n << 20n }), denied);
});

void t.test("api token: every mutation is refused to who may not, whatever is in its body", async (t) => {
  const [host] = await startCluster(t, 1, 143);
  if (host === undefined) throw new Error("a host");
  await host.client.createVolume({ name: "db", size: 1n << 20n, copies: 1 });
  const viewer = await host.client.createApiToken({ name: "eye", role: "viewer" });
  const before = JSON.stringify(await host.client.volumes(), (_, v: unknown) =>
    typeof v === "bigint" ? String(v) : v,
  );
  for (const [authorization, status] of [
    [`Bearer ${viewer.token}`, 403],
    [null, 401],
  ] as const) {
    for (const name of routeNames) {
      const spec: RouteSpec = routes[name];
      const { method, path } = methodAndPath(name);
      const principal = { kind: "token", id: "", name: "eye", role: "viewer", volumes: null } as const;
      if (authorization !== null && mayDo(principal, spec.right, { kind: "volumes" })) continue;
      const { address } = host;
      // So many handshakes a second of one address are taken.
      const { socket } = await eventually(
        "a place at the door",
        () => connectPinned({ address, port: 7400, fingerprint: viewer.authority }),
        () => true,
      );
      const answer = await exchange(socket, {
        method,
        path: path.replace(":ref", "db").replace(":rid", "0"),
        headers: authorization === null ? {} : { authorization },
        body: spec.audit === "mutation" ? { steal: false, path: "/x" } : null,
        address,
        answerMs: 10_000,
      });
      socket.destroy();
      t.equal(answer.status, status, `${name} by ${authorization === null ? "nobody" : "a viewer"}`);
    }
  }
  const after = JSON.stringify(await host.client.volumes(), (_, v: unknown) =>
    typeof v === "bigint" ? String(v) : v,
  );
  t.equal(after, before);
});

void t.test(
  "api token: wrong ones are few a minute, and the door's other end has to be the cluster's",
  async (t) => {
    const [host] = await startCluster(t, 1, 144);
    if (host === undefined) throw new Error("a host");
    const made = await host.client.createApiToken({ name: "ci", role: "viewer" });

    // Another authority than the pinned one: the token stays here.
    const other = remote(host, made, "0".repeat(64));
    await t.rejects(other.me(), { code: "E-CTX-02", safe: /not sent/ });

    const metrics = await fetchText(host, made, "/metrics");
    t.equal(metrics.status, 200);
    t.match(metrics.text, /^weft_hosts\{alive="true"\} 1$/m);
    t.match(metrics.text, /^weft_agent_process_cpu_seconds_total /m);
    t.notMatch(metrics.text, /pool-of-|"h[0-9]"/, "names go nowhere");
    t.equal((await fetchText(host, null, "/metrics")).status, 401);

    const flipped = made.token.replace(/.$/, (last) => (last === "A" ? "B" : "A"));
    const wrong = [flipped, made.token.replace(made.id, "00000000"), "wft1", "x".repeat(150), ""];
    for (const token of wrong) {
      const answer = await fetchText(host, { ...made, token }, "/v1/me");
      t.match(answer, { status: 401, text: /"E-AUTH-01"/ }, token.slice(0, 20));
    }
    t.match(
      await fetchText(host, made, "/v1/me"),
      { status: 429, text: /"E-AUTH-03"/ },
      "also the right one",
    );
    const { lines } = await host.client.audit(audited);
    t.ok(lines.some(({ outcome, from }) => outcome === "E-AUTH-01" && from === "127.0.0.1"));
  },
);

void t.test("api token: is made by members of the store, and known on every host", async (t) => {
  const h1 = await startHost(t, 145);
  await h1.client.init({ name: "h1", address: h1.address, clusterName: "lab" });
  const h2 = await startHost(t, 146);
  await joinHost(h2, h1, "h2");
  const made = await h1.client.createApiToken({ name: "ci", role: "viewer" });
  const there = remote(h2, made, made.authority);
  t.match(await there.me(), { name: "ci", host: { name: "h2" } });

  // What only looks like one: somebody wrote it into the store who holds no authority's key.
  const store = await h1.store();
  const entry = await store.get(keys.apiToken(made.id));
  if (entry === null) throw new WeftError({ code: "E-ARG-01", message: "no record" });
  const better = entry.value.replace(String.raw`\"role\":\"viewer\"`, String.raw`\"role\":\"admin\"`);
  t.not(better, entry.value);
  await store.put(keys.apiToken(made.id), better);
  await eventually(
    "its end",
    async () =>
      there.me().then(
        () => null,
        (error: unknown) => error,
      ),
    (error) => isWeftError(error, "E-AUTH-01"),
  );
  // The same record under another name is none either.
  await store.put(keys.apiToken("00000000"), entry.value);
  t.same(await h1.client.apiTokens(), []);
});

void t.test("api token: outlives a planned change of the authority", async (t) => {
  const [host] = await startCluster(t, 1, 147);
  if (host === undefined) throw new Error("a host");
  const made = await host.client.createApiToken({ name: "ci", role: "viewer" });
  const { generation } = await host.client.authorities();
  await host.client.rotateAuthority();
  await eventually(
    "the end of the rotation",
    () => host.client.authorities(),
    (answer) => answer.rotation === null && answer.generation > generation + 3n,
    60_000,
  );
  const shown = await host.client.createApiToken({ name: "new", role: "viewer" });
  t.not(shown.authority, made.authority);
  await t.rejects(remote(host, made, made.authority).me(), { code: "E-CTX-02" });
  await eventually(
    "both tokens by the new authority",
    () => host.client.apiTokens(),
    (tokens) => tokens.length === 2,
  );
  t.match(await remote(host, made, shown.authority).me(), { name: "ci" });
});

async function fetchText(
  host: TestHost,
  made: ApiTokenCreated | null,
  path: string,
): Promise<{ readonly status: number; readonly text: string }> {
  const { address } = host;
  const { socket } = await connectPinned({ address, port: 7400, fingerprint: made?.authority ?? "" });
  try {
    const headers: Record<string, string> = made === null ? {} : { authorization: `Bearer ${made.token}` };
    return await exchange(socket, { method: "GET", path, headers, body: null, address, answerMs: 10_000 });
  } finally {
    socket.destroy();
  }
}
