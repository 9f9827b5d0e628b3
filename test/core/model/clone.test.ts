/**
 * Plot: a snapshot is on some copies of its volume, of which some are away, full or gone, and a volume shall begin as it.
 * Only where the snapshot is can its blocks be shared, and whatever else is wanted must not make two copies share a host.
 */
import t from "tap";

import { checkCloneSize, placeClone } from "../../../src/core/model/clone.ts";
import type { CloneRequest } from "../../../src/core/model/clone.ts";
import { alive, cluster, GIB, host, hostId, member, pool, poolId, record, snapshot } from "./world.ts";

const source = {
  ref: "db@s0",
  snapshot: snapshot(0, [0, 1]),
  record: record([member(0, 1), member(1, 2), member(2, 3)]),
};
const request: CloneRequest = { name: "web", copies: 2, only: null, spread: "host" };
const four = cluster([1, 2, 3, 4]);
const spot = (number: number): object => ({ host: hostId(number), pool: poolId(number) });

void t.test("clone: its copies are made where the snapshot is, others join", async (t) => {
  t.same(placeClone(four, source, request), { kind: "ok", value: { spots: [spot(1), spot(2)], made: 2 } });
  t.same(placeClone(four, source, { ...request, copies: 1 }), {
    kind: "ok",
    value: { spots: [spot(1)], made: 1 },
  });
  t.same(placeClone(four, source, { ...request, copies: 3 }), {
    kind: "ok",
    value: { spots: [spot(1), spot(2), spot(3)], made: 2 },
  });
  t.same(placeClone(four, source, { ...request, only: [hostId(4), hostId(2)] }), {
    kind: "ok",
    value: { spots: [spot(2), spot(4)], made: 1 },
  });
  const h1Away = cluster([1, 2, 3], [1]);
  t.same(placeClone(h1Away, source, request), {
    kind: "ok",
    value: { spots: [spot(2), spot(3)], made: 1 },
  });
  // Another pool of the same host has not the blocks.
  const second = pool(1, { id: poolId(9), totalBytes: 4000n * GIB, freeBytes: 4000n * GIB });
  const more = { ...four, pools: [second, ...four.pools] };
  t.same(placeClone(more, source, { ...request, copies: 1 }), {
    kind: "ok",
    value: { spots: [spot(1)], made: 1 },
  });
});

void t.test("clone: copies are apart by the rule, those that are made and those that join", async (t) => {
  const rack = (number: number, name: string): ReturnType<typeof host> =>
    host(number, alive, { rack: name, site: null });
  const racks = { ...four, hosts: [rack(1, "a"), rack(2, "a"), rack(3, "a"), rack(4, "b")] };
  t.same(placeClone(racks, source, { ...request, spread: "rack" }), {
    kind: "ok",
    value: { spots: [spot(1), spot(4)], made: 1 },
  });
  t.match(placeClone(racks, source, { ...request, spread: "rack", copies: 3 }), {
    kind: "refused",
    finding: { code: "E-REPL-01", message: /^2 more copies of "web" wanted, 1 host/ },
  });
});

void t.test("clone: where no copy has the snapshot, why is said of each", async (t) => {
  const said = (
    where: Parameters<typeof placeClone>[0],
    from: Parameters<typeof placeClone>[1] = source,
    only: CloneRequest["only"] = null,
  ): string => {
    const decision = placeClone(where, from, { ...request, only });
    return decision.kind === "ok" ? "ok" : `${decision.finding.code} ${decision.finding.message}`;
  };
  const begin = 'E-SNAP-12 "web" can\'t be made of db@s0: a clone needs a pool that has the snapshot ';
  t.equal(said(cluster([1, 2, 3], [1, 2])), `${begin}(h1: not answering; h2: not answering).`);
  const pools = [pool(1, { noSnapshots: "the pool lies on ext4" }), pool(2, { serving: false }), pool(3)];
  t.equal(said({ ...four, pools }), `${begin}(h1: the pool lies on ext4; h2: its pool does not serve).`);
  t.equal(
    said({ ...four, pools: [pool(1, { freeBytes: 0n }), pool(2, { freeBytes: 0n })] }),
    `${begin}(h1: no room, or not where copies may be; h2: no room, or not where copies may be).`,
  );
  t.match(said(four, source, [hostId(3)]), /h1: has it, and is not among the hosts named; h2: has it/);
  const left = record([member(0, 1, "QUARANTINED"), member(2, 3)]);
  t.equal(said(four, { ...source, record: left }), `${begin}(no copy of its volume has it any more).`);
});

void t.test("clone: it begins with its snapshot's size", async (t) => {
  t.equal(checkCloneSize("web", source, null), null);
  t.equal(checkCloneSize("web", source, GIB), null);
  t.match(checkCloneSize("web", source, 2n * GIB), {
    code: "E-SNAP-17",
    do: [{ command: "weft volume create web --from db@s0" }, { command: "weft volume resize web 2GiB" }],
  });
  t.equal(checkCloneSize("web", source, GIB / 2n)?.do.length, 1);
});
