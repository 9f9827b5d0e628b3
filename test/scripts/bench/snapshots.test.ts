/** What is counted of snapshots, and which bars their figures have. */
import t from "tap";

import { cloneFigures } from "../../../scripts/bench/clone-job.ts";
import { longestGap, parseAnswers, snapshotFigures } from "../../../scripts/bench/snapshot-job.ts";
import { percentile } from "../../../scripts/lib/percentile.ts";

await t.test(
  "snapshots: a pause is the longest time without an answer, also at the window's ends",
  async (t) => {
    const answers = parseAnswers(
      "1000, 5, 1, 4096, 0\n1003, 5, 1, 4096, 0\n1030, 9, 1, 4096, 0\n1031, 1, 1, 4096, 0\n\n",
    );
    t.strictSame(answers, [1000, 1003, 1030, 1031]);
    t.equal(longestGap(answers, 1001, 1002), 3);
    t.equal(longestGap(answers, 1002, 1010), 27, "one that ends after the window began in it");
    t.equal(longestGap(answers, 1030, 1031), 27, "and one that ends in it began before");
    t.equal(longestGap(answers, 1031, 1040), 1);
    t.equal(longestGap([], 0, 9), 0);
  },
);

await t.test("snapshots: a percentile is one of the values", async (t) => {
  const hundred = Array.from({ length: 200 }, (_, n) => n + 1);
  t.equal(percentile(hundred, 99), 198);
  t.equal(percentile([7], 99), 7);
  t.equal(percentile([1, 9], 50), 1);
});

await t.test("snapshots: the bars of the figures", async (t) => {
  const deep = { sharedDeepUs: 4600, ownDeepUs: 2000, aloneSharedDeepUs: 4000, aloneOwnDeepUs: 800 };
  const first = { holeUs: 1000, sharedUs: 1500, ownUs: 500, ...deep };
  const runs = {
    pausesMs: new Map([
      [2, [4, 49, 51]],
      [3, [4, 100]],
    ]),
    longestMs: [20, 500],
    firsts: [{ round: 1, ...first }],
  };
  const figures = snapshotFigures(runs, 512n << 20n);
  t.strictSame(
    figures.map(({ figure, ours, ratio, holds }) => [figure, ours, ratio, holds]),
    [
      ["snapshot pause p99 ms", 51, null, false],
      ["snapshot pause p99 ms, 3 copies", 100, null, true],
      ["longest write after snapshot ms", 500, null, true],
      ["first overwrite ÷ hole write p50", 1500, 1.5, true],
      ["first overwrite qd32 ÷ overwrite", 4600, 2.3, false],
      ["first overwrite qd32 ÷ overwrite, XFS alone", 4000, 5, null],
      ["first overwrite ÷ overwrite p50", 1500, 3, null],
    ],
  );
  for (const { note } of figures) t.match(note, /512 MiB, filled with 128 KiB/);
  t.strictSame(snapshotFigures({ pausesMs: new Map(), longestMs: [], firsts: [] }, 1n << 20n), []);
});

await t.test(
  "clones: the slowest of all rounds is judged, and the figure says which data it was",
  async (t) => {
    const [figure, ...others] = cloneFigures([0.2, 1.1, 0.3]);
    t.strictSame([figure?.figure, figure?.ours, figure?.holds], ["clone 50 GiB s", 1.1, false]);
    t.strictSame([figure?.against, figure?.ratio, figure?.spread], [null, null, [0.2, 1.1]]);
    t.match(figure?.note, /first GiB filled/);
    t.strictSame(others, []);
    t.strictSame(cloneFigures([]), []);
  },
);
