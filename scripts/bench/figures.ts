/**
 * From runs of the main job to its figures.
 *
 * Must always hold: ours and theirs come from the same rounds, and a figure that has no run on one side is left out, never
 * guessed.
 */

import { table } from "../lib/table.ts";
import { compared, median } from "./frame.ts";
import type { Figure, RatioBar } from "./frame.ts";

/** `weft` is as people run it: encrypted. `weft-held` is it through the holder, as guests of XCP-ng have it. */
export const sides = ["weft", "weft-held", "weft-auth", "weft-clear", "floor", "quorum"] as const;
export type Side = (typeof sides)[number];

/** 4 KiB at random at a depth, and 128 KiB one after the other. */
export const workloadNames = [
  "write qd1",
  "write qd32",
  "read qd1",
  "read qd32",
  "sequential write qd8",
] as const;
export type Workload = (typeof workloadNames)[number];

export type Quantity = "iops" | "p50Us" | "cpuUs";

/** One short run of one workload on one side. */
export type Run = {
  readonly side: Side;
  readonly workload: Workload;
  readonly round: number;
  readonly iops: number;
  /** Median latency of a request. */
  readonly p50Us: number;
  /** CPU time of all processes of the side, without the load generator, for each request. */
  readonly cpuUs: number;
};

type Definition = {
  readonly figure: string;
  readonly workload: Workload;
  readonly quantity: Quantity;
  /** Where it is not `weft`. */
  readonly ours?: Side;
  readonly against: "floor" | "quorum" | "weft-clear" | "weft";
  readonly bar: RatioBar | null;
};

const definitions: readonly Definition[] = [
  {
    figure: "write qd1 p50 ÷ floor",
    workload: "write qd1",
    quantity: "p50Us",
    against: "floor",
    bar: { kind: "at most", ratio: 1.6 },
  },
  {
    figure: "write qd32 iops ÷ floor",
    workload: "write qd32",
    quantity: "iops",
    against: "floor",
    bar: { kind: "at least", ratio: 0.4 },
  },
  {
    figure: "write qd32 iops ÷ quorum",
    workload: "write qd32",
    quantity: "iops",
    against: "quorum",
    bar: { kind: "at least", ratio: 1 },
  },
  {
    figure: "read qd32 iops ÷ quorum",
    workload: "read qd32",
    quantity: "iops",
    against: "quorum",
    bar: { kind: "at least", ratio: 1.5 },
  },
  {
    figure: "cpu per write qd32 ÷ floor",
    workload: "write qd32",
    quantity: "cpuUs",
    against: "floor",
    bar: { kind: "at most", ratio: 2.5 },
  },
  {
    figure: "write qd1 p50 ÷ quorum",
    workload: "write qd1",
    quantity: "p50Us",
    against: "quorum",
    bar: null,
  },
  { figure: "read qd1 p50 ÷ floor", workload: "read qd1", quantity: "p50Us", against: "floor", bar: null },
  { figure: "read qd32 iops ÷ floor", workload: "read qd32", quantity: "iops", against: "floor", bar: null },
  {
    figure: "tls: sequential write ÷ clear",
    workload: "sequential write qd8",
    quantity: "iops",
    against: "weft-clear",
    bar: { kind: "at least", ratio: 0.7 },
  },
  {
    figure: "auth: sequential write ÷ clear",
    workload: "sequential write qd8",
    quantity: "iops",
    ours: "weft-auth",
    against: "weft-clear",
    bar: { kind: "at least", ratio: 0.9 },
  },
  {
    figure: "tls: write qd1 p50 ÷ clear",
    workload: "write qd1",
    quantity: "p50Us",
    against: "weft-clear",
    bar: { kind: "at most", ratio: 1.3 },
  },
  {
    figure: "auth: write qd1 p50 ÷ clear",
    workload: "write qd1",
    quantity: "p50Us",
    ours: "weft-auth",
    against: "weft-clear",
    bar: { kind: "at most", ratio: 1.05 },
  },
  {
    figure: "holder: write qd1 p50 ÷ without",
    workload: "write qd1",
    quantity: "p50Us",
    ours: "weft-held",
    against: "weft",
    bar: null,
  },
  {
    figure: "holder: write qd32 iops ÷ without",
    workload: "write qd32",
    quantity: "iops",
    ours: "weft-held",
    against: "weft",
    bar: null,
  },
  {
    figure: "holder: read qd32 iops ÷ without",
    workload: "read qd32",
    quantity: "iops",
    ours: "weft-held",
    against: "weft",
    bar: null,
  },
];

const notes = {
  floor:
    "floor: weft-floor behind NBD, so the NBD hop is in it; two peers over TCP, O_DIRECT, RWF_DSYNC, nothing in between",
  quorum:
    "quorum: qemu-storage-daemon, two NBD children over unix sockets (not TCP: its better set-up), cache.direct=on, " +
    "aio=threads, read-pattern=fifo, vote-threshold=2; durable by writethrough=on at each child (fdatasync after each write)",
  "weft-clear":
    "clear: another cluster beside it, of a build with the feature insecure-clear, whose hosts neither prove themselves nor " +
    "encrypt",
  weft:
    "holder: another volume on the same hosts, its guest behind weft-holder, which keeps requests while weftd is away " +
    "(docs/adr/0026); without: the guest is weftd's own client",
} as const;

export function figuresOf(runs: readonly Run[]): readonly Figure[] {
  return definitions.flatMap((definition) => {
    const ours = valuesOf(runs, definition.ours ?? "weft", definition);
    const theirs = valuesOf(runs, definition.against, definition);
    const figure = compared({
      figure: definition.figure,
      ours,
      against: theirs,
      bar: definition.bar,
      note: notes[definition.against],
    });
    return figure === null ? [] : [figure];
  });
}

/** By round. */
function valuesOf(
  runs: readonly Run[],
  side: Side,
  { workload, quantity }: Definition,
): ReadonlyMap<number, number> {
  const wanted = runs.filter((run) => run.side === side && run.workload === workload);
  return new Map(wanted.map((run) => [run.round, run[quantity]]));
}

/** What each side did, in absolute numbers: for people at this machine only. */
export function renderRuns(runs: readonly Run[]): string {
  const rows = workloadNames.flatMap((workload) =>
    sides.flatMap((side) => {
      const own = runs.filter((run) => run.side === side && run.workload === workload);
      if (own.length === 0) return [];
      const of = (quantity: Quantity): number => median(own.map((run) => run[quantity]));
      return [[workload, side, of("iops").toFixed(0), of("p50Us").toFixed(0), of("cpuUs").toFixed(1)]];
    }),
  );
  return table([["workload", "side", "iops", "p50 µs", "CPU µs a request"], ...rows]);
}
