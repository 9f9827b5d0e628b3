/**
 * Plot: hosts join, get certificates, are revoked, authorities change, and lists arrive in any order, also ones of a store
 * that was put back. Whoever was revoked must never be listened to again.
 */
import { equal, notEqual, ok as holds } from "node:assert/strict";

import * as fc from "fast-check";
import t from "tap";

import type { Decision } from "../../../src/core/model/finding.ts";
import { CLOCK_SLACK_MS } from "../../../src/core/model/limits.ts";
import {
  acceptTrust,
  crlSerials,
  faultOf,
  holdsAuthority,
  hostUri,
  judgeKey,
  judgePeer,
  revokeHost,
  setRotation,
  withCert,
  withHeld,
  withKey,
} from "../../../src/core/model/trust.ts";
import type { CertFacts, SignedTrust, Trust } from "../../../src/core/model/trust.ts";
import {
  anyTime,
  authority,
  certOf,
  CLUSTER,
  DAY_MS,
  kid,
  signedBy,
  trustHost,
  trustOf,
} from "./trust-world.ts";

function value<T>(decision: Decision<T>): T {
  if (decision.kind === "refused") throw new Error(decision.finding.message);
  return decision.value;
}

function codeOf(decision: Decision<unknown>): string {
  return decision.kind === "ok" ? "ok" : decision.finding.code;
}

const revoked = (trust: Trust, number: number): Trust =>
  value(
    revokeHost(trust, {
      host: trustHost(number),
      by: "root",
      nowMs: 5,
      nonce: `r${number}`,
      replacement: holdsAuthority(trust, trustHost(number))
        ? {
            id: "rotation",
            authority: authority(`A${trust.generation + 1n}`),
            storeAuthority: authority(`B${trust.generation + 1n}`),
          }
        : null,
    }),
  );

void t.test(
  "trust: a peer is ok by key, name, authority and date together, and refused by each alone",
  async (t) => {
    const trust = revoked(trustOf(3), 3);
    const verdict = (number: number, change: Partial<CertFacts> = {}, now = 1): string =>
      judgePeer(trust, certOf(number, change), now).kind;
    t.equal(verdict(1), "ok");
    t.equal(verdict(1, { kid: kid("k2") }), "not-listed");
    t.equal(verdict(9), "not-listed");
    t.equal(verdict(3), "revoked");
    t.equal(verdict(1, { kid: kid("k3") }), "revoked", "a revoked key under another host's name");
    t.equal(verdict(1, { issuerKid: null }), "stranger");
    t.equal(verdict(1, { issuerKid: kid("B1") }), "stranger", "an authority of the store signs no hosts");
    t.equal(verdict(1, { serverAndClient: false }), "bad-chain");
    t.equal(verdict(1, { uris: [] }), "stranger");
    t.equal(verdict(1, { uris: [...certOf(1).uris, ...certOf(2).uris] }), "stranger");
    t.equal(verdict(1, { uris: [hostUri(trustHost(7), trustHost(1))] }), "other-cluster");
    const uri = hostUri(CLUSTER, trustHost(1));
    for (const bad of [
      `${uri}/`,
      `${uri}%00`,
      ` ${uri}`,
      `${uri}\n`,
      uri.toUpperCase(),
      uri.replace("weft", "http"),
      uri.replaceAll("-", ""),
    ])
      t.equal(verdict(1, { uris: [bad] }), "stranger", bad);
  },
);

void t.test(
  "trust: outside its dates a certificate is told with its limit and this host's clock",
  async (t) => {
    const trust = trustOf(1);
    const cert = certOf(1, { notBeforeMs: 1000, notAfterMs: 2000 });
    t.equal(judgePeer(trust, cert, 1000).kind, "ok");
    t.equal(judgePeer(trust, cert, 2000).kind, "ok");
    const host = trustHost(1);
    t.strictSame(judgePeer(trust, cert, 999), { kind: "not-yet-valid", host, limitMs: 1000, nowMs: 999 });
    t.strictSame(judgePeer(trust, cert, 2001), { kind: "expired", host, limitMs: 2000, nowMs: 2001 });
    t.equal(judgeKey(trust, cert).kind, "ok", "for its renewal the key is enough");
    t.equal(judgeKey(trust, certOf(1, { issuerKid: null })).kind, "ok");
    t.equal(judgeKey(revoked(trustOf(2), 1), cert).kind, "revoked");
  },
);

