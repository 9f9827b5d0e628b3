/**
 * Gives room back before writes have to wait for it: of the deleted volumes with a copy in a pool of this host that is
 * nearly full, and of those of which the head is, the one that was deleted first is given up before its 24 h are over (architecture.md, "Trash").
 *
 * Must always hold:
 * - one volume at a time, and the next only where its going has not been enough;
 * - one that is being restored stays: the decision is lost where its wish has changed meanwhile.
 */
import { GO_ON_PERCENT } from "../model/limits.ts";
import type { PoolInfo } from "../wire/daemon.gen.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { type VolumeFacts, volumesOf } from "./facts.ts";
import { deletionOf } from "./find.ts";
import type { Log } from "./log.ts";
import type { Mirror } from "./mirror.ts";
import { Rounds } from "./rounds.ts";

export type RoomKeeperOptions = {
  readonly mirror: Mirror;
  readonly store: StoreClient;
  readonly log: Log;
};

export class RoomKeeper {
  readonly #options: RoomKeeperOptions;
  readonly #rounds: Rounds;
  #pools: readonly PoolInfo[] = [];

  constructor(options: RoomKeeperOptions) {
    this.#options = options;
    this.#rounds = new Rounds("room", options.log, () => this.#look());
  }

  /** What weftd says of its pools now. */
  async heard(pools: readonly PoolInfo[]): Promise<void> {
    this.#pools = pools;
    await this.#rounds.settle();
  }

  async #look(): Promise<void> {
    const { mirror, store, log } = this.#options;
    for (const { pool, path } of this.#pools.filter(isShort)) {
      const there = volumesOf(mirror).filter((volume) => rests(volume, pool));
      // One that is going may be enough.
      if (there.some(({ id }) => mirror.get(keys.emptyTrash(id)) !== null)) continue;
      const [first] = there.toSorted((a, b) => deletedAt(a) - deletedAt(b));
      if (first === undefined || first.wantEntry === null) continue;
      const { key, modRevision } = first.wantEntry;
      const value = JSON.stringify({ at: new Date().toISOString(), for: pool });
      const { kind } = await store.txn(
        [{ key, modRevision }],
        [{ kind: "put", key: keys.emptyTrash(first.id), value }],
      );
      if (kind === "succeeded")
        log.warn({ volume: first.id, pool, path }, "the pool is nearly full: a deleted volume is given up");
    }
  }
}

function isShort({ state, free, total }: PoolInfo): boolean {
  return (
    state === "serving" && total !== "0" && BigInt(free) * 100n <= BigInt(total) * BigInt(100 - GO_ON_PERCENT)
  );
}

function rests({ want, record, made }: VolumeFacts, pool: string): boolean {
  if (want === null || record === null) return false;
  const isDeleted = want.deletedAtMs !== null && record.deletedAtMs !== null;
  // What only its head has can be given back as well.
  const isHeadDeleted = want.headDeletedAtMs !== null && record.head?.data === "kept";
  return (isDeleted || isHeadDeleted) && made.some((copy) => copy.pool === pool);
}

function deletedAt({ want }: VolumeFacts): number {
  return want === null ? 0 : (deletionOf(want) ?? 0);
}
