/**
 * Plot: a volume is wanted, made, loses and gains copies, is deleted, restored, and forgotten. The order matters: a
 * record before its replicas would promise data that nobody holds, a removal before an addition would leave none.
 */
import * as fc from "fast-check";
import t from "tap";

import { ASK_AGAIN_MS, GIVEN_UP_MS, TRASH_MS } from "../../../src/core/model/limits.ts";
import {
  effectLine,
  initialVolume,
  mayRemove,
  stepVolume,
  volumeLine,
  wakeAt,
} from "../../../src/core/model/volume.ts";
import type { VolumeEvent, VolumeState } from "../../../src/core/model/volume.ts";
import { cluster, GIB, made, member, owner, place, record, rid, snapshotId, want } from "./world.ts";

const three = cluster([1, 2, 3]);

function play(state: VolumeState, event: VolumeEvent, now: number, world = three): [VolumeState, string[]] {
  const [next, effects] = stepVolume(state, event, now, world);
  return [next, effects.map(effectLine)];
}

void t.test(
  "volume: replicas are made first, then the record, by the lowest host that answers",
  async (t) => {
    const desire = want([place(0, 2), place(1, 3)]);
    let [state, effects] = play(initialVolume(), { kind: "want", want: desire }, 0);
    t.strictSame(effects, ["make-replica 0 on 20000000", "make-replica 1 on 30000000"]);
    t.equal(
      volumeLine(state, 1000),
      'making "db" 2 wanted, 0 made, no record; asked: make-replica 0 on 20000000 1 s ago, make-replica 1 on 30000000 1 s ago',
    );

    [state, effects] = play(state, { kind: "made", made: [made(0, 2)] }, 1000);
    t.strictSame(effects, [], "the second was asked for already, and no record is made of half of it");

    [state, effects] = play(state, { kind: "made", made: [made(0, 2), made(1, 3)] }, 2000);
    t.strictSame(effects, ["create-record on 20000000"]);

    [state, effects] = play(state, { kind: "record", record: record([member(0, 2), member(1, 3)]) }, 3000);
    t.strictSame(effects, []);
    t.equal(volumeLine(state, 3000), 'live "db" 2 wanted, 2 made, e7.r12');
    t.equal(wakeAt(state, 3000), null, "nothing is due");
  },
);

void t.test("volume: a clone begins with the copies that are made of its snapshot", async (t) => {
  const createdFrom = {
    volume: want([]).volume,
    volumeName: "source",
    snapshot: snapshotId(1),
    snapshotName: "s1",
    takenMs: 0,
    generation: 7n,
    epoch: 1n,
    regionShift: 20,
    rids: [rid(0)],
  };
  const desire = want([place(0, 2), place(1, 3)], { createdFrom });
  let [state, effects] = play(initialVolume(), { kind: "want", want: desire }, 0);
  t.strictSame(effects, ["make-replica 0 on 20000000"]);
  [state, effects] = play(state, { kind: "made", made: [made(0, 2)] }, 1000);
  t.strictSame(effects, ["create-record on 20000000"]);
  const begun = record([member(0, 2)], { copies: 2 });
  [state, effects] = play(state, { kind: "record", record: begun }, 2000);
  t.strictSame(effects, ["make-replica 1 on 30000000"]);
  [state, effects] = play(state, { kind: "made", made: [made(0, 2), made(1, 3)] }, 3000);
  t.strictSame(effects, ["open-caretaker on 20000000"], "the other one joins");

  // Given up: a copy that comes late goes by a tombstone.
  const given = {
    ...initialVolume(),
    want: { ...desire, deletedAtMs: 1000 },
  };
  t.strictSame(play(given, { kind: "tick" }, 1000)[1], []);
  const late = play(given, { kind: "made", made: [made(0, 2)] }, 5000)[1];
  t.strictSame(late, ["create-tombstone on 20000000"]);
});

void t.test("volume: what was asked for and did not show up is asked for again after 15 s", async (t) => {
  let [state, effects] = play(initialVolume(), { kind: "want", want: want([place(0, 1)]) }, 0);
  t.equal(wakeAt(state, 0), ASK_AGAIN_MS);
  [state, effects] = play(state, { kind: "tick" }, ASK_AGAIN_MS - 1);
  t.strictSame(effects, []);
  [state, effects] = play(state, { kind: "tick" }, ASK_AGAIN_MS);
  t.strictSame(effects, ["make-replica 0 on 10000000"]);
});

