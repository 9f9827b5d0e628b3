/**
 * Waiting for a condition with a deadline, where the other side has no event to offer.
 *
 * Must always hold: who waits says for what, so that a deadline's message names it.
 */

export type UntilOptions = {
  /** Completes the sentence "waited 10 s for …". */
  readonly what: string;
  readonly deadlineMs: number;
  readonly everyMs?: number;
};

/** Asks until the answer is not null, and returns it. What the question throws last is the cause at the deadline. */
export async function until<T>(
  question: () => Promise<T | null> | T | null,
  options: UntilOptions,
): Promise<T> {
  const end = performance.now() + options.deadlineMs;
  let cause: unknown = null;
  while (true) {
    try {
      const answer = await question();
      if (answer !== null) return answer;
      cause = null;
    } catch (error) {
      cause = error;
    }
    if (performance.now() >= end) {
      const why = cause instanceof Error ? `: ${cause.message}` : "";
      throw new Error(`waited ${options.deadlineMs / 1000} s for ${options.what}${why}`, { cause });
    }
    await pause(options.everyMs ?? 50);
  }
}

/** The same for a promise: its value, or an error that names it. */
export async function within<T>(promise: Promise<T>, options: Omit<UntilOptions, "everyMs">): Promise<T> {
  let timer: NodeJS.Timeout | null = null;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`waited ${options.deadlineMs / 1000} s for ${options.what}`)),
      options.deadlineMs,
    );
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    if (timer !== null) clearTimeout(timer);
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}
