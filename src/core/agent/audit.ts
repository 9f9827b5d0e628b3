/**
 * The audit of this host: every mutation before and after it is done, and every refusal.
 *
 * Must always hold:
 * - a mutation is done only when its beginning is written; on stable media, where only an administrator may do it;
 * - while the disk takes no line mutations are refused (E-AUDIT-01), and reads go on;
 * - what could not be written is counted, and the count is written as soon as something can be.
 */
import { join } from "node:path";

import { reasonOf, WeftError } from "../wire/errors.ts";
import {
  type AuditEntry,
  type AuditLine,
  type AuditTarget,
  type AuditWho,
  renderAuditLine,
} from "../wire/audit-line.ts";
import { type Crowd, type Counted, Refusals } from "../model/refusals.ts";
import { AuditFile, type AuditHead, type Damage, type Verdict } from "./audit-file.ts";
import { loadAddon } from "../wire/addon.ts";
import type { Log } from "./log.ts";
import type { AgentOptions } from "./options.ts";
import { Syslog } from "./syslog.ts";

const FILE_BYTES_MAX = 16 << 20;
const FILES_KEPT = 20;
/** What need not be on stable media at once is there after this. */
const SYNC_MS = 1000;
/** While refusals are counted, it is looked so often whether their time is over. */
const REFUSALS_MS = 1000;
/** So many lines may wait for a slow disk. */
const WAITING_MAX = 10_000;

export type AuditOptions = {
  readonly directory: string;
  readonly log: Log;
  /** Null: no copy. */
  readonly syslog: Pick<Syslog, "send"> | null;
  /** The host's id, as soon as it has one. */
  readonly host: () => string | null;
  readonly fileBytesMax?: number;
  readonly filesKept?: number;
};

/** What a request is, as far as the audit shows it. */
export type AuditRequest = {
  /** Null: a connection that was refused before there was a request. */
  readonly id: string | null;
  readonly who: AuditWho;
  readonly from: string;
  readonly what: string;
  readonly target: AuditTarget;
};

type Waiting = {
  readonly entry: AuditEntry;
  readonly durable: boolean;
  readonly done: (error: Error | null) => void;
};

export function openAudit(
  { stateDir, addon, syslogSocket }: Pick<AgentOptions, "stateDir" | "addon" | "syslogSocket">,
  log: Log,
  host: () => string | null,
): Audit {
  const syslog = syslogSocket === "" ? null : new Syslog(loadAddon(addon), syslogSocket);
  return new Audit({ directory: join(stateDir, "audit"), log, syslog, host });
}

/** Null: the cluster knows who it was. */
function crowdOf({ id, who }: AuditRequest): Crowd | null {
  if (who.kind !== "nobody") return null;
  return id === null ? "connections" : "requests";
}

export class Audit {
  readonly #options: AuditOptions;
  readonly #file: AuditFile;
  readonly #waiting: Waiting[] = [];
  /** Writes, and reads that must see whole files, one after the other. */
  #turn: Promise<unknown> = Promise.resolve();
  #isDraining = false;
  #lost = 0;
  #lines = 0;
  #refused = 0;
  #isDamaged = false;
  #isFailing = false;
  readonly #refusals = new Refusals();
  #refusalTimer: NodeJS.Timeout | null = null;
  #syncTimer: NodeJS.Timeout | null = null;

  constructor(options: AuditOptions) {
    this.#options = options;
    const { directory, fileBytesMax = FILE_BYTES_MAX, filesKept = FILES_KEPT } = options;
    this.#file = new AuditFile({ directory, fileBytesMax, filesKept });
  }

  get head(): AuditHead | null {
    return this.#file.head;
  }

  /** The last line that should have been written was not. */
  get isFailing(): boolean {
    return this.#isFailing;
  }

  /** Since the agent started: the files were not what they had been. */
  get isDamaged(): boolean {
    return this.#isDamaged;
  }

