/** Plot: the audit of one host, through crashes, changes by somebody, full disks and floods. */
import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import {
  appendFile,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import * as fc from "fast-check";
import t from "tap";

import { Audit, type AuditOptions, type AuditRequest } from "../../../src/core/agent/audit.ts";
import { openLog } from "../../../src/core/agent/log.ts";
import { Syslog, syslogText } from "../../../src/core/agent/syslog.ts";
import { Refusals } from "../../../src/core/model/refusals.ts";
import {
  type AuditLine,
  LINE_BYTES_MAX,
  matchesAudit,
  mergeAudit,
  NO_HASH,
  parseAuditLine,
  renderAuditLine,
} from "../../../src/core/wire/audit-line.ts";

const host = "00000000-0000-4000-8000-000000000001";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

async function scratch(t: Scope): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "weft-audit-"));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return join(directory, "audit");
}

function openAudit(t: Scope, directory: string, more: Partial<AuditOptions> = {}): Audit {
  const log = openLog("silent");
  const audit = new Audit({ directory, log, syslog: null, host: () => host, ...more });
  t.teardown(() => audit.close());
  return audit;
}

function request(more: Partial<AuditRequest> = {}): AuditRequest {
  return {
    id: randomUUID(),
    who: { kind: "root", name: "root", role: "admin", id: null },
    from: "unix pid 7",
    what: "POST /v1/volumes",
    target: { name: "db" },
    ...more,
  };
}

const all = (): boolean => true;

/** A mutation from its beginning to its end. */
async function done(audit: Audit, more: Partial<AuditRequest> = {}): Promise<void> {
  const mutation = request(more);
  await audit.begin(mutation, true);
  await audit.end(mutation, "ok", 12);
}

async function names(directory: string): Promise<readonly string[]> {
  return (await readdir(directory)).toSorted();
}

void t.test(
  "audit: a mutation has a beginning and an end, chained, in a file of its owner alone",
  async (t) => {
    const directory = await scratch(t);
    const audit = openAudit(t, directory);
    const mutation = request();
    await audit.begin(mutation, true);
    await audit.end(mutation, "E-VOL-01", 3);
    await audit.refused(request({ what: "DELETE /v1/volumes/:ref" }), "uid 7", "E-AUTH-02");
    const lines = await audit.last(10, null, all);
    t.match(lines, [
      { seq: 1n, event: "begin", id: mutation.id, outcome: null, ms: null, prev: NO_HASH, host },
      { seq: 2n, event: "end", id: mutation.id, outcome: "E-VOL-01", ms: 3, target: { name: "db" } },
      { seq: 3n, event: "refused", outcome: "E-AUTH-02", count: 1 },
    ]);
    t.match(await audit.verify(2n), { lines: 3, first: 1n, broken: null, head: { seq: 3n } });
    t.equal((await audit.verify(2n)).hashOfAsked, lines[2]?.prev);
    t.equal((await stat(directory)).mode & 0o777, 0o700);
    t.equal((await stat(join(directory, "audit.log"))).mode & 0o777, 0o600);
    t.same(await audit.last(1, null, all), lines.slice(2));

    // The next agent goes on where this one ended.
    await audit.close();
    const next = openAudit(t, directory);
    await done(next);
    t.match(await next.verify(null), { lines: 5, broken: null });
  },
);

void t.test("audit: an end within a line is cut, and the next line says so", async (t) => {
  const directory = await scratch(t);
  const file = join(directory, "audit.log");
  const first = openAudit(t, directory);
  await done(first);
  await done(first);
  await first.close();
  const whole = (await stat(file)).size;
  for (const left of [1, 60, 300]) {
    // As a crash leaves it: a part of a line, or bytes that were never written.
    const text = await readFile(file, "utf8");
    await appendFile(file, left === 60 ? "\0".repeat(60) : text.slice(0, left));
    const audit = openAudit(t, directory);
    await done(audit);
    const [torn] = (await audit.last(3, null, all)).slice(0, 1);
    t.match(torn, { event: "torn", outcome: `${left} bytes`, who: null });
    t.match(await audit.verify(null), { broken: null });
    await audit.close();
    await truncate(file, whole);
  }
});

