/**
 * The main job: 4 KiB at random on a volume with two copies and a diskless owner, at depth 1 and 32; and 128 KiB one after
 * the other, where encryption costs most.
 *
 * Must always hold: the sides take turns within every round, so that whatever else the machine does meets them all.
 */
import type { Cluster } from "../cluster/cluster.ts";
import type { Run, Side, Workload } from "./figures.ts";
import { runFio } from "./fio.ts";
import { cpuUsed, startSide } from "./sides.ts";
import type { Measured } from "./sides.ts";

export type MainJobOptions = {
  readonly sides: readonly Side[];
  readonly rounds: number;
  readonly secondsEach: number;
  readonly size: bigint;
  readonly say: (line: string) => void;
  /** The hosts of a side; they are up. */
  readonly clusterOf: (side: Side) => Promise<Cluster>;
};

const workloads: readonly {
  readonly workload: Workload;
  readonly rw: "randwrite" | "randread" | "write";
  readonly blockSize: "4k" | "128k";
  readonly depth: number;
}[] = [
  { workload: "write qd1", rw: "randwrite", blockSize: "4k", depth: 1 },
  { workload: "write qd32", rw: "randwrite", blockSize: "4k", depth: 32 },
  { workload: "read qd1", rw: "randread", blockSize: "4k", depth: 1 },
  { workload: "read qd32", rw: "randread", blockSize: "4k", depth: 32 },
  { workload: "sequential write qd8", rw: "write", blockSize: "128k", depth: 8 },
];

export async function runMainJob(options: MainJobOptions): Promise<readonly Run[]> {
  const { size, say } = options;
  const measured: Measured[] = [];
  for (const side of options.sides) {
    const started = await startSide(await options.clusterOf(side), side, size);
    // Everything is written once: nobody is measured while allocating.
    await runFio(started.cluster.host("h3"), {
      uri: started.uri,
      rw: "write",
      blockSize: "128k",
      depth: 8,
      size,
      seconds: null,
    });
    say(`${side}: ready and filled`);
    measured.push(started);
  }
  const runs: Run[] = [];
  for (let round = 1; round <= options.rounds; round++) {
    for (const { workload, rw, blockSize, depth } of workloads) {
      for (const one of measured) {
        const before = await cpuUsed(one);
        const seconds = options.secondsEach;
        const { iops, p50Us, requests } = await runFio(one.cluster.host("h3"), {
          uri: one.uri,
          rw,
          blockSize,
          depth,
          size,
          seconds,
        });
        const cpuUs = ((await cpuUsed(one)) - before) / requests;
        runs.push({ side: one.side, workload, round, iops, p50Us, cpuUs });
      }
    }
    say(`round ${round} of ${options.rounds} done`);
  }
  return runs;
}
