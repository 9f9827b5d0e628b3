/**
 * Plot: an operator asks for more or fewer copies, for another rule of what they must not share, or moves one. What is
 * planned is shown before it is done: a plan that were wrong about its order would take the last good copy away.
 */
import * as fc from "fast-check";
import t from "tap";

import type { Cluster } from "../../../src/core/model/cluster.ts";
import { planChange, planLine } from "../../../src/core/model/plan.ts";
import type { PlaceChange, Plan, PlanInput } from "../../../src/core/model/plan.ts";
import { policyStep } from "../../../src/core/model/policy.ts";
import { parseLabels, spreadKey, spreads, withLabels } from "../../../src/core/model/spread.ts";
import { alive, away, cluster, GIB, host, hostId, member, owner, place, pool, poolId } from "./world.ts";
import { record, want } from "./world.ts";

const two: PlanInput = {
  want: want([place(0, 1), place(1, 2)]),
  record: record([member(0, 1), member(1, 2)]),
  cluster: cluster([1, 2, 3, 4]),
  ownerIsCaretaker: false,
};

function planned(change: PlaceChange, rest: Partial<PlanInput> = {}): Plan {
  const decision = planChange({ ...two, ...rest }, change);
  if (decision.kind === "refused") throw new Error(decision.finding.message);
  return decision.value;
}

const line = (change: PlaceChange, rest: Partial<PlanInput> = {}): string =>
  planLine(planned(change, rest), rest.cluster ?? two.cluster);
const copies = (number: number, minIsr: number | null = null): PlaceChange => ({
  kind: "copies",
  copies: number,
  minIsr,
});
const move = (from: number, to: number, into: number | null = null): PlaceChange => ({
  kind: "move",
  from: hostId(from),
  to: hostId(to),
  pool: into === null ? null : poolId(into),
});

void t.test("plan: a copy more is added, and nothing else happens", async (t) => {
  t.equal(
    line(copies(3)),
    "3 copies, 1 for writes, apart by host; add 2 on h3 (at most 3 GiB, 12 s); wait for 2",
  );
  const { want: next, bytes, inSync, risks } = planned(copies(3));
  t.match(next, { copies: 3, placements: [place(0, 1), place(1, 2), place(2, 3)] });
  t.same([bytes, inSync, risks], [3n * GIB, { now: 2, least: 2, after: 3 }, []]);
});

void t.test("plan: fewer copies keep the guest's own, and none is copied", async (t) => {
  const record3 = record([member(0, 1), member(1, 2), member(2, 3)], { owner: owner(3) });
  const three = { want: want([place(0, 1), place(1, 2), place(2, 3)]), record: record3 };
  t.equal(line(copies(1), three), "1 copies, 1 for writes, apart by host; remove 0 on h1; remove 1 on h2");
  t.match(planned(copies(1), three), {
    bytes: 0n,
    inSync: { now: 3, least: 1, after: 1 },
    risks: ['With one copy a failure of h3 stops "db", and the loss of that disk loses its data.'],
  });
});

void t.test("plan: who stays is in sync, whoever that is; what is behind is waited for", async (t) => {
  const behind = { record: record([member(0, 1, "STALE"), member(1, 2)]) };
  t.equal(line(copies(1), behind), "1 copies, 1 for writes, apart by host; remove 0 on h1");
  // The only good copy is on a host that does not answer: it is kept, and nothing goes before it is back.
  const silent = { ...behind, cluster: cluster([1, 2], [2]) };
  t.match(planned(copies(1), silent), {
    want: { placements: [{ remove: true }, { remove: false }] },
    risks: [/^No copy in sync is on a host that answers/, /^With one copy/, /^h2 does not answer/],
  });
});

void t.test("plan: what is asked back is kept, where it is still in sync", async (t) => {
  const leaving = { want: want([place(0, 1), place(1, 2, true)], { copies: 1 }) };
  t.equal(line(copies(2), leaving), "keep 1 on h2");
  const gone = { ...leaving, record: record([member(0, 1)], { nextRid: 2 }) };
  t.match(planned(copies(2), gone).want.placements, [place(0, 1), place(1, 2, true), place(2, 3)]);
});

