/**
 * The main job: 4 KiB at random on a volume with two copies and a diskless owner, at depth 1 and 32.
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
};

const workloads: readonly {
  readonly workload: Workload;
  readonly rw: "randwrite" | "randread";
  readonly depth: number;
}[] = [
  { workload: "write qd1", rw: "randwrite", depth: 1 },
  { workload: "write qd32", rw: "randwrite", depth: 32 },
  { workload: "read qd1", rw: "randread", depth: 1 },
  { workload: "read qd32", rw: "randread", depth: 32 },
];

export async function runMainJob(cluster: Cluster, options: MainJobOptions): Promise<readonly Run[]> {
  const client = cluster.host("h3");
  const { size, say } = options;
  const measured: Measured[] = [];
  for (const side of options.sides) {
    const started = await startSide(cluster, side, size);
    // Everything is written once: nobody is measured while allocating.
    await runFio(client, {
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
    for (const { workload, rw, depth } of workloads) {
      for (const one of measured) {
        const before = await cpuUsed(cluster, one);
        const seconds = options.secondsEach;
        const { iops, p50Us, requests } = await runFio(client, {
          uri: one.uri,
          rw,
          blockSize: "4k",
          depth,
          size,
          seconds,
        });
        const cpuUs = ((await cpuUsed(cluster, one)) - before) / requests;
        runs.push({ side: one.side, workload, round, iops, p50Us, cpuUs });
      }
    }
    say(`round ${round} of ${options.rounds} done`);
  }
  return runs;
}
