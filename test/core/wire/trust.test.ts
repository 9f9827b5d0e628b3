/** The trust list as JSON: read with distrust, written without losing what newer software put there. */
// Loosely: the generated values have no prototype.
import { deepEqual } from "node:assert";

import * as fc from "fast-check";
import t from "tap";

import { parseHostId } from "../../../src/core/model/ids.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { faultOf } from "../../../src/core/model/trust.ts";
import type { Trust } from "../../../src/core/model/trust.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { parseTrust, renderTrust } from "../../../src/core/wire/trust.ts";
import { CLUSTER, testAuthority } from "./authority-for-tests.ts";

const a = await testAuthority();
const b = await testAuthority("store");
const hex = (digit: string): string => digit.repeat(64);
const host = (digit: string): HostId =>
  parseHostId(`${digit.repeat(8)}-1111-4111-8111-111111111111`) as HostId;
const nowMs = Date.UTC(2026, 10, 21);

const list: Trust = {
  cluster: CLUSTER,
  generation: 17n,
  nonce: "20000000-0000-4000-8000-000000000000",
  transport: "tls",
  authorities: [{ kid: a.kid, pem: a.pem, state: "active", sinceMs: nowMs }],
  storeAuthorities: [{ kid: b.kid, pem: b.pem, state: "active", sinceMs: nowMs }],
  hosts: new Map([
    [
      host("2"),
      {
        name: "h2",
        address: "fd00::12",
        member: false,
        keys: [{ kid: hex("2"), sinceMs: nowMs }],
        certs: [],
        held: [],
      },
    ],
    [
      host("1"),
      {
        name: "h1",
        address: "10.0.9.11",
        member: true,
        keys: [{ kid: hex("1"), sinceMs: nowMs }],
        certs: [{ serial: "4f01", by: a.kid, notAfterMs: nowMs + 5000 }],
        held: [a.kid, b.kid],
      },
    ],
  ]),
  revoked: new Map([
    [
      host("3"),
      {
        name: "h3",
        atMs: nowMs,
        by: "root@h1",
        keys: [hex("3")],
        serials: [{ serial: "4f03", notAfterMs: nowMs }],
      },
    ],
  ]),
  rotation: {
    id: "30000000-0000-4000-8000-000000000000",
    phase: "announce",
    why: "asked",
    sinceMs: nowMs,
    without: [host("2")],
  },
};

function codeOf(text: string): string {
  try {
    parseTrust("trust", text);
    return "ok";
  } catch (error) {
    return error instanceof WeftError ? `${error.code} ${error.message}` : String(error);
  }
}

/** The list with one value at a path replaced. */
function changed(path: readonly (string | number)[], value: unknown): string {
  const root = JSON.parse(renderTrust(list, null)) as Record<string, unknown>;
  let place: Record<string | number, unknown> = root;
  for (const step of path.slice(0, -1)) place = place[step] as Record<string | number, unknown>;
  place[path.at(-1) ?? ""] = value;
  return JSON.stringify(root);
}

void t.test("trust list: it is read as it was written, and the same list is the same text", async (t) => {
  const text = renderTrust(list, null);
  const read = parseTrust("trust", text);
  t.strictSame(read, { ...list, hosts: new Map(Array.from(list.hosts).toReversed()) });
  t.equal(renderTrust(read, null), text);
  t.equal(renderTrust({ ...list, hosts: read.hosts }, null), text);
  t.match(JSON.parse(text), {
    fmt: 1,
    generation: "17",
    hosts: { [host("1")]: { certs: [{ serial: "4f01", by: a.kid, notAfter: "2026-11-21T00:00:05.000Z" }] } },
    revoked: { [host("3")]: { at: "2026-11-21T00:00:00.000Z", keys: [hex("3")] } },
  });
});

void t.test("trust list: fields of newer software stay", async (t) => {
  const before = changed(["hosts", host("1"), "newer"], { kept: true }).replace("{", '{"alsoNewer":[1],');
  const after = renderTrust({ ...parseTrust("trust", before), generation: 18n }, before);
  t.match(JSON.parse(after), {
    alsoNewer: [1],
    generation: "18",
    hosts: { [host("1")]: { newer: { kept: true } } },
  });
  t.match(codeOf(changed(["min_reader"], 2)), /^E-STORE-13/);
});

