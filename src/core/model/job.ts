/**
 * Progress of what takes long (a resync): how far, how fast, when done.
 *
 *     waiting ──progress──▶ running ──all copied, or told so──▶ done
 *        └───────failed───────┴─▶ failed
 *
 * Must always hold:
 * - done and failed are final: later events change nothing;
 * - the rate is of the last half minute, so that a throttle shows; no estimate is given before 2 s of it are known;
 * - a total that shrinks or grows is believed, a copied amount above it is cut.
 */
import { formatDuration } from "./duration.ts";
import { formatSize } from "./size.ts";

type Sample = { readonly atMs: number; readonly copied: bigint };

export type JobState =
  | { readonly kind: "waiting"; readonly sinceMs: number; readonly forWhat: string | null }
  | {
      readonly kind: "running";
      readonly startedMs: number;
      readonly copied: bigint;
      readonly total: bigint;
      readonly samples: readonly Sample[];
    }
  | { readonly kind: "done"; readonly tookMs: number; readonly copied: bigint }
  | { readonly kind: "failed"; readonly reason: string };

export type JobEvent =
  | { readonly kind: "progress"; readonly copied: bigint; readonly total: bigint }
  | { readonly kind: "waiting"; readonly forWhat: string }
  | { readonly kind: "done" }
  | { readonly kind: "failed"; readonly reason: string };

export type JobEffect = { readonly kind: "finished"; readonly ok: boolean };

const RATE_WINDOW_MS = 30_000;
const RATE_LEAST_MS = 2000;

export function initialJob(now: number): JobState {
  return { kind: "waiting", sinceMs: now, forWhat: null };
}

export function stepJob(
  state: JobState,
  event: JobEvent,
  now: number,
): readonly [JobState, readonly JobEffect[]] {
  if (state.kind === "done" || state.kind === "failed") return [state, []];
  switch (event.kind) {
    case "waiting":
      return [
        { kind: "waiting", sinceMs: state.kind === "waiting" ? state.sinceMs : now, forWhat: event.forWhat },
        [],
      ];
    case "failed":
      return [{ kind: "failed", reason: event.reason }, [{ kind: "finished", ok: false }]];
    case "done": {
      const [startedMs, copied] =
        state.kind === "running" ? [state.startedMs, state.copied] : [state.sinceMs, 0n];
      return [{ kind: "done", tookMs: now - startedMs, copied }, [{ kind: "finished", ok: true }]];
    }
    case "progress":
      return [progress(state, event.copied, event.total, now), []];
  }
}

/** Bytes a second over the window; null while too little is known. */
function rateOf(state: JobState): bigint | null {
  if (state.kind !== "running") return null;
  const first = state.samples[0];
  const last = state.samples.at(-1);
  if (first === undefined || last === undefined) return null;
  const elapsed = last.atMs - first.atMs;
  const copied = last.copied - first.copied;
  return elapsed < RATE_LEAST_MS || copied < 0n ? null : (copied * 1000n) / BigInt(elapsed);
}

/** Time that is left; null: no honest answer. */
export function remainingMs(state: JobState): number | null {
  const rate = rateOf(state);
  if (state.kind !== "running" || rate === null || rate === 0n) return null;
  return Number(((state.total - state.copied) * 1000n) / rate);
}

/** 0 to 100, rounded down so that 100 means all. */
export function percentOf(state: JobState): number {
  if (state.kind === "done") return 100;
  if (state.kind !== "running" || state.total === 0n) return 0;
  return Number((state.copied * 100n) / state.total);
}

/** `42 % of 10 GiB, 210 MiB/s, 28 s left` */
export function jobLine(state: JobState): string {
  switch (state.kind) {
    case "waiting":
      return state.forWhat === null ? "waiting to begin" : `waiting: ${state.forWhat}`;
    case "done":
      return `done in ${formatDuration(state.tookMs)}, ${formatSize(state.copied)} copied`;
    case "failed":
      return `failed: ${state.reason}`;
    case "running": {
      const rate = rateOf(state);
      const left = remainingMs(state);
      const speed = rate === null ? "" : `, ${formatSize(rate)}/s`;
      const eta = left === null ? "" : `, ${formatDuration(left)} left`;
      return `${percentOf(state)} % of ${formatSize(state.total)}${speed}${eta}`;
    }
  }
}

function progress(state: JobState, copied: bigint, total: bigint, now: number): JobState {
  const cut = copied > total ? total : copied;
  const before = state.kind === "running" ? state.samples : [];
  const began = (before.at(-1)?.copied ?? 0n) > cut;
  // A resync that began anew would give a negative rate: its window begins anew too.
  const kept = began ? [] : before.filter((sample) => now - sample.atMs <= RATE_WINDOW_MS);
  return {
    kind: "running",
    startedMs: state.kind === "running" ? state.startedMs : now,
    copied: cut,
    total,
    samples: [...kept, { atMs: now, copied: cut }],
  };
}
