/**
 * A guest that writes all the time and remembers what it was told is done, on a disk as tapdisk gives it.
 *
 * Must always hold: each write has a number of its own, which fills its block; one request is under way at a time.
 */
import { setTimeout as delay } from "node:timers/promises";

import { Disk } from "../scenario/nbd.ts";
import { BLOCK, BLOCKS, Content } from "./content.ts";

/** As much as tapdisk asks for at once. */
const READ_BLOCKS = 11;
/** So often a guest reads what it wrote. */
const READS_EVERY = 8;

/** Numbers of all guests: what one reads of another's is seen. */
export class Numbers {
  #last = 0;

  next(): number {
    this.#last += 1;
    return this.#last;
  }
}

export class Guest {
  content = new Content();
  /** Answered writes. */
  written = 0;
  /** Of a disk whose host lived: it must have none. */
  failure: string | null = null;
  readonly #numbers: Numbers;
  readonly #everyMs: number;
  #running: { readonly stop: () => void; readonly ended: Promise<void> } | null = null;

  constructor(numbers: Numbers = new Numbers(), everyMs = 0) {
    this.#numbers = numbers;
    this.#everyMs = everyMs;
  }

  get isRunning(): boolean {
    return this.#running !== null;
  }

  async resume(path: string): Promise<void> {
    const disk = await Disk.open(path);
    const stop = new AbortController();
    const ended = this.#work(disk, stop.signal);
    // Who waits for it is told; its host may end before anybody does.
    ended.catch((error: unknown) => {
      if (!stop.signal.aborted) this.failure = String(error);
    });
    this.#running = { stop: () => stop.abort(), ended };
  }

  async #work(disk: Disk, stopped: AbortSignal): Promise<void> {
    using it = disk;
    for (let turn = 1; !stopped.aborted; turn += 1) {
      const number = this.#numbers.next();
      const block = (number * 7919) % BLOCKS;
      if (turn % READS_EVERY === 0) {
        const found = numberOf(await it.read(block * BLOCK, BLOCK));
        const possible = this.content.possible(block);
        if (!possible.includes(found))
          throw new Error(`block ${block} is read as ${found}, not ${possible.join(" or ")}`);
      }
      this.content.sent(block, number);
      await it.write(block * BLOCK, filled(number));
      this.content.done(block, number);
      this.written += 1;
      if (this.#everyMs > 0) await delay(this.#everyMs);
    }
  }

  /** After the write under way. */
  async suspend(): Promise<void> {
    this.#running?.stop();
    await this.#running?.ended;
    this.#running = null;
  }

  /** Its host has ended: what was under way may be done or not. */
  async die(): Promise<void> {
    this.#running?.stop();
    await this.#running?.ended.catch(() => undefined);
    this.#running = null;
    this.failure = null;
  }
}

function filled(number: number): Buffer {
  const block = Buffer.alloc(BLOCK);
  for (let at = 0; at < BLOCK; at += 4) block.writeUInt32LE(number, at);
  return block;
}

/** -1: it is torn. */
function numberOf(block: Buffer): number {
  const number = block.readUInt32LE(0);
  return block.equals(filled(number)) ? number : -1;
}

/** The number of each block. */
export async function numbersOn(path: string): Promise<readonly number[]> {
  using disk = await Disk.open(path);
  const numbers: number[] = [];
  for (let block = 0; block < BLOCKS; block += READ_BLOCKS) {
    const count = Math.min(READ_BLOCKS, BLOCKS - block);
    const data = await disk.read(block * BLOCK, count * BLOCK);
    for (let at = 0; at < count; at += 1) numbers.push(numberOf(data.subarray(at * BLOCK, (at + 1) * BLOCK)));
  }
  return numbers;
}