void t.test(
  "trust list: what contradicts itself, or names a key by another's hash, is refused",
  async (t) => {
    const entry = (JSON.parse(renderTrust(list, null)) as { hosts: Record<string, unknown> }).hosts[
      host("1")
    ];
    const plots: readonly (readonly [RegExp, string])[] = [
      [/not JSON/, "{"],
      [/"generation"/, changed(["generation"], "-1")],
      [/"generation"/, changed(["generation"], 17)],
      [/"authorities.0".*KID/, changed(["authorities", 0, "kid"], hex("a"))],
      [/"authorities.0".*KID/, changed(["authorities", 0, "pem"], b.pem)],
      [/"authorities.0".*KID/, changed(["authorities", 0, "pem"], "no certificate")],
      [/0 active authorities/, changed(["authorities", 0, "state"], "outgoing")],
      [/0 active store authorities/, changed(["storeAuthorities"], [])],
      [/UUID in lower case/, changed(["hosts", host("1").replaceAll("-", "")], entry)],
      [/h3 is listed and revoked/, changed(["hosts", host("3")], { ...(entry as object), name: "h3" })],
      [/another host's, or revoked/, changed(["hosts", host("2"), "keys", 0, "kid"], hex("1"))],
      [/another host's, or revoked/, changed(["hosts", host("2"), "keys", 0, "kid"], hex("3"))],
      [/"hosts.1.*member"/, changed(["hosts", host("1"), "member"], "yes")],
      [/"hosts.1.*member"/, changed(["hosts", host("1"), "member"], undefined)],
      [/"hosts.1.*address"/, changed(["hosts", host("1"), "address"], "10.0.9.11:7403")],
      [/"hosts.1.*address"/, changed(["hosts", host("1"), "address"], undefined)],
      [/"hosts.2.*keys"/, changed(["hosts", host("2"), "keys"], [])],
      [/year 9999/, changed(["hosts", host("1"), "certs", 0, "notAfter"], "9999-12-31T00:00:00Z")],
      [/"rotation.phase"/, changed(["rotation", "phase"], "done")],
    ];
    for (const [why, text] of plots) {
      t.match(codeOf(text), /^E-STORE-07/);
      t.match(codeOf(text), why);
    }
  },
);

void t.test("trust list: lists of any shape are read as they were written", async () => {
  const moment = fc.integer({ min: 0, max: Date.UTC(9998, 0) });
  const kid = fc.stringMatching(/^[0-9a-f]{64}$/);
  const serial = fc.stringMatching(/^([0-9a-f]{2}){1,16}$/);
  const id = fc.uuid({ version: 4 }).map((text) => text as HostId);
  const trusted = fc.record({
    name: fc.string({ minLength: 1, maxLength: 63 }),
    address: fc.oneof(fc.ipV4(), fc.ipV6()),
    member: fc.boolean(),
    keys: fc.array(fc.record({ kid, sinceMs: moment }), { minLength: 1, maxLength: 2 }),
    certs: fc.array(fc.record({ serial, by: kid, notAfterMs: moment }), { maxLength: 3 }),
    held: fc.array(kid, { maxLength: 3 }),
  });
  const gone = fc.record({
    name: fc.string({ minLength: 1, maxLength: 63 }),
    atMs: moment,
    by: fc.string({ maxLength: 50 }),
    keys: fc.array(kid, { maxLength: 2 }),
    serials: fc.array(fc.record({ serial, notAfterMs: moment }), { maxLength: 3 }),
  });
  const any = fc.record({
    hosts: fc.array(fc.tuple(id, trusted), { maxLength: 4 }).map((entries) => new Map(entries)),
    revoked: fc.array(fc.tuple(id, gone), { maxLength: 4 }).map((entries) => new Map(entries)),
    generation: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
    transport: fc.constantFrom("tls" as const, "auth" as const, "clear" as const),
  });
  fc.assert(
    fc.property(any, (change) => {
      const trust: Trust = { ...list, ...change };
      fc.pre(faultOf(trust) === null);
      deepEqual(parseTrust("trust", renderTrust(trust, null)), trust);
    }),
    { numRuns: 200 },
  );
});