void t.test(
  "trust: only a higher generation, signed by who may sign, takes the place of a list",
  async (t) => {
    const one = trustOf(2);
    const two = value(
      withKey(one, {
        host: trustHost(3),
        name: "h3",
        address: "10.0.0.3",
        kid: kid("k3"),
        nowMs: 1,
        nonce: "n2",
      }),
    );
    const known = signedBy(two, "A1");
    t.equal(codeOf(acceptTrust(null, signedBy(one, "A1"))), "ok");
    t.equal(codeOf(acceptTrust(null, signedBy(one, "B1"))), "E-TRUST-01");
    t.equal(codeOf(acceptTrust(signedBy(one, "A1"), known)), "ok");
    t.equal(codeOf(acceptTrust(known, signedBy(one, "A1"))), "E-TRUST-02");
    t.equal(codeOf(acceptTrust(known, known)), "ok");
    t.equal(codeOf(acceptTrust(known, signedBy({ ...two, nonce: "other" }, "A1"))), "E-TRUST-02");
    const three = { ...two, generation: 3n };
    t.equal(codeOf(acceptTrust(known, signedBy(three, "X"))), "E-TRUST-01");
    t.equal(codeOf(acceptTrust(known, signedBy({ ...three, cluster: trustHost(9) }, "A1"))), "E-TRUST-01");
    t.equal(codeOf(acceptTrust(known, signedBy({ ...three, authorities: [] }, "A1"))), "E-TRUST-01");
    const gone = revoked(two, 3);
    const back = { ...gone, generation: 9n, revoked: new Map() };
    t.equal(
      codeOf(acceptTrust(signedBy(gone, "A1"), signedBy(back, "A1"))),
      "E-TRUST-01",
      "revoked for good",
    );
  },
);

void t.test(
  "trust: during a rotation the active and the incoming authority sign, the outgoing one no more",
  async (t) => {
    const both = (
      a1: "active" | "outgoing",
      a2: "active" | "incoming",
      phase: "announce" | "bundle" | "issue",
    ): Trust =>
      setRotation(trustOf(1), {
        nonce: "x",
        authorities: [authority("A1", a1), authority("A2", a2)],
        storeAuthorities: [authority("B1"), authority("B2", "incoming")],
        rotation: { id: "r", phase, why: "asked", sinceMs: 0, without: [] },
      });
    const signs = (known: Trust, by: string): string =>
      codeOf(acceptTrust(signedBy(known, "A1"), signedBy({ ...known, generation: 9n, nonce: "y" }, by)));
    t.equal(signs(both("active", "incoming", "announce"), "A2"), "ok");
    t.equal(signs(both("active", "incoming", "bundle"), "A1"), "ok");
    t.equal(signs(both("active", "incoming", "bundle"), "B2"), "E-TRUST-01");
    t.equal(signs(both("active", "incoming", "issue"), "A2"), "ok");
    t.equal(signs(both("outgoing", "active", "issue"), "A2"), "ok");
    t.equal(
      signs(both("outgoing", "active", "issue"), "A1"),
      "E-TRUST-01",
      "the outgoing one signs nothing more",
    );
  },
);

void t.test("trust: a host that held the authority's key goes only together with it", async (t) => {
  const trust = trustOf(3, 2);
  t.ok(holdsAuthority(trust, trustHost(2)));
  t.notOk(holdsAuthority(trust, trustHost(3)));
  const of = { host: trustHost(2), by: "root", nowMs: 5, nonce: "r", replacement: null };
  t.throws(() => revokeHost(trust, of), /without a new authority/);
  const after = revoked(trust, 2);
  t.strictSame(
    [...after.authorities, ...after.storeAuthorities].map(({ pem, state }) => `${pem} ${state}`),
    ["A2 active", "A1 outgoing", "B2 active"],
  );
  t.equal(after.rotation?.why, "revoked");
  t.equal(
    codeOf(acceptTrust(signedBy(trust, "A1"), signedBy(after, "A1"))),
    "ok",
    "signed by the old one, once",
  );
  t.equal(
    codeOf(acceptTrust(signedBy(after, "A1"), signedBy({ ...after, generation: 9n }, "A1"))),
    "E-TRUST-01",
  );
  t.equal(judgePeer(after, certOf(3), 6).kind, "ok", "a listed host goes on with its old certificate");
  const minted = certOf(9, { kid: kid("thief") });
  t.equal(judgePeer(after, minted, 6).kind, "not-listed", "a minted one was never listed");
  // A former member counts as well: it may have kept a copy.
  const former = value(withHeld(trustOf(3), { host: trustHost(3), kids: [kid("A1")], nonce: "h" }));
  t.ok(holdsAuthority(former, trustHost(3)));
});

void t.test("trust: keys and certificates are listed once, and for hosts that are there", async (t) => {
  const trust = revoked(trustOf(3), 3);
  const key = { host: trustHost(4), name: "h4", address: "10.0.0.4", nowMs: 1, nonce: "n" };
  t.equal(codeOf(withKey(trust, { ...key, kid: kid("k1") })), "E-HOST-15", "another host's");
  t.equal(codeOf(withKey(trust, { ...key, kid: kid("k3") })), "E-HOST-15", "a revoked host's");
  t.equal(codeOf(withKey(trust, { ...key, host: trustHost(3), kid: kid("k4") })), "E-HOST-14");
  t.equal(withKey(trust, { ...key, host: trustHost(1), kid: kid("k1") }).kind === "ok", true);
  const cert = { serial: "77", by: kid("A1"), notAfterMs: 60 * DAY_MS };
  const add = { host: trustHost(1), cert, nowMs: 30 * DAY_MS + CLOCK_SLACK_MS, nonce: "n" };
  t.equal(value(withCert(trust, add)).hosts.get(trustHost(1))?.certs.length, 2);
  const late = value(withCert(trust, { ...add, nowMs: add.nowMs + 1 }));
  t.strictSame(late.hosts.get(trustHost(1))?.certs, [cert], "an old one is forgotten 25 h after its end");
  t.equal(withCert(late, add).kind === "ok" && value(withCert(late, add)), late, "twice is once");
  t.equal(codeOf(withCert(trust, { ...add, host: trustHost(3) })), "E-HOST-14");
  t.equal(codeOf(withCert(trust, { ...add, host: trustHost(8) })), "E-ARG-01");
  t.strictSame(crlSerials(trust, 30 * DAY_MS + CLOCK_SLACK_MS), ["03"]);
  t.strictSame(crlSerials(trust, 30 * DAY_MS + CLOCK_SLACK_MS + 1), []);
});

