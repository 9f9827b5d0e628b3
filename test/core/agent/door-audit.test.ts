/** Plot: strangers who get no further than a port: each stands in the audit, and a flood of them is counted, not written. */
import { once } from "node:events";
import { appendFile, mkdtemp, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { connect as connectTcp, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls, type ConnectionOptions } from "node:tls";
import t from "tap";

import { Audit } from "../../../src/core/agent/audit.ts";
import { Door } from "../../../src/core/agent/door.ts";
import { EtcdLog } from "../../../src/core/agent/etcd-log.ts";
import { DOOR_LIMITS } from "../../../src/core/model/limits.ts";
import type { AuditLine } from "../../../src/core/wire/audit-line.ts";
import { loopback } from "../wire/etcd-for-tests.ts";
import { makeCluster, silent } from "./identity-for-tests.ts";
import { eventually, startHost } from "./test-host.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

async function openAudit(t: Scope): Promise<Audit> {
  const directory = await mkdtemp(join(tmpdir(), "weft-door-audit-"));
  const audit = new Audit({ directory, log: silent, syslog: null, host: () => null });
  t.teardown(async () => {
    await audit.close();
    await rm(directory, { recursive: true });
  });
  return audit;
}

const refusedLines = (audit: Audit): Promise<readonly AuditLine[]> =>
  audit.last(1000, null, ({ event }) => event === "refused");

function total(lines: readonly AuditLine[]): number {
  return lines.reduce((sum, { count }) => sum + count, 0);
}

async function openDoor(t: Scope, n: number): Promise<{ readonly address: string; readonly audit: Audit }> {
  const made = await makeCluster(t);
  const [address, audit] = [loopback(n), await openAudit(t)];
  const door = await Door.listen({
    address,
    tls: made.identity.tls,
    isHostAddress: () => false,
    rest: null,
    audit,
    log: silent,
    handlers: {},
  });
  t.teardown(() => door.close());
  return { address, audit };
}

async function ended(socket: Socket): Promise<void> {
  socket.on("error", () => undefined);
  socket.resume();
  await new Promise((resolve) => socket.once("close", resolve));
}

void t.test("door: a handshake that fails is a line, with what was wrong with it", async (t) => {
  const { address, audit } = await openDoor(t, 171);
  const tls = (more: ConnectionOptions): Socket =>
    connectTls({ host: address, port: 7400, rejectUnauthorized: false, ...more });
  const cases: readonly (readonly [open: () => Socket, reason: RegExp])[] = [
    [
      () =>
        connectTcp(7400, address).once("connect", function (this: Socket) {
          this.write("GET / HTTP/1.1\r\n\r\n");
        }),
      /http|wrong version|packet length/i,
    ],
    [() => tls({ maxVersion: "TLSv1.2" }), /protocol/i],
    [() => tls({ ALPNProtocols: ["h2"] }), /application protocol|alpn/i],
    [
      () =>
        connectTcp(7400, address).once("connect", function (this: Socket) {
          this.end();
        }),
      /before/,
    ],
    [() => connectTcp(7400, address), /no handshake within|timeout/i],
  ];
  for (const [n, [open, reason]] of cases.entries()) {
    const before = performance.now();
    await ended(open());
    const lines = await eventually(
      `line ${n}`,
      () => refusedLines(audit),
      (found) => total(found) > n,
    );
    // Of one address within a second there is one line: what comes later in it is a number.
    const passed = performance.now() - before;
    if (n === 0 || passed > 1500)
      t.match(lines.at(-1), { what: "port 7400", outcome: "E-NET-01", target: { reason } }, String(reason));
    await eventually(
      "the second to be over",
      () => Promise.resolve(performance.now() - before),
      (ms) => ms > 1100,
    );
  }
  const lines = await refusedLines(audit);
  t.equal(total(lines), cases.length);
  for (const [, reason] of cases)
    t.ok(
      lines.some(({ target }) => reason.test(String(target["reason"]))),
      String(reason),
    );
  t.match(lines[0], { who: { kind: "nobody" }, id: null, from: new RegExp(`^127\\..*:\\d+$`) });

  // Who comes in is none.
  const good = connectTls({ host: address, port: 7400, rejectUnauthorized: false });
  await once(good, "secureConnect");
  good.write("GET /v1/nothing HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n");
  await ended(good);
  await ended(
    connectTcp(7400, address).once("connect", function (this: Socket) {
      this.destroy();
    }),
  );
  await eventually(
    "the last one",
    () => refusedLines(audit),
    (found) => total(found) > cases.length,
  );
  t.equal(total(await refusedLines(audit)), cases.length + 1);
});

void t.test(
  "door: a flood of connections is a line and a number, and all of it is in the number",
  async (t) => {
    const { address, audit } = await openDoor(t, 172);
    const flood = Array.from({ length: 400 }, () => connectTcp(7400, address));
    await Promise.all(flood.map(ended));
    const most = await eventually(
      "all of them",
      () => refusedLines(audit),
      (found) => total(found) >= 400,
      15_000,
    );
    t.equal(total(most), 400);
    t.ok(most.some(({ outcome }) => outcome === "E-LIMIT-01"));
    // Those that were let in ran into the time for a handshake: another second or two with lines of their own.
    t.ok(most.length <= 12, `${most.length} lines`);
    t.ok(audit.counts.refused - DOOR_LIMITS.perStranger > 300);
  },
);

const line = (ts: string, from: string, error: string): string =>
  `{"level":"warn","ts":"${ts}","caller":"embed/config_logging.go:287","msg":"rejected connection","remote-addr":"${from}","server-name":"","error":${JSON.stringify(error)}}\n`;

void t.test("etcd's log: what it refused is told of once, also after a restart of the agent", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "weft-etcd-log-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const path = join(directory, "etcd.log");
  const audit = await openAudit(t);
  const at = (ms: number): string => new Date(Date.now() + ms).toISOString();
  /** The same moment where the clocks are an hour ahead, as zap writes it. */
  const eastOf = (ms: number): string => at(ms + 3600_000).replace("Z", "+0100");
  const log = new EtcdLog({ path, audit, log: silent, bytesMax: 5000 });
  await log.look();
  t.same(await refusedLines(audit), [], "a host without a member");

  const old = [at(-60_000), eastOf(-60_000)].map((ts) => line(ts, "10.0.0.8:1", "tls: old"));
  await writeFile(path, old.join(""), { mode: 0o600 });
  await log.look();
  t.same(await refusedLines(audit), [], "before this agent's time");
  const refusals = [
    line(at(1), "10.0.0.9:4711", "tls: client didn't provide a certificate"),
    line(at(2), "10.0.0.9:4712", "tls: client didn't provide a certificate"),
    line(eastOf(3), "[fd00::9]:4711", "certificate with serial 77 is revoked"),
    line(
      at(4),
      "10.0.0.7:1",
      "tls: failed to verify certificate: x509: certificate has expired or is not yet valid",
    ),
    line(at(5), "127.0.0.1:99", "EOF"),
    `{"level":"warn","ts":"${at(6)}","msg":"something else","error":"rejected connection"}\n`,
    `not JSON "rejected connection"\n`,
  ];
  const text = refusals.join("");
  await appendFile(path, text.slice(0, -5));
  await log.look();
  await appendFile(path, text.slice(-5));
  await log.look();
  await log.look();
  const lines = await eventually(
    "all of them",
    () => refusedLines(audit),
    (found) => total(found) >= 4,
  );
  t.match(lines.slice(0, 3), [
    {
      from: "10.0.0.9:4711",
      what: "the store",
      outcome: "E-NET-01",
      count: 1,
      target: { reason: /certificate/ },
    },
    { from: "[fd00::9]:4711", outcome: "E-NET-03" },
    { from: "10.0.0.7:1", outcome: "E-NET-04" },
  ]);
  t.match(lines[3], { from: "store 10.0.0.9", who: null, count: 1 });
  await log.stop();

  // The next agent begins where the audit ends, and tells of what came while there was none.
  await appendFile(path, line(at(3000), "10.0.0.6:1", "tls: bad"));
  const next = new EtcdLog({ path, audit, log: silent, bytesMax: 5000 });
  await next.look();
  const more = await eventually(
    "one more",
    () => refusedLines(audit),
    (found) => total(found) >= 5,
  );
  t.equal(total(more), 5);
  t.match(more.at(-1), { from: "10.0.0.6:1" });

  // etcd appends: an emptied file is not written behind a hole.
  const flood = Array.from({ length: 40 }, (_, i) => line(at(4000 + i), "10.0.0.5:1", "tls: flood")).join("");
  await appendFile(path, flood);
  await next.look();
  t.equal((await stat(path)).size, 0);
  t.equal((await stat(`${path}.1`)).mode & 0o777, 0o600);
  t.ok((await readFile(`${path}.1`, "utf8")).endsWith(flood));
  await appendFile(path, line(at(5000), "10.0.0.4:1", "tls: after"));
  await next.look();
  await truncate(path, 0);
  await appendFile(path, line(at(6000), "10.0.0.3:1", "tls: x"));
  await next.look();
  const last = await eventually(
    "all of it",
    () => refusedLines(audit),
    (found) => total(found) >= 47,
  );
  t.equal(total(last), 47);
});

