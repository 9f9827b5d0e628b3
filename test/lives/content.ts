/**
 * What a disk may hold, by what its guest was told: the dumb thing that a disk is compared with.
 *
 * Must always hold: of each block it knows every number that it may have now, and no other. A write that was answered leaves one; one
 * that was not may be there or not until somebody has read the block, and what was read stays.
 */
export const BLOCK = 4096;
export const BLOCKS = 512;

type Write = { readonly block: number; readonly number: number; isDone: boolean };

export class Content {
  readonly #possible: Map<number, readonly number[]>;
  readonly #recordings = new Set<Moment>();

  constructor(possible: ReadonlyMap<number, readonly number[]> = new Map()) {
    this.#possible = new Map(possible);
  }

  possible(block: number): readonly number[] {
    return this.#possible.get(block) ?? [0];
  }

  sent(block: number, number: number): void {
    this.#possible.set(block, [...this.possible(block), number]);
    for (const recording of this.#recordings) recording.sent(block, number);
  }

  done(block: number, number: number): void {
    this.#possible.set(block, [number]);
    for (const recording of this.#recordings) recording.done(number);
  }

  copy(): Content {
    return new Content(this.#possible);
  }

  /** Blocks that have what they may not have. */
  wrong(numbers: readonly number[]): readonly string[] {
    return numbers.flatMap((found, block) => {
      const possible = this.possible(block);
      return possible.includes(found) ? [] : [`block ${block} has ${found}, not ${possible.join(" or ")}`];
    });
  }

  /** It was read, and is that from now on. */
  settle(numbers: readonly number[]): void {
    for (const [block, number] of numbers.entries()) this.#possible.set(block, [number]);
  }

  /** From now on until {@link Moment.end}: what a snapshot that is taken meanwhile may be of. */
  record(): Moment {
    const moment = new Moment(this.copy(), () => void this.#recordings.delete(moment));
    this.#recordings.add(moment);
    return moment;
  }
}

/**
 * A disk at one moment of a time in which its guest wrote, one write after the other: who has a write has every one before it, but
 * for those that were never answered.
 */
export class Moment {
  readonly #before: Content;
  readonly #writes: Write[] = [];
  readonly end: () => void;

  constructor(before: Content, end: () => void) {
    this.#before = before;
    this.end = end;
  }

  sent(block: number, number: number): void {
    this.#writes.push({ block, number, isDone: false });
  }

  done(number: number): void {
    const write = this.#writes.find((each) => each.number === number);
    if (write !== undefined) write.isDone = true;
  }

  /** Of a disk that was read so. */
  at(numbers: readonly number[]): Content {
    const last = this.#writes.findLastIndex(({ block, number }) => numbers[block] === number);
    const content = this.#before.copy();
    for (const { block, number, isDone } of this.#writes.slice(0, last + 1)) {
      content.sent(block, number);
      if (isDone || numbers[block] === number) content.done(block, number);
    }
    return content;
  }
}
