/**
 * "Did you mean …?": the nearest of the known words.
 *
 * Must always hold: a suggestion is one of `known`, and is so near that it is a typing mistake (one for up to four
 * letters, two for up to seven, else three), never a guess; ties go to the first in text order.
 */
import { byText } from "./ids.ts";

export function suggest(typed: string, known: Iterable<string>): string | null {
  const allowed = typed.length <= 4 ? 1 : typed.length <= 7 ? 2 : 3;
  let best: string | null = null;
  let bestDistance = allowed + 1;
  for (const word of [...known].toSorted(byText)) {
    if (Math.abs(word.length - typed.length) > allowed) continue;
    const found = distance(typed.toLowerCase(), word.toLowerCase());
    // A word that shares no letter is no typo: "a" does not mean "b".
    if (found < bestDistance && found < Math.max(typed.length, word.length)) {
      best = word;
      bestDistance = found;
    }
  }
  return best;
}

/** Damerau-Levenshtein, optimal string alignment: insert, delete, replace, swap two neighbours. */
export function distance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row += 1) {
    const current = [row];
    for (let column = 1; column <= b.length; column += 1) {
      const replace = at(last, column - 1) + (a[row - 1] === b[column - 1] ? 0 : 1);
      let least = Math.min(replace, at(last, column) + 1, at(current, column - 1) + 1);
      if (row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1]) {
        least = Math.min(least, at(beforeLast, column - 2) + 1);
      }
      current.push(least);
    }
    beforeLast = last;
    last = current;
  }
  return at(last, b.length);
}

function at(row: readonly number[], column: number): number {
  return row[column] ?? 0;
}
