/**
 * Whether this host may ask the store. One that was off or cut off can't tell by what a store shows whether it is the
 * cluster's still: a member that was revoked meanwhile has the authority's key and all of the store's keys, and can serve both at
 * its old address.
 *
 *     unconfirmed ──the hosts that it knew agree which list is in force (agreed-trust.ts)──▶ confirmed
 *          ▲                                    └─ or the operator says so                     │
 *          └───────────────── the store is away, and so are those hosts, for 10 s ─────────────┘
 *
 * Must always hold:
 * - while it is not confirmed nothing is asked of the store and nothing of it is believed, by weftd neither: it is away;
 * - whom it needs to hear are as many as the store itself needs: where a store can be, it is confirmed within a second or two;
 * - a silent minority of voters is waited for a little: it may be those who know better.
 */
import type { Finding } from "../model/finding.ts";
import { finding } from "../model/finding.ts";
import { REBUILD_AFTER_MS } from "../model/limits.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import type { Followed, Following } from "./ask-members.ts";
import type { IdentityKeeper } from "./identity.ts";
import type { Log } from "./log.ts";
import { Wake } from "./wake.ts";

/** Who has not answered by then says nothing: a host that is switched off never does. */
const ROUND_MS = 1500;
/** Between two rounds while it is not confirmed. */
const AGAIN_MS = 500;
/** For voters that are silent, of which the others don't need any. */
const PATIENCE_MS = 3000;
/** What hosts said while the store is away is worth so long: long enough for two rounds of the rescue. */
const WORTH_MS = 10_000;
const TICK_MS = 1000;
/** While the store serves, the others are asked all the same: it may be that one alone of its members serves this host. */
const WATCH_MS = 10_000;
/** After so long a member that is away is replaced by another host (membership.ts): before half of it a vote is nobody else's. */
const RECENT_MS = REBUILD_AFTER_MS / 2;
const SEE_MS = 60_000;
/** `weft status` says what is missing after this. */
const TELL_MS = 10_000;

export type ConfirmationOptions = {
  readonly identity: IdentityKeeper;
  readonly isAway: () => boolean;
  /** Asks voters or all hosts which list is in force, and follows it where they agree. */
  readonly follow: (asked: "voters" | "all", how: Following) => Promise<Followed>;
  /** When this host had the store last, by the wall clock, as its disk says it; null: it doesn't know. */
  readonly seenMs: () => Promise<number | null>;
  readonly see: (nowMs: number) => Promise<void>;
  readonly onChange: (confirmed: boolean) => void;
  readonly log: Log;
  /** This host has just proven or made the cluster that it is in. */
  readonly confirmed: boolean;
  /** Shorter in tests. */
  readonly patienceMs?: number;
  readonly worthMs?: number;
};

export class Confirmation {
  readonly #options: ConfirmationOptions;
  readonly #wake = new Wake();
  #confirmed: boolean;
  /** When it was confirmed last, or began to ask. */
  #atMs = performance.now();
  #watchedMs = performance.now();
  #sawMs = -Infinity;
  #why = "nobody has said yet which store is the cluster's";
  #said: string | null = null;
  #looking: Promise<void> | null = null;
  #running: Promise<void> | null = null;
  #stopped = false;

  constructor(options: ConfirmationOptions) {
    this.#options = options;
    this.#confirmed = options.confirmed;
  }

  get isConfirmed(): boolean {
    return this.#confirmed;
  }

  /** Why the store is not asked; null: it is. */
  forbidden(): string | null {
    return this.#confirmed ? null : this.#why;
  }

