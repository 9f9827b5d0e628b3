/** What fuzzing a door came to, the same for native and TypeScript ones. */

export type Finding = {
  /** A file with the input, or the input itself. */
  readonly input: string;
  /** The command that shows it again. */
  readonly replay: string;
  /** What was wrong, in the words of who noticed. */
  readonly text: string;
};

export type Outcome = {
  readonly name: string;
  readonly seconds: number;
  readonly executions: number;
  /** Edges of the code that were reached; null where nobody counts them. */
  readonly coverage: number | null;
  readonly findings: readonly Finding[];
};

export function outcomeLine({ name, seconds, executions, coverage, findings }: Outcome): string {
  const word = findings.length === 0 ? "ok     " : "FINDING";
  const rate = Math.round(executions / Math.max(1, seconds));
  const reached = coverage === null ? "" : `${coverage} edges`;
  const runs = executions.toLocaleString("en");
  return `${word} ${name.padEnd(14)} ${seconds} s  ${runs.padStart(10)} runs  ${String(rate).padStart(6)} /s  ${reached}`;
}
