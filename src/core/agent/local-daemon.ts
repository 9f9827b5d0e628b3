/**
 * This host's weftd, as its agent cares for it: configured after each connection, its pools and resyncs made known.
 *
 * Must always hold:
 * - it asks the store only after this agent has confirmed which one is the cluster's;
 * - what it says of pools and progress is display and placement only; no safety rests on it;
 * - what it says of pools last is what weftd said last.
 */
import type { HostId } from "../model/ids.ts";
import { DaemonClient, type DaemonEvent } from "../wire/daemon-client.ts";
import type { Hello, PeerRefused, PoolInfo, SessionStatus } from "../wire/daemon.gen.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { HostFile } from "./host-file.ts";
import type { Log } from "./log.ts";

/** Free space is looked at this often; events tell of states at once. */
const USAGE_MS = 10_000;
/** A resync's progress in the store: one value a volume, at most this often. */
const PROGRESS_MS = 2000;
const PROGRESS_LEASE_SECONDS = 10;

const CONFIRM_AGAIN_MS = 1000;

/** It answers from memory. */
const SHOW_MS = 2000;

/** The generation of its list, and the end of its certificate's validity. */
export type DaemonIdentity = { readonly generation: bigint; readonly notAfterMs: number };

export type LocalDaemonOptions = { readonly socketPath: string; readonly log: Log };

export type DaemonDuties = {
  readonly self: HostFile;
  readonly host: HostId;
  readonly store: StoreClient;
  /** The whole device under the pool at a path; null: none. */
  readonly deviceOf: (path: string) => { readonly path: string; readonly kind: "xfs" | "lvm-thin" } | null;
  /** It answers (again): whatever failed meanwhile may work now. */
  readonly onBack: () => void;
  /** What it says of its pools, every few seconds and when something changed. */
  readonly onPools: (pools: readonly PoolInfo[]) => void;
  /** A session here changed. */
  readonly onSession: (session: SessionStatus) => void;
  /** It goes by another trust list, which is on its disk. */
  readonly onTrust: () => void;
  /** Generation of the trust list by which the store is known to be the cluster's; null: it is not. */
  readonly confirmed: () => bigint | null;
  /** Its list is older than that one: puts this agent's into the file that it reads. */
  readonly keepTrust: () => Promise<void>;
  /** It refused a peer at its data port, or was refused by one. */
  readonly onPeerRefused: (refused: PeerRefused) => void;
};

export class LocalDaemon {
  readonly client: DaemonClient;
  readonly #log: Log;
  #duties: DaemonDuties | null = null;
  #endpoints: readonly string[] = [];
  #connected = false;
  #usage = new Map<string, string>();
  #publishing: Promise<void> = Promise.resolve();
  #usageTimer: NodeJS.Timeout | null = null;
  #confirmTimer: NodeJS.Timeout | null = null;
  readonly #progressAt = new Map<string, number>();
  #hello: Hello | null = null;

  constructor({ socketPath, log }: LocalDaemonOptions) {
    this.#log = log;
    this.client = new DaemonClient({
      socketPath,
      onEvent: (event) => this.#background("event", this.#onEvent(event)),
      onConnection: (connected) => {
        this.#connected = connected;
        if (connected) this.#background("connect", this.#onBack());
        else this.#hello = null;
      },
    });
  }

  get hello(): Hello | null {
    return this.#hello;
  }

