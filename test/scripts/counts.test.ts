/** The last line of `npm test` is what people and machines believe: its numbers come from what the programs really print. */
import t from "tap";

import { cargoCounts, simulatorCounts, sum, tapCounts, withStatus } from "../../scripts/test/counts.ts";

await t.test("counts: cargo's programs are added up", async (t) => {
  const output = [
    "running 2 tests",
    "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
    "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
  ].join("\n");
  t.strictSame(cargoCounts(output), { passed: 5, failed: 1 });
});

await t.test("counts: tap's last line, with and without failures", async (t) => {
  t.strictSame(tapCounts("ok 1 - a\n# { total: 21, pass: 21 }\n# time=1ms\n"), { passed: 21, failed: 0 });
  t.strictSame(tapCounts("# { total: 21, pass: 19, fail: 2 }\n"), { passed: 19, failed: 2 });
});

await t.test("counts: seeds and broken rules of the simulator", async (t) => {
  const seeds = "1000 seeds, 2 violations, 14.2 s: 3104 opens, 1200 demotions\n";
  t.strictSame(simulatorCounts(`seed 7: lost\n${seeds}`), { passed: 998, failed: 2 });
  t.strictSame(simulatorCounts("r1-no-fence: NOT caught within 9 seeds\n16 of 17 broken rules caught\n"), {
    passed: 16,
    failed: 1,
  });
  t.strictSame(withStatus(simulatorCounts("weft-sim: unknown option"), false), { passed: 0, failed: 1 });
});

await t.test("counts: a program that dies before its first test has failed", async (t) => {
  t.strictSame(withStatus(cargoCounts("error: could not compile"), false), { passed: 0, failed: 1 });
  t.strictSame(
    sum([withStatus({ passed: 1, failed: 0 }, true), withStatus({ passed: 0, failed: 2 }, false)]),
    {
      passed: 1,
      failed: 2,
    },
  );
});
