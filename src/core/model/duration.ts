/** Lengths of time as people read them, `45 s`, `2 min 10 s`, `3 h`, `2 days`, and as they type them, `45s`, `3h`. Never negative. */

export function formatDuration(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return join(minutes, "min", seconds % 60, "s");
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return join(hours, "h", minutes % 60, "min");
  return join(Math.floor(hours / 24), "days", hours % 24, "h");
}

function join(large: number, largeUnit: string, small: number, smallUnit: string): string {
  return small === 0 ? `${large} ${largeUnit}` : `${large} ${largeUnit} ${small} ${smallUnit}`;
}

const units: Readonly<Record<string, number>> = {
  s: 1000,
  m: 60_000,
  min: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/** `90s`, `30m`, `2h`, `3d` in milliseconds; null when the text is none of these. */
export function parseDuration(text: string): number | null {
  const [, digits = "", unit = ""] = /^([0-9]{1,6}) ?(s|m|min|h|d)$/.exec(text.trim()) ?? [];
  const factor = units[unit];
  return factor === undefined ? null : Number(digits) * factor;
}
