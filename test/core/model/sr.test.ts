/** How much more finds room, so that no two copies of a byte are on one host. */
import * as fc from "fast-check";
import t from "tap";

import type { Cluster } from "../../../src/core/model/cluster.ts";
import type { HostId, PoolId } from "../../../src/core/model/ids.ts";
import { placeableBytes, spreadBytes } from "../../../src/core/model/sr.ts";

void t.test("sr: what finds room is what the smaller hosts can pair", async (t) => {
  const cases: readonly (readonly [rooms: readonly bigint[], copies: number, bytes: bigint])[] = [
    [[], 1, 0n],
    [[10n], 1, 10n],
    [[10n], 2, 0n],
    [[10n, 10n], 2, 10n],
    [[10n, 4n], 2, 4n],
    [[10n, 4n, 4n], 2, 8n],
    [[10n, 10n, 10n], 2, 15n],
    [[10n, 10n, 10n], 3, 10n],
    [[100n, 10n, 10n], 3, 10n],
    [[100n, 30n, 10n, 10n], 3, 20n],
    [[10n, 10n, 0n], 3, 0n],
  ];
  for (const [rooms, copies, bytes] of cases)
    t.equal(spreadBytes(rooms, copies), bytes, `${rooms.join(" ")} by ${copies}`);
});

void t.test("sr: that much can be placed, and nothing more", async (t) => {
  const rooms = fc.array(fc.bigInt({ min: 0n, max: 40n }), { maxLength: 6 });
  fc.assert(
    fc.property(rooms, fc.integer({ min: 1, max: 4 }), (given, copies) => {
      const bytes = spreadBytes(given, copies);
      t.ok(fits(given, copies, bytes));
      t.notOk(fits(given, copies, bytes + 1n));
    }),
    { numRuns: 300 },
  );
});

/** A host has room for one copy of everything at most: together they must have it for all copies. */
function fits(rooms: readonly bigint[], copies: number, bytes: bigint): boolean {
  const useful = rooms.reduce((sum, room) => sum + (room < bytes ? room : bytes), 0n);
  return useful >= BigInt(copies) * bytes;
}

void t.test(
  "sr: pools that serve count, without their reserve and with what lies in the trash",
  async (t) => {
    const pool = (n: number, free: bigint, serving: boolean = true): Cluster["pools"][number] => ({
      id: `p${n}` as PoolId,
      host: `h${n}` as HostId,
      path: "/pool",
      serving,
      freeBytes: free,
      totalBytes: 2000n,
      committedBytes: 0n,
      noSnapshots: null,
      canReserve: true,
    });
    const cluster = {
      hosts: [],
      pools: [pool(1, 1100n), pool(2, 300n), pool(3, 5000n, false), pool(4, 50n)],
    };
    t.equal(placeableBytes(cluster, 2, new Map()), 200n);
    t.equal(placeableBytes(cluster, 2, new Map([["p2" as PoolId, 700n]])), 900n);
    t.equal(placeableBytes(cluster, 1, new Map()), 1200n);
  },
);
