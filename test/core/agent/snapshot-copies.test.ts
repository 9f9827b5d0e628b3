/** Snapshots are brought to copies that missed them, one after the other, and how far that is is said on every host. */
import t from "tap";

import type { Problem } from "../../../src/core/wire/agent-api.ts";
import { eventually, type TestHost, three } from "./test-host.ts";

const GIB = 1n << 30n;

const calls = ({ weftd }: TestHost, method: string): number =>
  weftd.daemon.calls.filter((call) => call.method === method).length;

const problems = async ({ client }: TestHost): Promise<readonly Problem[]> => {
  const status = await client.status();
  return status.kind === "cluster" ? status.problems : [];
};

void t.test("agent: a copy that came later is given the snapshots of before", async (t) => {
  const [h1, h2, h3] = await three(t, 51);
  await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
  await h1.client.createSnapshot("db", { name: "one" });

  // Switched off, a copy that comes stays without it, and nobody asks.
  await h1.client.changeSettings({ snapshots: { copy: false } });
  h3.weftd.fetched = { state: "running", done: GIB / 4n, total: GIB };
  await h1.client.addReplica("db", { host: "h3" });
  await eventually(
    "three copies",
    () => h1.client.volume("db"),
    ({ inSync, owner }) => inSync === 3 && owner === null,
  );
  t.match(await h2.client.snapshot("db@one"), { copies: 2, missedBy: ["h3"], copying: [] });
  t.equal(calls(h3, "snapshot.fetch"), 0);

  await h2.client.changeSettings({ snapshots: { copy: true } });
  const coming = await eventually(
    "it to be on its way",
    () => h1.client.snapshot("db@one"),
    ({ copying }) => copying.length > 0,
  );
  t.match(coming, { copies: 2, copying: [{ hostName: "h3", doneBytes: GIB / 4n, totalBytes: GIB }] });
  t.match(await problems(h2), [
    {
      code: "E-SNAP-11",
      message:
        'The snapshot of "db" has fewer copies than the volume: db@one is in 2 of 3, h3 missed it. h3 gets db@one now, 25 % of 1 GiB.',
    },
  ]);
  h3.weftd.fetched = { state: "done", done: GIB, total: GIB };
  const whole = await eventually(
    "the third copy of it",
    () => h1.client.snapshot("db@one"),
    ({ copies, copying }) => copies === 3 && copying.length === 0,
  );
  t.same(whole.missedBy, []);
  t.same(await problems(h2), []);
  t.equal(calls(h1, "snapshot.fetch") + calls(h2, "snapshot.fetch"), 0, "each host does its own part");
});
