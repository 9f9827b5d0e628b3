/**
 * Plot: hosts with pools, some silent, full or taken; copies are asked for. Two copies on one host would make
 * "2 copies" a lie, and two agents that choose differently would make replicas that nobody uses.
 */
import * as fc from "fast-check";
import t from "tap";

import { defaultCopies, placeCopies, roomOf } from "../../../src/core/model/placement.ts";
import type { PlacementRequest } from "../../../src/core/model/placement.ts";
import { poolReserveBytes } from "../../../src/core/model/limits.ts";
import { GIB, alive, away, cluster, host, hostId, pool, poolId } from "./world.ts";

const request: PlacementRequest = {
  name: "db",
  copies: 2,
  taken: [],
  only: null,
  pool: null,
  spread: "host",
  beside: [],
  roomBytes: 0n,
};

void t.test("placement: two copies go to the two hosts with the most uncommitted space", async (t) => {
  const three = {
    hosts: [host(1), host(2), host(3)],
    pools: [pool(1, { committedBytes: 500n * GIB }), pool(2), pool(3, { committedBytes: 100n * GIB })],
  };
  t.strictSame(placeCopies(three, request), {
    kind: "ok",
    value: [
      { host: hostId(2), pool: poolId(2) },
      { host: hostId(3), pool: poolId(3) },
    ],
  });
});

void t.test("placement: equal hosts are taken in order of their ids", async (t) => {
  t.strictSame(placeCopies(cluster([3, 1, 2]), request), {
    kind: "ok",
    value: [
      { host: hostId(1), pool: poolId(1) },
      { host: hostId(2), pool: poolId(2) },
    ],
  });
});

void t.test(
  "placement: two copies with one host that has a pool are refused, with the reason of each other host",
  async (t) => {
    const one = { hosts: [host(1), host(2), host(3, away(0))], pools: [pool(1), pool(3)] };
    const decision = placeCopies(one, request);
    t.match(decision, {
      kind: "refused",
      finding: {
        code: "E-VOL-03",
        message: '2 copies of "db" wanted, 1 host with a usable pool found (h2: no pool; h3: not answering).',
        safe: "Nothing was changed.",
      },
    });
  },
);

void t.test("placement: a pool below its reserve has no room", async (t) => {
  const full = { hosts: [host(1)], pools: [pool(1, { freeBytes: 8n * GIB })] };
  t.match(placeCopies(full, { ...request, copies: 1 }), {
    kind: "refused",
    finding: { code: "E-POOL-06", message: /h1: no room, 8 GiB of 900 GiB free/ },
  });
});

void t.test("placement: a thick copy goes where all of it fits, with its checksums", async (t) => {
  const roomBytes = roomOf({ thick: true, sizeBytes: 100n * GIB });
  t.equal(roomBytes, 100n * GIB + 1601n * 144n * 1024n);
  t.equal(roomOf({ thick: false, sizeBytes: 100n * GIB }), 0n);
  const free = (number: number, bytes: bigint) =>
    pool(number, { freeBytes: bytes + poolReserveBytes(900n * GIB) });
  const two = { hosts: [host(1), host(2)], pools: [free(1, roomBytes), free(2, roomBytes + 1n)] };
  const thick = { ...request, roomBytes };
  t.match(placeCopies(two, { ...thick, copies: 1 }), { value: [{ pool: poolId(2) }] });
  t.match(
    placeCopies(two, thick),
    { finding: { code: "E-POOL-06", message: /h1: no room for 100 GiB, 108 GiB of 900 GiB free/ } },
    "though one of them fits",
  );
  t.match(placeCopies(two, request), { kind: "ok" }, "a thin one fits everywhere");
});

