/**
 * Brings to the copies of this host the snapshots that others have and they have not, one after the other.
 *
 *     lacked here ──snapshot.fetch, by this host's weftd──▶ all of it is durable ──add-snapshot-copy, by the owner──▶ listed
 *         ▲                    │ refused: later                        │ refused: later
 *         └────────────────────┴───────────────────────────────────────┘
 *
 * Must always hold:
 * - a copy is named by a snapshot's key only after its weftd has said that all of it is there and durable;
 * - a restart of this agent or of weftd loses nothing but time: what is lacked is read from the store.
 */
import { z } from "zod";

import type { Cluster } from "../model/cluster.ts";
import { type HostId, parseHostId, parseSnapshotId, type SnapshotId } from "../model/ids.ts";
import {
  copyKey,
  dueSnapshotCopies,
  type Refusal,
  type SnapshotCopy,
  type SnapshotCopyInput,
} from "../model/snapshot-copy.ts";
import type { SnapshotFetched } from "../wire/daemon.gen.ts";
import { isWeftError } from "../wire/errors.ts";
import { u32, u64 } from "../wire/json-types.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys, parseKey } from "../wire/store-keys.ts";
import { snapshotsOf, volumesOf } from "./facts.ts";
import { hasWant } from "./find.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import type { Log } from "./log.ts";
import type { Changed, Mirror } from "./mirror.ts";
import { Rounds } from "./rounds.ts";
import { readValue } from "./store-value.ts";

/** Whether something is lacked by now; what changed in the store is looked at sooner. */
const LOOK_MS = 10_000;
/** How far it is, while one is under way. */
const PROGRESS_MS = 2000;
const PROGRESS_LEASE_SECONDS = 10;

export type SnapshotKeeperOptions = {
  readonly host: HostId;
  readonly mirror: Mirror;
  readonly store: StoreClient;
  readonly daemon: Pick<LocalDaemon, "client">;
  readonly cluster: () => Cluster;
  /** `snapshots.copy` of the settings. */
  readonly isOn: () => boolean;
  /** By the volume's owner, wherever that is: from now on the snapshot's key names this copy. */
  readonly add: (copy: SnapshotCopy) => Promise<void>;
  readonly log: Log;
};

const underWayJson = z.object({ snapshot: z.string(), rid: u32, done: u64, total: u64 });
const resyncJson = z.object({ host: z.string(), rid: u32 });

/** As their hosts said some seconds ago. */
export function copiesUnderWay(mirror: Mirror): readonly {
  readonly host: HostId;
  readonly snapshot: SnapshotId;
  readonly doneBytes: bigint;
  readonly totalBytes: bigint;
}[] {
  return mirror.entries(keys.snapshotCopies).flatMap(({ key, value }) => {
    const host = parseHostId(key.slice(keys.snapshotCopies.length));
    const told = readValue(underWayJson, value);
    const snapshot = told === null ? null : parseSnapshotId(told.snapshot);
    if (host === null || told === null || snapshot === null) return [];
    return [{ host, snapshot, doneBytes: told.done, totalBytes: told.total }];
  });
}

