/** Plot: a resync begins, goes fast and slow, restarts, and ends. A wrong estimate is worse than none. */
import t from "tap";

import { initialJob, jobLine, percentOf, remainingMs, stepJob } from "../../../src/core/model/job.ts";
import type { JobEvent, JobState } from "../../../src/core/model/job.ts";
import { GIB } from "./world.ts";

function play(events: readonly (readonly [number, JobEvent])[]): JobState {
  return events.reduce((state, [now, event]) => stepJob(state, event, now)[0], initialJob(0));
}

function copied(gib: bigint): JobEvent {
  return { kind: "progress", copied: gib * GIB, total: 10n * GIB };
}

void t.test("job: an estimate comes after two seconds of progress", async (t) => {
  t.equal(jobLine(initialJob(0)), "waiting to begin");
  t.equal(jobLine(play([[1000, copied(0n)]])), "0 % of 10 GiB");
  t.equal(
    jobLine(
      play([
        [1000, copied(0n)],
        [2000, copied(1n)],
      ]),
    ),
    "10 % of 10 GiB",
  );
  const state = play([
    [1000, copied(0n)],
    [2000, copied(1n)],
    [3000, copied(2n)],
  ]);
  t.equal(jobLine(state), "20 % of 10 GiB, 1 GiB/s, 8 s left");
});

void t.test("job: the rate is that of the last half minute, and a standstill has no end", async (t) => {
  const stuck = play([
    [0, copied(0n)],
    [10_000, copied(5n)],
    [41_000, copied(5n)],
    [45_000, copied(5n)],
  ]);
  t.equal(jobLine(stuck), "50 % of 10 GiB, 0 B/s");
  t.equal(remainingMs(stuck), null);
});

void t.test("job: a resync that begins anew begins its rate anew", async (t) => {
  const state = play([
    [0, copied(0n)],
    [5000, copied(8n)],
    [6000, copied(0n)],
    [9000, copied(3n)],
  ]);
  t.equal(jobLine(state), "30 % of 10 GiB, 1 GiB/s, 7 s left");
});

void t.test("job: 100 % is said only when all is copied", async (t) => {
  const state = play([[0, { kind: "progress", copied: 999n, total: 1000n }]]);
  t.equal(percentOf(state), 99);
  t.equal(percentOf(play([[0, { kind: "progress", copied: 0n, total: 0n }]])), 0);
});

void t.test("job: done and failed are final", async (t) => {
  const [done, effects] = stepJob(play([[1000, copied(10n)]]), { kind: "done" }, 4000);
  t.strictSame(effects, [{ kind: "finished", ok: true }]);
  t.equal(jobLine(done), "done in 3 s, 10 GiB copied");
  t.strictSame(stepJob(done, { kind: "failed", reason: "late" }, 5000), [done, []]);
  const [failed] = stepJob(initialJob(0), { kind: "failed", reason: "h2 went away" }, 0);
  t.equal(jobLine(failed), "failed: h2 went away");
  t.equal(jobLine(play([[0, { kind: "waiting", forWhat: "h2" }]])), "waiting: h2");
});
