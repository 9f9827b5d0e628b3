/**
 * What a snapshot costs the guest: how long it hears nothing while one is taken, how long a write takes at the worst after
 * one, and what the first write costs where an image still shares what is overwritten.
 *
 * Must always hold:
 * - a pause is what the guest's own client saw: the longest time without an answer while requests were under way; what weft
 *   says of it is not asked;
 * - snapshots are of volumes with data in all of their blocks;
 * - what XFS alone makes of the same writes is measured on the pools of the copies, in as many of them at once, right after.
 */
import { join } from "node:path";

import type { Cluster } from "../cluster/cluster.ts";
import type { Host } from "../cluster/host.ts";
import { until } from "../lib/until.ts";
import { attached, runFio, runFioOnFile, type FioJob } from "./fio.ts";
import { alone, compared } from "./frame.ts";
import type { Figure } from "./frame.ts";

export type SnapshotRuns = {
  /** Of each snapshot, by the number of copies. */
  readonly pausesMs: ReadonlyMap<number, readonly number[]>;
  /** Of the 10 s after a snapshot, one each round. */
  readonly longestMs: readonly number[];
  readonly firsts: readonly FirstWrites[];
};

/** Medians of 4 KiB writes that are 1 MiB apart, so that each is the first one in its region. */
export type FirstWrites = {
  readonly round: number;
  /** One at a time: where nothing was ever written, where a snapshot shares what is there, and over data that is the head's own. */
  readonly holeUs: number;
  readonly sharedUs: number;
  readonly ownUs: number;
  /** 32 at a time. */
  readonly sharedDeepUs: number;
  readonly ownDeepUs: number;
  /** The same without weft: files on the pools of both copies, written at once; the slower one's. */
  readonly aloneSharedDeepUs: number;
  readonly aloneOwnDeepUs: number;
};

export type SnapshotJobOptions = {
  /** Each host with a pool that can hold snapshots. */
  readonly cluster: Cluster;
  readonly rounds: number;
  /** Of each volume, a multiple of 1 MiB. */
  readonly size: bigint;
  readonly say: (line: string) => void;
};

const SNAPSHOTS_EACH = 40;
const AFTER_SECONDS = 10;
const DEADLINE_MS = 60_000;
const STRIDE = 1n << 20n;
/** Beside what weft has in a pool. */
const ALONE = "bench-alone";

export async function runSnapshotJob(options: SnapshotJobOptions): Promise<SnapshotRuns> {
  const { cluster, rounds, size, say } = options;
  const guest = cluster.host("h3");
  const pausesMs = new Map<number, number[]>();
  for (const hosts of [
    ["h1", "h2"],
    ["h1", "h2", "h3"],
  ] as const) {
    const pauses: number[] = [];
    await onVolume(guest, { size, hosts }, async (volume) => {
      await fill(guest, volume);
      for (let round = 1; round <= rounds; round++) pauses.push(...(await pausesOf(guest, volume)));
    });
    pausesMs.set(hosts.length, pauses);
    say(`${pauses.length} snapshots of ${hosts.length} copies`);
  }
  const longestMs: number[] = [];
  await onVolume(guest, { size, hosts: ["h1", "h2"] }, async (volume) => {
    await fill(guest, volume);
    // Aged: each block was written again, in no order.
    await runFio(guest, { ...volume.job, rw: "randwrite", blockSize: "4k", depth: 32, seconds: null });
    for (let round = 1; round <= rounds; round++) {
      await taken(guest, volume, async () => {
        const job = { ...volume.job, rw: "randwrite", blockSize: "4k", depth: 8 } as const;
        const { maxUs } = await runFio(guest, { ...job, seconds: AFTER_SECONDS, seed: round });
        longestMs.push(maxUs / 1000);
      });
    }
  });
  say(`${rounds} times ${AFTER_SECONDS} s after a snapshot`);
  const firsts: FirstWrites[] = [];
  for (let round = 1; round <= rounds; round++) {
    await onVolume(guest, { size, hosts: ["h1", "h2"] }, async (volume) => {
      const first = async (depth: number): Promise<number> => (await strided(guest, volume, depth)).p50Us;
      const holeUs = await first(1);
      await fill(guest, volume);
      const [ownUs, ownDeepUs] = [await first(1), await first(32)];
      const sharedUs = await taken(guest, volume, () => first(1));
      const sharedDeepUs = await taken(guest, volume, () => first(32));
      const copies = [cluster.host("h1"), cluster.host("h2")];
      const [aloneOwnDeepUs, aloneSharedDeepUs] = await withoutWeft(copies, size);
      const deep = { sharedDeepUs, ownDeepUs, aloneSharedDeepUs, aloneOwnDeepUs };
      firsts.push({ round, holeUs, sharedUs, ownUs, ...deep });
    });
  }
  say(`${rounds} rounds of first writes`);
  return { pausesMs, longestMs, firsts };
}

