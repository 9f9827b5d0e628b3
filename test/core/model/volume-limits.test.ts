/** Plot: a volume is limited by what somebody typed. A limit of nothing is a guest that hangs. */
import t from "tap";

import { checkLimits, limitsText, sameLimits } from "../../../src/core/model/volume-limits.ts";
import type { VolumeLimits } from "../../../src/core/model/volume-limits.ts";

const good: VolumeLimits = { iops: 2000, bps: 100n << 20n, burstS: 5 };

void t.test("limits: from one request and 4 KiB a second to what no disk does", async (t) => {
  for (const limits of [
    good,
    { iops: 1, bps: null, burstS: 0 },
    { iops: 1_000_000_000, bps: 1n << 50n, burstS: 60 },
    { iops: null, bps: 4096n, burstS: 1 },
  ]) {
    t.strictSame(checkLimits(limits), { kind: "ok", value: limits });
  }
});

void t.test("limits: what is out of range, or limits nothing, is refused with the range", async (t) => {
  for (const [wrong, message] of [
    [{ iops: 0 }, /^0 requests a second is no limit: from 1 to 1000000000 are/],
    [{ iops: -1 }, /^-1 requests/],
    [{ iops: 1.5 }, /^1.5 requests/],
    [{ iops: NaN }, /^NaN requests/],
    [{ iops: 1_000_000_001 }, /requests/],
    [{ bps: 0n }, /^0 bytes a second is no limit: from 4 KiB to 1 PiB are/],
    [{ bps: -1n }, /bytes a second/],
    [{ bps: 4095n }, /bytes a second/],
    [{ bps: (1n << 50n) + 1n }, /bytes a second/],
    [{ burstS: -1 }, /^A burst of -1 s is not possible: 0 to 60 are/],
    [{ burstS: 61 }, /burst/],
    [{ burstS: 0.5 }, /burst/],
    [{ burstS: Infinity }, /burst/],
    [{ iops: null, bps: null }, /^Neither/],
  ] as const) {
    t.match(checkLimits({ ...good, ...wrong }), {
      finding: { code: "E-VOL-17", message, safe: "Nothing was changed." },
    });
  }
});

void t.test("limits: are told apart, and read by people", async (t) => {
  t.ok(sameLimits(null, null));
  t.ok(sameLimits(good, { ...good }));
  for (const other of [null, { ...good, iops: null }, { ...good, bps: 1n << 20n }, { ...good, burstS: 1 }])
    t.notOk(sameLimits(good, other));
  t.equal(limitsText(good), "2000 IO/s, 100 MiB/s, burst 5 s");
  t.equal(limitsText(null), "none");
});
