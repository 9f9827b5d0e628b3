/**
 * When a volume's copies are compared with each other, how fast, and what its session has to be told.
 *
 * Must always hold:
 * - what nobody asked for any more is stopped, and what ended is told of once;
 * - by itself one volume at a time is compared on a host, the longest forgotten first;
 * - a scrub that another session began is begun anew: what it saw is gone with it.
 */
import { finding, ok, refused } from "./finding.ts";
import type { Decision } from "./finding.ts";
import type { HostId, SessionId, VolumeId } from "./ids.ts";
import { DAY_MS, SCRUB_DAYS_MAX, SCRUB_RATE_MAX, SCRUB_RATE_MIN } from "./limits.ts";
import { formatSize } from "./size.ts";

export type ScrubSettings = {
  /** So long a volume goes without; 0: it is never compared by itself. */
  readonly everyDays: number;
  /** Bytes a second of each volume, where nothing else was asked for. */
  readonly rate: bigint;
};

/** A wish, until it is done or taken back. */
export type ScrubAsk = {
  readonly id: string;
  readonly atMs: number;
  /** Who asked, for people. */
  readonly by: string;
  readonly rate: bigint;
  /** The session that was told to; null: none yet. */
  readonly session: SessionId | null;
};

/** What the session says of its scrub. */
export type ScrubState = { readonly state: "running" | "done" | "stopped"; readonly rate: bigint | null };

export type ScrubStep =
  | { readonly kind: "none" }
  /** From the beginning, whatever runs there. */
  | { readonly kind: "begin"; readonly rate: bigint }
  | { readonly kind: "change-rate"; readonly rate: bigint }
  | { readonly kind: "stop" }
  /** It has ended: that is written down, and the wish goes. */
  | { readonly kind: "tell" };

export function scrubStep(ask: ScrubAsk | null, session: SessionId, scrub: ScrubState | null): ScrubStep {
  const isRunning = scrub?.state === "running";
  if (ask === null) return { kind: isRunning ? "stop" : "none" };
  if (ask.session !== session || scrub === null) return { kind: "begin", rate: ask.rate };
  if (!isRunning) return { kind: "tell" };
  return scrub.rate === ask.rate ? { kind: "none" } : { kind: "change-rate", rate: ask.rate };
}

export type Scrubbable = {
  readonly volume: VolumeId;
  /** Whose session would do it. */
  readonly host: HostId;
  readonly isAsked: boolean;
  /** The end of its last scrub, or when its copies were made. */
  readonly lastMs: number;
};

/** The volumes whose turn it is now. */
export function dueScrubs(
  volumes: readonly Scrubbable[],
  { everyDays }: ScrubSettings,
  nowMs: number,
): readonly VolumeId[] {
  if (everyDays === 0) return [];
  const busy = new Set(volumes.filter(({ isAsked }) => isAsked).map(({ host }) => host));
  const due = volumes
    .filter(({ isAsked, lastMs }) => !isAsked && nowMs - lastMs >= everyDays * DAY_MS)
    .toSorted((a, b) => a.lastMs - b.lastMs || (a.volume < b.volume ? -1 : 1));
  const next: VolumeId[] = [];
  for (const { volume, host } of due) {
    if (busy.has(host)) continue;
    busy.add(host);
    next.push(volume);
  }
  return next;
}

/** E-ARG-02 out of range. */
export function checkScrubRate(rate: bigint): Decision<bigint> {
  if (rate >= SCRUB_RATE_MIN && rate <= SCRUB_RATE_MAX) return ok(rate);
  const range = `${formatSize(SCRUB_RATE_MIN)} to ${formatSize(SCRUB_RATE_MAX)}`;
  return refused(
    finding("E-ARG-02", `Copies can't be compared at ${rate} bytes a second: ${range} are possible.`, {
      facts: { rate: `${rate}` },
      safe: "Nothing was changed.",
    }),
  );
}

/** E-ARG-02 out of range. */
export function checkScrubDays(everyDays: number): Decision<number> {
  if (Number.isInteger(everyDays) && everyDays >= 0 && everyDays <= SCRUB_DAYS_MAX) return ok(everyDays);
  return refused(
    finding("E-ARG-02", `Every ${everyDays} days is not possible: 1 to ${SCRUB_DAYS_MAX} are, 0 for never.`, {
      facts: { everyDays },
      safe: "Nothing was changed.",
    }),
  );
}
