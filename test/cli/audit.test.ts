/** Plot: what an administrator reads in the audit, and how damage to it is told. */
import t from "tap";

import { ids } from "./answers.ts";
import { answer, FakeAgent, refusal } from "./fake-agent.ts";

const line = {
  seq: "1",
  at: "2026-11-21T14:02:11.000Z",
  host: ids.h1,
  id: "00000000-0000-4000-8000-000000000009",
  event: "begin",
  who: { kind: "root", name: "root", role: "admin", id: null },
  from: "unix pid 7",
  what: "POST /v1/volumes/:ref/attach",
  target: { ref: "db", steal: false },
  outcome: null,
  ms: null,
  count: 1,
  prev: "0".repeat(64),
};
const ci = { kind: "token", name: "ci", role: "operator", id: "a81c04fe" };
const lines = [
  line,
  { ...line, seq: "2", event: "end", outcome: "ok", ms: 12 },
  {
    ...line,
    seq: "3",
    id: "00000000-0000-4000-8000-00000000000a",
    event: "refused",
    who: ci,
    from: "10.0.9.7:4711",
    what: "DELETE /v1/volumes/:ref",
    target: { ref: "db" },
    outcome: "E-AUTH-02",
  },
  {
    ...line,
    seq: "4",
    event: "refused",
    who: null,
    from: "address 10.0.9.7",
    what: "more",
    id: null,
    count: 99,
  },
  {
    ...line,
    seq: "5",
    id: "00000000-0000-4000-8000-00000000000b",
    what: "POST /v1/pools",
    target: { path: "/srv/\u001b[31mweft" },
  },
];

void t.test("weft audit: one row for each request, and who was not asked is named", async (t) => {
  const missing = [{ host: "h2", reason: "it does not answer" }];
  await using agent = await FakeAgent.start({
    "GET /v1/audit?since=2026-11-21T12%3A00%3A00.000Z&volume=db": {
      lines,
      missing,
      names: { [ids.h1]: "h1" },
    },
    "GET /v1/audit?refused=true&limit=5": { lines: [], missing: [], names: {} },
  });
  const shown = await agent.weft(["audit", "--since", "2026-11-21T12:00:00Z", "--volume", "db"]);
  const rows = shown.out.split("\n").map((row) => row.replace(/^[0-9-]{10} [0-9:]{8}/, "(time)"));
  t.strictSame(
    rows,
    [
      "TIME                 HOST  WHO            WHAT                        OUTCOME            FROM",
      "(time)  h1    root           attach db                   ok  12 ms          unix pid 7",
      "(time)  h1    ci (operator)  delete volume db            E-AUTH-02          10.0.9.7:4711",
      "(time)  h1    —              more                        refused  99 times  address 10.0.9.7",
      "(time)  h1    root           create pool /srv/ [31mweft  not ended          unix pid 7",
      "Without h2: it does not answer.",
      "",
    ].map((row) => row),
  );
  t.equal(shown.code, 3);
  const none = await agent.weft(["audit", "--refused", "--limit", "5"]);
  t.same(none, { code: 0, out: "Nothing was found.\n", err: "" });
});

void t.test("weft audit: times and limits that are none are refused here", async (t) => {
  await using agent = await FakeAgent.start({});
  for (const args of [
    ["--since", "yesterdayish"],
    ["--limit", "0"],
    ["--limit", "2000"],
    ["--limit", "x"],
  ]) {
    const { code, err } = await agent.weft(["audit", ...args]);
    t.equal(code, 1);
    t.match(err, /^E-ARG-02/);
  }
  t.same(agent.asked, []);
});

void t.test("weft metrics: prints figures as they are, or the agent's refusal", async (t) => {
  const denied = refusal("E-AUTH-02", "ci may not do this.", 403);
  await using agent = await FakeAgent.start({ "GET /metrics": [answer(17), denied] });
  t.same(await agent.weft(["metrics"]), { code: 0, out: "17", err: "" });
  t.match(await agent.weft(["metrics"]), { code: 1, out: "", err: /^E-AUTH-02/ });
});

void t.test("weft audit verify: whole, broken, or shorter than the store remembers", async (t) => {
  const whole = { lines: 5, first: "1", last: "5", broken: null, kept: { seq: "4", agrees: true } };
  await using agent = await FakeAgent.start({
    "GET /v1/audit/verify": [
      answer(whole),
      answer({
        ...whole,
        broken: { file: "audit.log", line: 3, what: "it has the number 4, the line before it 2" },
      }),
      answer({ ...whole, last: "2", kept: { seq: "4", agrees: false } }),
      answer({ ...whole, lines: 0, first: null, last: null, kept: null }),
      answer({ ...whole, kept: null, foreign: true }),
    ],
  });
  const verify = (): ReturnType<FakeAgent["weft"]> => agent.weft(["audit", "verify"]);
  t.match(await verify(), {
    code: 0,
    out: "The audit is whole: 5 lines, 1 to 5. The store kept line 4, which agrees.\n",
  });
  t.match(await verify(), { code: 3, err: /^E-AUDIT-02 .*audit\.log, line 3: it has the number 4/ });
  t.match(await verify(), { code: 3, err: /^E-AUDIT-02 .*hash of line 4, .* the last line is 2\./ });
  t.match(await verify(), { code: 0, out: "The audit has no lines yet.\n" });
  t.match(await verify(), { code: 3, err: "", out: /^The audit is whole: .* was not written by this host/ });
});
