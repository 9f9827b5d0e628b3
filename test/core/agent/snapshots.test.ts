/** Snapshots are asked of any host and taken by the owner; what they are missing is said, and what needs them is refused. */
import { join } from "node:path";

import t from "tap";

import { openCaretaker } from "../../../src/core/agent/perform.ts";
import { parseVolumeId } from "../../../src/core/model/ids.ts";
import { DaemonClient } from "../../../src/core/wire/daemon-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { FakeDaemon } from "../wire/fake-daemon.ts";
import { eventually, startCluster, type TestHost, three } from "./test-host.ts";

const GIB = 1n << 30n;

const calls = ({ weftd }: TestHost, method: string): number =>
  weftd.daemon.calls.filter((call) => call.method === method).length;

void t.test("agent: snapshots are taken, changed and deleted by the owner, asked of any host", async (t) => {
  const [h1, h2, h3] = await three(t, 101);
  const { id: volume } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
  t.strictSame(await h1.client.snapshots("db"), []);

  // Nobody has it: the asked host does, for this alone.
  const first = await h3.client.createSnapshot("db", { name: "first" });
  t.match(first, {
    name: "first",
    volume,
    volumeName: "db",
    size: GIB,
    createdBy: "root@h3",
    state: "ready",
    protected: false,
    copies: 2,
    wantedCopies: 2,
    missedBy: [],
    openOn: [],
    heldMs: 0n,
  });
  t.same(first.members.map(({ hostName }) => hostName).toSorted(), ["h1", "h2"]);
  t.equal(calls(h3, "snapshot.create"), 1);
  await eventually(
    "the caretaker gone",
    () => h1.client.volume("db"),
    ({ owner }) => owner === null,
  );

  // A guest has it on h2: h2 takes them, whoever is asked.
  await h2.client.attach("db");
  const second = await h1.client.createSnapshot("db", { name: "second" });
  t.equal(second.heldMs, 11n, "the guest waited so long");
  const unnamed = await h2.client.createSnapshot("db");
  t.match(unnamed.name, /^snap-20\d{6}-\d{6}$/);
  t.equal(calls(h2, "snapshot.create"), 2);
  t.equal(calls(h1, "snapshot.create"), 0);
  const { id } = second;
  t.equal((await h3.client.createSnapshot("db", { name: "second", id })).id, id, "the same again");
  t.same(
    (await h3.client.snapshots("db")).map(({ name }) => name).toSorted(),
    ["first", "second", unnamed.name].toSorted(),
  );
  t.equal((await h3.client.snapshots()).length, 3);
  t.match((await h3.client.volume("db")).snapshots, { count: 3, deleting: 0, fewerCount: 0, unable: null });
  for (const ref of ["db@second", id, `${volume}@second`, `db@${id}`])
    t.equal((await h3.client.snapshot(ref)).id, id, ref);

  const refusals: readonly (readonly [() => Promise<unknown>, string])[] = [
    [() => h1.client.createSnapshot("db", { name: "second" }), "E-SNAP-02"],
    [() => h1.client.createSnapshot("db", { name: "Second" }), "E-ARG-02"],
    [() => h1.client.createSnapshot("nothing"), "E-ARG-01"],
    [() => h1.client.snapshot("db@secnod"), "E-SNAP-09"],
    [() => h1.client.snapshot("db@second@first"), "E-ARG-02"],
    [() => h1.client.snapshot("second"), "E-ARG-02"],
    [() => h1.client.deleteSnapshot(volume), "E-SNAP-09"],
    [() => h1.client.changeSnapshot("db@second", {}), "E-ARG-02"],
    [() => h1.client.changeSnapshot("db@second", { name: "x", protected: true }), "E-ARG-02"],
    [() => h1.client.changeSnapshot("db@second", { name: "first" }), "E-SNAP-02"],
  ];
  for (const [work, code] of refusals) await t.rejects(work(), { code }, code);
  await t.rejects(h1.client.snapshot("db@secnod"), { message: /Did you mean "db@second"\?/ });

  t.equal((await h1.client.changeSnapshot("db@second", { protected: true })).protected, true);
  t.equal((await h3.client.changeSnapshot("db@second", { name: "kept" })).name, "kept");
  t.equal(calls(h2, "snapshot.rename"), 1);
  await t.rejects(h3.client.deleteSnapshot("db@kept"), { code: "E-SNAP-05", exitCode: 2 });
  t.equal((await h3.client.changeSnapshot(id, { protected: false })).protected, false);

  // Read on h3, where nobody has the volume.
  const attached = await h3.client.attachSnapshot("db@kept");
  t.match(attached, { snapshot: id, volume, path: /\.sock$/ });
  t.same((await h1.client.snapshot("db@kept")).openOn, ["h3"]);
  await t.rejects(h1.client.deleteSnapshot("db@kept"), { code: "E-SNAP-04", message: /attached on h3/ });
  await h3.client.detachSnapshot("db@kept");
  await h1.client.deleteSnapshot("db@kept");
  t.equal(calls(h2, "snapshot.delete"), 1);
  await t.rejects(h1.client.snapshot(id), { code: "E-SNAP-09" });

  // A volume goes after its snapshots.
  await h2.client.detach("db");
  await t.rejects(h1.client.deleteVolume("db"), { code: "E-SNAP-10", exitCode: 2 });
  t.equal((await h1.client.volume("db")).deletedAt, null);
  for (const ref of ["db@first", unnamed.id]) await h1.client.deleteSnapshot(ref);
  await h1.client.deleteVolume("db");

  const { lines } = await h2.client.audit({
    since: null,
    volume: null,
    host: "h2",
    who: "h1",
    refused: null,
    limit: null,
  });
  t.match(
    lines.find(({ event, target }) => event === "begin" && target["snapshot"] === id),
    { what: "POST /v1/internal/volume-work", target: { volume, work: "snapshot" } },
  );
});