void t.test("volume: the record is made by another host when the first went away", async (t) => {
  const both = { ...initialVolume(), want: want([place(0, 1), place(1, 2)]), made: [made(0, 1), made(1, 2)] };
  t.strictSame(play(both, { kind: "tick" }, 0)[1], ["create-record on 10000000"]);
  t.strictSame(play(both, { kind: "tick" }, 0, cluster([1, 2], [1]))[1], ["create-record on 20000000"]);
});

void t.test("volume: a copy is added through the owner, and only after its host made it", async (t) => {
  const live = {
    ...initialVolume(),
    want: want([place(0, 1), place(1, 2)]),
    made: [made(0, 1)],
    record: record([member(0, 1)], { owner: owner(3), copies: 2 }),
  };
  let [state, effects] = play(live, { kind: "tick" }, 0);
  t.strictSame(effects, ["make-replica 1 on 20000000"]);
  [state, effects] = play(state, { kind: "made", made: [made(0, 1), made(1, 2)] }, 1000);
  t.strictSame(effects, ["add-member 1 on 30000000"]);
  t.equal(state.asked.size, 1);
});

void t.test(
  "volume: a detached one gets a caretaker for the addition, on the lowest host with an in-sync copy",
  async (t) => {
    const detached = {
      ...initialVolume(),
      want: want([place(0, 2), place(1, 3), place(2, 1)]),
      made: [made(0, 2), made(1, 3), made(2, 1)],
      record: record([member(0, 2), member(1, 3)]),
    };
    t.strictSame(play(detached, { kind: "tick" }, 0)[1], ["open-caretaker on 20000000"]);
  },
);

void t.test(
  "volume: a move adds, waits until the new copy is in sync, then removes, trashes and forgets the place",
  async (t) => {
    const desire = want([place(0, 1, true), place(1, 2), place(2, 3)], { copies: 2 });
    const all = [made(0, 1), made(1, 2), made(2, 3)];
    const start = { ...initialVolume(), want: desire, made: all };
    const open = { owner: owner(1), copies: 2 };
    const joining = record([member(0, 1), member(1, 2), member(2, 3, "JOINING")], open);
    let [state, effects] = play({ ...start, record: joining }, { kind: "tick" }, 0);
    t.strictSame(effects, [], "not before the new one is in sync");

    const joined = record([member(0, 1), member(1, 2), member(2, 3)], { ...open, epoch: 8n });
    [state, effects] = play(state, { kind: "record", record: joined }, 1000);
    t.strictSame(effects, ["remove-member 0 on 10000000"]);

    const without = record([member(1, 2), member(2, 3)], { ...open, epoch: 10n });
    [state, effects] = play(state, { kind: "record", record: without }, 2000);
    t.strictSame(effects, ["trash-replica 0 on 10000000"]);

    [state, effects] = play(state, { kind: "made", made: all.slice(1) }, 3000);
    t.strictSame(effects, ["drop-place 0"]);
  },
);

void t.test(
  "volume: of several copies the one with the lower number is added first, if it can come",
  async (t) => {
    const desire = want([place(0, 1), place(1, 2), place(2, 3)]);
    const fact = record([member(0, 1)], { owner: owner(1), copies: 3 });
    const start = { ...initialVolume(), want: desire, record: fact };
    const asked = (all: readonly number[], world = three): string[] =>
      play({ ...start, made: all.map((number) => made(number, number + 1)) }, { kind: "tick" }, 0, world)[1];
    t.strictSame(asked([0, 2]), ["make-replica 1 on 20000000"], "its number would be over else");
    t.strictSame(asked([0, 1, 2]), ["add-member 1 on 10000000"]);
    t.strictSame(asked([0, 1, 2], cluster([1, 2, 3], [2])), [
      "add-member 1 on 10000000",
      "add-member 2 on 10000000",
    ]);
  },
);

