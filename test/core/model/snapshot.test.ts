/** Which copies have which snapshots, and what that keeps from being done. */
import { array, assert, boolean, constantFrom, integer, property, uniqueArray } from "fast-check";
import t from "tap";

import { chooseCaretaker } from "../../../src/core/model/caretaker.ts";
import { SNAPSHOTS_MAX } from "../../../src/core/model/limits.ts";
import { mayRemove } from "../../../src/core/model/volume.ts";
import {
  checkDestroyData,
  checkNoSnapshots,
  checkSnapshot,
  checkSnapshotDelete,
  coverage,
  dataIsGone,
  inOrder,
  isShown,
  isUnfinished,
  lastHeld,
  losesSnapshot,
  nameOfMoment,
  parseSnapshotRef,
  ready,
  withFewer,
} from "../../../src/core/model/snapshot.ts";
import {
  cluster,
  hostId,
  made,
  member,
  owner,
  place,
  pool,
  record,
  snapshot,
  snapshotId,
  want,
} from "./world.ts";

const three = cluster([1, 2, 3]);
const code = (decision: { readonly kind: string; readonly finding?: { readonly code: string } }): string =>
  decision.kind === "ok" ? "ok" : (decision.finding?.code ?? "");

void t.test("snapshot: names and references", async (t) => {
  t.match(parseSnapshotRef("db@a"), { value: { volume: "db", name: "a" } });
  for (const wrong of ["", "db", "@", "db@", "@a", "a@b@c"])
    t.equal(code(parseSnapshotRef(wrong)), "E-ARG-02");
  t.equal(nameOfMoment("2026-11-22T14:02:07.311Z"), "snap-20261122-140207");
});

void t.test("snapshot: copies that came later or left have none of it", async (t) => {
  const fact = record([member(1, 2), member(2, 3, "STALE"), member(3, 1, "QUARANTINED"), member(4, 4)]);
  t.strictSame(coverage(snapshot(1, [0, 1, 2, 3]), fact), {
    copies: 2,
    missedBy: [hostId(1), hostId(4)],
  });
  const all = [
    snapshot(1, [0]),
    snapshot(2, [1, 2]),
    snapshot(3, [1], { isLogged: false }),
    snapshot(4, [1], { state: "DELETING" }),
  ];
  const wanted = want([place(1, 2), place(2, 3)], { copies: 2 });
  t.same(
    withFewer(all, wanted, fact).map(({ name }) => name),
    ["s1"],
    "what is not usable is not counted",
  );
  t.same(
    ready(all).map(({ name }) => name),
    ["s1", "s2"],
  );
  t.same(
    inOrder(all.filter(isShown)).map(({ name }) => name),
    ["s4", "s2", "s1"],
    "the youngest first, and not what nobody was told of",
  );
});

void t.test("snapshot: the last copy that has one stays, by request and by itself", async (t) => {
  const fact = record([member(0, 1), member(1, 2), member(2, 3)], { owner: owner(1), copies: 2 });
  const before = want([place(0, 1), place(1, 2), place(2, 3)], { copies: 2 });
  const going = { ...before, placements: [place(0, 1, true), place(1, 2), place(2, 3)] };
  const input = { want: going, record: fact, cluster: three };
  for (const [snapshots, stays] of [
    [[], false],
    [[snapshot(1, [0, 1])], false],
    [[snapshot(1, [0, 1]), snapshot(2, [0])], true],
    [[snapshot(2, [0], { state: "DELETING" })], false],
    [[snapshot(2, [0], { isLogged: false })], true],
    [[snapshot(2, [7])], false],
  ] as const) {
    t.equal(mayRemove({ ...input, snapshots }, place(0, 1, true)), !stays);
    const lost = losesSnapshot(snapshots, { before, after: going }, fact, three);
    t.equal(lost?.code ?? null, stays ? "E-SNAP-07" : null);
    t.equal(losesSnapshot(snapshots, { before: going, after: going }, fact, three), null, "nothing new goes");
  }
  // Both that have it go, one after the other.
  const both = { ...before, placements: [place(0, 1, true), place(1, 2, true), place(2, 3)] };
  t.match(losesSnapshot([snapshot(1, [0, 1])], { before: going, after: both }, fact, three), {
    message: "db@s1 is only on h1 h2: the copy there can't go before the snapshot.",
    do: [{}, { command: "weft replica add db --wait" }, { command: "weft snapshot delete db@s1" }],
  });
  const destroyed = snapshot(1, [0, 1], { data: "destroyed" });
  t.equal(losesSnapshot([destroyed], { before: going, after: both }, fact, three)?.do.length, 2);
});

