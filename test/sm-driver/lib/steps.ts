/**
 * What a driver does outside itself, counted, so that its end can be put before any of it.
 *
 * Must always hold: after its end nothing has an effect any more, as when a process was killed; `begin` revives it.
 */
export class Steps {
  readonly done: string[] = [];
  /** Told of each step before it is done. */
  before: ((name: string) => void) | null = null;
  #endsBefore: number | null = null;

  /** Counted anew from now on; null: it lives. */
  begin(endsBefore: number | null): void {
    this.#endsBefore = endsBefore;
    this.done.length = 0;
  }

  async step<T>(name: string, effect: () => Promise<T> | T): Promise<T> {
    if (this.#endsBefore !== null && this.done.length >= this.#endsBefore - 1)
      throw new Error(`it ended before ${name}`);
    this.done.push(name);
    this.before?.(name);
    return effect();
  }
}
