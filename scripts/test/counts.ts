/** What the test programs say at their end, as numbers. */

export type Counts = { readonly passed: number; readonly failed: number };

export const none: Counts = { passed: 0, failed: 0 };

export function sum(all: readonly Counts[]): Counts {
  return all.reduce((a, b) => ({ passed: a.passed + b.passed, failed: a.failed + b.failed }), none);
}

/** Each test program of cargo ends with "test result: ok. 12 passed; 0 failed; 0 ignored; …". */
export function cargoCounts(output: string): Counts {
  const lines = output.matchAll(/^test result: \w+\. (\d+) passed; (\d+) failed;/gm);
  return sum(Array.from(lines, ([, passed, failed]) => ({ passed: Number(passed), failed: Number(failed) })));
}

/** tap ends with "# { total: 21, pass: 20, fail: 1 }"; numbers that are zero are left away. */
export function tapCounts(output: string): Counts {
  const line = output.match(/^# \{ (total: .*) \}$/m)?.[1] ?? "";
  const number = (name: string): number => Number(new RegExp(`${name}: (\\d+)`).exec(line)?.[1] ?? 0);
  return { passed: number("pass"), failed: number("fail") };
}

/**
 * weft-sim ends with "1000 seeds, 0 violations, 14.2 s: …" or with "17 of 17 broken rules caught": every seed and every
 * broken rule is a test.
 */
export function simulatorCounts(output: string): Counts {
  const seeds = /^(\d+) seeds, (\d+) violations,/m.exec(output);
  const rules = /^(\d+) of (\d+) broken rules caught$/m.exec(output);
  const count = (text: string | undefined): number => Number(text ?? 0);
  const [failedSeeds, caught] = [count(seeds?.[2]), count(rules?.[1])];
  return {
    passed: count(seeds?.[1]) - failedSeeds + caught,
    failed: failedSeeds + count(rules?.[2]) - caught,
  };
}

/** A program that failed without naming a failed test counts as one. */
export function withStatus(counts: Counts, ok: boolean): Counts {
  return ok || counts.failed > 0 ? counts : { ...counts, failed: 1 };
}
