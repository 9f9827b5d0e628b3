/**
 * A disk has grown under its guest: its tapdisk is opened anew, which is when it asks for a size.
 *
 *     pause ─▶ the holder tells the size of now ─▶ unpause ─▶ taken
 *                                                    └─ refused ─▶ the holder tells the size of before ─▶ unpause
 *
 * No tapdisk takes it today: `tapdisk_vbd_resume` (drivers/tapdisk-vbd.c, 3.55 and 4.0 alike; tried with 4.0.8) compares what it finds with
 * what it had, says EMEDIUMTYPE and stays paused, until it finds the size of before. That takes 10 ms, and the guest waits. One that
 * does take it shows its guest the new end at once.
 *
 * Must always hold:
 * - whatever fails, the tapdisk goes on, at once or later, and until it has taken another size it is told the one that it knows: it would
 *   stay paused otherwise;
 * - never one that mirrors (mirror.ts): of another size than its second place it would drop that in silence.
 */
import { SmFault } from "../faults.ts";

export type GrownTapdisk = {
  /** Ends with the tapdisk going on, at once or later, where it fails. */
  readonly pause: () => Promise<void>;
  /** Which size the holder tells the next client of it. */
  readonly tell: (size: "now" | "before") => Promise<void>;
  readonly unpause: () => Promise<void>;
  /** Has it go on later. */
  readonly wake: () => void;
};

/** False: it doesn't take another size while it serves its guest. */
export async function growTapdisk({ pause, tell, unpause, wake }: GrownTapdisk): Promise<boolean> {
  await pause();
  try {
    await tell("now");
    await unpause();
    return true;
  } catch (error) {
    try {
      // Where it doesn't answer it has not heard of another one either.
      await tell("before").catch(() => undefined);
      await unpause();
    } catch (later) {
      wake();
      throw later;
    }
    if (isOtherSize(error)) return false;
    throw error;
  }
}

/** tap-ctl's word for EMEDIUMTYPE. */
export function isOtherSize(error: unknown): boolean {
  return error instanceof SmFault && error.message.includes("Wrong medium type");
}