void t.test(
  "volume: nothing is removed while a copy that stays is on a host that does not answer",
  async (t) => {
    const desire = want([place(0, 1, true), place(1, 2), place(2, 3)], { copies: 2 });
    const fact = record([member(0, 1), member(1, 2), member(2, 3)], { owner: owner(1), copies: 2 });
    const [leaver] = desire.placements;
    if (leaver === undefined) throw new Error("there are three");
    t.ok(mayRemove({ want: desire, record: fact, cluster: three, snapshots: [] }, leaver));
    t.notOk(
      mayRemove({ want: { ...desire, copies: 3 }, record: fact, cluster: three, snapshots: [] }, leaver),
      "another one is wanted, and has no place yet",
    );
    t.notOk(
      mayRemove({ want: desire, record: fact, cluster: cluster([1, 2, 3], [3]), snapshots: [] }, leaver),
    );
  },
);

void t.test(
  "volume: its owner, or a caretaker, writes what is wanted into the record, when it can be",
  async (t) => {
    const start = { ...initialVolume(), made: [made(0, 1), made(1, 2)] };
    const asked = (rest: Partial<VolumeState>): string[] =>
      play({ ...start, ...rest }, { kind: "tick" }, 0)[1];
    const desire = want([place(0, 1), place(1, 2)], { minIsr: 2, spread: "rack" });
    const level = record([member(0, 1), member(1, 2)], { owner: owner(3) });
    t.strictSame(asked({ want: desire, record: level }), ["set-policy 2/2 apart by rack on 30000000"]);
    const behind = record([member(0, 1), member(1, 2, "STALE")], { owner: owner(3) });
    t.strictSame(asked({ want: desire, record: behind }), ["set-policy 1/2 apart by rack on 30000000"]);
    const half = { ...behind, spread: "rack" };
    t.strictSame(asked({ want: desire, record: half }), [], "guests would wait");
    t.strictSame(asked({ want: desire, record: { ...level, owner: null } }), ["open-caretaker on 10000000"]);
    const done = { ...level, minIsr: 2, spread: "rack" };
    t.strictSame(asked({ want: desire, record: done, caretaker: owner(3)?.session ?? null }), [
      "close-caretaker on 30000000",
    ]);
  },
);

void t.test("volume: a record that an overtaken read brings late changes nothing", async (t) => {
  const now = record([member(0, 1)], { epoch: 9n });
  const start = { ...initialVolume(), want: want([place(0, 1)]), made: [made(0, 1)], record: now };
  const [state] = play(start, { kind: "record", record: record([member(0, 1)], { epoch: 8n, rev: 99n }) }, 0);
  t.equal(state.record, now);
});

void t.test(
  "volume: deletion waits for the owner to close, rests 24 h in the trash, and is forgotten when all are gone",
  async (t) => {
    const desire = want([place(0, 1)], { deletedAtMs: 1000 });
    const open = record([member(0, 1)], { owner: owner(2) });
    let [state, effects] = play(
      { ...initialVolume(), made: [made(0, 1)], record: open },
      { kind: "want", want: desire },
      1000,
    );
    t.strictSame(effects, []);
    [state, effects] = play(state, { kind: "record", record: record([member(0, 1)], { rev: 13n }) }, 2000);
    t.strictSame(effects, ["delete-record on 10000000"]);

    const tombstone = record([member(0, 1)], { epoch: 8n, deletedAtMs: 3000 });
    [state, effects] = play(state, { kind: "record", record: tombstone }, 3000);
    t.strictSame(effects, ["trash-replica 0 on 10000000"]);

    [state, effects] = play(state, { kind: "tick" }, 3000 + TRASH_MS);
    t.strictSame(effects, ["empty-trash 0 on 10000000"]);
    [state, effects] = play(state, { kind: "made", made: [] }, 4000 + TRASH_MS);
    t.strictSame(effects, ["forget db"]);
    [state, effects] = play(state, { kind: "record", record: null }, 5000 + TRASH_MS);
    t.strictSame(effects, [], "asked for already");
  },
);