void t.test("audit: who changes, takes out or cuts lines is found out", async (t) => {
  const directory = await scratch(t);
  const file = join(directory, "audit.log");
  const first = openAudit(t, directory);
  for (let n = 0; n < 5; n += 1) await done(first);
  await first.close();
  const text = await readFile(file, "utf8");
  const lines = text.trimEnd().split("\n");
  const changes: readonly (readonly [what: string, text: string, line: number])[] = [
    ["a changed outcome", text.replace('"ok"', '"OK"'), 3],
    ["a line taken out", lines.toSpliced(3, 1).join("\n"), 4],
    ["a line put in", lines.toSpliced(3, 0, lines[2] ?? "").join("\n"), 4],
    ["two lines that changed places", lines.toSpliced(3, 2, lines[4] ?? "", lines[3] ?? "").join("\n"), 4],
    ["a line that is none", lines.toSpliced(3, 1, "{}").join("\n"), 4],
  ];
  for (const [what, changed, line] of changes) {
    await rm(directory, { recursive: true });
    const begun = openAudit(t, directory);
    await begun.begin(request(), true);
    await begun.close();
    await writeFile(file, `${changed.trimEnd()}\n`);
    const audit = openAudit(t, directory);
    t.match((await audit.verify(null)).broken, { file: "audit.log", line }, what);
    // It goes on in a new file, which says so; the old one stays for whoever looks into it.
    await done(audit);
    t.match((await audit.last(3, null, all))[0], { event: "broken", outcome: "E-AUDIT-02" }, what);
    t.same(await names(directory), ["audit-00000000000000000001.log", "audit.log"], what);
    t.equal(
      await readFile(join(directory, "audit-00000000000000000001.log"), "utf8"),
      `${changed.trimEnd()}\n`,
    );
    t.match((await audit.verify(null)).broken, { file: "audit-00000000000000000001.log", line }, what);
    await audit.close();
  }
  // Lines cut off whole leave a chain that is whole: what the store kept of the end tells.
  await rm(directory, { recursive: true });
  const begun = openAudit(t, directory);
  await done(begun);
  const kept = (await begun.verify(null)).head;
  await begun.close();
  await truncate(file, (await stat(file)).size / 2);
  const audit = openAudit(t, directory);
  await done(audit);
  const verdict = await audit.verify(kept?.seq ?? null);
  t.equal(verdict.broken, null);
  t.not(verdict.hashOfAsked, kept?.hash);
});

void t.test("audit: full files are set aside, the oldest go, the chain goes on through them", async (t) => {
  const directory = await scratch(t);
  const audit = openAudit(t, directory, { fileBytesMax: 2000, filesKept: 3 });
  for (let n = 0; n < 30; n += 1) await done(audit, { target: { name: `v${n}` } });
  const kept = await names(directory);
  t.equal(kept.length, 4);
  t.ok(kept.every((name) => /^audit(-[0-9]{20})?\.log$/.test(name)));
  const { first, lines, broken, head } = await audit.verify(null);
  t.ok(first !== null && first > 1n);
  t.equal(broken, null);
  t.equal(head?.seq, 60n);
  t.equal(BigInt(lines), 60n - (first ?? 0n) + 1n);
  const last = await audit.last(5, null, ({ event }) => event === "end");
  t.same(
    last.map(({ target }) => target["name"]),
    ["v25", "v26", "v27", "v28", "v29"],
  );
  await audit.close();
  const next = openAudit(t, directory, { fileBytesMax: 2000, filesKept: 3 });
  await done(next);
  t.match(await next.verify(null), { broken: null, head: { seq: 62n } });

  // A crash between the two: no file is the current one.
  await next.close();
  await rename(join(directory, "audit.log"), join(directory, "audit-00000000000000000061.log"));
  const later = openAudit(t, directory);
  await done(later);
  t.match(await later.verify(null), { broken: null, head: { seq: 64n } });
});

