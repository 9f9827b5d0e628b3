/** What the benchmarks take from fio and from the kernel. */
import t from "tap";

import { parseFio } from "../../../scripts/bench/fio.ts";
import { ticksOf } from "../../../scripts/bench/sides.ts";

/** As fio 3.33 writes it, shortened. */
function output(error: number, requests: number): string {
  const idle = { iops: 0, total_ios: 0, clat_ns: { min: 0 } };
  const clat = { max: 7_000_000, percentile: { "50.000000": 3981312 } };
  const busy = { iops: 8179.4, total_ios: requests, clat_ns: clat };
  return `fio: connected to NBD server\n${JSON.stringify({ jobs: [{ error, read: busy, write: idle }] })}\n`;
}

await t.test("fio: the figures of the direction that was asked for", async (t) => {
  t.strictSame(parseFio(output(0, 16_367), "randread"), {
    iops: 8179.4,
    p50Us: 3981.312,
    maxUs: 7000,
    requests: 16_367,
  });
});

await t.test("fio: a run with an error, or without a request, is no run", async (t) => {
  t.throws(() => parseFio(output(5, 10), "randread"), /error 5/);
  t.throws(() => parseFio(output(0, 0), "randread"), /no request/);
  t.throws(() => parseFio(output(0, 10), "randwrite"), /no request/);
});

await t.test("cpu: user and system time, whatever the process is called", async (t) => {
  const line =
    "77 (a) b (c) S 1 77 77 0 -1 4194304 100 0 0 0 186 13 0 0 20 0 33 0 240000 1000 200 18446744073709551615";
  t.equal(ticksOf(line), 199);
});
