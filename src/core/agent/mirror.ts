/**
 * The store as this agent sees it: every key under the root, kept level by one watch.
 *
 * Must always hold:
 * - it never goes back: what is older than what is known is ignored, but for a store that itself went back (a restored
 *   one): its answer shows less than was known when it was asked, which no linearizable answer does;
 * - who needs the present asks for it (`sync`); the mirror alone is for hints and displays;
 * - a look that shows the present begins after it was asked for, never before. What it rests on is a linearizable read: of
 *   everything, or of the revision alone where the watch has followed without a gap since everything was read.
 */
import { setTimeout as delay } from "node:timers/promises";

import { isWeftError, WeftError } from "../wire/errors.ts";
import type { Entry, Listing, StoreClient } from "../wire/store-client.ts";
import { ROOT } from "../wire/store-keys.ts";
import { watchPrefix, type WatchUpdate } from "../wire/store-watch.ts";
import { KeyIndex } from "./key-index.ts";

/** Keys whose value changed or that went away; null: anything may have changed. */
export type Changed = ReadonlySet<string> | null;

/** A watch tells what is written within milliseconds; after that everything is read. */
const CATCH_UP_MS = 50;
/** Looks that take longer are not waited for by the next one: while the store is away each fails at its own time. */
const TOGETHER_MS = 100;

export class Mirror {
  readonly #store: StoreClient;
  readonly #stop = new AbortController();
  readonly #listeners = new Set<(changed: Changed) => void>();
  #entries = new KeyIndex();
  #revision = 0n;
  /** How often the store went back. */
  #setBack = 0;
  #running: Promise<void> | null = null;
  /** Counts what may have made a gap in what the watch tells. */
  #gaps = 0;
  /** The count of gaps when everything was read last. */
  #gapsWhenRead: number | null = null;
  /** The look under way, and the one that begins after it. */
  #look: Promise<void> = Promise.resolve();
  #nextLook: Promise<void> | null = null;

  constructor(store: StoreClient) {
    this.#store = store;
  }

  get revision(): bigint {
    return this.#revision;
  }

  start(): void {
    this.#running ??= watchPrefix({
      store: this.#store,
      prefix: ROOT,
      signal: this.#stop.signal,
      onUpdate: (update) => this.#take(update),
    });
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  /** Called after each change, until the returned function is called. */
  onChange(listener: (changed: Changed) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  get(key: string): Entry | null {
    return this.#entries.get(key);
  }

  entries(prefix: string): readonly Entry[] {
    return this.#entries.under(prefix);
  }

  /** Brings it to the present. All who ask while a look is under way share the next one. */
  sync(): Promise<void> {
    this.#nextLook ??= this.#lookAfter(this.#look);
    return this.#nextLook;
  }

  async #lookAfter(before: Promise<void>): Promise<void> {
    const ended = before.catch(() => undefined);
    await Promise.race([ended, delay(TOGETHER_MS, undefined, { ref: false })]);
    this.#look = this.#nextLook ?? before;
    this.#nextLook = null;
    await this.#toPresent();
  }

  async #toPresent(): Promise<void> {
    const [known, setBack] = [this.#revision, this.#setBack];
    if (this.#running !== null && this.#gapsWhenRead === this.#gaps) {
      const present = await this.#store.revision();
      if (present >= known && (await this.#reaches(present))) return;
    }
    const gaps = this.#gaps;
    const listing = await this.#store.list(ROOT);
    this.#list(listing, listing.revision < known && setBack === this.#setBack);
    this.#gapsWhenRead = gaps;
  }

  /** By what the watch tells, soon; not where what else is in the store was written last. */
  async #reaches(revision: bigint): Promise<boolean> {
    const gaps = this.#gaps;
    try {
      return await this.until("The watch", CATCH_UP_MS, () =>
        this.#gaps !== gaps ? false : this.#revision >= revision ? true : null,
      );
    } catch (error) {
      if (isWeftError(error, "E-AGENT-04")) return false;
      throw error;
    }
  }

  /**
   * Waits until `test` gives something that isn't null; it is asked after every change of the store.
   * After `deadlineMs` the outcome is open: E-AGENT-04.
   */
  async until<T>(what: string, deadlineMs: number, test: () => T | null): Promise<T> {
    const first = test();
    if (first !== null) return first;
    return new Promise((resolve, reject) => {
      const settle = (done: () => void): void => {
        clearTimeout(timer);
        forget();
        done();
      };
      const timer = setTimeout(() => settle(() => reject(late(what, deadlineMs))), deadlineMs);
      const forget = this.onChange(() => {
        try {
          const found = test();
          if (found !== null) settle(() => resolve(found));
        } catch (error) {
          settle(() => reject(error));
        }
      });
    });
  }

  #take(update: WatchUpdate): void {
    switch (update.kind) {
      case "listing":
        this.#list(update.listing, update.wentBack);
        return;
      case "interrupted":
        this.#gaps += 1;
        return;
      case "events": {
        if (update.revision <= this.#revision) return;
        const changed = new Set<string>();
        for (const event of update.events) {
          const [key, at] =
            event.kind === "put"
              ? [event.entry.key, event.entry.modRevision]
              : [event.key, event.modRevision];
          if (at <= this.#revision) continue;
          if (event.kind === "put") this.#entries.set(event.entry);
          else this.#entries.delete(key);
          changed.add(key);
        }
        this.#revision = update.revision;
        this.#tell(changed);
      }
    }
  }

  #list(listing: Listing, wentBack: boolean): void {
    if (listing.revision < this.#revision && !wentBack) return;
    if (wentBack) this.#setBack += 1;
    const before = this.#entries;
    // What has not changed stays the very same: who read it before need not read it again.
    this.#entries = new KeyIndex(
      listing.entries.map((entry) => {
        const was = before.get(entry.key);
        return was?.modRevision === entry.modRevision && was.value === entry.value ? was : entry;
      }),
    );
    this.#revision = listing.revision;
    const changed = new Set<string>();
    for (const { key } of before.all()) if (this.#entries.get(key) === null) changed.add(key);
    for (const entry of this.#entries.all()) if (before.get(entry.key) !== entry) changed.add(entry.key);
    if (changed.size > 0) this.#tell(changed);
  }

  #tell(changed: Changed): void {
    for (const listener of this.#listeners) listener(changed);
  }
}

function late(what: string, deadlineMs: number): WeftError {
  return new WeftError({
    code: "E-AGENT-04",
    message: `${what} was asked for, but did not show up within ${Math.round(deadlineMs / 1000)} s. It goes on in the background.`,
    facts: { waitedMs: deadlineMs },
    do: [{ why: "See how it stands", command: "weft status" }],
  });
}

/** Brings the mirror to the present if the store can be reached; else it stays as it is. */
export async function syncIfPossible(mirror: Mirror): Promise<boolean> {
  try {
    await mirror.sync();
    return true;
  } catch (error) {
    if (isWeftError(error, "E-STORE-01")) return false;
    throw error;
  }
}
