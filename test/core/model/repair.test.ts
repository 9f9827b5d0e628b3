/**
 * A repair of the store builds on what copies keep. Any host can write records, pools' keys and the store's own near the end
 * of their ranges: followed, there would be nothing above them to repair to.
 */
import { array, assert, bigInt, integer, property, tuple } from "fast-check";
import t from "tap";

import {
  bestKept,
  bestSnapshots,
  type CopyImages,
  EPOCH_BELIEF,
  epochToRaise,
  isNewer,
  isGoing,
  type KeptImage,
  knownIncarnation,
  mayFollow,
  nextIncarnation,
} from "../../../src/core/model/repair.ts";
import { hostId, member, record, rid } from "./world.ts";

const FAR = 1n << 38n;

/** What host `number` keeps, at `epoch`, of a record whose members in sync are on these hosts. */
function kept(number: number, epoch: bigint, insync: readonly number[] = [1, 2], rev = 1n) {
  const replicas = insync.map((on, at) => member(at, on));
  return { host: hostId(number), record: record(replicas, { epoch, rev }) };
}

void t.test("repair: the best copy: of what changes have led to, the highest", async (t) => {
  t.equal(bestKept([]), null);
  const copies = [kept(1, 7n), kept(2, 9n, [2]), kept(3, 9n, [2], 4n), kept(4, 2n)];
  t.equal(bestKept(copies)?.host, hostId(3));
  const years = [kept(1, 7n), kept(3, 7n + EPOCH_BELIEF)];
  t.equal(bestKept(years)?.host, hostId(3), "a copy may have been away for years");
});

void t.test(
  "repair: the best copy: not one that was led astray alone (beside members that were not)",
  async (t) => {
    const astray = [kept(3, FAR, [3]), kept(1, 7n), kept(2, 6n)];
    t.equal(bestKept(astray)?.host, hostId(1));
    const followed = [kept(3, FAR, [3]), kept(1, 7n), kept(2, FAR - 5n)];
    t.equal(
      bestKept(followed)?.host,
      hostId(3),
      "a member that counted has gone along: what is there counts",
    );
    const twice = [kept(4, FAR, [4]), kept(3, FAR / 2n, [3]), kept(1, 7n), kept(2, 6n)];
    t.equal(bestKept(twice)?.host, hostId(1));
  },
);

void t.test(
  "repair: the best copy: without gaps it is the newest one (whatever the copies are)",
  async () => {
    const copy = tuple(integer({ min: 1, max: 9 }), bigInt(0n, EPOCH_BELIEF), bigInt(0n, 9n)).map(
      ([on, epoch, rev]) => kept(on, epoch, [1, 2], rev),
    );
    assert(
      property(array(copy, { minLength: 1, maxLength: 8 }), (copies) => {
        const best = bestKept(copies);
        return best !== null && copies.every((other) => !isNewer(other.record, best.record));
      }),
    );
  },
);

void t.test("repair: the store's own record: believed as far as changes lead", async (t) => {
  const { record: best } = kept(1, 7n);
  t.ok(mayFollow(best, kept(1, 7n + EPOCH_BELIEF).record));
  t.notOk(mayFollow(best, kept(1, 8n + EPOCH_BELIEF).record));
  t.notOk(mayFollow(best, kept(1, FAR).record));
});

void t.test(
  "repair: the epoch that is raised is above a copy's that was led astray (if it can be followed)",
  async (t) => {
    const best = kept(1, 7n);
    t.equal(epochToRaise(best.record, [best, kept(3, 1n << 28n), kept(4, FAR)]), 1n << 28n);
    t.equal(epochToRaise(best.record, [best, kept(2, 3n)]), 7n);
  },
);

void t.test(
  "repair: incarnations: above all that repairs and starts lead to, and nothing else",
  async (t) => {
    t.equal(nextIncarnation(3n, [1n, 5n, (1n << 64n) - 1n, 1n << 47n]), 6n);
    t.equal(nextIncarnation(3n, []), 4n);
    t.equal(nextIncarnation(3n, [2n + (1n << 16n)]), 3n + (1n << 16n), "which every weftd still believes");
    t.equal(nextIncarnation(3n, [3n + (1n << 16n)]), 4n);
    t.equal(knownIncarnation(4n, [6n, 2n, 1n << 47n]), 6n);
    t.equal(knownIncarnation(4n, []), 4n);
    t.equal(knownIncarnation(null, [6n, 9n]), 9n, "its disk is away");
  },
);

const image = (attempt: number, state: KeptImage["state"] = "ready", isNoted = true): KeptImage => ({
  snap: "a",
  attempt: BigInt(attempt),
  generation: 1n,
  state,
  isNoted,
});
const copy = (
  number: number,
  images: readonly KeptImage[],
  gone: readonly number[] = [],
): CopyImages<KeptImage> => ({
  rid: rid(number),
  images,
  gone: gone.map((attempt) => ({ snap: "a", attempt: BigInt(attempt) })),
});

void t.test("repair: snapshots: named again where one copy has it logged", async (t) => {
  const [one, ...others] = bestSnapshots([copy(0, [image(5)]), copy(1, [image(5)]), copy(2, [])]);
  t.match(one, { image: { attempt: 5n }, isGoing: false, isDestroyed: false, rids: [0, 1] });
  const [bare] = bestSnapshots([copy(0, [image(5)]), copy(1, [image(5, "destroyed")])]);
  t.match(bare, { isGoing: false, isDestroyed: true, rids: [0, 1] }, "destroyed at one copy, so for all");
  t.same(others, []);
  t.same(bestSnapshots([copy(0, [image(5, "prepared", false)])]), [], "nobody was told of it");
  t.match(
    bestSnapshots([copy(0, [image(5, "prepared", false)]), copy(1, [image(5)])]),
    [{ isGoing: false, rids: [1] }],
    "who has not logged it is not listed",
  );
});

void t.test("repair: snapshots: gone beats ready, but not that of an earlier attempt", async (t) => {
  for (const [copies, goes] of [
    [[copy(0, [image(5)]), copy(1, [], [5])], true],
    [[copy(0, [image(5)]), copy(1, [image(5, "deleting")])], true],
    [[copy(0, [image(5)]), copy(1, [], [4])], false],
    [[copy(0, [image(5)]), copy(1, [image(4, "deleting", false)])], false],
  ] as const) {
    const [best] = bestSnapshots(copies);
    t.equal(best?.image.attempt, 5n);
    t.equal(best?.isGoing, goes);
  }
  t.equal(isGoing([copy(0, [], [5])], { snap: "a", attempt: 5n }), true, "also where no image is left");
  t.equal(isGoing([copy(0, [], [5])], { snap: "b", attempt: 5n }), false);
  t.match(bestSnapshots([copy(0, [image(4)]), copy(1, [image(5)])]), [{ image: { attempt: 5n }, rids: [1] }]);
});
