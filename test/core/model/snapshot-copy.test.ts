/** A copy was away, or came later: its host brings it the snapshots that it missed, one after the other. */
import { array, assert, constantFrom, integer, property, uniqueArray } from "fast-check";
import t from "tap";

import {
  copyKey,
  dueSnapshotCopies,
  type Refusal,
  type SnapshotCopyInput,
} from "../../../src/core/model/snapshot-copy.ts";
import { cluster, hostId, member, place, pool, record, rid, snapshot, snapshotId, want } from "./world.ts";

const three = cluster([1, 2, 3]);
const wanted = want([place(0, 1), place(1, 2), place(2, 3)]);
const level = record([member(0, 1), member(1, 2), member(2, 3)]);
const volume = { want: wanted, record: level, snapshots: [snapshot(2, [0, 1]), snapshot(1, [0])] };
const base: SnapshotCopyInput = {
  host: hostId(3),
  cluster: three,
  volumes: [volume],
  isResyncing: false,
  refusals: new Map(),
};
const dueOf = (rest: Partial<SnapshotCopyInput>, now: number = 0): readonly string[] =>
  dueSnapshotCopies({ ...base, ...rest }, now).map(copyKey);
const key = (number: number, of: number): string => `${snapshotId(number)} ${of}`;
const alone = (rest: Partial<typeof volume>): readonly string[] =>
  dueOf({ volumes: [{ ...volume, ...rest }] });

void t.test(
  "snapshot copies: each host brings to its own copies what others have, the oldest first",
  async (t) => {
    t.same(dueOf({}), [key(1, 2), key(2, 2)]);
    t.same(dueOf({ host: hostId(2) }), [key(1, 1)]);
    t.same(dueOf({ host: hostId(1) }), []);
    t.same(dueSnapshotCopies(base, 0)[0], { volume: level.volume, snapshot: snapshotId(1), rid: rid(2) });
  },
);

void t.test("snapshot copies: nothing before a copy is level, or of what goes or went", async (t) => {
  t.same(dueOf({ isResyncing: true }), [], "guests' data first");
  for (const state of ["STALE", "JOINING", "REMOVING", "QUARANTINED"] as const)
    t.same(alone({ record: record([member(0, 1), member(1, 2), member(2, 3, state)]) }), [], state);
  t.same(alone({ want: want([place(0, 1), place(1, 2), place(2, 3, true)]) }), [], "the copy leaves");
  t.same(alone({ want: { ...wanted, deletedAtMs: 1 } }), []);
  t.same(alone({ record: { ...level, deletedAtMs: 1 } }), []);
  const reverting = { snapshot: snapshotId(1), sinceMs: 0 };
  t.same(alone({ record: { ...level, reverting } }), [], "the volume is taken back");
  for (const rest of [{ isLogged: false }, { state: "DELETING" as const }, { data: "destroying" as const }])
    t.same(alone({ snapshots: [snapshot(1, [0], rest)] }), [], JSON.stringify(rest));
});

void t.test("snapshot copies: a copy that has it answers, and the pool here can keep it", async (t) => {
  t.same(dueOf({ cluster: cluster([1, 2, 3], [1]) }), [key(2, 2)], "the first is on h1 alone");
  t.same(alone({ snapshots: [snapshot(1, [7])] }), [], "no copy of the volume has it any more");
  t.same(alone({ record: record([member(0, 1, "STALE"), member(2, 3)]), snapshots: [snapshot(1, [0])] }), [
    key(1, 2),
  ]);
  for (const rest of [{ serving: false }, { noSnapshots: "the pool lies on ext4" }])
    t.same(dueOf({ cluster: { ...three, pools: [pool(1), pool(2), pool(3, rest)] } }), []);
  t.same(dueOf({ cluster: { ...three, pools: [pool(1), pool(2)] } }), []);
});

void t.test(
  "snapshot copies: what was refused comes again later and later, and keeps none waiting",
  async (t) => {
    const at = (times: number, now: number): readonly string[] =>
      dueOf({ refusals: new Map<string, Refusal>([[key(1, 2), { times, atMs: 1000 }]]) }, now);
    t.same(at(1, 1000), [key(2, 2)]);
    t.same(at(1, 30_999), [key(2, 2)]);
    t.same(at(1, 31_000), [key(1, 2), key(2, 2)]);
    t.same(at(3, 31_000), [key(2, 2)]);
    t.same(at(3, 121_000), [key(1, 2), key(2, 2)]);
    t.same(at(99, 3_600_999), [key(2, 2)]);
    t.same(at(99, 3_601_000), [key(1, 2), key(2, 2)], "an hour at most");
  },
);

void t.test(
  "snapshot copies: whatever is there, hosts together bring each copy what it lacks, and nothing else",
  async (t) => {
    const shot = integer({ min: 1, max: 9 }).chain((number) =>
      uniqueArray(constantFrom(0, 1, 2), { minLength: 1 }).map((rids) => snapshot(number, rids)),
    );
    const shots = array(shot, { maxLength: 6 }).map((all) => [
      ...new Map(all.map((one) => [one.id, one] as const)).values(),
    ]);
    assert(
      property(shots, (snapshots) => {
        const brought = [1, 2, 3].flatMap((number) =>
          dueOf({ host: hostId(number), volumes: [{ ...volume, snapshots }] }),
        );
        const lacked = snapshots.flatMap(({ id, members }) =>
          [0, 1, 2].filter((n) => !members.some((one) => one.rid === n)).map((n) => `${id} ${n}`),
        );
        t.same([...brought].toSorted(), lacked.toSorted());
      }),
    );
  },
);