  /** From now on this host is a member. */
  async begin(duties: DaemonDuties): Promise<void> {
    this.#duties = duties;
    this.#endpoints = duties.self.etcd;
    this.#usageTimer = setInterval(() => this.#background("usage", this.publishPools()), USAGE_MS);
    if (this.#connected) await this.#onBack();
  }

  end(): void {
    this.#duties = null;
    if (this.#usageTimer !== null) clearInterval(this.#usageTimer);
    if (this.#confirmTimer !== null) clearTimeout(this.#confirmTimer);
  }

  close(): void {
    this.end();
    this.client.close();
  }

  async setEndpoints(endpoints: readonly string[]): Promise<void> {
    this.#endpoints = endpoints;
    if (!this.#connected) return;
    await this.client.call("store.endpoints", { endpoints });
  }

  /** This host has another certificate: from now on weftd shows that one. Where it is away it reads it when it comes back. */
  async reloadIdentity(): Promise<void> {
    if (!this.#connected || this.#duties === null) return;
    await this.client.call("identity.reload", {});
  }

  /**
   * Whether it may ask the store. Tried again until weftd knows: it asks nothing before. One that doesn't know the command is of
   * a version that asks at once.
   */
  async tellConfirmed(): Promise<void> {
    if (this.#confirmTimer !== null) clearTimeout(this.#confirmTimer);
    this.#confirmTimer = null;
    const duties = this.#duties;
    if (!this.#connected || duties === null) return;
    try {
      await this.#confirm(duties).catch(async (error: unknown) => {
        if (!isWeftError(error, "E-TRUST-02")) throw error;
        await duties.keepTrust();
        await this.client.call("identity.reload", {});
        await this.#confirm(duties);
      });
    } catch (error) {
      if (isWeftError(error, "E-ARG-01")) return;
      if (this.#duties !== null)
        this.#confirmTimer = setTimeout(
          () => this.#background("which store is the cluster's", this.tellConfirmed()),
          CONFIRM_AGAIN_MS,
        ).unref();
      throw error;
    }
  }

  async #confirm({ confirmed }: DaemonDuties): Promise<void> {
    const generation = confirmed();
    await this.client.call("store.confirm", { generation: generation === null ? null : String(generation) });
  }

  /** What weftd goes by, as far as it is on its disk; null: it doesn't answer, or has no identity. */
  async identity(): Promise<DaemonIdentity | null> {
    if (!this.#connected) return null;
    try {
      const shown = await this.client.call("identity.show", {}, SHOW_MS);
      const generation = shown.durable ? BigInt(shown.generation) : 0n;
      return { generation, notAfterMs: Number(shown.not_after) * 1000 };
    } catch (error) {
      if (isWeftError(error)) return null;
      throw error;
    }
  }

  /** Free space and state of each pool, where they changed. One after the other: an older answer never goes last. */
  async publishPools(): Promise<void> {
    const publishing = this.#publishing.then(() => this.#publishPools());
    this.#publishing = publishing.catch(() => undefined);
    return publishing;
  }

  async #publishPools(): Promise<void> {
    const duties = this.#duties;
    if (duties === null || !this.#connected) return;
    const { pools } = await this.client.call("pool.list", {});
    for (const pool of pools) await this.#publishPool(duties, pool);
    duties.onPools(pools);
  }

  async #onBack(): Promise<void> {
    this.#hello = await this.client.call("hello", {});
    const duties = this.#duties;
    if (duties === null) return;
    const { cluster, host, name, address } = duties.self;
    await this.client.call("configure", { cluster, host, name, address, endpoints: this.#endpoints });
    // What it was told before it was away, or by an agent before this one, stays; that it may not is said when that changes.
    if (duties.confirmed() !== null) await this.tellConfirmed();
    this.#hello = await this.client.call("hello", {});
    this.#usage = new Map();
    await this.publishPools();
    duties.onBack();
  }

  async #onEvent(event: DaemonEvent): Promise<void> {
    const duties = this.#duties;
    if (duties === null) return;
    switch (event.event) {
      case "pool.changed":
        await this.publishPools();
        return;
      case "session.changed":
        duties.onSession(event.data);
        await this.#publishProgress(duties, event.data);
        return;
      case "store.changed":
        if (event.data.rolled_back)
          this.#log.error({}, "weftd: the store has gone back in time; nothing opens");
        return;
      case "trust.changed":
        this.#log.info({ generation: event.data.generation }, "weftd obeys a new trust list");
        duties.onTrust();
        return;
      case "peer.refused":
        duties.onPeerRefused(event.data);
    }
  }

  async #publishPool({ store, deviceOf }: DaemonDuties, pool: PoolInfo): Promise<void> {
    const { state, reason, free, total, room, bit_rot: bitRot, bit_rot_left: bitRotLeft } = pool;
    const { no_snapshots: noSnapshots } = pool;
    const device = deviceOf(pool.path);
    // Free space in steps of 1 %: every write of a guest changes it, the store needn't know.
    const step = BigInt(total) / 100n;
    const rounded = step === 0n ? BigInt(free) : (BigInt(free) / step) * step;
    const value = JSON.stringify({
      free: String(rounded),
      total,
      state,
      reason,
      device: device?.path ?? null,
      ...(device === null ? {} : { deviceKind: device.kind }),
      bitRot,
      bitRotLeft,
      noSnapshots,
      room,
    });
    if (this.#usage.get(pool.pool) === value) return;
    await store.put(keys.poolUsage(pool.pool), value);
    this.#usage.set(pool.pool, value);
  }

  async #publishProgress({ store, host }: DaemonDuties, session: SessionStatus): Promise<void> {
    const { volume, resync } = session;
    const last = this.#progressAt.get(volume);
    const now = performance.now();
    if (resync === null) {
      if (last === undefined) return;
      this.#progressAt.delete(volume);
      await store.delete(keys.progress(volume));
      return;
    }
    if (last !== undefined && now - last < PROGRESS_MS) return;
    this.#progressAt.set(volume, now);
    const { rid, copied_bytes: copied, total_bytes: total } = resync;
    const lease = await store.grantLease(PROGRESS_LEASE_SECONDS);
    await store.put(keys.progress(volume), JSON.stringify({ host, rid, copied, total }), lease);
  }

  #background(what: string, work: Promise<void>): void {
    work.catch((error: unknown) => {
      if (isWeftError(error)) this.#log.warn({ code: error.code }, `weftd, ${what}: ${error.message}`);
      else this.#log.error({ error: reasonOf(error) }, `weftd, ${what}: a bug`);
    });
  }
}
