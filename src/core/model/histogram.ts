/**
 * How often something took how long: counts by the upper ends of buckets, as weftd gathers them since an open. The ends
 * are the same for everything and for ever; buckets with nothing in them are left out.
 *
 * Must always hold:
 * - ends rise; what took longer than the last of all ends is in `count` alone;
 * - what is said of a share is never less than the truth: it is the end of the bucket that the share falls in.
 */
export type Histogram = {
  /** Upper ends in µs, each belonging to its bucket. */
  readonly leUs: readonly number[];
  /** One for each end. */
  readonly counts: readonly bigint[];
  /** How many in all. */
  readonly count: bigint;
  /** Together, in µs. */
  readonly sumUs: bigint;
};

export const noHistogram: Histogram = { leUs: [], counts: [], count: 0n, sumUs: 0n };

/**
 * What this share (0 to 1) of all took at most, in µs: null where nothing was counted, Infinity where the share reaches
 * into what took longer than the last end.
 */
export function quantileUs({ leUs, counts, count }: Histogram, share: number): number | null {
  if (count === 0n) return null;
  // Millionths: the counts may pass 2^53.
  const least = (count * BigInt(Math.round(share * 1_000_000)) + 999_999n) / 1_000_000n;
  const wanted = least > 0n ? least : 1n;
  let seen = 0n;
  for (const [i, here] of counts.entries()) {
    seen += here;
    if (seen >= wanted) return leUs[i] ?? Infinity;
  }
  return Infinity;
}

/** How many took at most this; `us` is one of the ends. */
export function countUpTo({ leUs, counts }: Histogram, us: number): bigint {
  return counts.reduce((sum, here, i) => ((leUs[i] ?? Infinity) <= us ? sum + here : sum), 0n);
}

/** What came after `before`; the whole of `now` where that was of an earlier session. */
export function histogramSince(now: Histogram, before: Histogram): Histogram {
  const earlier = new Map(before.leUs.map((end, i) => [end, before.counts[i] ?? 0n]));
  const counts = now.leUs.map((end, i) => (now.counts[i] ?? 0n) - (earlier.get(end) ?? 0n));
  const isLater =
    now.count >= before.count &&
    before.leUs.every((end) => now.leUs.includes(end)) &&
    counts.every((here) => here >= 0n);
  if (!isLater) return now;
  return { leUs: now.leUs, counts, count: now.count - before.count, sumUs: now.sumUs - before.sumUs };
}
