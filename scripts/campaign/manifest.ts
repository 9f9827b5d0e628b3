/**
 * docs/seeds.json: which seeds were run, of which commit, with what result.
 *
 * Must always hold: no seed stands in two ranges; a run that found something stands there too, with what it found.
 */
import { z } from "zod";

const runSchema = z.strictObject({
  /** The first seed and the last, both run. */
  range: z.tuple([z.int().positive(), z.int().positive()]),
  /** What was built, by its full name. */
  commit: z.string().regex(/^[0-9a-f]{40}$/),
  /** The day the run ended, UTC. */
  date: z.iso.date(),
  /** Seeds with a violation. */
  violations: z.int().nonnegative(),
  seconds: z.number().nonnegative(),
  /** What was found, and where it was mended. */
  note: z.string().min(1).optional(),
});

export type Run = z.infer<typeof runSchema>;

/** The manifest's runs, sorted by seed; an error names the line that is wrong. */
export function parseManifest(text: string): readonly Run[] {
  const runs = z.array(runSchema).parse(JSON.parse(text));
  for (const [i, { range }] of runs.entries()) {
    if (range[1] < range[0]) throw new Error(`the range ${range.join(" to ")} ends before it begins`);
    const before = runs[i - 1]?.range;
    if (before !== undefined && range[0] <= before[1]) {
      throw new Error(`the range ${range.join(" to ")} does not come after ${before.join(" to ")}`);
    }
  }
  return runs;
}

/** One run a line, so that a change of the manifest is read as what was run. */
export function writeManifest(runs: readonly Run[]): string {
  const line = ({ range, commit, date, violations, seconds, note }: Run): string =>
    `  { "range": [${range.join(", ")}], "commit": "${commit}", "date": "${date}", ` +
    `"violations": ${violations}, "seconds": ${seconds}` +
    (note === undefined ? " }" : `, "note": ${JSON.stringify(note)} }`);
  return `[\n${runs.map(line).join(",\n")}\n]\n`;
}

/** Lower ones are what every `npm test` runs. */
const FIRST_SEED = 1_000_001;

/** The first seed that no run has had. */
export function nextSeed(runs: readonly Run[]): number {
  return (runs.at(-1)?.range[1] ?? FIRST_SEED - 1) + 1;
}

export type Sum = { readonly seeds: number; readonly violations: number };

/** What a selection of the runs comes to. */
export function sumOf(runs: readonly Run[]): Sum {
  let [seeds, violations] = [0, 0];
  for (const run of runs) {
    seeds += run.range[1] - run.range[0] + 1;
    violations += run.violations;
  }
  return { seeds, violations };
}
