/**
 * From runs to figures: how long a guest waited, by fault, and apart for runs in which the faulty host had the store's
 * leader.
 *
 * Must always hold:
 * - a run that did not come to its end is counted as broken, never left out;
 * - a bar that has no run neither holds nor fails.
 */
import { percentile } from "../lib/percentile.ts";
import { table } from "../lib/table.ts";
import { catalogue, faultNames, STALL_MAX_MS, STALL_P95_MS } from "./catalogue.ts";
import type { FaultName } from "./catalogue.ts";

export type FaultRun = {
  readonly fault: FaultName;
  /** The faulty host, or one of them, had the store's leader. */
  readonly leader: boolean;
  /** The longest that a request of the guest stayed unanswered; null when the run broke before that was known. */
  readonly stallMs: number | null;
  /** Acknowledged writes that the final read or another copy does not have. */
  readonly lostAcks: number;
  /** Blocks whose history no single disk could have. */
  readonly nonlinear: number;
  /** What did not hold, as a sentence. */
  readonly broken: string | null;
};

export type Stall = { readonly p50: number; readonly p95: number; readonly max: number };

type Share = { readonly runs: number; readonly stall_ms: Stall | null };

export type FaultFigures = {
  readonly fault: FaultName;
  readonly runs: number;
  readonly stall_ms: Stall | null;
  readonly lost_acks: number;
  readonly nonlinear: number;
  /** Runs in which something did not hold. */
  readonly broken: number;
  readonly leader: Share;
  readonly follower: Share;
};

export function figuresOf(runs: readonly FaultRun[]): readonly FaultFigures[] {
  return faultNames.flatMap((fault) => {
    const own = runs.filter((run) => run.fault === fault);
    if (own.length === 0) return [];
    return [
      {
        fault,
        runs: own.length,
        stall_ms: stallOf(own),
        lost_acks: sum(own.map((run) => run.lostAcks)),
        nonlinear: sum(own.map((run) => run.nonlinear)),
        broken: own.filter((run) => run.broken !== null).length,
        leader: shareOf(own.filter((run) => run.leader)),
        follower: shareOf(own.filter((run) => !run.leader)),
      },
    ];
  });
}

function shareOf(runs: readonly FaultRun[]): Share {
  return { runs: runs.length, stall_ms: stallOf(runs) };
}

function stallOf(runs: readonly FaultRun[]): Stall | null {
  const stalls = runs.flatMap((run) => run.stallMs ?? []);
  if (stalls.length === 0) return null;
  return { p50: percentile(stalls, 50), p95: percentile(stalls, 95), max: Math.max(...stalls) };
}

export function isGood({ lostAcks, nonlinear, broken }: FaultRun): boolean {
  return lostAcks === 0 && nonlinear === 0 && broken === null;
}

/** One run in a line, without its name. */
export function lineOf(run: FaultRun): string {
  const found = [
    run.lostAcks === 0 ? "" : `${run.lostAcks} acknowledged writes LOST`,
    run.nonlinear === 0 ? "" : `${run.nonlinear} blocks NOT LINEARIZABLE`,
    run.broken === null ? "" : `FAILED: ${run.broken}`,
  ].filter((text) => text !== "");
  const stall = run.stallMs === null ? "" : `longest wait ${run.stallMs} ms`;
  return [stall, run.leader ? "with the store's leader" : "", ...found]
    .filter((text) => text !== "")
    .join(", ");
}

export function renderFigures(figures: readonly FaultFigures[]): string {
  const head = [
    "fault",
    "runs",
    "p50 ms",
    "p95 ms",
    "max ms",
    "leader max",
    "other max",
    "lost",
    "nonlinear",
  ];
  const rows = figures.map((one) => [
    one.fault,
    String(one.runs),
    ms(one.stall_ms?.p50),
    ms(one.stall_ms?.p95),
    ms(one.stall_ms?.max),
    `${ms(one.leader.stall_ms?.max)} in ${one.leader.runs}`,
    `${ms(one.follower.stall_ms?.max)} in ${one.follower.runs}`,
    String(one.lost_acks),
    String(one.nonlinear),
    one.broken === 0 ? "" : `${one.broken} BROKEN`,
  ]);
  return table([[...head, ""], ...rows]);
}

/** Null when no fault with bars was run. */
export function renderBars(runs: readonly FaultRun[]): string | null {
  const barred = runs.filter((run) => catalogue[run.fault].barred);
  const all = stallOf(barred);
  if (all === null) return null;
  const line = (what: string, found: number, bar: number): string =>
    `${what} ${found} ms, at most ${bar}: ${found <= bar ? "holds" : "FAILS"}`;
  const names = faultNames.filter((name) => barred.some((run) => run.fault === name));
  return [
    `A guest's longest wait in ${barred.length} runs of ${names.join(", ")}:`,
    line("  p95", all.p95, STALL_P95_MS),
    line("  max", all.max, STALL_MAX_MS),
  ].join("\n");
}

function ms(value: number | undefined): string {
  return value === undefined ? "–" : String(value);
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
