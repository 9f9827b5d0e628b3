/**
 * Which refusals are written one by one, and which are only counted: a flood of them must not fill the audit's disk.
 *
 * Must always hold:
 * - the first refusal of a source within a second is written at once, the others of that second are one line with their
 *   number: none is lost;
 * - no more than `SOURCES_MAX` sources are told apart at a time; whoever comes after them shares one.
 */

const WINDOW_MS = 1000;
const SOURCES_MAX = 100;
const OTHERS = "others";

export type Counted = { readonly source: string; readonly count: number };
/** `count` refusals came after the one that opened the window. */
type Window = { readonly endsMs: number; readonly count: number };
export type RefusalWindows = ReadonlyMap<string, Window>;

export const noRefusals: RefusalWindows = new Map();

/** `written`: this one gets a line of its own. `amount`: of so many, which somebody has counted already. */
export function countRefusal(
  windows: RefusalWindows,
  from: string,
  nowMs: number,
  amount: number = 1,
): { readonly windows: RefusalWindows; readonly written: boolean } {
  const source = windows.has(from) || windows.size < SOURCES_MAX ? from : OTHERS;
  const open = windows.get(source);
  const next = new Map(windows);
  if (open === undefined) next.set(source, { endsMs: nowMs + WINDOW_MS, count: 0 });
  else next.set(source, { ...open, count: open.count + amount });
  return { windows: next, written: open === undefined };
}

/** Ends the windows whose second is over; those that counted something are to be written. */
export function endWindows(
  windows: RefusalWindows,
  nowMs: number,
): { readonly windows: RefusalWindows; readonly counted: readonly Counted[] } {
  const left = new Map<string, Window>();
  const counted: Counted[] = [];
  for (const [source, window] of windows) {
    if (window.endsMs > nowMs) left.set(source, window);
    else if (window.count > 0) counted.push({ source, count: window.count });
  }
  return { windows: left, counted };
}

/** When the next window ends; null: none is open. */
export function nextEndMs(windows: RefusalWindows): number | null {
  return windows.size === 0 ? null : Math.min(...Array.from(windows.values(), ({ endsMs }) => endsMs));
}
