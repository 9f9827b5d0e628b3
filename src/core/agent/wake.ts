/**
 * A pause that can be ended early.
 *
 * Must always hold: a nudge is never lost: one that comes while nobody pauses ends the next pause at once.
 */
export class Wake {
  #nudged = false;
  #end: (() => void) | null = null;

  nudge(): void {
    this.#nudged = true;
    this.#end?.();
  }

  /** The next pause, or the one that begins before then, is no longer than this. */
  nudgeIn(ms: number): void {
    setTimeout(() => this.nudge(), ms).unref();
  }

  async wait(ms: number): Promise<void> {
    if (!this.#nudged) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms);
        this.#end = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#end = null;
    }
    this.#nudged = false;
  }
}
