/** Snapshots are brought to copies that missed them; what they take, lose or gave up is said on every host. */
import t from "tap";

import { keys } from "../../../src/core/wire/store-keys.ts";
import type { Problem } from "../../../src/core/wire/agent-api.ts";
import { eventually, type TestHost, three } from "./test-host.ts";

const GIB = 1n << 30n;

const calls = ({ weftd }: TestHost, method: string): number =>
  weftd.daemon.calls.filter((call) => call.method === method).length;

const problems = async ({ client }: TestHost): Promise<readonly Problem[]> => {
  const status = await client.status();
  return status.kind === "cluster" ? status.problems : [];
};

void t.test(
  "agent: a copy that came later is given the snapshots of before, and damage is told",
  async (t) => {
    const [h1, h2, h3] = await three(t, 51);
    const { id: volume } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
    const one = await h1.client.createSnapshot("db", { name: "one" });

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

    // What each copy's files take, and what of them is lost.
    const pool = (await h1.client.pools()).find(({ hostName }) => hostName === "h1")?.id ?? "";
    const rid = whole.members.find(({ hostName }) => hostName === "h1")?.rid ?? 0;
    const image = { pool, rid, snap: one.id, volume, state: "ready", whole: false, copied: false } as const;
    const told = { ...image, destroyed: false, own_bytes: "4096", damaged: "0" };
    h1.weftd.imageInfos.push(told, { ...told, snap: volume });
    h1.weftd.leave(90n);
    const own = await eventually(
      "what it takes",
      () => h3.client.snapshot("db@one"),
      ({ ownBytes }) => ownBytes === 4096n,
    );
    t.match(
      own.members.find(({ hostName }) => hostName === "h1"),
      { ownBytes: 4096n, damagedRegions: 0n },
    );
    h1.weftd.imageInfos.splice(0, 2, { ...told, own_bytes: "4097", damaged: "2" });
    h1.weftd.leave(80n);
    const lost = await eventually(
      "the damage",
      () => problems(h3),
      (found) => found.length > 0,
    );
    t.match(lost, [
      {
        code: "E-SNAP-23",
        message:
          "db@one has lost a part of what it held in the copy on h1. It is read from h2 h3 instead, and the volume itself is not touched by it.",
      },
    ]);
    t.match((await h3.client.volume("db")).snapshots, {
      damagedCount: 1,
      damaged: [{ name: "one", hosts: ["h1"], wholeOn: ["h2", "h3"] }],
    });

    // Its data goes, its name stays; nothing is made of it any more.
    t.match(await h3.client.destroySnapshotData("db@one"), { dataDestroyed: true, state: "ready" });
    t.match(await h2.client.destroySnapshotData("db@one"), { dataDestroyed: true }, "once more is as once");
    const gone = { code: "E-SNAP-18", exitCode: 1 };
    await t.rejects(h1.client.attachSnapshot("db@one"), gone);
    await t.rejects(h1.client.createVolume({ name: "web", from: "db@one" }), gone);
    await t.rejects(h1.client.revertVolume("db@one"), gone);
    await h1.client.changeSnapshot("db@one", { name: "base" });

    // With the snapshot goes what was told of it.
    await h1.client.deleteSnapshot("db@base");
    h1.weftd.imageInfos.length = 0;
    h1.weftd.leave(70n);
    const store = await h1.store();
    await eventually(
      "nothing left of it",
      () => store.list(keys.images(volume)),
      ({ entries }) => entries.length === 0,
    );
  },
);
