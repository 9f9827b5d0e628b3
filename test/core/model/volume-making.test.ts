/** Where copies are made that a host was to make which has died before it did. */
import t from "tap";

import { missing, placedAnew } from "../../../src/core/model/volume-making.ts";
import type { CreatedFrom } from "../../../src/core/model/volume-record.ts";
import { cluster, hostId, made, place, rid, want } from "./world.ts";

const four = cluster([1, 2, 3, 4], [3]);
const dead = new Set([hostId(3)]);
const clone = { rids: [rid(0), rid(1)] } as unknown as CreatedFrom;

void t.test(
  "making: a copy that a dead host has not made is made elsewhere, by another number",
  async (t) => {
    const wish = want([place(0, 1), place(1, 3)]);
    const next = placedAnew(wish, [made(0, 1)], four, dead);
    t.strictSame(next?.placements.slice(0, 2), [place(0, 1), place(1, 3, true)]);
    t.match(next?.placements.slice(2), [{ rid: rid(2), host: hostId(2), remove: false }]);
    if (next === null) throw new Error("there is room");
    t.strictSame(
      missing(next, [made(0, 1)]),
      next.placements.slice(2),
      "its first record waits for that one",
    );
    t.equal(placedAnew(next, [made(0, 1)], four, dead), null, "once");
  },
);

void t.test("making: what was made stays, and so does what nobody else can make", async (t) => {
  const wish = want([place(0, 1), place(1, 3)]);
  t.equal(placedAnew(wish, [made(0, 1), made(1, 3)], four, dead), null, "it was made");
  t.equal(placedAnew(wish, [], cluster([1, 3], [3]), dead), null, "there is no other host");
  t.equal(placedAnew(wish, [], four, new Set([hostId(4)])), null, "the dead one has nothing of it");
  t.equal(placedAnew({ ...wish, deletedAtMs: 1 }, [], four, dead), null, "it was given up");
  const both = cluster([1, 2, 3, 4], [1, 3]);
  const all = new Set([hostId(1), hostId(3)]);
  t.equal(placedAnew({ ...wish, createdFrom: clone }, [], both, all), null, "nobody else has the snapshot");
  t.not(placedAnew({ ...wish, createdFrom: clone }, [], four, dead), null, "one of both has");
});
