/** What is counted of a resync, and what is divided by what. */
import t from "tap";

import { lifeFigures, parseReceived } from "../../../scripts/bench/life-job.ts";

await t.test("life: bytes of all links but the loopback are counted", async (t) => {
  const head = "Inter-|   Receive    |  Transmit\n face |bytes    packets errs |bytes    packets errs\n";
  t.equal(
    parseReceived(`${head}    lo: 9000 7 0 9000 7 0\n  eth0: 1234 5 0 77 8 0\n  eth1:66 1 0 0 0 0\n`),
    1300,
  );
  t.throws(() => parseReceived(`${head}    lo: 9000 7 0 9000 7 0\n`), /no link/);
});

await t.test("life: each case has its own bar, and what was not run is left out", async (t) => {
  const run = (owner: "same session" | "owner restart", round: number, receivedBytes: number) => ({
    owner,
    round,
    changedBytes: 1000,
    receivedBytes,
  });
  const size = 2n * 1024n ** 3n;
  const figures = lifeFigures([run("same session", 1, 1250), run("owner restart", 1, 3900)], size);
  t.match(figures, [
    { figure: "resync same session ÷ changed bytes", ours: 1250, against: 1000, ratio: 1.25, holds: false },
    {
      figure: "resync owner restart ÷ changed bytes",
      ratio: 3.9,
      bar: { kind: "at most", ratio: 4 },
      holds: true,
    },
  ]);
  t.match(figures[0]?.note, /2 GiB, .* 1 %/);
  t.strictSame(
    lifeFigures([run("owner restart", 1, 1000)], size).map(({ figure }) => figure),
    ["resync owner restart ÷ changed bytes"],
  );
  t.strictSame(lifeFigures([], size), []);
});