void t.test(
  "volume: what was made of one that is refused goes by a tombstone, and what comes late finds its wish",
  async (t) => {
    const refused = { host: place(1, 2).host, code: "E-POOL-06", message: "no room" };
    const desire = want([place(0, 1), place(1, 2)], { deletedAtMs: 1000, refused });
    let [state, effects] = play(
      { ...initialVolume(), made: [made(0, 1)] },
      { kind: "want", want: desire },
      1000,
    );
    t.strictSame(effects, ["create-tombstone on 10000000"]);
    const tombstone = record([member(0, 1)], { deletedAtMs: 2000 });
    [state, effects] = play(state, { kind: "record", record: tombstone }, 2000);
    t.strictSame(effects, ["empty-trash 0 on 10000000"], "nobody restores it");
    [state, effects] = play(state, { kind: "made", made: [] }, 3000);
    t.strictSame(effects, []);
    t.equal(wakeAt(state, 3000), 1000 + GIVEN_UP_MS);
    [state, effects] = play(state, { kind: "made", made: [made(1, 2)] }, 4000);
    t.strictSame(effects, ["empty-trash 1 on 20000000"]);
    [state, effects] = play(state, { kind: "made", made: [] }, 5000);
    [state, effects] = play(state, { kind: "tick" }, 1000 + GIVEN_UP_MS);
    t.strictSame(effects, ["forget db"]);

    // Given up by hand: what is preallocated may come late.
    const given = { ...initialVolume(), want: want([place(0, 1)], { deletedAtMs: 1000 }) };
    t.strictSame(play(given, { kind: "tick" }, 1000)[1], ["forget db"]);
    const thick = { ...given, want: { ...given.want, thick: true } };
    t.strictSame(play(thick, { kind: "tick" }, 1000)[1], []);
    t.strictSame(play(thick, { kind: "tick" }, 1000 + GIVEN_UP_MS)[1], ["forget db"]);
    // One that had a record is for `weft store repair`.
    const vanished = { ...given, made: [made(0, 1)], vanished: true };
    t.strictSame(play(vanished, { kind: "tick" }, 1000)[1], ["trash-replica 0 on 10000000"]);
  },
);

void t.test(
  "volume: a restore takes the copies out of the trash before the record lives again",
  async (t) => {
    const tombstone = record([member(0, 1), member(1, 2)], { deletedAtMs: 1000 });
    const trashed = { ...initialVolume(), made: [made(0, 1), made(1, 2)], record: tombstone };
    const [, effects] = play(trashed, { kind: "want", want: want([place(0, 1), place(1, 2)]) }, 5000);
    t.strictSame(effects, [
      "untrash-replica 0 on 10000000",
      "untrash-replica 1 on 20000000",
      "restore-record on 10000000",
    ]);
  },
);

void t.test(
  "volume: absence deletes nothing: replicas whose want or record vanished are left alone",
  async (t) => {
    const live = {
      ...initialVolume(),
      want: want([place(0, 1)]),
      made: [made(0, 1)],
      record: record([member(0, 1)]),
    };
    let [state, effects] = play(live, { kind: "record", record: null }, 0);
    t.strictSame(effects, [], "nor is the record made anew: that is repair's work");
    [state, effects] = play(state, { kind: "want", want: null }, 1);
    t.strictSame(effects, []);
    t.match(volumeLine(state, 1), /^unknown/);
  },
);

void t.test(
  "volume: whatever the record says, a removal leaves enough in-sync copies that are kept, on hosts that answer",
  async (t) => {
    const states = fc.constantFrom("INSYNC", "STALE", "JOINING", "REMOVING", "QUARANTINED" as const);
    const silentHosts = fc.subarray([1, 2, 3, 4, 5], { maxLength: 2 });
    const rows = fc.array(fc.record({ state: fc.option(states), remove: fc.boolean() }), {
      minLength: 1,
      maxLength: 5,
    });
    fc.assert(
      fc.property(rows, fc.integer({ min: 1, max: 3 }), silentHosts, (copies, minIsr, silent) => {
        const answering = cluster([1, 2, 3, 4, 5], silent);
        const wanted = { copies: copies.filter(({ remove }) => !remove).length };
        const desire = want(
          copies.map(({ remove }, index) => place(index, index + 1, remove)),
          wanted,
        );
        const fact = record(
          copies.flatMap(({ state }, index) => (state === null ? [] : [member(index, index + 1, state)])),
          { minIsr },
        );
        for (const candidate of desire.placements) {
          if (!mayRemove({ want: desire, record: fact, cluster: answering, snapshots: [] }, candidate))
            continue;
          const left = fact.replicas.filter(
            (replica) =>
              replica.state === "INSYNC" &&
              copies[replica.rid]?.remove === false &&
              !silent.includes(replica.rid + 1),
          );
          t.ok(left.length >= wanted.copies);
          t.ok(candidate.remove);
          t.ok(left.length >= minIsr && left.length >= 1, `${left.length} left, ${minIsr} needed`);
          t.notOk(left.some((replica) => replica.rid === candidate.rid));
        }
      }),
      { numRuns: 500 },
    );
  },
);

