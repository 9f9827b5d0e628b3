/**
 * fio as the one client of all sides: its nbd engine, run on the host where the guest would be, and what it is pointed at; or
 * a file, where the file system alone is measured.
 *
 * Must always hold: a run in which fio met an error is an error here, not a low number.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { z } from "zod";

import type { Host } from "../cluster/host.ts";
import { until } from "../lib/until.ts";
import { nbdUri } from "./sides.ts";

const ATTACH_DEADLINE_MS = 120_000;

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
  /** One after the other, each so many bytes behind the last one; null: none is left out. */
  readonly stride?: bigint;
  /** When each request was answered is wanted, too. */
  readonly logged?: boolean;
  /** Which blocks come at random: 1 unless told. */
  readonly seed?: number;
};

export type FioResult = {
  readonly iops: number;
  readonly p50Us: number;
  /** The longest that one took. */
  readonly maxUs: number;
  readonly requests: number;
};

const direction = z.object({
  iops: z.number(),
  total_ios: z.number(),
  clat_ns: z.object({ max: z.number().default(0), percentile: z.record(z.string(), z.number()).optional() }),
});
const output = z.object({
  jobs: z.array(z.object({ error: z.number(), read: direction, write: direction })),
});

/** `log`: a line for each answer, its first number the moment in milliseconds since 1970; empty unless it is wanted. */
export async function runFio(host: Host, job: FioJob): Promise<FioResult & { readonly log: string }> {
  return run(host, job, ["--ioengine=nbd", `--uri=${job.uri}`]);
}

/** Durable writes into a file that the host sees, past the page cache, as weftd makes them where it has io_uring. */
export async function runFioOnFile(
  host: Host,
  file: string,
  job: Omit<FioJob, "uri" | "logged">,
): Promise<FioResult> {
  return run(host, job, ["--ioengine=io_uring", "--direct=1", "--sync=dsync", `--filename=${file}`]);
}

async function run(
  host: Host,
  job: Omit<FioJob, "uri">,
  where: readonly string[],
): Promise<FioResult & { readonly log: string }> {
  // fio's nbd engine greets on standard output, in the middle of the JSON.
  const file = join(host.layout.dir, "fio.json");
  const timing = job.seconds === null ? [] : [`--runtime=${job.seconds}`, "--time_based"];
  const log = join(host.layout.dir, "fio");
  const logging = job.logged === true ? [`--write_lat_log=${log}`, "--log_unix_epoch=1"] : [];
  const skipped =
    job.stride === undefined ? "" : `:${job.stride - (job.blockSize === "4k" ? 4096n : 131072n)}`;
  const bounded = job.requests === undefined ? [] : [`--number_ios=${job.requests}`];
  await host.output([
    "fio",
    "--name=bench",
    ...where,
    `--rw=${job.rw}${skipped}`,
    `--bs=${job.blockSize}`,
    `--iodepth=${job.depth}`,
    `--size=${job.size}`,
    `--randseed=${job.seed ?? 1}`,
    ...timing,
    ...bounded,
    ...logging,
    "--output-format=json",
    `--output=${file}`,
  ]);
  const result = parseFio(readFileSync(file, "utf8"), job.rw);
  return { ...result, log: job.logged === true ? readFileSync(`${log}_clat.1.log`, "utf8") : "" };
}

/** Where a volume is found once it is open on a host, which may take what else is done there. */
export async function attached(host: Host, volume: string): Promise<string> {
  const { path } = await until(async () => host.agent().attach(volume, { steal: false }), {
    what: `${volume} to open on ${host.name}`,
    deadlineMs: ATTACH_DEADLINE_MS,
  });
  return nbdUri(path, "");
}

/** What fio says of one job. Lines of fio's own before the JSON are passed over. */
export function parseFio(text: string, rw: FioJob["rw"]): FioResult {
  const job = output.parse(JSON.parse(text.slice(text.search(/^\{/m)))).jobs[0];
  if (job === undefined) throw new Error("fio says nothing of its job");
  if (job.error !== 0) throw new Error(`fio met error ${job.error}`);
  const { iops, total_ios: requests, clat_ns: latency } = rw === "randread" ? job.read : job.write;
  const p50 = latency.percentile?.["50.000000"];
  if (p50 === undefined || requests === 0) throw new Error("fio did no request");
  return { iops, p50Us: p50 / 1000, maxUs: latency.max / 1000, requests };
}