void t.test(
  "plan: who is called back takes the place of the copy that it was to make room for",
  async (t) => {
    // The copy on h2 leaves, since it is in the rack of h1, which does not answer now.
    const four = racks("a", "a", "b", "c");
    const silent = {
      ...four,
      hosts: four.hosts.map((one, index) => (index === 0 ? { ...one, liveness: away(0) } : one)),
    };
    const leaving = {
      want: want([place(0, 1), place(1, 2, true), place(2, 3)], { copies: 2, spread: "rack" }),
      record: record([member(0, 1, "STALE"), member(1, 2), member(2, 3)], { spread: "rack" }),
      cluster: silent,
    };
    t.match(planned(copies(3), leaving).want.placements, [
      place(0, 1, true),
      place(1, 2),
      place(2, 3),
      place(3, 4),
    ]);
  },
);

void t.test("plan: a move adds, waits, and then removes", async (t) => {
  t.equal(line(move(1, 3)), "add 2 on h3 (at most 3 GiB, 12 s); wait for 2; remove 0 on h1");
  t.match(planned(move(1, 3)), { want: { copies: 2 }, inSync: { now: 2, least: 2, after: 2 }, risks: [] });
  const open = { record: record([member(0, 1), member(1, 2)], { owner: owner(1) }) };
  t.same(planned(move(1, 3), open).risks, ["The guest runs on h1: it will read over the network."]);
  const alone = { want: want([place(0, 1)]), record: record([member(0, 1)]) };
  t.match(planned(move(1, 3), alone), {
    inSync: { now: 1, least: 1, after: 1 },
    risks: [/^Until a new copy is in sync, h1 has the only one/, /^With one copy a failure of h3/],
  });
});

void t.test("plan: a copy moves to another pool of its host", async (t) => {
  const both = { cluster: { ...two.cluster, pools: [...two.cluster.pools, pool(1, { id: poolId(9) })] } };
  t.match(planned(move(1, 1, 9), both).want.placements, [
    place(0, 1, true),
    place(1, 2),
    { rid: 2, host: hostId(1), pool: poolId(9), remove: false },
  ]);
  t.match(
    planned(move(1, 1), both).want.placements,
    { 2: { pool: poolId(9) } },
    "not the one that it leaves",
  );
});

