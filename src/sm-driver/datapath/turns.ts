/**
 * Work that many do at once, and work that is done alone.
 *
 * Must always hold:
 * - while one works alone nobody else does; whoever comes meanwhile waits for its end, however it ends;
 * - work that is shared begins no other in here: it would wait for one that waits for it.
 */
export class Turns {
  readonly #underWay = new Set<Promise<unknown>>();
  #alone: Promise<void> | null = null;

  async shared<T>(work: () => Promise<T>): Promise<T> {
    while (this.#alone !== null) await this.#alone;
    const done = work();
    this.#underWay.add(done);
    return done.finally(() => this.#underWay.delete(done));
  }

  /** Null: somebody does already. */
  async alone<T>(work: () => Promise<T>): Promise<T | null> {
    if (this.#alone !== null) return null;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#alone = promise;
    try {
      await Promise.allSettled(this.#underWay);
      return await work();
    } finally {
      this.#alone = null;
      resolve();
    }
  }
}