void t.test("agent: why there is no snapshot, or fewer copies of it, is said with names", async (t) => {
  const [h1, h2, h3] = await three(t, 111);
  const { replicas } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
  await h2.client.attach("db");
  const pools = await h1.client.pools();
  const onH1 = pools.find(({ hostName }) => hostName === "h1");
  const rid = replicas.find(({ hostName }) => hostName === "h1")?.rid ?? 0;
  const node = onH1?.host ?? "";
  for (const [code, facts, message] of [
    [
      "E-SNAP-01",
      { rid, node, pool: onH1?.id, why: "the pool lies on ext4" },
      /^"db" can't have snapshots, for its copy on h1 \(\/pool-of-h1\): the pool lies on ext4\.$/,
    ],
    [
      "E-SNAP-01",
      { rid, node, pool: onH1?.id },
      /for its copy on h1 \(\/pool-of-h1\): its pool can't keep any\.$/,
    ],
    ["E-SNAP-03", { for: "the store" }, /^"db" gets no snapshot now: it waits for the store\. Tried/],
    ["E-SNAP-03", { for: "0", rid, node }, /^"db" gets no snapshot now: its copy on h1 did not answer/],
    ["E-SNAP-08", { rid, node, pool: onH1?.id }, /its copy on h1 has no room/],
    ["E-SNAP-02", {}, /^"db" has a snapshot "x" already/],
  ] as const) {
    h2.weftd.refusesSnapshots = { code, facts };
    await t.rejects(h3.client.createSnapshot("db", { name: "x" }), { code, message }, code);
  }
  t.same(await h1.client.snapshots("db"), [], "nothing was taken");

  // One of its pools can't, as its host says: known before anybody is asked.
  await h1.client.createSnapshot("db", { name: "both" });
  h1.weftd.noSnapshots.set("/pool-of-h1", "the pool lies on ext4");
  h1.weftd.letPoolsServe();
  await eventually(
    "that it can't",
    () => h2.client.volume("db"),
    ({ snapshots }) => snapshots.unable?.hostName === "h1",
  );
  const asked = calls(h2, "snapshot.create");
  await t.rejects(h2.client.createSnapshot("db"), {
    code: "E-SNAP-01",
    message: /copy on h1 \(\/pool-of-h1\)/,
  });
  t.equal(calls(h2, "snapshot.create"), asked);
  const why = await h3.client.why("db");
  t.match(why.because.at(-1), /^E-SNAP-01: "db" can't have snapshots, for its copy on h1/);
  const problems = async (): Promise<readonly { readonly code: string; readonly message: string }[]> => {
    const status = await h3.client.status();
    return status.kind === "cluster" ? status.problems : [];
  };
  t.match(await problems(), [{ code: "E-SNAP-01", message: /copy on h1/ }]);
  h1.weftd.noSnapshots.clear();
  h1.weftd.letPoolsServe();

  // A copy that comes later has not the snapshots of before, and the last one that has one stays.
  await h1.client.addReplica("db", { host: "h3" });
  const all = await eventually(
    "three copies",
    () => h1.client.volume("db"),
    ({ inSync, snapshots }) => inSync === 3 && snapshots.unable === null,
  );
  t.match(all.snapshots, { count: 1, fewerCount: 1, fewer: [{ name: "both", copies: 2, missedBy: ["h3"] }] });
  t.match(await problems(), [
    {
      code: "E-SNAP-11",
      message: 'The snapshot of "db" has fewer copies than the volume: db@both is in 2 of 3, h3 missed it.',
    },
  ]);
  const of = (host: string): number => all.replicas.find(({ hostName }) => hostName === host)?.rid ?? 0;
  await h1.client.removeReplica("db", of("h1"));
  await eventually(
    "h1's copy gone",
    () => h1.client.volume("db"),
    (v) => v.replicas.length === 2 && v.replicas.every(({ hostName }) => hostName !== "h1"),
  );
  t.match(await h3.client.snapshot("db@both"), { copies: 1, wantedCopies: 2, missedBy: ["h3"] });
  const last = { code: "E-SNAP-07", message: /^db@both is only on h2:/, exitCode: 2 };
  await t.rejects(h1.client.removeReplica("db", of("h2")), last);
  await t.rejects(h1.client.changeVolume("db", { move: { from: "h2", to: "h1", pool: null } }), last);
  await t.rejects(h1.client.planVolume("db", { move: { from: "h2", to: "h1", pool: null } }), last);
  t.notOk((await h1.client.volume("db")).replicas.some(({ leaving }) => leaving));
});

void t.test(
  "agent: a session that ended with its weftd keeps nobody from a snapshot, but its guest's holder",
  async (t) => {
    const [h1, h2, h3] = await three(t, 211);
    const { id: volume } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
    const owner = async (): Promise<unknown> => (await h1.client.volume("db")).owner;
    // Killed under a request's own session, that had no guest: the next request does with another one.
    await h3.client.createSnapshot("db", { name: "zero" });
    const weftd = new DaemonClient({ socketPath: join(h2.directory, "run", "weftd.sock") });
    t.teardown(() => weftd.close());
    const caretaker = {
      volume,
      mode: "closed",
      export: null,
      caretaker: true,
      old_stopped: false,
      expected: null,
      limits: null,
    } as const;
    await weftd.call("session.open", caretaker);
    h2.weftd.sessions.delete(volume);
    await h1.client.createSnapshot("db", { name: "one" });
    t.equal(await owner(), null);

    // Killed under a guest: the holder has its requests, and weftd opens it again for them.
    await h2.client.attach("db");
    h2.weftd.sessions.delete(volume);
    const held = { id: volume, volume, snapshot: null, connected: true, lost: null };
    const list = (): unknown => ({ entries: [held] });
    const holder = new FakeDaemon(join(h2.directory, "run", "holder.sock"), { list } as object);
    await holder.start();
    await t.rejects(h1.client.createSnapshot("db", { name: "two" }), { code: "E-VOL-13" });
    t.not(await owner(), null, "it was not taken from its guest");
    await holder.stop();
    // Its host was started anew, with nothing of it.
    await h1.client.createSnapshot("db", { name: "two" });
    await h3.client.deleteSnapshot("db@one");
    t.equal(await owner(), null);

    // One that waits for a copy makes way for a guest all the same.
    await weftd.call("session.open", caretaker);
    h2.weftd.paused.add(volume);
    t.match(await h2.client.attach("db"), { volume });
  },
);

void t.test("agent: what an owner left unfinished of snapshots is ended by a caretaker", async (t) => {
  const [h1, h2, h3] = await three(t, 121);
  const { id: volume } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
  await h1.client.createSnapshot("db", { name: "one" });
  for (const { weftd } of [h1, h2, h3]) weftd.holdsSnapshots = true;
  await h3.client.deleteSnapshot("db@one");
  t.match((await h1.client.volume("db")).snapshots, { count: 0, deleting: 1 });
  t.match(await h1.client.snapshots("db"), [{ name: "one", state: "deleting" }]);
  await h1.client.deleteSnapshot("db@one");
  await t.rejects(h1.client.attachSnapshot("db@one"), { code: "E-SNAP-09" });
  await t.rejects(h1.client.deleteVolume("db"), { code: "E-SNAP-10", message: /on the way out/ });
  // The next owner ends it, and there is one although nobody asked for any.
  for (const { weftd } of [h1, h2, h3]) await weftd.letSnapshotsEnd();
  await eventually(
    "the snapshot gone, and the caretaker too",
    () => h1.client.volume("db"),
    ({ snapshots, owner }) => snapshots.deleting === 0 && owner === null,
    60_000,
  );

  // One that nobody was told of is shown to nobody until all have logged it.
  const store = await h1.store();
  await h1.client.createSnapshot("db", { name: "two" });
  const [entry] = (await store.list(keys.snapshots(volume))).entries;
  if (entry === undefined) throw new Error("the snapshot has a key");
  for (const { weftd } of [h1, h2, h3]) weftd.holdsSnapshots = true;
  await store.put(entry.key, JSON.stringify({ ...(JSON.parse(entry.value) as object), logged: false }));
  t.same(await h2.client.snapshots("db"), []);
  await t.rejects(h2.client.snapshot("db@two"), { code: "E-SNAP-09" });
  for (const { weftd } of [h1, h2, h3]) await weftd.letSnapshotsEnd();
  await eventually(
    "the snapshot logged",
    () => h2.client.snapshots("db"),
    ([two]) => two?.name === "two",
    60_000,
  );

  // A value that nobody can read hides no other.
  await store.put(keys.snapshot(volume, "d0000000-0000-4000-a000-000000000001"), "{}");
  const status = await eventually(
    "the problem",
    () => h3.client.status(),
    (answer) => answer.kind === "cluster" && answer.problems.some(({ code }) => code === "E-STORE-07"),
  );
  t.equal(status.kind, "cluster");
  t.match(await h3.client.snapshots("db"), [{ name: "two" }]);
});

void t.test("agent: what changed between two snapshots is asked of any host, a part at a time", async (t) => {
  const [h1, h2, h3] = await three(t, 131);
  for (const name of ["db", "web"]) {
    await h1.client.createVolume({ name, size: GIB, hosts: ["h1", "h2"] });
    await h1.client.createSnapshot(name, { name: "a" });
  }
  const older = await h1.client.snapshot("db@a");
  const newer = await h1.client.createSnapshot("db", { name: "b" });
  h3.weftd.changes.set(older.id, { exact: true, blocks: [0, 1, 16_383] });
  h3.weftd.changedPage = GIB / 2n;
  for (const since of ["db@a", "a", older.id, `db@${older.id}`, `${older.volume}@a`]) {
    const page = await h3.client.changedBlocks("db@b", { since });
    const { snapshot, since: from, volume, size, grain, exact, offset, len } = page;
    t.strictSame(
      { snapshot, from, volume, size, grain, exact, offset, len },
      {
        snapshot: newer.id,
        from: older.id,
        volume: newer.volume,
        size: GIB,
        grain: 65_536,
        exact: true,
        offset: 0n,
        len: GIB / 2n,
      },
      since,
    );
    t.equal(Buffer.from(page.bitmap, "base64")[0], 0b1100_0000);
  }
  const rest = await h3.client.changedBlocks(newer.id, { since: "a", offset: GIB / 2n });
  t.match(rest, { offset: GIB / 2n, len: GIB / 2n });
  t.equal(Buffer.from(rest.bitmap, "base64").at(-1), 1);
  const few = await h3.client.changedBlocks("db@b", { since: "a", offset: 65_536n, len: 4096n });
  t.match(few, { offset: 65_536n, len: 4096n });
  t.equal(calls(h1, "snapshot.changed") + calls(h2, "snapshot.changed"), 0);

  const refusals: readonly (readonly [string, string, object, string])[] = [
    ["db@b", "web@a", {}, "E-ARG-02"],
    ["db@b", "nothing@a", {}, "E-ARG-02"],
    ["db@b", "db@a@b", {}, "E-ARG-02"],
    ["db@b", "", {}, "E-ARG-02"],
    ["db@b", "db@c", {}, "E-SNAP-09"],
    ["db@c", "db@a", {}, "E-SNAP-09"],
    ["db@b", "a", { offset: 4096n }, "E-ARG-02"],
    ["db@b", "a", { offset: GIB }, "E-ARG-02"],
    ["db@b", "a", { len: 0n }, "E-ARG-02"],
  ];
  for (const [ref, since, more, code] of refusals)
    await t.rejects(h3.client.changedBlocks(ref, { since, ...more }), { code }, `${ref} since ${since}`);
  await t.rejects(h2.client.changedBlocks("db@b", { since: "a" }), {
    code: "E-SNAP-16",
    message: "What changed between db@a and db@b can't be said now: no copy that has them is in reach.",
    exitCode: 3,
  });
});

void t.test(
  "agent: a caretaker's session that has ended with its weftd keeps no snapshot waiting",
  async (t) => {
    const [h1, h2] = await startCluster(t, 2, 247);
    if (h1 === undefined || h2 === undefined) throw new Error("hosts");
    const made = await h1.client.createVolume({ name: "db", size: 1n << 26n, copies: 2 });
    const id = parseVolumeId(made.id);
    if (id === null) throw new Error("an id");
    // Each asks in turn: who is the recorded owner's host, and who isn't.
    for (const [at, host] of [h1, h2].entries()) {
      const { daemon, held } = h1.member();
      held.add(id);
      await openCaretaker(daemon.client, id);
      held.delete(id);
      h1.weftd.sessions.delete(id);
      t.match(await host.client.createSnapshot("db", { name: `s${at}` }), { state: "ready" });
    }
  },
);
