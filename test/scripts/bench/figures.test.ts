/** The arithmetic of the benchmarks: what is divided by what, and when a bar holds. */
import t from "tap";

import { figuresOf, renderRuns } from "../../../scripts/bench/figures.ts";
import { isWithin, median, renderFigures } from "../../../scripts/bench/frame.ts";
import type { Figure } from "../../../scripts/bench/frame.ts";
import type { Run, Side } from "../../../scripts/bench/figures.ts";

function run(side: Side, round: number, values: Partial<Run>): Run {
  return { side, workload: "write qd1", round, iops: 1, p50Us: 1, cpuUs: 1, ...values };
}

await t.test("figures: a median is the middle value, or the mean of the two", async (t) => {
  t.equal(median([3]), 3);
  t.equal(median([9, 1, 3]), 3);
  t.equal(median([4, 1, 2, 100]), 3);
  t.throws(() => median([]), /no values/);
});

await t.test("figures: a bar includes its own value", async (t) => {
  t.ok(isWithin("at most", 1.6, 1.6));
  t.notOk(isWithin("at most", 1.6, 1.61));
  t.ok(isWithin("at least", 1, 1));
  t.notOk(isWithin("at least", 1, 0.99));
});

await t.test("figures: ratio of the medians, spread of the rounds", async (t) => {
  const runs = [
    ...[300, 330, 900].map((p50Us, i) => run("weft", i, { p50Us })),
    ...[200, 220, 300].map((p50Us, i) => run("floor", i, { p50Us })),
  ];
  const [figure, ...others] = figuresOf(runs);
  t.match(figure, {
    figure: "write qd1 p50 ÷ floor",
    ours: 330,
    against: 220,
    ratio: 1.5,
    spread: [1.5, 3],
    bar: { kind: "at most", ratio: 1.6 },
    holds: true,
  });
  t.match(figure?.note, /NBD hop/);
  t.strictSame(others, [], "nothing is said of what was not run");
});

await t.test("figures: slower than the bar fails, and without a bar nothing fails", async (t) => {
  const runs = [
    run("weft", 0, { workload: "write qd32", iops: 3000, cpuUs: 260 }),
    run("floor", 0, { workload: "write qd32", iops: 10_000, cpuUs: 100 }),
    run("quorum", 0, { workload: "write qd32", iops: 2000 }),
    run("weft", 0, { workload: "read qd1", p50Us: 900 }),
    run("floor", 0, { workload: "read qd1", p50Us: 100 }),
  ];
  t.strictSame(
    figuresOf(runs).map(({ figure, ratio, holds }) => [figure, ratio, holds]),
    [
      ["write qd32 iops ÷ floor", 0.3, false],
      ["write qd32 iops ÷ quorum", 1.5, true],
      ["cpu per write qd32 ÷ floor", 2.6, false],
      ["read qd1 p50 ÷ floor", 9, null],
    ],
  );
});

await t.test("figures: what encryption costs is told against a cluster in the clear", async (t) => {
  const workload = "sequential write qd8";
  const runs = [
    run("weft", 0, { workload, iops: 600 }),
    run("weft-auth", 0, { workload, iops: 950 }),
    run("weft-clear", 0, { workload, iops: 1000 }),
    run("weft-auth", 0, { p50Us: 106 }),
    run("weft-clear", 0, { p50Us: 100 }),
  ];
  t.strictSame(
    figuresOf(runs).map(({ figure, ratio, holds }) => [figure, ratio, holds]),
    [
      ["tls: sequential write ÷ clear", 0.6, false],
      ["auth: sequential write ÷ clear", 0.95, true],
      ["auth: write qd1 p50 ÷ clear", 1.06, false],
    ],
  );
});

await t.test("figures: what the holder costs is told against weft without it, and has no bar", async (t) => {
  const runs = [run("weft", 0, { p50Us: 400 }), run("weft-held", 0, { p50Us: 500 })];
  t.strictSame(
    figuresOf(runs).map(({ figure, ratio, holds }) => [figure, ratio, holds]),
    [["holder: write qd1 p50 ÷ without", 1.25, null]],
  );
});

await t.test("figures: as people read them", async (t) => {
  const runs = [
    run("weft", 1, { p50Us: 480, iops: 2000, cpuUs: 55.5 }),
    run("floor", 1, { p50Us: 240, iops: 4000, cpuUs: 20 }),
  ];
  t.equal(
    renderRuns(runs),
    [
      "workload   side   iops  p50 µs  CPU µs a request",
      "write qd1  weft   2000     480              55.5",
      "write qd1  floor  4000     240              20.0",
    ].join("\n"),
  );
  const [head, row, note] = renderFigures(figuresOf(runs)).split("\n");
  t.match(head, /^figure +ours +against +ratio +spread +bar$/);
  t.match(row, /^write qd1 p50 ÷ floor +480 +240 +2\.00 +2\.00…2\.00 +at most 1\.6 +FAILS$/);
  t.match(note, /^floor: /);
});

await t.test("figures: one that stands alone has its spread and a bar of its own", async (t) => {
  const alone: Figure = {
    figure: "pause ms",
    ours: 12,
    against: null,
    ratio: null,
    spread: [9, 40],
    bar: { kind: "at most", value: 50 },
    holds: true,
    note: "pause: of 1 GiB",
  };
  const [, row] = renderFigures([alone]).split("\n");
  t.match(row, /^pause ms +12\.0 +9\.00…40\.00 +at most 50 +holds$/);
});