export function snapshotFigures(
  { pausesMs, longestMs, firsts }: SnapshotRuns,
  size: bigint,
): readonly Figure[] {
  const mebibytes = Number(size) / 1024 ** 2;
  const about = `${mebibytes} MiB, filled with 128 KiB requests one after the other, its pools on XFS in files`;
  const pauses = [...pausesMs].flatMap(([copies, all]) =>
    alone({
      figure: copies === 2 ? "snapshot pause p99 ms" : `snapshot pause p99 ms, ${copies} copies`,
      ours: all,
      percent: 99,
      atMost: copies === 2 ? 50 : 100,
      note: `snapshot pause: ${about}; the longest time in which none of 8 random 4 KiB writes under way was answered, while one of ${all.length} snapshots was taken`,
    }),
  );
  const longest = alone({
    figure: "longest write after snapshot ms",
    ours: longestMs,
    atMost: 500,
    note: `longest write: ${about}, then each 4 KiB block once at random; of 8 random 4 KiB writes under way for ${AFTER_SECONDS} s after a snapshot, the worst of ${longestMs.length} rounds`,
  });
  const note = `first overwrite, hole write, overwrite: ${about} (but for holes, which were never written); 4 KiB writes 1 MiB apart, each the first one in its region since the snapshot`;
  const deep =
    "; 32 at a time the file system alone, which gives each shared block a new place in two transactions, costs more than the " +
    "bar allows: the row of XFS alone is the same writes into files on both copies' pools, without weft (docs/adr/0020)";
  const of = (field: Exclude<keyof FirstWrites, "round">): ReadonlyMap<number, number> =>
    new Map(firsts.map((run) => [run.round, run[field]]));
  const ratios = [
    { figure: "first overwrite ÷ hole write p50", ours: of("sharedUs"), against: of("holeUs"), ratio: 1.6 },
    {
      figure: "first overwrite qd32 ÷ overwrite",
      ours: of("sharedDeepUs"),
      against: of("ownDeepUs"),
      ratio: 2.2,
      more: deep,
    },
    {
      figure: "first overwrite qd32 ÷ overwrite, XFS alone",
      ours: of("aloneSharedDeepUs"),
      against: of("aloneOwnDeepUs"),
      ratio: null,
      more: deep,
    },
    { figure: "first overwrite ÷ overwrite p50", ours: of("sharedUs"), against: of("ownUs"), ratio: null },
  ].flatMap(({ ratio, more = "", ...values }) => {
    const bar = ratio === null ? null : ({ kind: "at most", ratio } as const);
    return compared({ ...values, bar, note: note + more }) ?? [];
  });
  return [...pauses, ...longest, ...ratios];
}

/**
 * The longest time without an answer within `from` and `to`, or that began or ended there: `answers` are the moments at which
 * there were some, in their order. With requests under way all the time that is what a guest waits.
 */
export function longestGap(answers: readonly number[], from: number, to: number): number {
  let longest = 0;
  for (const [index, at] of answers.entries()) {
    const before = answers[index - 1];
    if (before !== undefined && at >= from && before <= to) longest = Math.max(longest, at - before);
  }
  return longest;
}

/** The moments, in milliseconds, at which fio's log says that requests were answered. */
export function parseAnswers(log: string): readonly number[] {
  const moments = log.split("\n").flatMap((line) => {
    const [, at] = /^(\d+),/.exec(line) ?? [];
    return at === undefined ? [] : [Number(at)];
  });
  return moments.toSorted((a, b) => a - b);
}

type Volume = { readonly name: string; readonly job: Pick<FioJob, "uri" | "size"> };