type Act =
  | { readonly kind: "key" | "cert" | "revoke" | "held"; readonly host: number; readonly nowMs: number }
  /** A list out of the past, or one made up, arrives at a host. */
  | { readonly kind: "arrive"; readonly which: number; readonly host: number; readonly nowMs: number };

const acts = fc.array(
  fc.oneof(
    fc.record({
      kind: fc.constantFrom("key" as const, "cert" as const, "revoke" as const, "held" as const),
      host: fc.integer({ min: 1, max: 6 }),
      nowMs: anyTime,
    }),
    fc.record({ kind: fc.constant("arrive" as const), which: fc.nat(), host: fc.nat(2), nowMs: anyTime }),
  ),
  { maxLength: 40 },
);

/** Writes as a member does: the newest list, changed, signed by its active authority before the change. */
function written(newest: SignedTrust, act: Exclude<Act, { kind: "arrive" }>, nonce: string): SignedTrust {
  const { trust } = newest;
  const host = trustHost(act.host);
  const common = { host, nowMs: act.nowMs, nonce };
  const active = trust.authorities.find(({ state }) => state === "active")?.pem ?? "";
  const changed = ((): Decision<Trust> => {
    switch (act.kind) {
      case "key":
        return withKey(trust, {
          ...common,
          name: `h${act.host}`,
          address: `10.0.0.${act.host}`,
          kid: kid(`k${act.host}`),
        });
      case "cert":
        return withCert(trust, {
          ...common,
          cert: { serial: nonce, by: kid(active), notAfterMs: act.nowMs + DAY_MS },
        });
      case "held":
        return withHeld(trust, { ...common, kids: [kid(active)] });
      case "revoke":
        return trust.hosts.has(host)
          ? { kind: "ok", value: revoked(trust, act.host) }
          : { kind: "ok", value: trust };
    }
  })();
  if (changed.kind === "refused" || changed.value === trust) return newest;
  equal(faultOf(changed.value), null);
  return signedBy(changed.value, active);
}

void t.test(
  "trust: no sequence of lists lowers a generation, or listens to a host again that was revoked",
  async () => {
    fc.assert(
      fc.property(acts, (acts) => {
        let newest = signedBy(trustOf(3, 1), "A1");
        const all: SignedTrust[] = [newest];
        const knownBy: SignedTrust[] = [newest, newest, newest];
        const gone = new Set<string>();
        const goneAt = knownBy.map(() => new Set<string>());
        for (const [i, act] of acts.entries()) {
          if (act.kind !== "arrive") {
            newest = written(newest, act, `n${i}`);
            if (newest !== all.at(-1)) all.push(newest);
            for (const host of newest.trust.revoked.keys()) gone.add(host);
            for (const number of [1, 2, 3, 4, 5, 6]) {
              const verdict = judgePeer(newest.trust, certOf(number), act.nowMs);
              if (gone.has(trustHost(number))) notEqual(verdict.kind, "ok");
            }
            continue;
          }
          const known = knownBy[act.host] ?? newest;
          const arrived = all[act.which % all.length] ?? newest;
          const decision = acceptTrust(known, arrived);
          if (decision.kind === "refused") continue;
          const { trust } = decision.value;
          holds(trust.generation >= known.trust.generation);
          if (trust.generation === known.trust.generation) equal(decision.value.body, known.body);
          knownBy[act.host] = decision.value;
          const seen = goneAt[act.host] ?? new Set();
          for (const host of trust.revoked.keys()) seen.add(host);
          for (const number of [1, 2, 3, 4, 5, 6]) {
            if (!seen.has(trustHost(number))) continue;
            const by = trust.authorities[0]?.kid ?? null;
            equal(judgePeer(trust, certOf(number, { issuerKid: by }), act.nowMs).kind, "revoked");
          }
        }
        // Whoever was away for all of it catches up, list by list.
        const caughtUp = all.reduce(
          (known, list) => value(acceptTrust(known, list)),
          signedBy(trustOf(3, 1), "A1"),
        );
        equal(caughtUp.body, newest.body);
      }),
      { numRuns: 500 },
    );
  },
);
