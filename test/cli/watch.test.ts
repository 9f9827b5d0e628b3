/** Plot: somebody waits for a resync. The waiting must end with it, say how far it is, and never stop the work. */
import t from "tap";

import { ids, progress, volume } from "./answers.ts";
import { FakeAgent, answer } from "./fake-agent.ts";

const half = progress({
  resync: { rid: 1, hostName: "h2", copiedBytes: "5368709120", totalBytes: "10737418240" },
});

void t.test("weft volume show --watch: shows progress on stderr, then the volume on stdout", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/volumes/db": volume(),
    "GET /v1/volumes/db/progress": [
      answer(progress({ waitingFor: ["h2"] })),
      answer(half),
      answer(progress({ health: "healthy" })),
    ],
  });
  const outcome = await agent.weft(["volume", "show", "db", "--watch"]);
  t.equal(outcome.err, "degraded: waiting: h2\ndegraded to h2: 50 % of 10 GiB\n");
  t.match(outcome.out, /^Volume: {2}db\n/);
  t.equal(outcome.code, 0);
});

void t.test("weft replica add --wait: ends when all copies are in sync", async (t) => {
  await using agent = await FakeAgent.start({
    "POST /v1/volumes/db/replicas": volume({ inSync: 1 }),
    "GET /v1/volumes/db/progress": [answer(half), answer(progress({ health: "healthy" }))],
    "GET /v1/volumes/db": volume(),
  });
  const outcome = await agent.weft(["replica", "add", "db", "--wait", "-q"]);
  t.strictSame(outcome, { code: 0, out: `${ids.db}\n`, err: "" });
});

void t.test(
  "weft volume show --watch: ^C ends the watching, with a code that says the work goes on",
  async (t) => {
    await using agent = await FakeAgent.start({
      "GET /v1/volumes/db": volume(),
      "GET /v1/volumes/db/progress": half,
    });
    const outcome = await agent.weft(["volume", "show", "db", "--watch"], AbortSignal.abort());
    t.match(outcome.err, /\nE-AGENT-04 .*the resync goes on by itself/);
    t.equal(outcome.code, 3);
  },
);

void t.test("weft volume show --watch: there is nothing to wait for in the trash", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/volumes/db": volume(),
    "GET /v1/volumes/db/progress": progress({ health: "deleted" }),
  });
  const outcome = await agent.weft(["volume", "show", "db", "--watch"]);
  t.match(outcome.err, /^E-VOL-11 /);
  t.equal(outcome.code, 1);
});
