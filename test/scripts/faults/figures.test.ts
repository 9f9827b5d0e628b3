/** What becomes of the runs of the faults: a run that is left out, or a percentile that flatters, would hide a fault. */
import t from "tap";

import { figuresOf, isGood, lineOf, renderBars, renderFigures } from "../../../scripts/faults/figures.ts";
import type { FaultRun } from "../../../scripts/faults/figures.ts";
import { percentile } from "../../../scripts/lib/percentile.ts";

const good: FaultRun = {
  fault: "kill",
  leader: false,
  stallMs: 10,
  lostAcks: 0,
  nonlinear: 0,
  broken: null,
};

await t.test("faults: percentiles are values that occurred, and of few runs the greatest", async (t) => {
  const hundred = Array.from({ length: 100 }, (_, i) => 100 - i);
  t.equal(percentile(hundred, 50), 50);
  t.equal(percentile(hundred, 95), 95);
  t.equal(percentile([3, 1, 2, 5, 4], 95), 5);
  t.equal(percentile([7], 50), 7);
  t.throws(() => percentile([], 50), /no values/);
});

await t.test("faults: figures tell runs with the store's leader apart, and count broken ones", async (t) => {
  const runs: readonly FaultRun[] = [
    { ...good, stallMs: 30 },
    { ...good, stallMs: 1600, leader: true },
    { ...good, stallMs: 20, lostAcks: 2, nonlinear: 1 },
    { ...good, stallMs: null, leader: true, broken: "waited 30 s for the end" },
    { ...good, fault: "stop", stallMs: 1500, leader: true },
  ];
  const [kill, stop] = figuresOf(runs);
  t.strictSame(kill, {
    fault: "kill",
    runs: 4,
    stall_ms: { p50: 30, p95: 1600, max: 1600 },
    lost_acks: 2,
    nonlinear: 1,
    broken: 1,
    leader: { runs: 2, stall_ms: { p50: 1600, p95: 1600, max: 1600 } },
    follower: { runs: 2, stall_ms: { p50: 20, p95: 30, max: 30 } },
  });
  t.match(stop, { fault: "stop", runs: 1, follower: { runs: 0, stall_ms: null } });
  const table = renderFigures(figuresOf(runs));
  t.match(table, /kill +4 +30 +1600 +1600 +1600 in 2 +30 in 2 +2 +1 +1 BROKEN/);
  t.match(table, /stop +1 +1500 +1500 +1500 +1500 in 1 +– in 0 +0 +0$/m);
});

await t.test("faults: a run is good only if nothing was lost and everything came true", async (t) => {
  t.ok(isGood(good));
  t.equal(lineOf({ ...good, leader: true }), "longest wait 10 ms, with the store's leader");
  for (const bad of [{ lostAcks: 1 }, { nonlinear: 1 }, { broken: "it did not open", stallMs: null }]) {
    t.notOk(isGood({ ...good, ...bad }));
    t.match(lineOf({ ...good, ...bad }), /LOST|NOT LINEARIZABLE|FAILED: it did not open/);
  }
});

await t.test("faults: bars are for faults with bars, and say by how much", async (t) => {
  t.equal(renderBars([{ ...good, fault: "steal" }]), null);
  t.equal(renderBars([{ ...good, stallMs: null, broken: "broken" }]), null);
  const slow = renderBars([
    good,
    { ...good, fault: "drop", stallMs: 2001 },
    { ...good, fault: "cut", stallMs: 9999 },
  ]);
  t.match(slow, /in 2 runs of kill, drop/);
  t.match(slow, /p95 2001 ms, at most 2000: FAILS\n.*max 2001 ms, at most 5000: holds/);
});
