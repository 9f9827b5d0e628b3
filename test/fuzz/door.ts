/**
 * A door in TypeScript and the search behind it: fast-check draws inputs for as long as there is time, and shrinks what
 * it finds.
 *
 * Must always hold: the same seed draws the same inputs; a door judges what it is answered, and leaves nothing behind; a
 * search ends after its last input was judged.
 */
import * as fc from "fast-check";

/** A property over values of any kind; `close` gives back what the door needed. */
export type OpenDoor = {
  readonly arbitrary: fc.Arbitrary<unknown>;
  /** Throws when the answer is not one that a user should ever see. */
  readonly judge: (value: never) => Promise<void> | void;
  /** Inputs that showed a fault once; tried first. */
  readonly kept: readonly unknown[];
  /** False where the world changes with each input, so that a smaller input proves nothing. */
  readonly shrinks: boolean;
  readonly close: () => Promise<void>;
};

export type Found = { readonly seed: number; readonly text: string };
export type Report = { readonly executions: number; readonly finding: Found | null };

export async function search(door: OpenDoor, milliseconds: number, seed: number): Promise<Report> {
  let executions = 0;
  // Node says so when a timer or a listener gets out of hand.
  const warnings: Error[] = [];
  const noted = (warning: Error): void => void warnings.push(warning);
  process.on("warning", noted);
  const judged = async (value: unknown): Promise<void> => {
    await door.judge(value as never);
    assertUnpolluted();
    const [warning] = warnings;
    if (warning !== undefined) throw warning;
  };
  // fast-check does not wait for the input that it interrupts: the door would be closed in the middle of it.
  let last: { readonly value: unknown; readonly end: Promise<void> } | null = null;
  const property = fc.asyncProperty(door.arbitrary, (value) => {
    executions += 1;
    last = { value, end: judged(value) };
    return last.end;
  });
  const details = await fc.check(property, {
    seed,
    numRuns: 1_000_000_000,
    interruptAfterTimeLimit: milliseconds,
    markInterruptAsFailure: false,
    endOnFailure: !door.shrinks,
    examples: door.kept.map((value): [unknown] => [value]),
  });
  const interrupted = details.failed ? null : await faultOf(last);
  process.off("warning", noted);
  const failed = details.failed
    ? { value: details.counterexample?.[0], thrown: details.errorInstance }
    : interrupted;
  if (failed === null) return { executions, finding: null };
  const { value, thrown } = failed;
  const why = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
  return { executions, finding: { seed: details.seed, text: `${fc.stringify(value)}\n${why}` } };
}

async function faultOf(
  input: { readonly value: unknown; readonly end: Promise<void> } | null,
): Promise<{ readonly value: unknown; readonly thrown: unknown } | null> {
  try {
    await input?.end;
    return null;
  } catch (thrown) {
    return { value: input?.value, thrown };
  }
}

/** Nobody's JSON may change what every object is. */
function assertUnpolluted(): void {
  const fresh: object = {};
  for (const name in fresh) throw new Error(`every object has "${name}" now`);
  if (Object.getOwnPropertyNames(Object.prototype).includes("polluted"))
    throw new Error("Object.prototype was changed");
}
