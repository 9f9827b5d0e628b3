/** What `npm run fuzz` makes of a fuzzer's words. */
import t from "tap";

import { figures } from "../../scripts/fuzz/native.ts";
import { outcomeLine } from "../../scripts/fuzz/outcome.ts";

await t.test("fuzz: figures are libFuzzer's own, the last ones it gave", async (t) => {
  const output = [
    "#2	INITED cov: 17 ft: 18 corp: 1/1b exec/s: 0 rss: 40Mb",
    "#4096	NEW    cov: 1201 ft: 4000 corp: 90/3000b exec/s: 2048 rss: 60Mb",
    "stat::number_of_executed_units: 40960",
    "stat::average_exec_per_sec:     1365",
  ].join("\n");
  t.same(figures(output), { executions: 40960, coverage: 1201 });
  t.same(figures("killed"), { executions: 0, coverage: 0 }, "one that says nothing has done nothing");
});

await t.test("fuzz: a door's line tells runs, speed and whether there is a finding", async (t) => {
  const outcome = { name: "log", seconds: 30, executions: 60_000, coverage: 1201, findings: [] };
  t.equal(outcomeLine(outcome), "ok      log            30 s      60,000 runs    2000 /s  1201 edges");
  const finding = { input: "a", replay: "b", text: "c" };
  t.match(outcomeLine({ ...outcome, coverage: null, findings: [finding] }), /^FINDING log .* 2000 \/s *$/);
});