void t.test(
  "volume: no history of facts makes it trash a replica without a tombstone or a record past its rid",
  async (t) => {
    const facts = fc.array(
      fc.oneof(
        fc.record({ kind: fc.constant("want" as const), deleted: fc.boolean(), none: fc.boolean() }),
        fc.record({
          kind: fc.constant("record" as const),
          gone: fc.boolean(),
          tombstone: fc.boolean(),
          members: fc.integer({ min: 0, max: 2 }),
          next: fc.integer({ min: 0, max: 3 }),
        }),
        fc.record({ kind: fc.constant("made" as const), count: fc.integer({ min: 0, max: 2 }) }),
      ),
      { maxLength: 12 },
    );
    fc.assert(
      fc.property(facts, (history) => {
        let state = initialVolume();
        let rev = 0n;
        for (const [now, fact] of history.entries()) {
          rev += 1n;
          const event: VolumeEvent =
            fact.kind === "want"
              ? {
                  kind: "want",
                  want: fact.none
                    ? null
                    : want([place(0, 1), place(1, 2)], { deletedAtMs: fact.deleted ? 5 : null }),
                }
              : fact.kind === "made"
                ? { kind: "made", made: [made(0, 1), made(1, 2)].slice(0, fact.count) }
                : {
                    kind: "record",
                    record: fact.gone
                      ? null
                      : record([member(0, 1), member(1, 2)].slice(0, fact.members), {
                          rev,
                          nextRid: Math.max(fact.members, fact.next),
                          deletedAtMs: fact.tombstone ? now : null,
                        }),
                  };
          const [next, effects] = stepVolume(state, event, now * ASK_AGAIN_MS, three);
          for (const effect of effects) {
            if (effect.kind !== "trash-replica" && effect.kind !== "empty-trash") continue;
            const known = next.record;
            const neverPromised = known === null && next.want?.deletedAtMs !== null;
            const isPast =
              known !== null &&
              effect.rid < known.nextRid &&
              !known.replicas.some((m) => m.rid === effect.rid);
            t.ok(neverPromised || known?.deletedAtMs !== null || isPast, effectLine(effect));
          }
          state = next;
        }
      }),
      { numRuns: 500 },
    );
  },
);

void t.test(
  "volume: it grows through its owner, or through a caretaker, and never shrinks by itself",
  async (t) => {
    const state = {
      ...initialVolume(),
      want: want([place(0, 2)], { sizeBytes: 4n * GIB }),
      made: [made(0, 2)],
      record: record([member(0, 2)], { owner: owner(3) }),
    };
    const asked = (rest: Partial<VolumeState>): string[] =>
      play({ ...state, ...rest }, { kind: "tick" }, 0)[1];
    t.strictSame(asked({}), ["grow to 4GiB on 30000000"]);
    t.strictSame(asked({ record: record([member(0, 2)]) }), ["open-caretaker on 20000000"]);
    const caretaker = owner(2)?.session ?? null;
    t.strictSame(asked({ record: record([member(0, 2)], { owner: owner(2) }), caretaker }), [
      "grow to 4GiB on 20000000",
    ]);
    const grown = record([member(0, 2)], { owner: owner(2), sizeBytes: 4n * GIB });
    t.strictSame(asked({ record: grown, caretaker }), ["close-caretaker on 20000000"]);
    t.strictSame(asked({ record: record([member(0, 2)], { sizeBytes: 5n * GIB }) }), []);
  },
);

void t.test(
  "volume: a detached one gets a caretaker to compare its copies, until that is done",
  async (t) => {
    const scrub = { id: "a", atMs: 0, by: "root@h1", rate: 1n << 20n, session: null };
    const state = {
      ...initialVolume(),
      want: want([place(0, 2)], { scrub }),
      made: [made(0, 2)],
      record: record([member(0, 2)]),
    };
    t.strictSame(play(state, { kind: "tick" }, 0)[1], ["open-caretaker on 20000000"]);
    const caretaker = owner(2)?.session ?? null;
    const open = { ...state, record: record([member(0, 2)], { owner: owner(2) }), caretaker };
    t.strictSame(play(open, { kind: "tick" }, 0)[1], []);
    const done = { ...open, want: want([place(0, 2)]) };
    t.strictSame(play(done, { kind: "tick" }, 0)[1], ["close-caretaker on 20000000"]);
  },
);
