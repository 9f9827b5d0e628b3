/**
 * Plot: the head of a volume with snapshots is deleted. The volume is looked after without one, its head rests for a day and is
 * given back, or is restored before that; when its last snapshot goes, so does the volume.
 */
import t from "tap";

import { caretakerWork } from "../../../src/core/model/caretaker.ts";
import { TRASH_MS } from "../../../src/core/model/limits.ts";
import { checkRevert } from "../../../src/core/model/revert.ts";
import { checkAttach, checkDeleteHead, checkResize } from "../../../src/core/model/volume-check.ts";
import { effectLine, initialVolume, phaseOf, stepVolume, wakeAt } from "../../../src/core/model/volume.ts";
import type { VolumeEvent, VolumeState } from "../../../src/core/model/volume.ts";
import type { VolumeRecord, Want } from "../../../src/core/model/volume-record.ts";
import { cluster, hostId, made, member, owner, place, record, snapshot, want } from "./world.ts";

const world = cluster([1, 2]);
const wanted = want([place(0, 1), place(1, 2)], { headDeletedAtMs: 1000 });
const fact = record([member(0, 1), member(1, 2)], { snapshots: 2 });
const headless: VolumeRecord = { ...fact, epoch: 8n, head: { deletedAtMs: 1000, data: "kept" } };

type Facts = {
  readonly want: Want;
  readonly record: VolumeRecord;
  readonly caretaker?: boolean;
  readonly emptyNow?: boolean;
};

/** What is asked for at this moment of those facts. */
function due(facts: Facts, at: number): string[] {
  return step(facts, at)[1];
}

function step(
  { want: wish, record: now, caretaker = false, emptyNow = false }: Facts,
  at: number,
): readonly [VolumeState, string[]] {
  const events: readonly VolumeEvent[] = [
    { kind: "record", record: now },
    { kind: "made", made: [made(0, 1), made(1, 2)] },
    { kind: "want", want: wish },
    { kind: "caretaker", session: caretaker ? (now.owner?.session ?? null) : null },
    { kind: emptyNow ? "empty-trash" : "tick" },
  ];
  let state = initialVolume();
  let lines: string[] = [];
  for (const event of events) {
    const [next, effects] = stepVolume({ ...state, asked: new Map() }, event, at, world);
    [state, lines] = [next, effects.map(effectLine)];
  }
  return [state, lines];
}

void t.test("volume: a deleted head rests for a day, and is given back by a caretaker", async (t) => {
  t.strictSame(due({ want: wanted, record: fact }, 2000), ["delete-head on 10000000"]);
  const open = { ...fact, owner: owner(2), clean: false };
  t.strictSame(due({ want: wanted, record: open }, 2000), [], "a guest has it: it is not touched");
  t.strictSame(due({ want: wanted, record: open, caretaker: true }, 2000), ["close-caretaker on 20000000"]);

  const [resting, nothing] = step({ want: wanted, record: headless }, 2000);
  t.strictSame(nothing, []);
  t.equal(phaseOf(resting, 2000), "live", "its copies stay");
  t.equal(wakeAt(resting, 2000), 1000 + TRASH_MS);
  const over = 1000 + TRASH_MS;
  t.strictSame(due({ want: wanted, record: headless }, over), ["open-caretaker on 10000000"]);
  t.strictSame(due({ want: wanted, record: headless, emptyNow: true }, 2000), ["open-caretaker on 10000000"]);
  const cared = { ...headless, owner: owner(1), clean: false };
  t.strictSame(due({ want: wanted, record: cared, caretaker: true }, over), ["release-head on 10000000"]);
  const releasing: VolumeRecord = { ...cared, head: { deletedAtMs: 1000, data: "releasing" } };
  t.strictSame(due({ want: wanted, record: releasing, caretaker: true }, 2000), [], "it is at it");
  t.strictSame(due({ want: wanted, record: { ...releasing, owner: null } }, 2000), [
    "open-caretaker on 10000000",
  ]);
  const released: VolumeRecord = { ...cared, head: { deletedAtMs: 1000, data: "released" } };
  t.strictSame(due({ want: wanted, record: released, caretaker: true }, over), [
    "close-caretaker on 10000000",
  ]);
  t.strictSame(due({ want: wanted, record: { ...released, owner: null } }, over), []);
});