async function onVolume(
  guest: Host,
  { size, hosts }: { readonly size: bigint; readonly hosts: readonly string[] },
  work: (volume: Volume) => Promise<void>,
): Promise<void> {
  const name = "snapshots";
  const agent = guest.agent();
  await agent.createVolume({ name, size, hosts: [...hosts] });
  await work({ name, job: { uri: await attached(guest, name), size } });
  await agent.detach(name);
  await untilGone(agent, name);
  await agent.deleteVolume(name);
  await agent.emptyTrash(name);
}

async function fill(guest: Host, { job }: Volume): Promise<void> {
  await runFio(guest, { ...job, rw: "write", blockSize: "128k", depth: 8, seconds: null });
}

async function strided(
  guest: Host,
  { job }: Volume,
  depth: number,
): Promise<Awaited<ReturnType<typeof runFio>>> {
  const requests = Number(job.size / STRIDE);
  return runFio(guest, {
    ...job,
    rw: "write",
    blockSize: "4k",
    depth,
    seconds: null,
    stride: STRIDE,
    requests,
  });
}

/** Overwrites of blocks that a file has for itself, and of those that it shares, in each of these hosts' pools at once. */
async function withoutWeft(hosts: readonly Host[], size: bigint): Promise<readonly [number, number]> {
  const onAll = async <Result>(work: (host: Host, file: string) => Promise<Result>): Promise<Result[]> =>
    Promise.all(hosts.map(async (host) => work(host, join(host.poolDir, ALONE))));
  const filled = { rw: "write", blockSize: "128k", depth: 8, size, seconds: null } as const;
  const deep = { ...filled, blockSize: "4k", depth: 32, stride: STRIDE } as const;
  const slowest = async (): Promise<number> => {
    const job = { ...deep, requests: Number(size / STRIDE) };
    const runs = await onAll(async (host, file) => runFioOnFile(host, file, job));
    return Math.max(...runs.map(({ p50Us }) => p50Us));
  };
  await onAll(async (host, file) => runFioOnFile(host, file, filled));
  const own = await slowest();
  await onAll(async (host, file) => {
    await host.output(["cp", "--reflink=always", file, `${file}.shared`]);
    await host.output(["sync", "--file-system", file]);
  });
  const shared = await slowest();
  await onAll(async (host, file) => host.output(["rm", file, `${file}.shared`]));
  return [own, shared];
}

/** Deleted ones are there until each copy has let go of them. */
async function untilGone(agent: ReturnType<Host["agent"]>, name: string): Promise<void> {
  await until(async () => ((await agent.snapshots(name)).length === 0 ? true : null), {
    what: `the snapshots of ${name} to be gone`,
    deadlineMs: DEADLINE_MS,
  });
}

/** While there is a snapshot of now; it is gone afterwards. */
async function taken<Result>(guest: Host, { name }: Volume, work: () => Promise<Result>): Promise<Result> {
  const agent = guest.agent();
  const { id } = await agent.createSnapshot(name);
  const result = await work();
  await agent.deleteSnapshot(id);
  await untilGone(agent, name);
  return result;
}

/** Of some snapshots, one after the other, while a guest writes. */
async function pausesOf(guest: Host, { name, job }: Volume): Promise<readonly number[]> {
  const agent = guest.agent();
  const taking = new AbortController();
  const load = async (): Promise<readonly (readonly number[])[]> => {
    const pieces: (readonly number[])[] = [];
    // In pieces, so that it ends soon after the last snapshot.
    for (let seed = 1; !taking.signal.aborted; seed++) {
      const piece = { ...job, rw: "randwrite", blockSize: "4k", depth: 8, seconds: 5, seed } as const;
      const { log } = await runFio(guest, { ...piece, logged: true });
      pieces.push(parseAnswers(log));
    }
    return pieces;
  };
  const loading = load();
  const windows: (readonly [number, number])[] = [];
  const ids: string[] = [];
  try {
    for (let count = 0; count < SNAPSHOTS_EACH; count++) {
      const from = Date.now();
      ids.push((await agent.createSnapshot(name)).id);
      windows.push([from, Date.now()]);
    }
  } finally {
    taking.abort();
  }
  const pieces = await loading;
  for (const id of ids) await agent.deleteSnapshot(id);
  await untilGone(agent, name);
  // Between two pieces of the load nothing was under way: a snapshot that was taken there counts for nothing.
  return windows.flatMap(([from, to]) => {
    const piece = pieces.find((answers) => (answers[0] ?? to) <= from && (answers.at(-1) ?? from) >= to);
    return piece === undefined ? [] : [longestGap(piece, from, to)];
  });
}
