/** Plot: somebody is woken at night and asks. The answer must be true, short, and say what to do. */
import t from "tap";

import type { Cluster } from "../../../src/core/model/cluster.ts";
import { initialJob, stepJob } from "../../../src/core/model/job.ts";
import type { JobState } from "../../../src/core/model/job.ts";
import type { Finding } from "../../../src/core/model/finding.ts";
import { cannotHave } from "../../../src/core/model/snapshot.ts";
import { decideRebuild, healthOf } from "../../../src/core/model/redundancy.ts";
import { summarise } from "../../../src/core/model/summary.ts";
import type { VolumeRecord, Want } from "../../../src/core/model/volume-record.ts";
import { explain, whySentences } from "../../../src/core/model/why.ts";
import type { Why, WhyInput } from "../../../src/core/model/why.ts";
import { GIB, cluster, hostId, member, owner, place, record, want } from "./world.ts";

const two = want([place(0, 1), place(1, 2)]);

function why(
  wanted: Want,
  fact: VolumeRecord | null,
  world: Cluster,
  now: number,
  job: JobState | null = null,
  storeUp = true,
  noSnapshots: Finding | null = null,
  reverting: WhyInput["reverting"] = null,
): Why {
  const store = { kind: storeUp ? "up" : "down", sinceMs: 0 } as const;
  const rebuild =
    fact === null
      ? ({ kind: "none" } as const)
      : decideRebuild({ want: wanted, record: fact, cluster: world, store }, now);
  return explain(
    {
      want: wanted,
      record: fact,
      cluster: world,
      storeUp,
      health: healthOf(wanted, fact, world),
      rebuild,
      job,
      ownerIsCaretaker: reverting !== null,
      reverting,
      noSnapshots,
    },
    now,
  );
}

void t.test("why: healthy", async (t) => {
  const answer = why(two, record([member(0, 1), member(1, 2)], { owner: owner(1) }), cluster([1, 2]), 0);
  t.strictSame(whySentences(answer), [
    "Data is safe: 2 copies have every completed write, on h1 and h2.",
    "Nobody: the guest on h1 goes on.",
    "Nothing is under way, and nothing is needed.",
    "It is done.",
  ]);
});

void t.test(
  "why: a volume that is taken back to a snapshot is waited for, and by whom it is done",
  async (t) => {
    const fact = record([member(0, 1), member(1, 2)], { owner: owner(1) });
    const said = (progress: string | null): readonly string[] =>
      whySentences(why(two, fact, cluster([1, 2]), 0, null, true, null, { ref: "db@a", progress }));
    t.strictSame(said("1 GiB of 3 GiB are brought back, by h1"), [
      "Data is safe: 2 copies have every completed write, on h1 and h2.",
      "Whoever attaches it: reads and writes wait until it is done.",
      "It is being taken back to db@a: 1 GiB of 3 GiB are brought back, by h1.",
      "Done when all that changed since db@a is brought back.",
    ]);
    t.match(said(null)[2], /: nobody works on it now; whoever opens it next does\.$/);
  },
);

void t.test("why: what it can't do as it is stands beside how it is", async (t) => {
  const fact = record([member(0, 1), member(1, 2)]);
  const world = cluster([1, 2]);
  const unable = { host: hostId(2), path: "/srv/weft", why: "the pool lies on ext4" };
  const answer = why(two, fact, world, 0, null, true, cannotHave(two, world, unable));
  t.equal(
    whySentences(answer).at(-1),
    `E-SNAP-01: "${two.name}" can't have snapshots, for its copy on h2 (/srv/weft): the pool lies on ext4.`,
  );
  t.match(answer.do, [
    { command: "weft pool list" },
    { command: /^weft replica move \S+ --from h2 --to HOST$/ },
  ]);
});

void t.test("why: degraded, waiting for a host to come back", async (t) => {
  const fact = record([member(0, 1), member(1, 2, "STALE")], { owner: owner(1) });
  const answer = why(two, fact, cluster([1, 2, 3], [2]), 20_000);
  t.strictSame(whySentences(answer), [
    "Data is safe on 1 of 2 copies. One more failure would stop the volume.",
    "Nobody: the guest on h1 goes on.",
    "Copy 1 on h2 is away; it may come back. A new copy is made after that.",
    "A new copy begins in 40 s.",
  ]);
  t.strictSame(answer.do, [{ why: "Do not wait", command: "weft replica add db" }]);
});