void t.test("snapshot: whatever leaves, as many as there are stay readable", async (t) => {
  const rids = uniqueArray(integer({ min: 0, max: 3 }), { maxLength: 4 });
  const some = array(
    rids.map((taken) => snapshot(1, taken)),
    { maxLength: 4 },
  );
  assert(
    property(some, rids, (snapshots, leaving) => {
      const fact = record([0, 1, 2, 3].map((n) => member(n, n + 1)));
      const lost = lastHeld(
        snapshots,
        fact,
        leaving.map((n) => place(n, n + 1)),
      );
      const rest = record(fact.replicas.filter((replica) => !leaving.includes(replica.rid)));
      const loses = snapshots.some(
        (one) => coverage(one, fact).copies > 0 && coverage(one, rest).copies === 0,
      );
      return (lost !== null) === loses;
    }),
  );
  t.pass();
});

void t.test("snapshot: a caretaker ends what is not ended, while all that it takes answer", async (t) => {
  const fact = record([member(0, 1), member(1, 2)]);
  const wanted = want([place(0, 1), place(1, 2)]);
  t.same(
    withFewer([snapshot(1, [0], { data: "destroyed" })], wanted, fact),
    [],
    "it is brought to no other copy",
  );
  const facts = {
    want: wanted,
    made: [made(0, 1), made(1, 2)],
    record: fact,
    ownerIsCaretaker: false,
    isReleaseDue: false,
  };
  for (const rest of [{ isLogged: false }, { state: "DELETING" as const }, { data: "destroying" as const }]) {
    const snapshots = [snapshot(1, [0, 1], rest)];
    const input = { ...facts, cluster: three, snapshots };
    t.match(chooseCaretaker(input, 0), { host: hostId(1), work: ["snapshots"] });
    t.equal(
      chooseCaretaker({ ...input, cluster: cluster([1, 2, 3], [2]) }, 0),
      null,
      "nothing would come of it",
    );
    t.match(
      chooseCaretaker({ ...input, snapshots: [snapshot(1, [0, 7], rest)] }, 0),
      { work: ["snapshots"] },
      "who has left is not waited for",
    );
  }
  t.equal(chooseCaretaker({ ...facts, cluster: three, snapshots: [snapshot(1, [0, 1])] }, 0), null);
  assert(
    property(boolean(), constantFrom("READY", "DELETING"), (isLogged, state) => {
      const unfinished = isUnfinished([snapshot(1, [0], { isLogged, state })], fact, three);
      return unfinished === (!isLogged || state === "DELETING");
    }),
  );
});