void t.test("audit: lines are read while others are written and files are set aside", async (t) => {
  const audit = openAudit(t, await scratch(t), { fileBytesMax: 3000 });
  await done(audit);
  const writing = Promise.all(Array.from({ length: 200 }, () => done(audit)));
  for (let n = 0; n < 20; n += 1) t.equal((await audit.verify(null)).broken, null);
  await writing;
  t.match(await audit.verify(null), { lines: 402, broken: null });
});

void t.test("audit: what the disk does not take refuses mutations, and is counted", async (t) => {
  const directory = await scratch(t);
  // Where the directory should be there is a file.
  await writeFile(directory, "");
  const audit = openAudit(t, directory);
  await t.rejects(audit.begin(request(), false), { code: "E-AUDIT-01", status: 503 });
  await audit.refused(request(), "uid 7", "E-AUTH-02");
  await audit.end(request(), "ok", 1);
  await rm(directory);
  await done(audit);
  t.match(await audit.last(10, null, all), [
    { event: "lost", count: 2 },
    { event: "begin" },
    { event: "end" },
  ]);
});

void t.test("audit: a disk that fills up within a line loses nothing that was promised", async (t) => {
  const directory = await scratch(t);
  const source = join(import.meta.dirname, "../../../src/core/agent");
  // In a process whose files may have 20,000 bytes, until it lets itself have more.
  const script = `
    process.on("SIGXFSZ", () => undefined);
    const { Audit } = await import(${JSON.stringify(join(source, "audit.ts"))});
    const { openLog } = await import(${JSON.stringify(join(source, "log.ts"))});
    const { execFileSync } = await import("node:child_process");
    const audit = new Audit({ directory: ${JSON.stringify(directory)}, log: openLog("silent"), syslog: null, host: () => null });
    const request = () => ({ id: crypto.randomUUID(), who: null, from: "x", what: "POST /v1/pools", target: {} });
    const promised = [];
    let refused = 0;
    while (refused < 3) {
      const one = request();
      try { await audit.begin(one, true); promised.push(one.id); } catch (error) {
        if (error.code !== "E-AUDIT-01") throw error;
        refused += 1;
      }
    }
    execFileSync("prlimit", ["--pid", String(process.pid), "--fsize=unlimited"]);
    const last = request();
    await audit.begin(last, true);
    promised.push(last.id);
    const lines = await audit.last(1000, null, () => true);
    const { broken } = await audit.verify(null);
    console.log(JSON.stringify({ promised, broken, found: lines.filter((l) => l.event === "begin").map((l) => l.id),
      torn: lines.filter((l) => l.event === "torn").length }));
    process.exit(0);`;
  const shown = execFileSync(
    "prlimit",
    ["--fsize=20000:unlimited", process.execPath, "--input-type=module", "-e", script],
    { encoding: "utf8" },
  );
  const { promised, found, broken, torn } = JSON.parse(shown) as Readonly<Record<string, unknown>>;
  t.same(found, promised);
  t.equal(broken, null);
  t.ok(Number(torn) > 0, "a part of a line was written");
});

void t.test("audit: a flood of refusals of one source is two lines, and none is lost", async (t) => {
  const audit = openAudit(t, await scratch(t));
  for (let n = 0; n < 1000; n += 1) await audit.refused(request(), "address 10.0.0.9", "E-AUTH-01");
  await audit.close();
  const lines = await audit.last(1000, null, ({ event }) => event === "refused");
  t.equal(
    lines.reduce((sum, { count }) => sum + count, 0),
    1000,
  );
  t.match(lines.at(-1), { from: "address 10.0.0.9", who: null });
  t.ok(lines.length <= 4, `${lines.length} lines`);

  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(300), fc.nat(400))), (steps) => {
      const refusals = new Refusals();
      let now = 0;
      let written = 0;
      let counted = 0;
      const add = (lines: readonly { readonly count: number }[]): void => {
        counted += lines.reduce((sum, { count }) => sum + count, 0);
      };
      for (const [source, passed] of steps) {
        now += passed;
        add(refusals.end(now));
        const crowd = source % 3 === 0 ? null : source % 3 === 1 ? "connections" : "requests";
        if (refusals.count({ source: `address ${source}`, crowd, count: 1 }, now)) written += 1;
        t.ok(refusals.size <= 103);
      }
      add(refusals.endAll());
      t.equal(written + counted, steps.length);
      t.equal(refusals.nextEndMs, null);
    }),
  );
});

