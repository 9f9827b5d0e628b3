/** A volume is taken back to a snapshot: only while nobody uses it, in its size of then, with enough copies that have it. */
import t from "tap";

import { caretakerWork, chooseCaretaker } from "../../../src/core/model/caretaker.ts";
import { checkRevert, type RevertInput } from "../../../src/core/model/revert.ts";
import { cluster, GIB, made, member, owner, place, record, snapshot, snapshotId, want } from "./world.ts";

const input: RevertInput = {
  want: want([place(0, 1), place(1, 2)]),
  record: record([member(0, 1), member(1, 2)]),
  cluster: cluster([1, 2, 3]),
  ownerIsCaretaker: false,
  snapshot: snapshot(1, [0, 1], { sizeBytes: 3n * GIB }),
};
const judged = (rest: Partial<RevertInput>): string => {
  const decision = checkRevert({ ...input, ...rest });
  return decision.kind === "ok" ? decision.value : decision.finding.code;
};

void t.test("revert: begun while nobody uses the volume, waited for where it is under way", async (t) => {
  t.equal(judged({}), "begin");
  const used = { ...input.record, owner: owner(2) };
  t.match(checkRevert({ ...input, record: used }), {
    finding: {
      code: "E-VOL-12",
      message: '"db" is attached on h2: it is taken back only while nobody uses it.',
    },
  });
  t.equal(judged({ record: used, ownerIsCaretaker: true }), "E-VOL-14");
  const reverting = { snapshot: snapshotId(1), sinceMs: 0 };
  const marked = { ...used, reverting };
  t.equal(judged({ record: marked, ownerIsCaretaker: true }), "wait");
  t.equal(judged({ record: { ...marked, owner: null } }), "wait");
  t.equal(judged({ record: marked }), "E-VOL-12", "a guest has it by now, whose session ends it");
  const other = { ...marked, reverting: { snapshot: snapshotId(2), sinceMs: 0 } };
  t.equal(judged({ record: other, ownerIsCaretaker: true }), "begin", "another one takes its place");
  t.equal(judged({ want: { ...input.want, deletedAtMs: 1 } }), "E-VOL-11");
});

void t.test("revert: to what is there still, in its size, on as many copies as writes need", async (t) => {
  const one = input.snapshot;
  t.equal(judged({ snapshot: { ...one, state: "DELETING" } }), "E-SNAP-09");
  t.equal(judged({ snapshot: { ...one, data: "destroyed" } }), "E-SNAP-18");
  t.match(checkRevert({ ...input, snapshot: { ...one, sizeBytes: GIB } }), {
    finding: {
      code: "E-SNAP-15",
      message: /^"db" has 3 GiB, and had 1 GiB when db@s1 was taken/,
      do: [
        { command: "weft volume resize db 1GiB --lose-data db" },
        { command: "weft snapshot clone db@s1 NAME" },
      ],
    },
  });
  t.match(checkRevert({ ...input, snapshot: { ...one, sizeBytes: 4n * GIB } }), {
    finding: { do: [{ command: "weft volume resize db 4GiB" }, {}] },
  });
  const fewer = snapshot(1, [0], { sizeBytes: 3n * GIB });
  t.equal(judged({ snapshot: fewer }), "begin", "the other copy is made level afterwards");
  const strict = { ...input.record, minIsr: 2 };
  t.match(checkRevert({ ...input, snapshot: fewer, record: strict }), {
    finding: {
      code: "E-SNAP-19",
      message: 'One copy in sync has db@s1, and writes of "db" need 2.',
      do: [{}, { command: "weft volume copies db 2 --min-isr 1" }],
    },
  });
  const behind = record([member(0, 1, "STALE"), member(1, 2)]);
  t.match(checkRevert({ ...input, snapshot: fewer, record: behind }), {
    finding: { code: "E-SNAP-19", message: /^No copy in sync has db@s1, and writes of "db" need 1/ },
  });
});

void t.test(
  "revert: what was begun and has no owner is ended by a caretaker, which stays until then",
  async (t) => {
    const marked = { ...input.record, reverting: { snapshot: snapshotId(1), sinceMs: 0 } };
    const world = {
      want: input.want,
      made: [made(0, 1), made(1, 2)],
      record: marked,
      cluster: input.cluster,
      ownerIsCaretaker: false,
      isReleaseDue: false,
      snapshots: [input.snapshot],
    };
    t.match(chooseCaretaker(world, 0), { host: input.record.replicas[0]?.host, work: ["revert"] });
    t.same(caretakerWork({ ...world, record: { ...marked, owner: owner(1) }, ownerIsCaretaker: true }, 0), [
      "revert",
    ]);
    t.equal(chooseCaretaker({ ...world, record: input.record }, 0), null);
  },
);
