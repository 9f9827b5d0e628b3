/**
 * Plot: copies fall away and come back, with and without the store. A new copy made too early is wasted work after a
 * reboot; made too late it leaves a volume on its last disk; made in a store outage it rests on nothing.
 */
import t from "tap";

import { chooseCaretaker, caretakerLine } from "../../../src/core/model/caretaker.ts";
import type { Cluster } from "../../../src/core/model/cluster.ts";
import { REBUILD_AFTER_MS, REBUILD_LAST_COPY_MS } from "../../../src/core/model/limits.ts";
import { decideRebuild, healthOf, redundancyLine } from "../../../src/core/model/redundancy.ts";
import type { VolumeRecord, Want } from "../../../src/core/model/volume-record.ts";
import { cluster, hostId, made, member, owner, place, pool, record, want } from "./world.ts";

const up = { kind: "up", sinceMs: -1_000_000_000 } as const;
const MINUTE = 60_000;

function line(
  wanted: Want,
  fact: VolumeRecord,
  world: Cluster,
  now: number,
  store: Parameters<typeof decideRebuild>[0]["store"] = up,
): string {
  const rebuild = decideRebuild({ want: wanted, record: fact, cluster: world, store }, now);
  return redundancyLine(healthOf(wanted, fact, world), rebuild, world, now);
}

const two = want([place(0, 1), place(1, 2)]);
const three = want([place(0, 1), place(1, 2), place(2, 3)]);

void t.test("redundancy: all copies in sync on hosts that answer is healthy", async (t) => {
  t.equal(line(two, record([member(0, 1), member(1, 2)]), cluster([1, 2]), 0), "healthy; nothing to rebuild");
});

void t.test(
  "redundancy: with one copy left a new one is made after 60 s, with two left after 30 min",
  async (t) => {
    const oneLeft = record([member(0, 1), member(1, 2, "STALE")]);
    const world = cluster([1, 2, 3], [2]);
    t.equal(line(two, oneLeft, world, 0), "degraded 1/2; rebuild of rid 1 in 1 min");
    t.equal(line(two, oneLeft, world, REBUILD_LAST_COPY_MS), "degraded 1/2; new copy on h3");

    const twoLeft = record([member(0, 1), member(1, 2, "STALE"), member(2, 3)]);
    const four = cluster([1, 2, 3, 4], [2]);
    t.equal(line(three, twoLeft, four, REBUILD_LAST_COPY_MS), "degraded 2/3; rebuild of rid 1 in 29 min");
    t.equal(line(three, twoLeft, four, REBUILD_AFTER_MS), "degraded 2/3; new copy on h4");
  },
);

void t.test(
  "redundancy: a stale copy whose host is back is resynced, not replaced, however long it was away",
  async (t) => {
    const fact = record([member(0, 1), member(1, 2, "STALE")], { owner: owner(1) });
    t.equal(line(two, fact, cluster([1, 2, 3]), 100 * REBUILD_AFTER_MS), "degraded 1/2; rid 1 under way");
  },
);

void t.test("redundancy: an agent that is down costs no copy while the owner keeps it in sync", async (t) => {
  const world = cluster([1, 2, 3], [2]);
  const kept = record([member(0, 1), member(1, 2)], { owner: owner(1) });
  t.equal(line(two, kept, world, REBUILD_AFTER_MS), "healthy; nothing to rebuild");
  const detached = record([member(0, 1), member(1, 2)]);
  t.equal(line(two, detached, world, MINUTE), "degraded 1/2; new copy on h3");
  const ownerAway = record([member(0, 1), member(1, 2)], { owner: owner(2) });
  t.equal(line(two, ownerAway, world, MINUTE), "degraded 1/2; new copy on h3");
  const cannotDrop = record([member(0, 1), member(1, 2)], { owner: owner(1), minIsr: 2 });
  t.equal(line({ ...two, minIsr: 2 }, cannotDrop, world, MINUTE), "paused 1<2; new copy on h3");
});

void t.test("redundancy: never during a store outage, and the delay begins anew after it", async (t) => {
  const fact = record([member(0, 1), member(1, 2, "STALE")]);
  const world = cluster([1, 2, 3], [2]);
  const late = 100 * MINUTE;
  t.equal(
    line(two, fact, world, late, { kind: "down", sinceMs: 0 }),
    "degraded 1/2; no rebuild during a store outage",
  );
  t.equal(
    line(two, fact, world, late, { kind: "up", sinceMs: late }),
    "degraded 1/2; rebuild of rid 1 in 1 min",
  );
  t.equal(
    line(two, fact, world, late + MINUTE, { kind: "up", sinceMs: late }),
    "degraded 1/2; new copy on h3",
  );
});

void t.test("redundancy: without a further host the volume stays degraded and says so", async (t) => {
  const fact = record([member(0, 1), member(1, 2, "STALE")]);
  t.equal(line(two, fact, cluster([1, 2], [2]), MINUTE), "degraded 1/2; no place: E-REPL-01");
});