void t.test("audit: strangers from however many addresses make few lines, and hide nobody", async (t) => {
  const audit = openAudit(t, await scratch(t));
  const nobody = (address: string) => ({ kind: "nobody" as const, name: address, role: null, id: null });
  const before = performance.now();
  for (let n = 0; n < 5000; n += 1) {
    const from = `10.${n >> 8}.${n & 255}.1`;
    await audit.refused(
      request({ id: null, who: nobody(from), from, what: "port 7400" }),
      `7400 ${from}`,
      "E-LIMIT-01",
    );
  }
  const seconds = (performance.now() - before) / 1000;
  // A token that is tried in the middle of it, and what somebody may not who is known.
  const tried = request({ who: nobody("10.0.0.9"), from: "10.0.0.9:1", what: "POST /v1/enrol" });
  await audit.refused(tried, "10.0.0.9", "E-TOKEN-02");
  await audit.refused(request({ what: "DELETE /v1/volumes/:ref" }), "token a81c04fe", "E-AUTH-02");
  await audit.close();
  const lines = await audit.last(1000, null, ({ event }) => event === "refused");
  t.equal(
    lines.reduce((sum, { count }) => sum + count, 0),
    5002,
  );
  t.ok(lines.length <= 63 + 2 * seconds, `${lines.length} lines in ${seconds} s`);
  t.match(
    lines.filter(({ what }) => what.startsWith("POST") || what.startsWith("DELETE")),
    [{ outcome: "E-TOKEN-02" }, { outcome: "E-AUTH-02" }],
  );
  t.match(lines.at(-1), { from: "others (connections)", who: null });
});

void t.test(
  "audit: what strangers' flood leaves of a day's lines is bounded by time, not by its rate",
  async (t) => {
    const refusals = new Refusals();
    let [lines, told] = [0, 0];
    const hours = 3600 * 1000;
    for (let now = 0; now < hours; now += 10) {
      const ended = refusals.end(now);
      lines += ended.length;
      told += ended.reduce((sum, { count }) => sum + count, 0);
      for (const crowd of ["connections", "requests"] as const)
        if (refusals.count({ source: `${crowd} ${now % 7777}`, crowd, count: 3 }, now))
          [lines, told] = [lines + 1, told + 3];
    }
    const rest = refusals.endAll();
    told += rest.reduce((sum, { count }) => sum + count, 0);
    t.equal(told, (hours / 10) * 6);
    // A line a second for each of the two crowds, one a minute for the rest of it.
    t.ok(lines <= 2 * (60 + 3600 + 60) + 2, `${lines} lines`);
  },
);

const line: AuditLine = {
  seq: 7n,
  at: "2026-11-21T14:02:11.000Z",
  host,
  id: "00000000-0000-4000-8000-000000000002",
  event: "end",
  who: { kind: "token", name: "ci", role: "operator", id: "a81c04fe" },
  from: "10.0.0.9:4711",
  what: "POST /v1/volumes/:ref/attach",
  target: { ref: "db", volume: "00000000-0000-4000-8000-000000000003", steal: false },
  outcome: "ok",
  ms: 12,
  count: 1,
  prev: NO_HASH,
};

void t.test(
  "audit line: is one line of 4 KiB at most, whatever a name holds, and is read back",
  async (t) => {
    const text = fc.string({ unit: "binary", maxLength: 2000 });
    const target = fc.dictionary(fc.string({ maxLength: 20 }), fc.oneof(text, fc.array(text), fc.boolean()));
    fc.assert(
      fc.property(target, text, (target, from) => {
        const rendered = renderAuditLine({ ...line, from: from.slice(0, 60), target });
        // oxlint-disable-next-line no-control-regex -- control characters are what is looked for
        t.notMatch(rendered, /[\u0000-\u001f\u007f-\u009f\u2028-\u202e]/);
        t.ok(Buffer.byteLength(rendered) < LINE_BYTES_MAX);
        t.match(parseAuditLine(rendered), { seq: 7n, outcome: "ok" });
      }),
    );
    t.same(parseAuditLine(renderAuditLine(line)), line);
    t.equal(parseAuditLine("{}"), null);
    t.equal(parseAuditLine("{"), null);
  },
);

