/** Who may open a disk that another host has, by what is known of that host. */
import t from "tap";

import {
  type Activation,
  decideActivation,
  type OwnerReport,
  REFUSED_MS,
  UNREACHABLE_MS,
} from "../../../src/core/model/activation.ts";
import type { HostId, SessionId } from "../../../src/core/model/ids.ts";

const [h1, h2] = ["h1" as HostId, "h2" as HostId];
const guest = { host: h2, session: "s" as SessionId };
const NOW = 100_000;
const free = { here: h1, guest: null, writable: true, isOwnerDead: false, report: null, endMs: NOW + 30_000 };
const owned = { ...free, guest };

const decided = (input: Partial<Parameters<typeof decideActivation>[0]>): string =>
  line(decideActivation({ ...owned, ...input }, NOW));
const line = (activation: Activation): string =>
  activation.kind === "steal"
    ? `steal: ${activation.why}`
    : activation.kind === "wait"
      ? `wait ${activation.forMs}`
      : activation.kind;
const answered = (connected: boolean | null): OwnerReport => ({ kind: "answered", connected });
const away = (forMs: number, refused: boolean = false): OwnerReport => ({
  kind: "away",
  sinceMs: NOW - forMs,
  refused,
});

void t.test("activation: nobody's disk and one that this host has are opened unasked", async (t) => {
  t.equal(decided({ guest: null }), "open");
  t.equal(decided({ guest: { ...guest, host: h1 } }), "open");
  t.equal(decided({ guest: { ...guest, host: h1 }, isOwnerDead: true }), "open");
});

void t.test("activation: a guest that is connected keeps its disk, unless its host is dead", async (t) => {
  t.equal(decided({}), "ask");
  t.equal(decided({ report: answered(true) }), "wait 1000");
  t.equal(decided({ report: answered(null) }), "wait 1000", "who can't say is taken for connected");
  t.equal(decided({ report: { kind: "up" } }), "wait 1000");
  t.equal(decided({ report: answered(true), isOwnerDead: true }), "steal: its host is dead");
  t.equal(decided({ report: null, isOwnerDead: true }), "steal: its host is dead");
  t.equal(decided({ report: answered(false) }), "steal: no guest is connected");
});

void t.test("activation: a host is out of reach when it stays so", async (t) => {
  t.equal(decided({ report: away(0) }), "wait 1000");
  t.equal(decided({ report: away(UNREACHABLE_MS - 1) }), "wait 1000");
  t.equal(decided({ report: away(UNREACHABLE_MS) }), "steal: unreachable");
  t.equal(
    decided({ report: away(UNREACHABLE_MS, true) }),
    "wait 1000",
    "its processes may be back in a moment",
  );
  t.equal(decided({ report: away(REFUSED_MS, true) }), "steal: unreachable");
});

void t.test("activation: it is waited until the end, and not by who only reads", async (t) => {
  t.equal(decided({ report: answered(true), endMs: NOW + 300 }), "wait 300");
  t.equal(decided({ report: answered(true), endMs: NOW }), "refuse");
  t.equal(decided({ report: answered(true), writable: false }), "refuse");
  t.equal(decided({ report: away(0), writable: false }), "refuse");
  t.equal(decided({ report: answered(false), endMs: NOW }), "steal: no guest is connected");
});
