/**
 * Tells the cluster what each copy on this host takes of its pool, so that any host can show it and a list asks nobody.
 *
 * Must always hold:
 * - a change of 1 % is told within seconds, a smaller one within a minute: the store is no place for every write;
 * - nothing is written for a copy that is not made: the key goes with its volume.
 */
import { z } from "zod";

import type { StoreClient } from "../wire/store-client.ts";
import { u64 } from "../wire/json-types.ts";
import { keys } from "../wire/store-keys.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import type { Log } from "./log.ts";
import type { Mirror } from "./mirror.ts";
import { Rounds } from "./rounds.ts";
import { readValue } from "./store-value.ts";

const SMALL_CHANGE_MS = 60_000;

export type UsedKeeperOptions = {
  readonly mirror: Mirror;
  readonly store: StoreClient;
  readonly daemon: Pick<LocalDaemon, "client">;
  readonly log: Log;
};

const usedJson = z.object({ used: u64 });

/** Bytes, as its host said it last; null: it has not yet. */
export function usedOf(mirror: Mirror, volume: string, rid: number): bigint | null {
  const entry = mirror.get(keys.used(volume, rid));
  return entry === null ? null : (readValue(usedJson, entry.value)?.used ?? null);
}

export class UsedKeeper {
  readonly #options: UsedKeeperOptions;
  readonly #rounds: Rounds;
  /** When each copy's figure was told. */
  readonly #toldAt = new Map<string, number>();

  constructor(options: UsedKeeperOptions) {
    this.#options = options;
    this.#rounds = new Rounds("used", options.log, () => this.#look());
  }

  /** Returns when what has changed was told. */
  async settle(): Promise<void> {
    await this.#rounds.settle();
  }

  async #look(): Promise<void> {
    const { mirror, store, daemon } = this.#options;
    const { replicas } = await daemon.client.call("replica.list", {});
    for (const { volume, rid, used } of replicas) {
      const made = mirror.get(keys.made(volume, rid));
      if (used === null || made === null) continue;
      const key = keys.used(volume, rid);
      if (!this.#isNews(key, BigInt(used), usedOf(mirror, volume, rid))) continue;
      const compare = [{ key: made.key, modRevision: made.modRevision }];
      const { kind } = await store.txn(compare, [{ kind: "put", key, value: JSON.stringify({ used }) }]);
      if (kind === "succeeded") this.#toldAt.set(key, performance.now());
    }
    const here = new Set(replicas.map(({ volume, rid }) => keys.used(volume, rid)));
    for (const key of this.#toldAt.keys()) if (!here.has(key)) this.#toldAt.delete(key);
  }

  #isNews(key: string, used: bigint, told: bigint | null): boolean {
    if (told === null || used === told) return told === null;
    const change = used > told ? used - told : told - used;
    const most = used > told ? used : told;
    const age = performance.now() - (this.#toldAt.get(key) ?? -Infinity);
    return change * 100n >= most || age >= SMALL_CHANGE_MS;
  }
}
