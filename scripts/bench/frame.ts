/**
 * What every benchmark says: figures, their spread, and the bars that they must hold. Ratios travel between machines;
 * absolute numbers do not, so that a figure that stands alone has a bar only where a promise gives it one.
 *
 * Must always hold:
 * - a figure without a bar neither holds nor fails;
 * - what was not measured is left out, never guessed.
 */
import { percentile } from "../lib/percentile.ts";
import { table } from "../lib/table.ts";

/** `ratio` judges what is divided, `value` a figure that stands alone. Each includes its own number. */
export type Bar = RatioBar | { readonly kind: Sense; readonly value: number };
export type RatioBar = { readonly kind: Sense; readonly ratio: number };
type Sense = "at most" | "at least";

export type Figure = {
  readonly figure: string;
  /** The median over the rounds. */
  readonly ours: number;
  /** The same of what it is measured against; null: it stands alone, and so does `ratio`. */
  readonly against: number | null;
  /** Of the two medians. */
  readonly ratio: number | null;
  /** The least and the greatest of any round: of the ratio, or of `ours` where there is none. */
  readonly spread: readonly [number, number];
  readonly bar: Bar | null;
  readonly holds: boolean | null;
  /** What was measured, and on which data. */
  readonly note: string;
};

/** By round. */
export type Values = ReadonlyMap<number, number>;

/** Null where no round has both. */
export function compared(from: {
  readonly figure: string;
  readonly ours: Values;
  readonly against: Values;
  readonly bar: RatioBar | null;
  readonly note: string;
}): Figure | null {
  const ratios = [...from.ours].flatMap(([round, value]) => {
    const other = from.against.get(round);
    return other === undefined || other === 0 ? [] : [value / other];
  });
  if (ratios.length === 0) return null;
  const [ours, against] = [median([...from.ours.values()]), median([...from.against.values()])];
  const ratio = ours / against;
  const holds = from.bar === null ? null : isWithin(from.bar.kind, from.bar.ratio, ratio);
  const { figure, bar, note } = from;
  return {
    figure,
    ours,
    against,
    ratio,
    spread: [Math.min(...ratios), Math.max(...ratios)],
    bar,
    holds,
    note,
  };
}

/**
 * A figure that stands alone: of its values the one below which so many percent of them are, the worst unless told. Nothing
 * where there are none.
 */
export function alone(from: {
  readonly figure: string;
  readonly ours: readonly number[];
  readonly percent?: number;
  readonly atMost: number;
  readonly note: string;
}): readonly Figure[] {
  const { figure, ours: all, percent = 100, atMost, note } = from;
  if (all.length === 0) return [];
  const ours = percentile(all, percent);
  return [
    {
      figure,
      ours,
      against: null,
      ratio: null,
      spread: [Math.min(...all), Math.max(...all)],
      bar: { kind: "at most", value: atMost },
      holds: isWithin("at most", atMost, ours),
      note,
    },
  ];
}

export function isWithin(kind: Sense, bar: number, value: number): boolean {
  return kind === "at most" ? value <= bar : value >= bar;
}

/** Of two middle values the mean. Of nothing there is no median: a caller's bug. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const low = sorted[Math.ceil(sorted.length / 2) - 1];
  const high = sorted[Math.floor(sorted.length / 2)];
  if (low === undefined || high === undefined) throw new Error("the median of no values");
  return (low + high) / 2;
}

export function renderFigures(figures: readonly Figure[]): string {
  const rows = figures.map(({ figure, ours, against, ratio, spread, bar, holds }) => [
    figure,
    short(ours),
    against === null ? "" : short(against),
    ratio === null ? "" : ratio.toFixed(2),
    spread.map((value) => value.toFixed(2)).join("…"),
    bar === null ? "" : `${bar.kind} ${"ratio" in bar ? bar.ratio : bar.value}`,
    holds === null ? "" : holds ? "holds" : "FAILS",
  ]);
  const used = [...new Set(figures.map(({ note }) => note))];
  const head = ["figure", "ours", "against", "ratio", "spread", "bar", ""];
  return [table([head, ...rows]), ...used].join("\n");
}

function short(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}
