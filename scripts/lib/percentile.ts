/** The smallest value that at least so many percent of the values don't exceed. Of nothing: a caller's bug. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const value = sorted[Math.max(1, Math.ceil((sorted.length * percent) / 100)) - 1];
  if (value === undefined) throw new Error("a percentile of no values");
  return value;
}