void t.test("plan: a move that leads nowhere is refused, with the reason", async (t) => {
  const refusals: readonly (readonly [PlaceChange, Partial<PlanInput>, string, RegExp])[] = [
    [move(3, 4), {}, "E-ARG-01", /"db" has no copy on h3\. It has some on: h1, h2\./],
    [move(1, 2), {}, "E-REPL-02", /on h2 already\. Nothing was moved\./],
    [move(1, 1, 1), {}, "E-REPL-02", /in that pool already/],
    [move(1, 1), {}, "E-REPL-01", /h1: no pool/],
    [move(1, 3, 4), {}, "E-REPL-01", /h3: no pool 4/],
    [move(1, 4), { cluster: cluster([1, 2, 3, 4], [4]) }, "E-REPL-01", /h4: not answering/],
    [copies(5), {}, "E-REPL-01", /3 more copies of "db" wanted, 2 hosts/],
    [copies(9), {}, "E-VOL-08", /a volume has 1 to 8/],
    [copies(0), {}, "E-VOL-08", /a volume has 1 to 8/],
    [copies(2, 3), {}, "E-VOL-06", /min-isr can't be 3/],
    [copies(1), { want: { ...two.want, minIsr: 2 } }, "E-VOL-06", /min-isr can't be 2/],
    [copies(3), { want: { ...two.want, deletedAtMs: 1 } }, "E-VOL-11", /in the trash/],
    [{ kind: "spread", spread: "rack" }, {}, "E-REPL-01", /h3: no rack label/],
  ];
  for (const [change, rest, code, message] of refusals)
    t.match(planChange({ ...two, ...rest }, change), { finding: { code, message } }, code);
});

void t.test("plan: what writes need is lowered first and raised last", async (t) => {
  const strict = {
    want: want([place(0, 1), place(1, 2)], { minIsr: 2 }),
    record: record([member(0, 1), member(1, 2)], { minIsr: 2 }),
  };
  t.equal(line(copies(1, 1), strict), "1 copies, 1 for writes, apart by host; remove 1 on h2");
  t.equal(
    line(copies(3, 3)),
    "3 copies, 1 for writes, apart by host; add 2 on h3 (at most 3 GiB, 12 s); wait for 2; 3 copies, 3 for writes, apart by host",
  );
  t.match(planned(copies(2, 2)).risks, [
    /^With 2 of 2 copies needed for writes, they wait while any one is away/,
  ]);
  t.same(policyStep({ copies: 2, minIsr: 2, spread: "host" }, two.record), {
    copies: 2,
    minIsr: 2,
    spread: "host",
  });
  const one = record([member(0, 1), member(1, 2, "STALE")], { copies: 2 });
  t.equal(policyStep({ copies: 2, minIsr: 2, spread: "host" }, one), null, "guests would wait");
});

const racks = (...names: readonly (string | null)[]): Cluster => ({
  hosts: names.map((rack, index) => host(index + 1, alive, { rack, site: null })),
  pools: names.map((_, index) => pool(index + 1)),
});

void t.test("plan: another rule moves the copies that break it, and no others", async (t) => {
  const shared = { cluster: racks("a", "a", "b") };
  t.equal(
    line({ kind: "spread", spread: "rack" }, shared),
    "2 copies, 1 for writes, apart by rack; add 2 on h3 (at most 3 GiB, 12 s); wait for 2; remove 1 on h2",
  );
  t.equal(
    line({ kind: "spread", spread: "rack" }, { cluster: racks("a", "b", "b") }),
    "2 copies, 1 for writes, apart by rack",
  );
  t.equal(line({ kind: "spread", spread: "host" }), "nothing to do");
  t.equal(planned({ kind: "spread", spread: "host" }).want, two.want);
});

void t.test("plan: labels that were changed move nothing by themselves; they are told", async (t) => {
  const rack = { want: { ...two.want, spread: "rack" as const }, cluster: racks("a", "a", "b") };
  const fact = record([member(0, 1), member(1, 2)], { spread: "rack" });
  const { steps, risks } = planned(copies(2), { ...rack, record: fact });
  t.same(steps, []);
  t.same(risks, ["h2 shares its rack with another copy, or has no such label."]);
  t.match(planChange({ ...two, ...rack, record: fact }, move(1, 3)), { kind: "ok" });
  t.match(planChange({ ...two, ...rack, record: fact, cluster: racks("a", "a", "a") }, move(1, 3)), {
    finding: { message: /h3: in rack a, as h2/ },
  });
});

void t.test("plan: a pool that may not hold the volume is told", async (t) => {
  const small = { ...two.cluster, pools: [pool(1), pool(2), pool(3, { freeBytes: 10n * GIB })] };
  t.same(planned(copies(3), { cluster: small }).risks, [
    "The pool on h3 has room for 2 GiB, the volume may hold 3 GiB.",
  ]);
});

void t.test("labels: what is no label is none, and an empty one is taken off", async (t) => {
  t.match(parseLabels(["rack=a", "site=x"]), { value: { rack: "a", site: "x" } });
  t.same(parseLabels(["rack="]), { kind: "ok", value: { rack: null } });
  t.same(withLabels({ rack: "a", site: "x" }, { rack: null }), { rack: null, site: "x" });
  for (const bad of [
    ["rak=a"],
    ["rack"],
    ["=a"],
    ["rack=a", "rack=b"],
    ["rack=A B"],
    ["rack=/"],
    ["site=x".repeat(40)],
  ])
    t.match(parseLabels(bad), { finding: { code: "E-ARG-02" } }, bad.join(" "));
});

const change: fc.Arbitrary<PlaceChange> = fc.oneof(
  fc.record({
    kind: fc.constant("copies" as const),
    copies: fc.integer({ min: 1, max: 5 }),
    minIsr: fc.constantFrom(null, 1, 2, 3),
  }),
  fc.record({ kind: fc.constant("spread" as const), spread: fc.constantFrom(...spreads) }),
  fc
    .tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 5 }))
    .map(([from, to]) => move(from, to)),
);
const state = fc.constantFrom("INSYNC", "INSYNC", "INSYNC", "STALE", "JOINING", null);

