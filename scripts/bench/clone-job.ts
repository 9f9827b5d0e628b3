/**
 * How long a clone of a snapshot takes, from the request until the answer that says it is there, whole, on all its copies.
 *
 * Must always hold:
 * - the volume has data in each of its segments, or there would be nothing to share;
 * - a clone that is measured is one that a guest can open: the last one of each round is.
 */
import type { Cluster } from "../cluster/cluster.ts";
import type { Host } from "../cluster/host.ts";
import { until } from "../lib/until.ts";
import { attached, runFio } from "./fio.ts";
import { alone } from "./frame.ts";
import type { Figure } from "./frame.ts";

export type CloneJobOptions = {
  /** Each host with a pool that can hold snapshots. */
  readonly cluster: Cluster;
  readonly rounds: number;
  readonly say: (line: string) => void;
};

const SOURCE = "cloned";
const CLONE = "clone";
const HOSTS = ["h1", "h2"] as const;
const SIZE = 50n << 30n;
/** At the volume's beginning, without a gap. */
const FILLED = 1n << 30n;
/** A segment of a copy: one file (architecture.md). */
const SEGMENT = 64n << 20n;
const DEADLINE_MS = 60_000;

/** Seconds, one for each round. */
export async function runCloneJob({ cluster, rounds, say }: CloneJobOptions): Promise<readonly number[]> {
  const guest = cluster.host("h3");
  const agent = guest.agent();
  await agent.createVolume({ name: SOURCE, size: SIZE, hosts: [...HOSTS] });
  const job = { uri: await attached(guest, SOURCE), rw: "write", blockSize: "128k", depth: 8 } as const;
  await runFio(guest, { ...job, size: FILLED, seconds: null });
  const segments = Number(SIZE / SEGMENT);
  await runFio(guest, { ...job, size: SIZE, seconds: null, stride: SEGMENT, requests: segments });
  const { id } = await agent.createSnapshot(SOURCE);
  const seconds: number[] = [];
  for (let round = 1; round <= rounds; round++) {
    const began = performance.now();
    await agent.createVolume({ name: CLONE, from: id, hosts: [...HOSTS] });
    seconds.push((performance.now() - began) / 1000);
    await attached(guest, CLONE);
    await remove(guest, CLONE);
  }
  await agent.deleteSnapshot(id);
  await until(async () => ((await agent.snapshots(SOURCE)).length === 0 ? true : null), {
    what: `the snapshot of ${SOURCE} to be gone`,
    deadlineMs: DEADLINE_MS,
  });
  await remove(guest, SOURCE);
  say(`${rounds} clones of 50 GiB`);
  return seconds;
}

export function cloneFigures(seconds: readonly number[]): readonly Figure[] {
  return alone({
    figure: "clone 50 GiB s",
    ours: seconds,
    atMost: 1,
    note:
      `clone: a snapshot of 50 GiB on two copies, its first GiB filled with 128 KiB requests and 128 KiB in each of its other ` +
      `64 MiB segments, its pools on XFS in files; from the request until the clone is whole on both; the worst of ${seconds.length}`,
  });
}

async function remove(host: Host, volume: string): Promise<void> {
  const agent = host.agent();
  await agent.detach(volume);
  await agent.deleteVolume(volume);
  await agent.emptyTrash(volume);
}