void t.test("placement: a thick copy never goes where no room can be reserved", async (t) => {
  const thick = { ...request, roomBytes: roomOf({ thick: true, sizeBytes: GIB }) };
  const lvm = { canReserve: false };
  const mixed = { hosts: [host(1), host(2), host(3)], pools: [pool(1, lvm), pool(2), pool(3)] };
  t.match(placeCopies(mixed, thick), { value: [{ host: hostId(2) }, { host: hostId(3) }] });
  const pools = [pool(1, lvm), pool(1, { id: poolId(9) }), pool(2, lvm), pool(3, lvm)];
  t.match(placeCopies({ ...mixed, pools }, { ...thick, copies: 1 }), { value: [{ pool: poolId(9) }] });
  t.match(placeCopies({ ...mixed, pools }, thick), {
    finding: {
      code: "E-POOL-12",
      message:
        /1 host with a usable pool found \(h2: its pool is on LVM's thin volumes, where no room can be/,
      do: [{ command: "weft volume create db SIZE" }, {}, {}],
    },
  });
  const later = { ...thick, copies: 1, taken: [hostId(1)], only: [hostId(2)] };
  t.match(placeCopies({ ...mixed, pools }, later), {
    finding: { code: "E-POOL-12", do: [{ command: "weft pool add PATH" }] },
  });
  t.match(placeCopies({ ...mixed, pools }, request), { kind: "ok" }, "a thin one may");
});

void t.test("placement: hosts that were named are used in the order named", async (t) => {
  const decision = placeCopies(cluster([1, 2, 3]), { ...request, only: [hostId(3), hostId(1)] });
  t.strictSame(decision.kind === "ok" && decision.value.map((spot) => spot.host), [hostId(3), hostId(1)]);
});

void t.test("placement: more than 8 copies are refused", async (t) => {
  t.match(placeCopies(cluster([1]), { ...request, copies: 9 }), { finding: { code: "E-VOL-08" } });
  t.match(placeCopies(cluster([1]), { ...request, copies: 1, taken: [1, 2, 3, 4, 5, 6, 7, 8].map(hostId) }), {
    finding: { code: "E-REPL-04" },
  });
});

void t.test("placement: a volume has one copy by default until a second host has a pool", async (t) => {
  t.equal(defaultCopies(cluster([1]), "host"), 1);
  t.equal(defaultCopies(cluster([1, 2, 3]), "host"), 2);
  t.equal(defaultCopies(cluster([1, 2], [2]), "host"), 1);
});

const inRacks = (...racks: readonly (string | null)[]): ReturnType<typeof cluster> => ({
  hosts: racks.map((rack, index) => host(index + 1, alive, { rack, site: null })),
  pools: racks.map((_, index) => pool(index + 1)),
});
const apart: PlacementRequest = { ...request, spread: "rack" };

void t.test(
  "placement: copies that must not share a rack go to two, and to no host whose rack is not known",
  async (t) => {
    t.match(placeCopies(inRacks("a", "a", null, "b"), apart), {
      value: [{ host: hostId(1) }, { host: hostId(4) }],
    });
    t.match(placeCopies(inRacks("a", "a", null, "a"), apart), {
      finding: {
        code: "E-VOL-03",
        message:
          '2 copies of "db" wanted, 1 host with a usable pool found (h2: in rack a, as h1; h3: no rack label; h4: in rack a, as h1).',
        do: [{}, { command: "weft host label HOST rack=NAME" }, {}],
      },
    });
    t.equal(defaultCopies(inRacks("a", "a", null), "rack"), 1);
    t.equal(defaultCopies(inRacks("a", "b", null), "rack"), 2);
  },
);

void t.test(
  "placement: a new copy shares no rack with those that stay, and may with one that leaves",
  async (t) => {
    const one = { ...apart, copies: 1, taken: [hostId(1), hostId(3)] };
    t.match(placeCopies(inRacks("a", "a", "b", "b"), { ...one, beside: [hostId(1)] }), {
      value: [{ host: hostId(4) }],
    });
    t.match(placeCopies(inRacks("a", "a", "b", "b"), { ...one, beside: [hostId(1), hostId(3)] }), {
      finding: {
        code: "E-REPL-01",
        message: /h1: has a copy; h2: in rack a, as h1; h3: has a copy; h4: in rack b, as h3/,
      },
    });
  },
);

void t.test("placement: a pool that was named is taken or nothing is", async (t) => {
  const other = pool(1, { id: poolId(7), freeBytes: 890n * GIB, totalBytes: 890n * GIB });
  const two = { hosts: [host(1)], pools: [pool(1), other] };
  const one = { ...request, copies: 1, only: [hostId(1)] };
  t.match(placeCopies(two, { ...one, pool: other.id }), { value: [{ pool: other.id }] });
  t.match(placeCopies(two, { ...one, pool: poolId(9) }), { finding: { message: /h1: no pool 9/ } });
  const shut = { hosts: [host(1)], pools: [pool(1), { ...other, serving: false }] };
  t.match(placeCopies(shut, { ...one, pool: other.id }), {
    finding: { message: /h1: its pool does not serve/ },
  });
});

void t.test(
  "placement: never two copies on one host, never an unusable pool, and as many as a dumb count says",
  async (t) => {
    const world = fc.array(
      fc.record({
        isAlive: fc.boolean(),
        isTaken: fc.boolean(),
        pools: fc.array(
          fc.record({
            serving: fc.boolean(),
            free: fc.bigInt({ min: 0n, max: 900n }),
            committed: fc.bigInt({ min: 0n, max: 2000n }),
          }),
          { maxLength: 3 },
        ),
      }),
      { maxLength: 7 },
    );
    fc.assert(
      fc.property(world, fc.integer({ min: 1, max: 3 }), (rows, copies) => {
        const hosts = rows.map((row, index) => host(index + 1, row.isAlive ? alive : away(0)));
        const pools = rows.flatMap((row, index) =>
          row.pools.map(({ serving, free, committed }, nth) =>
            pool(index + 1, {
              id: `${poolId(index + 1).slice(0, 7)}${nth}${poolId(index + 1).slice(8)}` as ReturnType<
                typeof poolId
              >,
              serving,
              freeBytes: free * GIB,
              committedBytes: committed * GIB,
            }),
          ),
        );
        const taken = rows.flatMap((row, index) => (row.isTaken ? [hostId(index + 1)] : []));
        if (copies + taken.length > 8) return;
        const usable = pools.filter(
          (candidate) =>
            candidate.serving &&
            candidate.freeBytes > poolReserveBytes(candidate.totalBytes) &&
            !taken.includes(candidate.host) &&
            hosts.some((one) => one.id === candidate.host && one.liveness.kind === "alive"),
        );
        const enough = new Set(usable.map((candidate) => candidate.host)).size >= copies;
        const decision = placeCopies({ hosts, pools }, { ...request, copies, taken });
        const again = placeCopies(
          { hosts: hosts.toReversed(), pools: pools.toReversed() },
          { ...request, copies, taken },
        );
        t.equal(decision.kind, enough ? "ok" : "refused");
        if (decision.kind === "refused" || again.kind === "refused") return;
        t.strictSame(again.value, decision.value, "the order in which facts arrive does not matter");
        t.equal(new Set(decision.value.map((spot) => spot.host)).size, copies);
        for (const spot of decision.value) {
          t.ok(usable.some((candidate) => candidate.id === spot.pool && candidate.host === spot.host));
        }
      }),
      { numRuns: 300 },
    );
  },
);