void t.test("why: a resync under way", async (t) => {
  const fact = record([member(0, 1), member(1, 2, "JOINING")], { owner: owner(1) });
  const [begun] = stepJob(initialJob(0), { kind: "progress", copied: 0n, total: 10n * GIB }, 0);
  const [job] = stepJob(begun, { kind: "progress", copied: 5n * GIB, total: 10n * GIB }, 5000);
  const answer = why(two, fact, cluster([1, 2]), 5000, job);
  t.equal(answer.doing, "A copy is being made level: 50 % of 10 GiB, 1 GiB/s, 5 s left.");
});

void t.test("why: the last in-sync copy is away: it waits, and nothing is lost", async (t) => {
  const fact = record([member(0, 1), member(1, 2, "STALE")], { owner: owner(3) });
  const answer = why(two, fact, cluster([1, 2, 3], [1]), 130_000);
  t.strictSame(whySentences(answer), [
    "Nothing is lost as long as the disks of h1 are whole: that copy has every completed write.",
    "Reads and writes of the guest on h3 wait.",
    "It waits for h1, away for 2 min 10 s.",
    "At once when one of these hosts is back. Nothing times out.",
  ]);
  t.strictSame(answer.do, [{ why: "Start h1, or weft there", command: "ssh h1 systemctl start weft" }]);
});

void t.test("why: paused below min_isr, being made, in the trash, without a store", async (t) => {
  const fact = record([member(0, 1), member(1, 2)], { minIsr: 2 });
  t.equal(
    why(two, fact, cluster([1, 2], [2]), 100_000).safe,
    "Data is safe: every completed write is on h1 and h2. Only 1 of them answers, min-isr is 2.",
  );
  t.equal(why(two, null, cluster([1, 2]), 0).doing, "Its 2 copies are being made.");
  t.equal(
    why({ ...two, deletedAtMs: 1 }, fact, cluster([1, 2]), 0).safe,
    "Data is kept in the trash for 24 h after the deletion.",
  );
  t.equal(
    why(two, record([member(0, 1), member(1, 2)]), cluster([1, 2]), 0, null, false).doing,
    "The store is out of reach: nothing is changed until it is back.",
  );
});

const h1 = { name: "h1", alive: true, awayMs: null };
const db = { name: "db", health: "degraded", minIsr: 1, insyncOn: ["h1"] } as const;

void t.test("status: the headline says what one more failure would do", async (t) => {
  const hosts = [h1, { name: "h2", alive: false, awayMs: 130_000 }];
  t.strictSame(summarise({ hosts, storeUp: true, volumes: [db] }), {
    level: "degraded",
    headline: "DEGRADED — data is safe, one more failure of h1 would stop 1 volume",
    lines: ["h2 not answering for 2 min 10 s.", "1 volume with fewer copies than wanted: db."],
  });
  const robust = { ...db, insyncOn: ["h1", "h3"] };
  t.equal(
    summarise({ hosts, storeUp: true, volumes: [robust] }).headline,
    "DEGRADED — data is safe, one more failure stops no volume",
  );
});

void t.test("status: waiting volumes come first, then the store, and all well is said plainly", async (t) => {
  const waiting = { ...db, health: "unavailable", insyncOn: [] } as const;
  t.equal(
    summarise({ hosts: [h1], storeUp: false, volumes: [db, waiting] }).headline,
    "UNAVAILABLE — 1 volume waiting, nothing is lost by it",
  );
  t.strictSame(summarise({ hosts: [{ ...h1, alive: false }], storeUp: false, volumes: [] }), {
    level: "unavailable",
    headline: "STORE AWAY — running volumes go on, nothing can be changed",
    lines: ["The store is out of reach: running volumes go on, nothing can be attached or changed."],
  });
  const unreadable = { ...db, health: "unreadable" } as const;
  t.equal(
    summarise({ hosts: [h1], storeUp: true, volumes: [unreadable] }).headline,
    "UNAVAILABLE — 1 volume can't be opened by this software",
  );
  const well = { ...db, health: "healthy" } as const;
  t.equal(
    summarise({ hosts: [h1], storeUp: true, volumes: [well] }).headline,
    "HEALTHY — 1 volume, all copies in sync",
  );
  t.equal(summarise({ hosts: [h1], storeUp: true, volumes: [] }).headline, "HEALTHY — no volumes yet");
});