export class SnapshotKeeper {
  readonly #options: SnapshotKeeperOptions;
  readonly #rounds: Rounds;
  readonly #refusals = new Map<string, Refusal>();
  /** The one under way, by its key. */
  #current: string | null = null;
  #forget: (() => void) | null = null;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: SnapshotKeeperOptions) {
    this.#options = options;
    this.#rounds = new Rounds("snapshots", options.log, () => this.#look());
  }

  start(): void {
    this.#forget ??= this.#options.mirror.onChange((changed) => {
      if (this.#isAboutSnapshots(changed)) this.nudge();
    });
    this.nudge();
  }

  stop(): void {
    this.#forget?.();
    this.#forget = null;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  /** Facts changed, or weftd is back. */
  nudge(): void {
    if (this.#forget !== null) void this.settle();
  }

  /** Returns when what can be done at once was done. */
  async settle(): Promise<void> {
    await this.#rounds.settle();
  }

  async #look(): Promise<void> {
    let waitMs = LOOK_MS;
    try {
      waitMs = await this.#step();
    } finally {
      this.#again(waitMs);
    }
  }

  /** Returns when to look again. */
  async #step(): Promise<number> {
    const [first, ...rest] = this.#due();
    // The one that is under way goes on, unless nobody lacks it any more.
    const copy = [first, ...rest].find((one) => one !== undefined && copyKey(one) === this.#current) ?? first;
    if (copy === undefined) {
      await this.#tellNone();
      return LOOK_MS;
    }
    this.#current = copyKey(copy);
    const { volume, snapshot: id, rid } = copy;
    try {
      const found = await this.#options.daemon.client.call("snapshot.fetch", { volume, id, rid });
      if (found.state === "running") {
        await this.#tell(copy, found);
        return PROGRESS_MS;
      }
      await this.#options.add(copy);
      this.#options.log.info({ volume, snapshot: id, rid }, "a snapshot was brought to this copy");
      this.#refusals.delete(this.#current);
    } catch (error) {
      if (!isWeftError(error)) throw error;
      this.#refused(copy, error.code, error.message);
    }
    await this.#tellNone();
    return 0;
  }

  #due(): readonly SnapshotCopy[] {
    const { host, mirror, cluster, isOn } = this.#options;
    if (!isOn()) return [];
    const volumes = volumesOf(mirror)
      .filter(hasWant)
      .flatMap(({ id, want, record }): SnapshotCopyInput["volumes"] =>
        record === null || record.replicas.every((member) => member.host !== host)
          ? []
          : [{ want, record, snapshots: snapshotsOf(mirror, id).known }],
      );
    const input = { host, cluster: cluster(), volumes, refusals: this.#refusals };
    return dueSnapshotCopies({ ...input, isResyncing: this.#isResyncing(volumes) }, Date.now());
  }

  /** By a session of this host, or to a copy of it. */
  #isResyncing(volumes: SnapshotCopyInput["volumes"]): boolean {
    const { host, mirror } = this.#options;
    return mirror.entries(keys.resyncs).some(({ key, value }) => {
      const told = readValue(resyncJson, value);
      if (told === null) return false;
      const record = volumes.find((one) => keys.progress(one.record.volume) === key)?.record;
      const member = record?.replicas.find(({ rid }) => rid === told.rid);
      return told.host === host || member?.host === host;
    });
  }

  #refused(copy: SnapshotCopy, code: string, message: string): void {
    const { volume, snapshot, rid } = copy;
    const key = copyKey(copy);
    const times = (this.#refusals.get(key)?.times ?? 0) + 1;
    this.#refusals.set(key, { times, atMs: Date.now() });
    const line = `a snapshot is not brought to this copy now: ${message}`;
    this.#options.log[times === 1 ? "warn" : "debug"]({ volume, snapshot, rid, code, times }, line);
    this.#forgetGone();
  }

  /** Of snapshots and copies that are gone nothing is remembered. */
  #forgetGone(): void {
    const { mirror } = this.#options;
    const lacking = new Set(
      volumesOf(mirror).flatMap(({ id, record }) =>
        snapshotsOf(mirror, id).known.flatMap(({ id: snapshot }) =>
          (record?.replicas ?? []).map(({ rid }) => copyKey({ volume: id, snapshot, rid })),
        ),
      ),
    );
    for (const key of this.#refusals.keys()) if (!lacking.has(key)) this.#refusals.delete(key);
  }

  async #tell({ snapshot, rid }: SnapshotCopy, { done_bytes, total_bytes }: SnapshotFetched): Promise<void> {
    const { store, host } = this.#options;
    const lease = await store.grantLease(PROGRESS_LEASE_SECONDS);
    const value = JSON.stringify({ snapshot, rid, done: done_bytes, total: total_bytes });
    await store.put(keys.snapshotCopy(host), value, lease);
  }

  async #tellNone(): Promise<void> {
    const { mirror, store, host } = this.#options;
    this.#current = null;
    if (mirror.get(keys.snapshotCopy(host)) !== null) await store.delete(keys.snapshotCopy(host));
  }

  #isAboutSnapshots(changed: Changed): boolean {
    if (changed === null) return true;
    return [...changed].some((key) => {
      // The end of a resync.
      if (key.startsWith(keys.resyncs)) return this.#options.mirror.get(key) === null;
      const kind = parseKey(key)?.kind;
      return kind === "snapshot" || kind === "state" || key === keys.settings;
    });
  }

  #again(waitMs: number): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = this.#forget === null ? null : setTimeout(() => this.nudge(), waitMs);
  }
}
