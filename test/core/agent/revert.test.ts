/** A volume is taken back to a snapshot: by a caretaker's session of the asked host, to its end, whoever waits for it. */
import t from "tap";

import { keys } from "../../../src/core/wire/store-keys.ts";
import { eventually, type TestHost, three } from "./test-host.ts";

const GIB = 1n << 30n;

void t.test(
  "agent: a volume is taken back while nobody uses it; what is begun is ended by whoever comes",
  async (t) => {
    const [h1, h2, h3] = await three(t, 31);
    const { id: volume } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
    const one = await h1.client.createSnapshot("db", { name: "one" });
    const asked = (): number =>
      [h1, h2, h3].flatMap(({ weftd }) => weftd.daemon.calls).filter((c) => c.method === "volume.revert")
        .length;

    await h2.client.attach("db");
    await t.rejects(h3.client.revertVolume("db@one"), {
      code: "E-VOL-12",
      exitCode: 2,
      message: /attached on h2/,
    });
    await h2.client.detach("db");
    await t.rejects(h3.client.revertVolume("db@none"), { code: "E-SNAP-09" });
    t.equal(asked(), 0);

    // Asked of a host that has no copy: its session without a guest does it, and is gone afterwards.
    const after = await h3.client.revertVolume("db@one");
    t.match(after, { id: volume, reverting: null, owner: null });
    t.match(
      h3.weftd.daemon.calls.find((call) => call.method === "volume.revert"),
      { params: { volume, snapshot: one.id } },
    );

    for (const [code, message] of [
      ["E-SNAP-20", /^"db" is not taken back to db@one: meanwhile somebody asked for another/],
      ["E-SNAP-19", /weftd's own words/],
      ["E-SESS-01", /^What came of "db" on its way back to db@one is not known/],
    ] as const) {
      h1.weftd.refusesReverts = { code, facts: {} };
      await t.rejects(h1.client.revertVolume("db@one"), { code, message }, code);
    }

    // One that is under way is shown, and keeps its snapshot.
    const go = hold([h1, h2, h3]);
    const work = h3.client.revertVolume("db@one");
    const marked = await eventually(
      "the mark",
      () => h1.client.volume("db"),
      ({ reverting }) => reverting !== null,
    );
    t.match(marked.reverting, { snapshot: one.id, name: "one", progress: null });
    t.match(marked.owner, { hostName: "h3", caretaker: true });
    await t.rejects(h1.client.deleteSnapshot("db@one"), {
      code: "E-SNAP-04",
      message: /is in use: "db" is being taken/,
    });
    await t.rejects(h1.client.destroySnapshotData("db@one"), { code: "E-SNAP-04" });
    const part = { snapshot: one.id, done_bytes: String(GIB / 4n), total_bytes: String(GIB), waits: null };
    h3.weftd.tellRevert(volume, part);
    const shown = await eventually(
      "how far it is",
      () => h2.client.progress("db"),
      ({ reverting }) => (reverting?.progress ?? null) !== null,
    );
    t.match(shown.reverting, {
      progress: { hostName: "h3", doneBytes: GIB / 4n, totalBytes: GIB, waitsFor: null },
    });
    const why = await h2.client.why("db");
    t.match(why.because, [
      /^Data is safe: 2 copies/,
      /^Whoever attaches it: reads and writes wait/,
      /^It is being taken back to db@one: 256 MiB of 1 GiB are brought back, by h3\.$/,
      /^Done when/,
    ]);
    go();
    t.match(await work, { reverting: null });

    // Its host died in the middle: the mark has no owner, and a caretaker ends it though nobody asks.
    const store = await h1.store();
    await eventually(
      "the caretaker gone",
      () => h1.client.volume("db"),
      ({ owner }) => owner === null,
    );
    const end = hold([h1, h2, h3]);
    const entry = await store.get(keys.state(volume));
    const record = JSON.parse(entry?.value ?? "{}") as { readonly epoch: string; readonly rev: string };
    const [epoch, rev] = [String(BigInt(record.epoch) + 1n), String(BigInt(record.rev) + 1n)];
    const reverting = { snap: one.id, gen: "7", attempt: "1", since: "1763820127311" };
    await store.put(
      keys.state(volume),
      JSON.stringify({ ...record, epoch, rev, fmt: 2, min_reader: 2, reverting }),
    );
    await eventually(
      "a caretaker",
      () => h1.client.volume("db"),
      ({ owner }) => owner?.caretaker === true && owner.hostName !== "h3",
    );
    t.equal((await h2.client.volume("db")).reverting?.since, "2025-11-22T14:02:07.311Z");
    end();
    await eventually(
      "the mark gone, and the caretaker too",
      () => h1.client.volume("db"),
      (v) => v.reverting === null && v.owner === null,
      60_000,
    );

    // It grew since: its size of then comes first.
    await h1.client.resizeVolume("db", 2n * GIB, null);
    await t.rejects(h1.client.revertVolume("db@one"), { code: "E-SNAP-15", exitCode: 1 });
  },
);

/** No revert comes to its end before the answer is called. */
function hold(hosts: readonly TestHost[]): () => void {
  const ends: (() => void)[] = [];
  for (const { weftd } of hosts) weftd.holdsReverts = new Promise((resolve) => ends.push(resolve));
  return () => {
    for (const end of ends) end();
  };
}
