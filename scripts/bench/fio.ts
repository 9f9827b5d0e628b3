/**
 * fio as the one client of all sides: its nbd engine, run on the host where the guest would be.
 *
 * Must always hold: a run in which fio met an error is an error here, not a low number.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { z } from "zod";

import type { Host } from "../cluster/host.ts";

export type FioJob = {
  readonly uri: string;
  readonly rw: "randwrite" | "randread" | "write";
  readonly blockSize: "4k" | "128k";
  readonly depth: number;
  readonly size: bigint;
  /** Null: once over the whole size, or as many requests as `requests` says. */
  readonly seconds: number | null;
  /** At random, they meet each block once at most. */
  readonly requests?: number;
  /** Which blocks come at random: 1 unless told. */
  readonly seed?: number;
};

export type FioResult = { readonly iops: number; readonly p50Us: number; readonly requests: number };

const direction = z.object({
  iops: z.number(),
  total_ios: z.number(),
  clat_ns: z.object({ percentile: z.record(z.string(), z.number()).optional() }),
});
const output = z.object({
  jobs: z.array(z.object({ error: z.number(), read: direction, write: direction })),
});

export async function runFio(host: Host, job: FioJob): Promise<FioResult> {
  // fio's nbd engine greets on standard output, in the middle of the JSON.
  const file = join(host.layout.dir, "fio.json");
  const timing = job.seconds === null ? [] : [`--runtime=${job.seconds}`, "--time_based"];
  const bounded = job.requests === undefined ? [] : [`--number_ios=${job.requests}`];
  await host.output([
    "fio",
    "--name=bench",
    "--ioengine=nbd",
    `--uri=${job.uri}`,
    `--rw=${job.rw}`,
    `--bs=${job.blockSize}`,
    `--iodepth=${job.depth}`,
    `--size=${job.size}`,
    `--randseed=${job.seed ?? 1}`,
    ...timing,
    ...bounded,
    "--output-format=json",
    `--output=${file}`,
  ]);
  return parseFio(readFileSync(file, "utf8"), job.rw);
}

/** What fio says of one job. Lines of fio's own before the JSON are passed over. */
export function parseFio(text: string, rw: FioJob["rw"]): FioResult {
  const job = output.parse(JSON.parse(text.slice(text.search(/^\{/m)))).jobs[0];
  if (job === undefined) throw new Error("fio says nothing of its job");
  if (job.error !== 0) throw new Error(`fio met error ${job.error}`);
  const { iops, total_ios: requests, clat_ns: latency } = rw === "randread" ? job.read : job.write;
  const p50 = latency.percentile?.["50.000000"];
  if (p50 === undefined || requests === 0) throw new Error("fio did no request");
  return { iops, p50Us: p50 / 1000, requests };
}