void t.test(
  "redundancy: with no in-sync copy that answers there is nothing to copy from: it waits",
  async (t) => {
    const fact = record([member(0, 1), member(1, 2, "STALE")]);
    t.equal(
      line(two, fact, cluster([1, 2, 3], [1]), MINUTE),
      "unavailable, waiting for h1; no source for a rebuild",
    );
  },
);

void t.test("redundancy: fewer in-sync copies than min_isr pause", async (t) => {
  const fact = record([member(0, 1), member(1, 2)], { minIsr: 2 });
  t.equal(line(two, fact, cluster([1, 2, 3], [2]), 1000), "paused 1<2; rebuild of rid 1 in 59 s");
});

void t.test("redundancy: a quarantined copy never comes back, so it is replaced soon", async (t) => {
  const fact = record([member(0, 1), member(1, 2, "QUARANTINED"), member(2, 3)]);
  t.equal(line(three, fact, cluster([1, 2, 3, 4]), MINUTE), "degraded 2/3; new copy on h4");
});

void t.test("redundancy: one new copy at a time", async (t) => {
  const wanted = want([place(0, 1), place(1, 2), place(2, 3), place(3, 4)], { copies: 3 });
  const fact = record([member(0, 1), member(1, 2, "STALE"), member(2, 3, "STALE"), member(3, 4, "JOINING")]);
  t.equal(
    line(wanted, fact, cluster([1, 2, 3, 4, 5], [2, 3]), REBUILD_AFTER_MS),
    "degraded 1/3; rid 3 under way",
  );
});

void t.test(
  "redundancy: when the replacement is in sync the lost copy is given up, not the young one",
  async (t) => {
    const wanted = want([place(0, 1), place(1, 2), place(2, 3)], { copies: 2 });
    const fact = record([member(0, 1), member(1, 2, "STALE"), member(2, 3)]);
    t.equal(line(wanted, fact, cluster([1, 2, 3], [2]), MINUTE), "healthy; rid 1 is one too many");
    const back = record([member(0, 1), member(1, 2), member(2, 3)]);
    t.equal(line(wanted, back, cluster([1, 2, 3]), MINUTE), "healthy; rid 2 is one too many");
  },
);

void t.test("redundancy: a copy in a pool that does not serve counts as lost", async (t) => {
  const world = { ...cluster([1, 2, 3]), pools: [pool(1), pool(2, { serving: false }), pool(3)] };
  const fact = record([member(0, 1), member(1, 2, "STALE")]);
  t.equal(line(two, fact, world, MINUTE), "degraded 1/2; new copy on h3");
});

void t.test(
  "caretaker: the lowest host that answers and has an in-sync copy, only when there is work",
  async (t) => {
    const allMade = [made(0, 1), made(1, 2), made(2, 3)];
    const behind = record([member(0, 1, "STALE"), member(1, 2), member(2, 3)]);
    const world = cluster([1, 2, 3]);
    const input = {
      want: three,
      made: allMade,
      record: behind,
      cluster: world,
      ownerIsCaretaker: false,
      isReleaseDue: false,
      snapshots: [],
    };
    t.strictSame(chooseCaretaker(input, 0), { host: hostId(2), work: ["resync"] });
    t.equal(caretakerLine(chooseCaretaker(input, 0), world), "caretaker h2: resync");
    t.strictSame(chooseCaretaker({ ...input, cluster: cluster([1, 2, 3], [2]) }, 0)?.host, hostId(3));
    t.equal(
      chooseCaretaker({ ...input, record: { ...behind, owner: owner(3) } }, 0),
      null,
      "the owner does it",
    );
    t.equal(
      chooseCaretaker({ ...input, cluster: cluster([1, 2, 3], [1]) }, 0),
      null,
      "nothing to do while h1 is away",
    );
    const level = record([member(0, 1), member(1, 2), member(2, 3)]);
    t.equal(chooseCaretaker({ ...input, record: level }, 0), null);
    t.equal(
      chooseCaretaker({ ...input, cluster: cluster([1, 2, 3], [2, 3]) }, 0),
      null,
      "a stale copy is never opened",
    );
  },
);

void t.test(
  "caretaker: a clean volume whose member went away is not opened before a replacement is there",
  async (t) => {
    const fact = record([member(0, 1), member(1, 2)]);
    const world = cluster([1, 2, 3], [2]);
    const before = {
      want: two,
      made: [made(0, 1), made(1, 2)],
      record: fact,
      cluster: world,
      ownerIsCaretaker: false,
      isReleaseDue: false,
      snapshots: [],
    };
    t.equal(chooseCaretaker(before, 10 * MINUTE), null);
    const wanted = want([place(0, 1), place(1, 2), place(2, 3)], { copies: 2 });
    const after = {
      want: wanted,
      made: [made(0, 1), made(1, 2), made(2, 3)],
      record: fact,
      cluster: world,
      ownerIsCaretaker: false,
      isReleaseDue: false,
      snapshots: [],
    };
    t.strictSame(chooseCaretaker(after, 10 * MINUTE), { host: hostId(1), work: ["add", "demote"] });
  },
);
