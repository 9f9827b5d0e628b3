/**
 * Plot: a host that is back waits for word of the others before it asks the store, and again after it and they were away.
 */
import t from "tap";

import type { Followed } from "../../../src/core/agent/ask-members.ts";
import { Confirmation } from "../../../src/core/agent/confirmation.ts";
import { finding } from "../../../src/core/model/finding.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { makeCluster, silent } from "./identity-for-tests.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

const agreed = (all: boolean): Followed => ({ agreed: { kind: "agreed", newest: null, all }, refusal: null });
const tooFew: Followed = { agreed: { kind: "too-few", backing: 1, needed: 2 }, refusal: null };
const fork = finding("E-TRUST-06", "Two lists.");
const forked: Followed = { agreed: { kind: "forked", finding: fork }, refusal: null };

/** What hosts say is set by the test; `isSaid` resolves with each change. */
async function stage(t: Scope, confirmed: boolean, times: { patienceMs?: number; worthMs?: number } = {}) {
  const { identity } = await makeCluster(t);
  const now = { said: tooFew, isAway: true, rounds: 0, seenMs: null as number | null, isRecent: false };
  const waiting: ((confirmed: boolean) => void)[] = [];
  const confirmation = new Confirmation({
    identity,
    isAway: () => now.isAway,
    seenMs: () => Promise.resolve(now.seenMs),
    see: (ms) => {
      now.seenMs = ms;
      return Promise.resolve();
    },
    follow: (_, { isRecent }) => {
      now.isRecent = isRecent;
      now.rounds += 1;
      return Promise.resolve(now.said);
    },
    onChange: (is) => {
      for (const one of waiting.splice(0)) one(is);
    },
    log: silent,
    confirmed,
    ...times,
  });
  t.teardown(() => confirmation.stop());
  const changes = (): Promise<boolean> => new Promise((resolve) => waiting.push(resolve));
  return { identity, confirmation, now, changes };
}

void t.test("confirmation: the store is asked when the others agree, and no earlier", async (t) => {
  const { confirmation, now, changes, identity } = await stage(t, false);
  await confirmation.start();
  t.equal(now.rounds, 1, "asked at once");
  t.match(confirmation.forbidden(), /^1 of the hosts .*, 2 have to$/);
  t.throws(() => confirmation.refuseUnconfirmed(), { code: "E-TRUST-07" });
  now.said = forked;
  await t.rejects(confirmation.look(), { code: "E-TRUST-06" });
  t.match(identity.refused, { code: "E-TRUST-06" }, "weft status says so");
  await t.rejects(confirmation.vouch(), { code: "E-TRUST-06" }, "for whom would the operator speak?");
  const change = changes();
  now.said = agreed(true);
  t.equal(await change, true);
  t.equal(confirmation.forbidden(), null);
});

void t.test(
  "confirmation: voters that are silent are waited for a little, though the others suffice",
  async (t) => {
    const { confirmation, now, changes } = await stage(t, false, { patienceMs: 700 });
    now.said = agreed(false);
    const change = changes();
    await confirmation.start();
    t.notOk(confirmation.isConfirmed);
    t.equal(await change, true);
    t.ok(now.rounds > 1);
  },
);

void t.test("confirmation: a host that says that this one was revoked is told of", async (t) => {
  const { confirmation, now } = await stage(t, false);
  const refusal = new WeftError({ code: "E-HOST-14", message: "This host was revoked." });
  now.said = { ...tooFew, refusal };
  await t.rejects(confirmation.look(), { code: "E-HOST-14" });
  t.notOk(confirmation.isConfirmed);
});

void t.test(
  "confirmation: it ends when the store and its hosts are away, and is asked for anew",
  async (t) => {
    const { confirmation, now, changes } = await stage(t, true, { worthMs: 300 });
    now.isAway = false;
    await confirmation.start();
    t.equal(now.rounds, 0, "who has just made or entered a cluster asks nobody");
    let change = changes();
    now.isAway = true;
    t.equal(await change, false);
    t.not(confirmation.forbidden(), null);
    change = changes();
    now.said = agreed(true);
    t.equal(await change, true);
  },
);

void t.test("confirmation: where nobody can say so any more, the operator does", async (t) => {
  const { confirmation, now } = await stage(t, false);
  await confirmation.start();
  await confirmation.vouch();
  t.ok(confirmation.isConfirmed);
  const { rounds } = now;
  await confirmation.vouch();
  t.equal(now.rounds, rounds, "once");
});

void t.test("confirmation: whether it was off for long is told by its disk, and by the clock", async (t) => {
  const { confirmation, now } = await stage(t, false);
  const isRecentAfter = async (sinceMs: number | null): Promise<boolean> => {
    now.seenMs = sinceMs === null ? null : Date.now() - sinceMs;
    await confirmation.look();
    return now.isRecent;
  };
  t.equal(await isRecentAfter(null), false);
  t.equal(await isRecentAfter(60_000), true);
  t.equal(await isRecentAfter(16 * 60_000), false, "its vote may be another host's");
  t.equal(await isRecentAfter(-60_000), false, "the clock has gone back");
});
