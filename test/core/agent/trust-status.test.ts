/** What an operator reads of a renewal that does not come, and of a list that is not followed. */
import t from "tap";

import { trustProblems } from "../../../src/core/agent/trust-status.ts";
import { finding } from "../../../src/core/model/finding.ts";
import { CLOCK_SLACK_MS } from "../../../src/core/model/limits.ts";

const DAY_MS = 24 * 3_600_000;

void t.test("status: a certificate that is overdue is said five days before its end", async (t) => {
  const validity = { notBeforeMs: -CLOCK_SLACK_MS, notAfterMs: 30 * DAY_MS };
  const at = (day: number) => trustProblems({ findings: [null, null, null], validity }, day * DAY_MS);
  t.same(at(0), []);
  t.same(at(24.9), []);
  t.match(at(27), [{ code: "E-NET-04", message: /ends in 3 days/ }]);
  t.match(at(31), [{ code: "E-NET-04", message: /has ended/ }]);
  const refused = finding("E-TRUST-02", "The store has gone back.", {
    do: [{ why: "Put it back", command: "weft store repair" }],
  });
  t.same(trustProblems({ findings: [refused, null], validity }, 0), [
    {
      code: "E-TRUST-02",
      message: "The store has gone back.",
      do: [{ why: "Put it back", command: "weft store repair" }],
    },
  ]);
});
