/**
 * This host's sign of life in the store, and the election of the agent that places.
 *
 * Must always hold:
 * - the lease is a hint: nothing of data's safety rests on it (architecture.md, "Records");
 * - whoever believes to be the placer still changes things only by compare-and-swap: two of them do no harm.
 */
import type { HostId } from "../model/ids.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { Log } from "./log.ts";
import { Wake } from "./wake.ts";

const LEASE_SECONDS = 10;
const RENEW_MS = 3000;

export type PresenceOptions = {
  readonly store: StoreClient;
  readonly host: HostId;
  readonly log: Log;
  /** The store answers, or it doesn't. Told when it changes, and once at the start. */
  readonly onStore: (up: boolean) => void;
  readonly onPlacer: (isPlacer: boolean) => void;
};

export class Presence {
  readonly #options: PresenceOptions;
  readonly #stop = new AbortController();
  readonly #wake = new Wake();
  #lease: bigint | null = null;
  #up: boolean | null = null;
  #placer = false;
  /** Somebody deleted this host's key while its lease lived on. */
  #unseen = false;
  #running: Promise<void> | null = null;

  constructor(options: PresenceOptions) {
    this.#options = options;
  }

  get isPlacer(): boolean {
    return this.#placer;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  /** The placer's key went away: try now. */
  nudge(): void {
    this.#wake.nudge();
  }

  /** This host's own key went away. Any host can delete it: it is put again. */
  unseen(): void {
    this.#unseen = true;
    this.#wake.nudge();
  }

  /** Ends the lease, so that others needn't wait for its end. */
  async stop(): Promise<void> {
    this.#stop.abort();
    this.#wake.nudge();
    await this.#running;
    if (this.#lease !== null && this.#up === true) {
      const { call } = this.#options.store;
      const brief = new StoreClient({ endpoints: call.endpoints, patienceMs: 300, tls: call.tls });
      await brief.revokeLease(this.#lease).catch((error: unknown) => {
        this.#options.log.warn({ reason: reasonOf(error) }, "the lease was left to expire");
      });
    }
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        await this.#renew();
        this.#tell(true);
        this.#tellPlacer(await this.#tryPlacer());
      } catch (error) {
        if (!isWeftError(error)) throw error;
        if (this.#up !== false) this.#options.log.warn({ code: error.code }, error.message);
        this.#tell(false);
        this.#tellPlacer(false);
      }
      if (!this.#stop.signal.aborted) await this.#wake.wait(RENEW_MS);
    }
  }

  async #renew(): Promise<void> {
    const { store, host } = this.#options;
    const isKept = this.#lease !== null && (await store.keepLease(this.#lease));
    if (isKept && !this.#unseen) return;
    if (!isKept || this.#lease === null) this.#lease = await store.grantLease(LEASE_SECONDS);
    this.#unseen = false;
    try {
      await store.put(keys.alive(host), JSON.stringify({ since: new Date().toISOString() }), this.#lease);
    } catch (error) {
      this.#unseen = true;
      throw error;
    }
  }

  async #tryPlacer(): Promise<boolean> {
    const { store, host } = this.#options;
    const holder = await store.get(keys.placer);
    if (holder !== null) return holder.lease === this.#lease;
    if (this.#lease === null) return false;
    const outcome = await store.txn(
      [{ key: keys.placer, modRevision: 0n }],
      [{ kind: "put", key: keys.placer, value: JSON.stringify({ host }), lease: this.#lease }],
    );
    return outcome.kind === "succeeded";
  }

  #tell(up: boolean): void {
    if (this.#up === up) return;
    this.#up = up;
    this.#options.onStore(up);
  }

  #tellPlacer(isPlacer: boolean): void {
    if (this.#placer === isPlacer) return;
    this.#placer = isPlacer;
    this.#options.log.info({ isPlacer }, isPlacer ? "this agent places" : "this agent places no more");
    this.#options.onPlacer(isPlacer);
  }
}
