/** Plot: counts of two looks at a session, from which somebody judges whether a disk is slow. */
import * as fc from "fast-check";
import t from "tap";

import {
  countUpTo,
  type Histogram,
  histogramSince,
  noHistogram,
  quantileUs,
} from "../../../src/core/model/histogram.ts";

const ends = [16, 20, 24, 28, 32, 64, 67_108_864];

/** Of single times; what is longer than the last end is in the count alone. */
function gathered(times: readonly number[]): Histogram {
  const found = ends.map((end, i) => [
    end,
    BigInt(times.filter((us) => us <= end && us > (ends[i - 1] ?? 0)).length),
  ]);
  const kept = found.filter(([, count]) => count !== 0n) as [number, bigint][];
  return {
    leUs: kept.map(([end]) => end),
    counts: kept.map(([, count]) => count),
    count: BigInt(times.length),
    sumUs: BigInt(times.reduce((sum, us) => sum + us, 0)),
  };
}

const someTimes = fc.array(fc.integer({ min: 1, max: 100_000_000 }), { maxLength: 50 });

void t.test("histogram: a share's time is the end of its bucket, and nothing counted has none", async (t) => {
  const of = gathered([10, 18, 18, 30]);
  t.equal(quantileUs(of, 0.25), 16);
  t.equal(quantileUs(of, 0.5), 20);
  t.equal(quantileUs(of, 0.76), 32);
  t.equal(quantileUs(of, 1), 32);
  t.equal(quantileUs(noHistogram, 0.5), null);
  t.equal(quantileUs(gathered([10, 70_000_000]), 0.99), Infinity);
  t.equal(countUpTo(of, 20), 3n);
  const many = { leUs: [16, 32], counts: [99n << 60n, 1n << 60n], count: 100n << 60n, sumUs: 0n };
  t.equal(quantileUs(many, 0.99), 16);
  t.equal(quantileUs(many, 0.990001), 32);
});

void t.test("histogram: what is said of a share is never less than the truth", async (t) => {
  fc.assert(
    fc.property(someTimes, fc.integer({ min: 1, max: 1000 }), (times, thousandth) => {
      const said = quantileUs(gathered(times), thousandth / 1000);
      if (said === null) return times.length === 0;
      const atMost = times.filter((us) => us <= said).length;
      return atMost * 1000 >= times.length * thousandth;
    }),
  );
  t.pass("for any times");
});

void t.test("histogram: two looks give what came between them, whatever came before", async (t) => {
  fc.assert(
    fc.property(someTimes, someTimes, (before, after) => {
      const between = histogramSince(gathered([...before, ...after]), gathered(before));
      const wanted = gathered(after);
      t.equal(between.count, wanted.count);
      t.equal(between.sumUs, wanted.sumUs);
      for (const end of ends) t.equal(countUpTo(between, end), countUpTo(wanted, end));
    }),
    { numRuns: 50 },
  );
  const [fresh, old] = [gathered([30]), gathered([10, 18])];
  t.strictSame(histogramSince(fresh, old), fresh, "another session: all of it");
});
