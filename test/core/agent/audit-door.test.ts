/** Plot: a whole agent with a real store: what is asked of it can be read afterwards, also after a restart, and is kept apart. */
import { readFile, rename, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";

import t from "tap";

import { AuditHeads, readHead } from "../../../src/core/agent/audit-head.ts";
import { Audit } from "../../../src/core/agent/audit.ts";
import { openLog } from "../../../src/core/agent/log.ts";
import type { AgentClient } from "../../../src/core/wire/agent-client.ts";
import type { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { makeCluster } from "./identity-for-tests.ts";
import { eventually, startCluster, startHost, type TestHost } from "./test-host.ts";

const everything: Parameters<AgentClient["audit"]>[0] = {
  since: null,
  volume: null,
  host: null,
  who: null,
  refused: null,
  limit: null,
};

void t.test("agent: what was asked of it stands in its audit", async (t) => {
  const host = await startHost(t, 91);
  await host.client.init({ name: "h1", address: host.address, clusterName: "lab" });
  await host.client.createPool({ path: "/pool" });
  const { id } = await host.client.createVolume({ name: "db", size: 1n << 20n, copies: 1 });
  await t.rejects(host.client.detach("db"), { code: "E-VOL-13" });
  await host.client.attach("db");
  await host.client.detach("db");
  await host.client.deleteVolume("db");
  const shown = async (query: Partial<typeof everything> = {}): Promise<readonly string[]> => {
    const { lines } = await host.client.audit({ ...everything, ...query });
    return lines.filter(({ event }) => event === "end").map(({ what, outcome }) => `${what} ${outcome}`);
  };
  const made = [
    "POST /v1/volumes ok",
    "POST /v1/volumes/:ref/detach E-VOL-13",
    "POST /v1/volumes/:ref/attach ok",
    "POST /v1/volumes/:ref/detach ok",
    "DELETE /v1/volumes/:ref ok",
  ];
  t.same(await shown(), ["POST /v1/init ok", "POST /v1/pools ok", ...made]);
  t.same(await shown({ volume: "db" }), made, "by its name, also when it is deleted");
  t.same(await shown({ volume: id }), made, "by its id");
  t.same(await shown({ who: "root", limit: "2" }), made.slice(-1));
  t.same(await shown({ who: "ci" }), []);
  t.same(await shown({ host: "h1", since: "2999-01-01T00:00:00.000Z" }), []);
  const { lines, names } = await host.client.audit(everything);
  t.match(lines.at(-1), { who: { kind: "root", role: "admin" }, from: `unix pid ${process.pid}` });
  t.equal(names[lines.at(-1)?.host ?? ""], "h1");
  await t.rejects(host.client.audit({ ...everything, limit: "5000" }), { code: "E-ARG-02" });
  await host.stopAgent();
  await host.startAgent();
  t.match(await host.client.verifyAudit(), { lines: 14, first: 1n, last: 14n, broken: null });
});

void t.test(
  "agent: a peer that its daemon refused stands in the audit, and how many it did not tell of",
  async (t) => {
    const host = await startHost(t, 93);
    await host.client.init({ name: "h1", address: host.address, clusterName: "lab" });
    const stranger = "00000000-0000-4000-8000-00000000dead";
    host.weftd.daemon.emit({
      event: "peer.refused",
      data: {
        address: "10.0.0.9",
        host: stranger,
        code: "E-NET-03",
        reason: "h3 was revoked at 2026-11-21T12:00:00Z",
        facts: {},
        unsaid: 41,
      },
    });
    const lines = await eventually(
      "the refusal",
      async () => (await host.client.audit({ ...everything, refused: "true" })).lines,
      (found) => found.length > 0,
    );
    t.match(lines, [
      {
        event: "refused",
        who: { kind: "nobody" },
        from: "10.0.0.9",
        what: "the data port",
        target: { host: stranger, reason: /revoked/ },
        outcome: "E-NET-03",
        count: 42,
      },
    ]);
  },
);

void t.test("agent: a host whose audit can't be written changes nothing, and says so", async (t) => {
  const host = await startHost(t, 92);
  await host.client.init({ name: "h1", address: host.address, clusterName: "lab" });
  await host.stopAgent();
  const directory = join(host.stateDir, "audit");
  await rename(directory, `${directory}.kept`);
  await writeFile(directory, "");
  await host.startAgent();
  await t.rejects(host.client.createPool({ path: "/pool" }), { code: "E-AUDIT-01", exitCode: 2 });
  t.same(await host.client.pools(), []);
  const codes = async (): Promise<readonly string[]> => {
    const status = await host.client.status();
    return status.kind === "cluster" ? status.problems.map(({ code }) => code) : [];
  };
  t.ok((await codes()).includes("E-AUDIT-01"));
  await rm(directory);
  await rename(`${directory}.kept`, directory);
  await host.client.createPool({ path: "/pool" });
  t.notOk((await codes()).includes("E-AUDIT-01"));
  t.match(await host.client.verifyAudit(), { broken: null });
});

void t.test("agent: the audit of all hosts is read on any of them, and who is away is named", async (t) => {
  const [h1, h2] = await startCluster(t, 2, 161);
  if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
  await h1.client.createVolume({ name: "db", size: 1n << 20n, copies: 1 });
  await h2.client.deleteVolume("db");
  await t.rejects(h2.client.deleteVolume("nothing"), { code: "E-ARG-01" });
  const shown = async (host: TestHost, query: Partial<typeof everything> = {}) => {
    const { lines, missing, names } = await host.client.audit({ ...everything, ...query });
    const ends = lines.filter(({ event, what }) => event === "end" && what.includes("volumes"));
    return { missing, ends: ends.map((one) => `${names[one.host ?? ""]} ${one.what} ${one.outcome}`) };
  };
  const all = [
    "h1 POST /v1/volumes ok",
    "h2 DELETE /v1/volumes/:ref ok",
    "h2 DELETE /v1/volumes/:ref E-ARG-01",
  ];
  for (const host of [h1, h2]) t.same(await shown(host), { missing: [], ends: all });
  t.same((await shown(h1, { host: "h2" })).ends, all.slice(1));
  t.same((await shown(h1, { volume: "db" })).ends, all.slice(0, 2));
  t.same((await shown(h1, { limit: "1" })).ends, all.slice(2));
  await t.rejects(h1.client.audit({ ...everything, host: "h9" }), { code: "E-ARG-01" });
  // What the door itself was asked by another host stands there too.
  const { lines } = await h1.client.audit({ ...everything, host: "h1" });
  t.ok(lines.some(({ what }) => what === "POST /v1/enrol"));

  await h2.stopAgent();
  const without = await shown(h1);
  t.same(without.ends, all.slice(0, 1));
  t.match(without.missing, [{ host: "h2", reason: /does not answer/ }]);
});

/** One that keeps what is put. */
function keepingStore(): Pick<StoreClient, "get" | "put"> {
  const kept = new Map<string, string>();
  return {
    get: async (key: string) => {
      const value = kept.get(key);
      return value === undefined ? null : { key, value, modRevision: 1n };
    },
    put: async (key: string, value: string) => void kept.set(key, value),
  } as unknown as Pick<StoreClient, "get" | "put">;
}

void t.test("agent: lines that were cut off whole are missed by what the store kept", async (t) => {
  const store = keepingStore();
  const directory = t.testdir();
  const log = openLog("silent");
  const { identity, host } = await makeCluster(t);
  const open = (): Audit => {
    const audit = new Audit({ directory, log, syslog: null, host: () => host });
    t.teardown(() => audit.close());
    return audit;
  };
  const write = async (audit: Audit): Promise<void> => {
    const who = { kind: "root", name: "root", role: "admin", id: null } as const;
    await audit.begin({ id: host, who, from: "x", what: "POST /v1/pools", target: {} }, false);
  };
  const first = open();
  for (let n = 0; n < 4; n += 1) await write(first);
  const heads = new AuditHeads(first, store, identity, log);
  await heads.keep();
  t.match(await readHead(store, identity), { kind: "own", seq: 4n, hash: first.head?.hash });
  await write(first);
  await heads.keep();
  t.match(await readHead(store, identity), { kind: "own", seq: 5n });
  await first.close();

  const file = join(directory, "audit.log");
  const text = await readFile(file, "utf8");
  await truncate(file, text.split("\n").slice(0, 3).join("\n").length + 1);
  const second = open();
  await write(second);
  await new AuditHeads(second, store, identity, log).keep();
  const last = await second.last(1, null, () => true);
  t.match(last, [{ event: "broken", outcome: "E-AUDIT-02" }]);

  // What is no head of ours is none.
  await store.put(keys.auditHead(host), "{}");
  t.same(await readHead(store, identity), { kind: "foreign" });
});

void t.test("agent: another host can't raise a false alarm about this one's audit", async (t) => {
  const store = keepingStore();
  const log = openLog("silent");
  const [made, thief] = [await makeCluster(t), await makeCluster(t)];
  const { identity, host } = made;
  const audit = new Audit({ directory: t.testdir(), log, syslog: null, host: () => host });
  t.teardown(() => audit.close());
  const who = { kind: "root", name: "root", role: "admin", id: null } as const;
  const write = () => audit.begin({ id: host, who, from: "x", what: "POST /v1/pools", target: {} }, false);
  await write();
  await new AuditHeads(audit, store, identity, log).keep();
  const own = (await store.get(keys.auditHead(host)))?.value ?? "";

  const at = new Date().toISOString();
  const body = JSON.stringify({ host, seq: "1", hash: "f".repeat(64), at });
  const ofThief = JSON.stringify({ host: thief.host, seq: "1", hash: "f".repeat(64), at });
  const forged = { ...(JSON.parse(own) as object), body };
  const named = {
    ...(JSON.parse(thief.identity.sign("audit-head", body)) as object),
    key: JSON.parse(own).key,
  };
  for (const [what, text] of Object.entries({
    "not signed": body,
    "signed with the thief's own key": thief.identity.sign("audit-head", body),
    "of the thief's own audit": thief.identity.sign("audit-head", ofThief),
    "signed by it as another": JSON.stringify(named),
    "with this host's signature of another text": JSON.stringify(forged),
    "of another host's audit, by this host": identity.sign("audit-head", ofThief),
    "an authority's signature": made.authority.sign(identity.trust(), "trust", body),
    nothing: "",
  })) {
    await store.put(keys.auditHead(host), text);
    t.same(await readHead(store, identity), { kind: "foreign" }, what);
    // Neither the next start of the agent is alarmed, nor does it leave it there.
    await new AuditHeads(audit, store, identity, log).keep();
    t.match(await readHead(store, identity), { kind: "own", seq: 1n }, what);
  }
  // Within a minute, also where nothing was done meanwhile.
  const heads = new AuditHeads(audit, store, identity, log);
  await heads.keep();
  await store.put(keys.auditHead(host), body);
  await heads.keep();
  t.match(await readHead(store, identity), { kind: "own", seq: 1n });
  t.same(await audit.last(10, null, ({ event }) => event === "broken"), []);
});