  /** Since the agent started; `lost` are those that are not written yet. */
  get counts(): { readonly lines: number; readonly refused: number; readonly lost: number } {
    return { lines: this.#lines, refused: this.#refused, lost: this.#lost };
  }

  /** Rejected with E-AUDIT-01 when it can't be written: then the mutation must not be done. */
  async begin(request: AuditRequest, durable: boolean): Promise<void> {
    try {
      await this.#write({ ...this.#entry(request), event: "begin", outcome: null, ms: null }, durable);
    } catch (cause) {
      throw new WeftError({
        code: "E-AUDIT-01",
        message: `The audit can't be written: ${reasonOf(cause)}.`,
        facts: { directory: this.#options.directory },
        safe: "Nothing was changed, and nothing can be changed through this host until it can be.",
        do: [{ why: "Make room there", command: `df ${this.#options.directory}` }],
        cause,
      });
    }
  }

  /** `outcome`: `ok`, or the error's code. */
  async end(request: AuditRequest, outcome: string, ms: number): Promise<void> {
    await this.#writeOrCount({ ...this.#entry(request), event: "end", outcome, ms });
  }

  /**
   * Of one source one line at once, and one more with the number of those that followed within a second. Strangers together
   * have a bounded number of lines (model/refusals.ts). Costs no disk for what is only counted, and never rejects.
   */
  async refused(request: AuditRequest, source: string, outcome: string, count: number = 1): Promise<void> {
    this.#refused += count;
    const written = this.#refusals.count({ source, crowd: crowdOf(request), count }, Date.now());
    this.#armRefusals();
    if (written)
      await this.#writeOrCount({ ...this.#entry(request), event: "refused", outcome, ms: null, count });
  }

  /** Somebody found, by what was kept elsewhere, that lines are missing or other ones. */
  async noteBroken(): Promise<void> {
    this.#isDamaged = true;
    await this.#writeOrCount(this.#own("broken", "E-AUDIT-02", 1));
  }

  /** The last `limit` lines that match, in order. */
  async last(
    limit: number,
    sinceMs: number | null,
    matches: (line: AuditLine) => boolean,
  ): Promise<readonly AuditLine[]> {
    await using now = await this.#inTurn(() => this.#file.snapshot());
    return await now.last(limit, sinceMs, matches);
  }

  /** Whether the chain is whole; `askedSeq`: the line whose hash somebody kept elsewhere. */
  async verify(askedSeq: bigint | null): Promise<Verdict> {
    await using now = await this.#inTurn(() => this.#file.snapshot());
    return await now.verify(askedSeq);
  }

  async close(): Promise<void> {
    if (this.#refusalTimer !== null) clearTimeout(this.#refusalTimer);
    if (this.#syncTimer !== null) clearTimeout(this.#syncTimer);
    await this.#writeCounted(this.#refusals.endAll());
    await this.#inTurn(async () => {
      await this.#file.sync().catch(() => null);
      await this.#file.close();
    });
  }

  #entry({ id, who, from, what, target }: AuditRequest): Omit<AuditEntry, "event" | "outcome" | "ms"> {
    const at = new Date().toISOString();
    return { at, host: this.#options.host(), id, who, from, what, target, count: 1 };
  }

  /** A line of the audit about itself. */
  #own(event: "lost" | "torn" | "broken", outcome: string | null, count: number): AuditEntry {
    const at = new Date().toISOString();
    const host = this.#options.host();
    return {
      at,
      host,
      id: null,
      event,
      who: null,
      from: "audit",
      what: "audit",
      target: {},
      outcome,
      ms: null,
      count,
    };
  }

  async #writeOrCount(entry: AuditEntry): Promise<void> {
    try {
      await this.#write(entry, false);
    } catch (error) {
      this.#lost += entry.count;
      this.#options.log.error({ reason: reasonOf(error), lost: this.#lost }, "a line of the audit was lost");
    }
  }

  async #write(entry: AuditEntry, durable: boolean): Promise<void> {
    if (this.#waiting.length >= WAITING_MAX) throw new Error(`${WAITING_MAX} lines wait for the disk`);
    const written = new Promise<void>((resolve, reject) => {
      this.#waiting.push({
        entry,
        durable,
        done: (error) => (error === null ? resolve() : reject(error)),
      });
    });
    if (!this.#isDraining) {
      this.#isDraining = true;
      void this.#inTurn(() => this.#drain());
    }
    await written;
  }

  async #drain(): Promise<void> {
    try {
      while (this.#waiting.length > 0) await this.#writeBatch(this.#waiting.splice(0));
    } finally {
      this.#isDraining = false;
    }
  }

  async #writeBatch(batch: readonly Waiting[]): Promise<void> {
    const durable = batch.some((waiting) => waiting.durable);
    try {
      const damage = await this.#file.ready();
      const lost = this.#lost;
      const first = [
        ...(damage === null ? [] : [this.#damaged(damage)]),
        ...(lost === 0 ? [] : [this.#own("lost", null, lost)]),
      ];
      const lines = await this.#file.append([...first, ...batch.map(({ entry }) => entry)], durable);
      this.#lost -= lost;
      this.#lines += lines.length;
      this.#isFailing = false;
      for (const line of lines) this.#copy(line);
      for (const { done } of batch) done(null);
      if (!durable) this.#armSync();
    } catch (error) {
      const failure = error instanceof Error ? error : new Error(String(error));
      this.#isFailing = true;
      for (const { done } of batch) done(failure);
    }
  }

  #damaged(damage: Damage): AuditEntry {
    const { log, directory } = this.#options;
    if (damage.kind === "torn") {
      log.warn({ bytes: damage.bytes }, "the audit ended within a line, which was cut");
      return this.#own("torn", `${damage.bytes} bytes`, 1);
    }
    this.#isDamaged = true;
    log.error(
      { code: "E-AUDIT-02", directory },
      "the audit's file was changed by somebody; it was set aside",
    );
    return this.#own("broken", "E-AUDIT-02", 1);
  }

  #copy(line: AuditLine): void {
    const severity = line.event === "refused" || line.who === null ? "warning" : "notice";
    this.#options.syslog?.send(severity, renderAuditLine(line), new Date(line.at));
  }

  #armSync(): void {
    this.#syncTimer ??= setTimeout(() => {
      this.#syncTimer = null;
      void this.#inTurn(() => this.#file.sync()).catch((error: unknown) => {
        this.#options.log.error({ reason: reasonOf(error) }, "the audit's last lines may be lost");
      });
    }, SYNC_MS).unref();
  }

  #armRefusals(): void {
    if (this.#refusalTimer !== null) return;
    const due = this.#refusals.nextEndMs;
    if (due === null) return;
    this.#refusalTimer = setTimeout(
      () => {
        this.#refusalTimer = null;
        const counted = this.#refusals.end(Date.now());
        this.#armRefusals();
        void this.#writeCounted(counted);
      },
      // One that ends later may be joined by one that ends sooner.
      Math.min(REFUSALS_MS, Math.max(0, due - Date.now())),
    ).unref();
  }

  async #writeCounted(counted: readonly Counted[]): Promise<void> {
    const at = new Date().toISOString();
    const host = this.#options.host();
    await Promise.all(
      counted.map(({ source, count }) =>
        this.#writeOrCount({
          at,
          host,
          id: null,
          event: "refused",
          who: null,
          from: source,
          what: "more of them",
          target: {},
          outcome: null,
          ms: null,
          count,
        }),
      ),
    );
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work, work);
    this.#turn = mine.catch(() => null);
    return mine;
  }
}
