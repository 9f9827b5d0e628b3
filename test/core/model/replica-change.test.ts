/** Plot: an operator adds, moves and removes copies, and takes hosts away. No command may leave a volume without a copy. */
import * as fc from "fast-check";
import t from "tap";

import { addCopy, checkHostRemoval, removeCopy, withPlace } from "../../../src/core/model/replica-change.ts";
import { cluster, hostId, member, owner, place, poolId, record, rid, snapshot, want } from "./world.ts";

const two = want([place(0, 1), place(1, 2)]);
const level = record([member(0, 1), member(1, 2)]);

void t.test(
  "replica add: the copy gets a rid that was never used, also when the last one was removed",
  async (t) => {
    const later = record([member(0, 1), member(1, 2)], { nextRid: 9 });
    const decision = addCopy(two, later, cluster([1, 2, 3]), null);
    t.match(decision, {
      kind: "ok",
      value: {
        copies: 3,
        placements: [place(0, 1), place(1, 2), { rid: rid(9), host: hostId(3), pool: poolId(3) }],
      },
    });
    const once = withPlace(two, null, { host: hostId(3), pool: poolId(3) });
    t.equal(once.placements.at(-1)?.rid, 2, "without a record: above every placement");
  },
);

void t.test("replica add: a host that has one, and no host at all, are refused", async (t) => {
  t.match(addCopy(two, level, cluster([1, 2, 3]), hostId(2)), {
    finding: { code: "E-REPL-02", message: 'h2 has a copy of "db" already. Nothing was added.' },
  });
  t.match(addCopy(two, level, cluster([1, 2]), null), { finding: { code: "E-REPL-01" } });
  t.match(addCopy({ ...two, deletedAtMs: 1 }, level, cluster([1, 2, 3]), null), {
    finding: { code: "E-VOL-11" },
  });
});

void t.test("replica remove: the last in-sync copy that answers stays", async (t) => {
  t.match(removeCopy(two, level, cluster([1, 2], [2]), rid(0)), {
    kind: "refused",
    finding: {
      code: "E-REPL-03",
      message:
        'Without copy 0 on h1, "db" would have 0 in-sync copies on hosts that answer, at least 1 needed. Not removed.',
      do: [{ command: "weft replica add db --wait" }],
    },
  });
  t.match(removeCopy(two, level, cluster([1, 2], [2]), rid(1)), { kind: "ok", value: { copies: 1 } });
  t.match(removeCopy({ ...two, minIsr: 2 }, level, cluster([1, 2]), rid(1)), {
    finding: { code: "E-REPL-03" },
  });
});

void t.test(
  "replica remove: a copy that is marked already is left so, an unknown one is named with those that exist",
  async (t) => {
    const marked = want([place(0, 1, true), place(1, 2)]);
    t.strictSame(removeCopy(marked, level, cluster([1, 2]), rid(0)), { kind: "ok", value: marked });
    t.match(removeCopy(two, level, cluster([1, 2]), rid(5)), {
      finding: { code: "E-ARG-01", message: '"db" has no copy 5. Its copies: 0 (h1), 1 (h2).' },
    });
  },
);

void t.test(
  "replica: no sequence of requests leaves fewer kept in-sync copies than needed, or gives a rid twice",
  async (t) => {
    const request = fc.oneof(
      fc.record({ kind: fc.constant("add" as const) }),
      fc.record({ kind: fc.constant("remove" as const), rid: fc.integer({ min: 0, max: 6 }) }),
    );
    fc.assert(
      fc.property(
        fc.array(request, { maxLength: 12 }),
        fc.integer({ min: 1, max: 2 }),
        (requests, minIsr) => {
          const world = cluster([1, 2, 3, 4]);
          const fact = record([member(0, 1), member(1, 2), member(2, 3, "STALE")], { minIsr });
          let wanted = want([place(0, 1), place(1, 2), place(2, 3)], { minIsr });
          for (const one of requests) {
            const decision =
              one.kind === "add"
                ? addCopy(wanted, fact, world, null)
                : removeCopy(wanted, fact, world, rid(one.rid));
            if (decision.kind === "ok") wanted = decision.value;
            const kept = wanted.placements.filter((candidate) => !candidate.remove);
            const safe = kept.filter((candidate) => candidate.rid < 2).length;
            t.ok(safe >= minIsr);
            t.equal(
              new Set(wanted.placements.map((candidate) => candidate.rid)).size,
              wanted.placements.length,
            );
            t.equal(
              new Set(wanted.placements.map((candidate) => candidate.host)).size,
              wanted.placements.length,
            );
          }
        },
      ),
    );
  },
);

void t.test("host remove: open volumes, needed copies and the last host refuse it", async (t) => {
  const world = cluster([1, 2]);
  t.equal(checkHostRemoval(hostId(2), [{ want: two, record: level, snapshots: [] }], world).kind, "ok");
  t.match(
    checkHostRemoval(hostId(2), [{ want: two, record: { ...level, owner: owner(2) }, snapshots: [] }], world),
    {
      finding: { code: "E-HOST-02", message: "h2 has 1 volume open. Not removed." },
    },
  );
  const single = { want: want([place(0, 2)]), record: record([member(0, 2)]), snapshots: [] };
  t.match(checkHostRemoval(hostId(2), [single], world), {
    finding: { code: "E-HOST-01", message: /"db" first/ },
  });
  const on = (...hosts: readonly number[]): ReturnType<typeof checkHostRemoval> =>
    checkHostRemoval(hostId(2), [{ want: two, record: level, snapshots: [snapshot(1, hosts)] }], world);
  t.equal(on(0, 1).kind, "ok");
  t.match(on(1), { finding: { code: "E-SNAP-07", message: /^db@s1 is only on h2/ } });
  t.match(checkHostRemoval(hostId(1), [], cluster([1])), { finding: { code: "E-HOST-02" } });
});