  /** Resolves after the first round. */
  async start(): Promise<void> {
    if (!this.#confirmed) await this.#try();
    this.#running ??= this.#run();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#wake.nudge();
    await this.#running;
  }

  /** One round now. Throws E-TRUST-06 where hosts contradict each other, E-HOST-14 where one says that this host was revoked. */
  look(): Promise<void> {
    this.#looking ??= this.#look().finally(() => {
      this.#looking = null;
    });
    return this.#looking;
  }

  /** The operator's word for those that don't answer. E-TRUST-06 where others contradict each other: that has to end first. */
  async vouch(): Promise<void> {
    if (this.#confirmed) return;
    const { agreed } = await this.#options.follow("all", await this.#how());
    if (agreed.kind === "forked") throw WeftError.fromFinding(agreed.finding);
    this.#options.log.warn(
      {},
      "the operator says that the store is the cluster's, for hosts that don't answer",
    );
    this.#set(true);
  }

  /** E-TRUST-07 while it is not confirmed. */
  refuseUnconfirmed(): void {
    if (!this.#confirmed) throw WeftError.fromFinding(unconfirmed(this.#why));
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      await this.#wake.wait(this.#confirmed ? TICK_MS : AGAIN_MS);
      if (this.#stopped) return;
      if (!this.#confirmed) await this.#try();
      else if (!this.#options.isAway()) await this.#watch();
      else if (performance.now() - this.#atMs > (this.#options.worthMs ?? WORTH_MS)) this.#set(false);
    }
  }

  /** What the store says while it serves is worth as much as what hosts say, but for a look at those now and then. */
  async #watch(): Promise<void> {
    this.#atMs = performance.now();
    if (this.#atMs - this.#watchedMs < WATCH_MS) return;
    this.#watchedMs = this.#atMs;
    await this.#guarded(async () => {
      if (this.#atMs - this.#sawMs >= SEE_MS) {
        this.#sawMs = this.#atMs;
        await this.#options.see(Date.now());
      }
      await this.#options.follow("voters", await this.#how());
    });
  }

  async #how(): Promise<Following> {
    const seenMs = await this.#options.seenMs();
    const sinceMs = seenMs === null ? Infinity : Date.now() - seenMs;
    return { roundMs: ROUND_MS, isRecent: sinceMs >= 0 && sinceMs < RECENT_MS };
  }

  async #try(): Promise<void> {
    await this.#guarded(() => this.look());
    const { identity, log } = this.#options;
    if (this.#confirmed || performance.now() - this.#atMs < TELL_MS) return;
    if (this.#said !== this.#why) log.warn({ code: "E-TRUST-07" }, this.#why);
    this.#said = this.#why;
    if (identity.refused?.code !== "E-TRUST-06") identity.doubt(unconfirmed(this.#why));
  }

  async #guarded(work: () => Promise<void>): Promise<void> {
    const { log } = this.#options;
    await work().catch((error: unknown) => {
      if (!isWeftError(error)) log.error({ error: reasonOf(error) }, "which store is the cluster's: a bug");
    });
  }

  async #look(): Promise<void> {
    const { identity, follow, patienceMs = PATIENCE_MS } = this.#options;
    const { agreed, refusal } = await follow("all", await this.#how());
    switch (agreed.kind) {
      case "forked":
        this.#why = agreed.finding.message;
        identity.doubt(agreed.finding);
        throw WeftError.fromFinding(agreed.finding);
      case "too-few": {
        const { backing, needed } = agreed;
        this.#why = `${backing} of the hosts that this one knew as the store's say which trust list is in force, ${needed} have to`;
        break;
      }
      case "agreed":
        if (this.#confirmed || agreed.all || performance.now() - this.#atMs >= patienceMs) this.#set(true);
        else this.#why = "members of the store that this host knew are silent, and are waited for a little";
    }
    if (refusal !== null) throw refusal;
  }

  #set(confirmed: boolean): void {
    if (this.#stopped) return;
    this.#atMs = performance.now();
    if (confirmed) this.#options.identity.undoubt("E-TRUST-07");
    if (this.#confirmed === confirmed) return;
    this.#confirmed = confirmed;
    this.#said = null;
    const { log, onChange } = this.#options;
    if (confirmed) log.info({}, "the hosts that this one knew say which store is the cluster's");
    else
      log.warn(
        {},
        "the store and its hosts are silent: it is asked again when they say that it is the cluster's",
      );
    onChange(confirmed);
  }
}

function unconfirmed(why: string): Finding {
  return finding("E-TRUST-07", `This host was off or cut off, and does not ask the store yet: ${why}.`, {
    safe: "Nothing is believed of the store until then. What is open here goes on.",
    do: [
      { why: "Switch the others on. Where they are gone for good", command: "weft store repair --assent" },
    ],
  });
}