void t.test("audit line: is found by its volume, by who asked, by time, by refusal", async (t) => {
  const none = { sinceMs: null, volume: null, who: null, refusedOnly: false };
  t.ok(matchesAudit(line, none));
  t.ok(matchesAudit(line, { ...none, volume: ["db"] }));
  t.ok(matchesAudit(line, { ...none, volume: ["00000000-0000-4000-8000-000000000003"] }));
  t.notOk(matchesAudit(line, { ...none, volume: ["web"] }));
  t.ok(matchesAudit(line, { ...none, who: "ci" }));
  t.ok(matchesAudit(line, { ...none, who: "a81c04fe" }));
  t.notOk(matchesAudit(line, { ...none, who: "root" }));
  t.notOk(matchesAudit(line, { ...none, refusedOnly: true }));
  t.ok(matchesAudit({ ...line, event: "refused" }, { ...none, refusedOnly: true }));
  t.ok(matchesAudit(line, { ...none, sinceMs: Date.parse(line.at) }));
  t.notOk(matchesAudit(line, { ...none, sinceMs: Date.parse(line.at) + 1 }));
});

void t.test(
  "audit line: lines of several hosts are merged by their clocks, each host's in its own order",
  async (t) => {
    const host = (name: number): fc.Arbitrary<readonly AuditLine[]> =>
      fc.array(fc.nat(50)).map((times) =>
        times.map((time, n) => ({
          ...line,
          host: `00000000-0000-4000-8000-00000000000${name}`,
          seq: BigInt(n),
          at: new Date(time).toISOString(),
        })),
      );
    fc.assert(
      fc.property(fc.tuple(host(1), host(2), host(3)), fc.nat(40), (hosts, limit) => {
        const merged = mergeAudit(hosts, Number.MAX_SAFE_INTEGER);
        t.equal(merged.length, hosts.flat().length);
        for (const own of hosts) {
          const [first] = own;
          if (first !== undefined)
            t.same(
              merged.filter((one) => one.host === first.host),
              own,
            );
        }
        const sorted = hosts.every((own) =>
          own.every((one, n) => n === 0 || (own[n - 1]?.at ?? "") <= one.at),
        );
        if (sorted) t.ok(merged.every((one, n) => n === 0 || (merged[n - 1]?.at ?? "") <= one.at));
        t.same(mergeAudit(hosts, limit), limit === 0 ? [] : merged.slice(-limit));
      }),
    );
  },
);

void t.test("audit: the system's log gets a copy, and is not missed when it is away", async (t) => {
  const sent: string[] = [];
  let away = false;
  const addon = {
    sendDatagram: (path: string, data: Buffer): void => {
      if (away) throw new Error("datagram: connection refused");
      sent.push(`${path} ${data.toString()}`);
    },
  };
  const syslog = new Syslog(addon, "/dev/log");
  const audit = openAudit(t, await scratch(t), { syslog });
  await done(audit);
  await audit.refused(request(), "uid 7", "E-AUTH-02");
  t.equal(sent.length, 3);
  t.match(sent[0], /^\/dev\/log <85>[A-Z][a-z]{2} [ 1-3][0-9] [0-9:]{8} weft-agent\[[0-9]+\]: \{"seq":"1",/);
  t.match(sent[2], /^\/dev\/log <84>.*"refused"/);
  t.equal(parseAuditLine(sent[0]?.slice(sent[0].indexOf("{")) ?? "")?.seq, 1n);
  away = true;
  await done(audit);
  t.equal(syslog.dropped, 2);
  const at = new Date(2026, 10, 2, 3, 4, 5);
  t.equal(syslogText("warning", "x", at, 9), "<84>Nov  2 03:04:05 weft-agent[9]: x");
});
