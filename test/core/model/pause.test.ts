/** What a daemon says of a session with identifiers is told with the names that people know. */
import t from "tap";

import type { SessionId } from "../../../src/core/model/ids.ts";
import { healthOf } from "../../../src/core/model/redundancy.ts";
import { pauseReason } from "../../../src/core/model/pause.ts";
import { explain, whySentences } from "../../../src/core/model/why.ts";
import { cluster, hostId, member, owner, place, poolId, record, want } from "./world.ts";

const world = cluster([1, 2]);
const fact = record([member(0, 1), member(1, 2)], { owner: owner(1) });
const session = "50000000-0000-4000-b000-000000000000" as SessionId;

void t.test(
  "pause: hosts, pools and copies have names; what nobody knows stays as it was said",
  async (t) => {
    const [h2, p2] = [hostId(2), poolId(2)];
    const stranger = "ffffffff-0000-4000-8000-000000000000";
    for (const [reason, said] of [
      [
        `waits for r1: pool ${p2} of host ${h2} is full`,
        "waits for copy 1 on h2: the pool /srv/weft on h2 is full",
      ],
      [`waits for r7: host ${h2} is silent`, "waits for copy 7: h2 is silent"],
      [`pool ${stranger} of host ${stranger} is full`, "the pool ffffffff on ffffffff is full"],
      ["waits for the store, to go on without r0", "waits for the store, to go on without copy 0 on h1"],
      ["refused: NoSpace", "refused: NoSpace"],
      ["error5 and for r99999999999", "error5 and for r99999999999"],
    ] as const)
      t.equal(pauseReason({ session, reason }, fact, world), said);
  },
);

void t.test("pause: only the owner's session is believed, and health says what it waits for", async (t) => {
  const reason = "waits for the store";
  const other = "50000000-0000-4000-b000-000000000001" as SessionId;
  t.equal(pauseReason({ session: other, reason }, fact, world), null);
  t.equal(pauseReason({ session, reason }, record([member(0, 1)]), world), null);
  t.equal(pauseReason(null, fact, world), null);
  const id = "e0000000-0000-4000-a000-000000000001";
  const back = { session, reason: `takes the volume back to snapshot ${id}, and waits for r0` };
  t.equal(
    pauseReason(back, fact, world, (one) => (one === id ? "db@a" : null)),
    "takes the volume back to db@a, and waits for copy 0 on h1",
  );
  t.match(pauseReason(back, fact, world), /back to snapshot e0000000,/);
  const two = want([place(0, 1), place(1, 2)]);
  const health = healthOf(two, fact, world, pauseReason({ session, reason }, fact, world));
  t.strictSame(health, { kind: "paused", have: 2, minIsr: fact.minIsr, because: reason });
  const why = explain(
    {
      want: two,
      record: fact,
      cluster: world,
      storeUp: true,
      health,
      rebuild: { kind: "none" },
      job: null,
      ownerIsCaretaker: false,
      reverting: null,
      noSnapshots: null,
    },
    0,
  );
  t.strictSame(whySentences(why), [
    "Data is safe: every completed write is on h1 and h2.",
    "Writes of the guest on h1 wait and do not fail. Its session waits for the store.",
    "Nothing is under way: it waits.",
    "By itself, when that is no more. Nothing times out.",
  ]);
});
