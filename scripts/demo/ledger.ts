/**
 * What the demo did and found: progress while it runs, the verdict at its end.
 *
 * Must always hold: the verdict is good only if every check held and the plot was played to its end.
 */

export type Check = { readonly name: string; readonly ok: boolean; readonly detail: string };

export type Figures = {
  /** The longest that a request of the load waited. */
  stall_ms_max: number;
  /** Bytes that changed while the killed host was away, and bytes that were copied for it. */
  changed_bytes: number;
  resynced_bytes: number;
  /** Requests of the halted owner's guest that were open when its session ended as replaced; may be none. */
  fenced_writes: number;
  /** Bytes read back and found as written. */
  verified_bytes: number;
};

export class Ledger {
  readonly figures: Figures = {
    stall_ms_max: 0,
    changed_bytes: 0,
    resynced_bytes: 0,
    fenced_writes: 0,
    verified_bytes: 0,
  };
  readonly checks: Check[] = [];
  readonly #started = performance.now();
  readonly #show: (line: string) => void;

  constructor(show: (line: string) => void = console.log) {
    this.#show = show;
  }

  get seconds(): number {
    return Math.round((performance.now() - this.#started) / 100) / 10;
  }

  say(line: string): void {
    this.#show(`${this.seconds.toFixed(1).padStart(6)} s  ${line}`);
  }

  check(name: string, ok: boolean, detail: string): void {
    this.checks.push({ name, ok, detail });
    this.say(`${ok ? "✓" : "✗ FAILED"} ${name}: ${detail}`);
  }

  get ok(): boolean {
    return this.checks.length > 0 && this.checks.every(({ ok }) => ok);
  }

  table(): string {
    const { figures } = this;
    const rows: readonly (readonly [string, string])[] = [
      ["longest stall of a guest's request", `${figures.stall_ms_max} ms`],
      ["changed while h1 was away", mib(figures.changed_bytes)],
      ["copied when it came back", `${mib(figures.resynced_bytes)}${ratio(figures)}`],
      ["requests refused after the take-over", String(figures.fenced_writes)],
      ["bytes read back and compared", mib(figures.verified_bytes)],
      ["checks that held", `${this.checks.filter(({ ok }) => ok).length} of ${this.checks.length}`],
    ];
    const width = Math.max(...rows.map(([name]) => name.length));
    return rows.map(([name, value]) => `  ${name.padEnd(width)}  ${value}`).join("\n");
  }
}

export function mib(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

function ratio({ changed_bytes: changed, resynced_bytes: resynced }: Figures): string {
  return changed === 0 ? "" : ` (${(resynced / changed).toFixed(2)} of it)`;
}