void t.test("volume: a deleted head comes back, and its copies were looked after meanwhile", async (t) => {
  const whole = { ...wanted, headDeletedAtMs: null };
  t.strictSame(due({ want: whole, record: headless }, 2000), ["restore-head on 10000000"]);
  const cared = { ...headless, owner: owner(2), clean: false };
  t.strictSame(due({ want: whole, record: cared, caretaker: true }, 2000), ["close-caretaker on 20000000"]);
  t.strictSame(due({ want: whole, record: fact, emptyNow: true }, 2000), [], "as ever");
  // One that fell behind is brought level; what was wished of its size before is not done any more.
  const behind = { ...headless, replicas: [member(0, 1), member(1, 2, "STALE")] };
  t.strictSame(due({ want: wanted, record: behind }, 2000), ["open-caretaker on 10000000"]);
  const larger = { ...wanted, sizeBytes: wanted.sizeBytes * 2n };
  t.strictSame(due({ want: larger, record: headless }, 2000), []);
  const input = { want: wanted, made: [], cluster: world, ownerIsCaretaker: false, snapshots: [] };
  t.strictSame(caretakerWork({ ...input, record: behind, isReleaseDue: true }, 0), ["resync", "release"]);
});

void t.test(
  "volume: without snapshots a headless volume is one that was deleted with its head",
  async (t) => {
    const last = { ...headless, snapshots: 0 };
    t.strictSame(due({ want: wanted, record: last }, 2000), ["end-headless on 10000000"]);
    const deleted = { ...wanted, deletedAtMs: wanted.headDeletedAtMs };
    t.strictSame(due({ want: deleted, record: last }, 2000), ["delete-record on 10000000"]);
    const gone = { ...last, epoch: 9n, deletedAtMs: 1000 };
    const phase = (now: VolumeRecord, at: number): string =>
      phaseOf(step({ want: deleted, record: now }, at)[0], at);
    t.equal(phase(gone, 2000), "trashed", "for the rest of the day");
    t.equal(phase(gone, 1000 + TRASH_MS), "clearing");
    t.equal(phase({ ...gone, head: { deletedAtMs: 1000, data: "released" } }, 2000), "clearing", "at once");
    const restored = { ...deleted, deletedAtMs: null, headDeletedAtMs: null };
    t.strictSame(due({ want: restored, record: gone }, 2000).at(-1), "restore-record on 10000000");
  },
);

void t.test("volume: what needs the head is refused, and a revert goes before its deletion", async (t) => {
  const known = { want: wanted, record: headless, cluster: world, ownerIsCaretaker: false };
  const code = (decision: { readonly kind: string; readonly finding?: { readonly code: string } }): string =>
    decision.finding?.code ?? decision.kind;
  t.equal(code(checkAttach({ ...known, here: hostId(1), attachedHere: 0, steal: true })), "E-VOL-19");
  t.equal(code(checkResize({ ...known, sizeBytes: wanted.sizeBytes * 2n, loseData: null })), "E-VOL-19");
  t.equal(code(checkRevert({ ...known, snapshot: snapshot(1, [0, 1]) })), "E-VOL-19");
  const whole = { ...known, want: { ...wanted, headDeletedAtMs: null }, record: fact };
  t.equal(code(checkDeleteHead(whole)), "ok");
  t.equal(code(checkDeleteHead({ ...whole, record: { ...fact, owner: owner(1) } })), "E-VOL-12");
  const reverting = { snapshot: snapshot(1, [0]).id, sinceMs: null };
  t.equal(code(checkDeleteHead({ ...whole, record: { ...fact, reverting } })), "E-VOL-14");
});