void t.test("etcd: whom the store refuses stands in the audit of the member that did", async (t) => {
  const host = await startHost(t, 173);
  await host.client.init({ name: "h1", address: host.address, clusterName: "lab" });
  const other = await makeCluster(t);
  const query = { since: null, volume: null, host: null, who: null, refused: "true", limit: null } as const;
  const ask = (more: ConnectionOptions & { readonly localAddress: string }): Promise<void> =>
    ended(connectTls({ host: host.address, port: 7402, rejectUnauthorized: false, ...more }));
  const linesOf = async (): Promise<readonly AuditLine[]> =>
    (await host.client.audit(query)).lines.filter(
      ({ what, from }) => what === "the store" || from.startsWith("store"),
    );
  // The first one is the member's own: it shows itself a revoked certificate, and its etcd must refuse that.
  const first = await eventually("the canary", linesOf, (found) => found.length > 0);
  t.match(first[0], { outcome: "E-NET-03", target: { reason: /revoked/ } });
  for (const [n, shown] of [other.identity.current(), {}].entries()) {
    const localAddress = loopback(174 + n);
    await ask({ localAddress, ...shown });
    const isFrom = ({ from }: AuditLine): boolean => from.startsWith(`${localAddress}:`);
    const lines = await eventually(`refusal ${n}`, linesOf, (found) => found.some(isFrom));
    t.match(lines.find(isFrom), {
      who: { kind: "nobody" },
      what: "the store",
      outcome: "E-NET-01",
      target: { reason: /certificate/ },
    });
  }
  t.match(await host.client.verifyAudit(), { broken: null });
});