void t.test("snapshot: what is refused before anybody is asked", async (t) => {
  const fact = record([member(0, 1), member(1, 2)]);
  const input = {
    want: want([place(0, 1), place(1, 2)]),
    record: fact,
    cluster: three,
    snapshots: [snapshot(1, [0, 1])],
    name: "new",
    id: snapshotId(5000),
  };
  t.equal(code(checkSnapshot(input)), "ok");
  t.equal(code(checkSnapshot({ ...input, name: "s1" })), "E-SNAP-02");
  t.equal(
    code(checkSnapshot({ ...input, name: "s1", id: snapshotId(1) })),
    "ok",
    "the same is asked for again",
  );
  t.equal(code(checkSnapshot({ ...input, name: "S" })), "E-ARG-02");
  const pools = [pool(1), pool(2, { noSnapshots: "the pool lies on ext4" }), pool(3)];
  t.match(checkSnapshot({ ...input, cluster: { ...three, pools } }), {
    finding: {
      code: "E-SNAP-01",
      message: `"db" can't have snapshots, for its copy on h2 (/srv/weft): the pool lies on ext4.`,
    },
  });
  const elsewhere = [pool(1), pool(2), pool(3, { noSnapshots: "the pool lies on ext4" })];
  t.equal(code(checkSnapshot({ ...input, cluster: { ...three, pools: elsewhere } })), "ok");
  const many = Array.from({ length: SNAPSHOTS_MAX }, (_, n) => snapshot(n, [0, 1]));
  t.equal(code(checkSnapshot({ ...input, snapshots: many })), "E-SNAP-06");
  const [first, ...rest] = many;
  if (first === undefined) throw new Error("there are a thousand");
  const room = [{ ...first, state: "DELETING" as const }, ...rest];
  t.equal(code(checkSnapshot({ ...input, snapshots: room })), "ok");

  const free = { openOn: [], clones: [], isReverting: false };
  const open = { ...free, openOn: ["h3"] };
  t.equal(code(checkSnapshotDelete("db", first, free)), "ok");
  t.equal(code(checkSnapshotDelete("db", { ...first, isProtected: true }, free)), "E-SNAP-05");
  t.equal(code(checkSnapshotDelete("db", first, open)), "E-SNAP-04");
  t.equal(code(checkSnapshotDelete("db", { ...first, state: "DELETING" }, open)), "ok");
  t.match(checkSnapshotDelete("db", first, { ...free, clones: ["web"] }), {
    finding: {
      code: "E-SNAP-13",
      message: 'db@s0 is being cloned: the volume "web" is made of it. Not deleted.',
    },
  });
  t.match(checkSnapshotDelete("db", first, { ...free, isReverting: true }), {
    finding: {
      code: "E-SNAP-04",
      message: 'db@s0 is in use: "db" is being taken back to it. Not deleted.',
    },
  });
  t.equal(code(checkNoSnapshots(input.want, [])), "ok");
  t.match(checkNoSnapshots(input.want, input.snapshots), {
    finding: { code: "E-SNAP-10", message: /^"db" has a snapshot\. Not deleted/ },
  });
});

void t.test(
  "snapshot: its data is destroyed where it could be deleted, once, and leaves no copy missing",
  async (t) => {
    const one = snapshot(1, [0, 1]);
    const free = { openOn: [], clones: [], isReverting: false };
    t.equal(code(checkDestroyData("db", one, free)), "ok");
    t.match(checkDestroyData("db", one, { ...free, openOn: ["h3"] }), {
      finding: { code: "E-SNAP-04", message: "db@s1 is attached on h3. Its data was kept." },
    });
    t.equal(code(checkDestroyData("db", one, { ...free, clones: ["web"] })), "E-SNAP-13");
    t.equal(code(checkDestroyData("db", one, { ...free, isReverting: true })), "E-SNAP-04");
    t.equal(code(checkDestroyData("db", { ...one, isProtected: true }, free)), "E-SNAP-05");
    t.equal(code(checkDestroyData("db", { ...one, state: "DELETING" }, free)), "E-SNAP-09");
    const destroyed = { ...one, data: "destroying" as const };
    t.equal(code(checkDestroyData("db", destroyed, { ...free, openOn: ["h3"] })), "ok");
    t.equal(dataIsGone("db", one), null);
    t.match(dataIsGone("db", destroyed), { code: "E-SNAP-18", message: /^The data of db@s1 was destroyed/ });
    const fact = record([member(0, 1), member(1, 2), member(2, 3)]);
    const wanted = want([place(0, 1), place(1, 2), place(2, 3)]);
    t.same(withFewer([one], wanted, fact), [one]);
    t.same(withFewer([destroyed], wanted, fact), []);
  },
);
