/**
 * Work that many do at once, work of which one is done at a time for each disk, and work that is done alone.
 *
 * Must always hold:
 * - while one works alone nobody else does; whoever comes meanwhile waits for its end, however it ends;
 * - what pauses a guest's tapdisk, and what lets it go on, are of one disk's turn: another would let go on what was paused for it;
 * - work that is shared or of a turn begins no other in here: it would wait for one that waits for it.
 */
export class Turns {
  readonly #underWay = new Set<Promise<unknown>>();
  /** By disk: the last that has its turn. */
  readonly #turns = new Map<string, Promise<unknown>>();
  #alone: Promise<void> | null = null;

  async shared<T>(work: () => Promise<T>): Promise<T> {
    while (this.#alone !== null) await this.#alone;
    const done = work();
    this.#underWay.add(done);
    return done.finally(() => this.#underWay.delete(done));
  }

  /** Shared, and for this disk one after the other, in the order in which they came. */
  ofDisk<T>(disk: string, work: () => Promise<T>): Promise<T> {
    const mine = (this.#turns.get(disk) ?? Promise.resolve()).then(() => this.shared(work));
    const turn = mine.then(
      () => undefined,
      () => undefined,
    );
    this.#turns.set(disk, turn);
    return mine.finally(() => {
      if (this.#turns.get(disk) === turn) this.#turns.delete(disk);
    });
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