void t.test(
  "plan: at no step fewer copies are in sync than the lesser of before and wanted, and never none",
  async (t) => {
    let plans = 0;
    fc.assert(
      fc.property(
        fc.array(fc.record({ state, remove: fc.boolean() }), { minLength: 1, maxLength: 4 }),
        fc.array(fc.record({ up: fc.boolean(), rack: fc.constantFrom("a", "b", "c", null) }), {
          minLength: 5,
          maxLength: 5,
        }),
        fc.integer({ min: 1, max: 2 }),
        fc.constantFrom(...spreads),
        change,
        (rows, hosts, minIsr, spread, asked) => {
          const members = rows.flatMap((row, index) =>
            row.state === null ? [] : [member(index, index + 1, row.state)],
          );
          if (!members.some((one) => one.state === "INSYNC")) return;
          const nextRid = rows.length - (rows.at(-1)?.state === null ? 1 : 0);
          const input: PlanInput = {
            want: want(
              rows.map(({ remove }, index) => place(index, index + 1, remove)),
              { spread, copies: Math.max(minIsr, rows.filter(({ remove }) => !remove).length) },
            ),
            record: record(members, { minIsr, nextRid }),
            cluster: {
              hosts: hosts.map(({ up, rack }, index) =>
                host(index + 1, up ? alive : away(0), { rack, site: rack }),
              ),
              pools: [1, 2, 3, 4, 5].map((number) => pool(number)),
            },
            ownerIsCaretaker: true,
          };
          const decision = planChange(input, asked);
          if (decision.kind === "refused") return;
          plans += 1;
          const { want: next, steps, risks } = decision.value;

          // Played as told: what is waited for comes in sync, nothing else changes.
          const inSync = new Set(members.filter((one) => one.state === "INSYNC").map((one) => one.rid));
          const before = inSync.size;
          const staying = next.placements.filter((one) => !one.remove);
          const apart = staying.map((one) => {
            const on = input.cluster.hosts.find(({ id }) => id === one.host);
            return on === undefined ? null : spreadKey(on, next.spread);
          });
          for (const step of steps) {
            if (step.kind === "wait") for (const one of step.rids) inSync.add(one);
            if (step.kind === "policy" && step.policy.minIsr > Math.max(minIsr, inSync.size))
              throw new Error("writes would wait");
            // Another place is found first: nothing goes before (mayRemove).
            if (step.kind === "remove" && staying.length < next.copies) break;
            if (step.kind === "remove") inSync.delete(step.place.rid);
            if (inSync.size < Math.min(before, next.copies) || inSync.size === 0)
              throw new Error(`${inSync.size} in sync: ${planLine(decision.value, input.cluster)}`);
          }
          if (
            staying.length < next.copies &&
            steps.some(({ kind }) => kind === "remove") &&
            !risks.join().includes("have a place")
          )
            throw new Error(`not told: ${risks.join(" ")}`);
          if (asked.kind === "copies" && staying.length !== next.copies)
            throw new Error(`${staying.length} of ${next.copies} stay`);
          if (asked.kind === "spread" && (apart.includes(null) || new Set(apart).size !== apart.length))
            throw new Error(`not apart: ${apart.join()}`);
          if (new Set(next.placements.map((one) => one.rid)).size !== next.placements.length)
            throw new Error("a number was given out twice");
          for (const one of next.placements)
            if (one.rid >= rows.length && one.rid < nextRid) throw new Error("a number was used before");
        },
      ),
      { numRuns: 2000 },
    );
    t.ok(plans > 300, `${plans} plans`);
  },
);
