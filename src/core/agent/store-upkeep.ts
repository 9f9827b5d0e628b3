/**
 * Space of the store: compaction and defragmenting when it runs short, and the alarm cleared afterwards.
 *
 * Must always hold:
 * - one member at a time is defragmented: it answers nothing meanwhile;
 * - an alarm is cleared only after space was made; a CORRUPT alarm is never cleared by us.
 */
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { StoreMembers } from "../wire/store-members.ts";
import type { Log } from "./log.ts";

const LOOK_MS = 30_000;
/** Below this a file isn't worth the pause. */
const WORTH_BYTES = 64n << 20n;
const DEFRAG_EVERY_MS = 10 * 60_000;

export class Upkeep {
  readonly #members: StoreMembers;
  readonly #store: StoreClient;
  readonly #log: Log;
  #lookedAt = -LOOK_MS;
  #defraggedAt = -DEFRAG_EVERY_MS;

  constructor(members: StoreMembers, store: StoreClient, log: Log) {
    this.#members = members;
    this.#store = store;
    this.#log = log;
  }

  /** By the placer, often; works every 30 s. */
  async look(endpoints: readonly string[]): Promise<void> {
    const now = performance.now();
    if (now - this.#lookedAt < LOOK_MS) return;
    this.#lookedAt = now;
    const alarms = (await this.#members.alarms()).filter(({ alarm }) => alarm === "NOSPACE");
    if (alarms.length > 0) await this.#makeSpace(endpoints, alarms);
    else if (now - this.#defraggedAt >= DEFRAG_EVERY_MS) await this.#defragOne(endpoints, now);
  }

  async #makeSpace(
    endpoints: readonly string[],
    alarms: readonly { readonly member: string; readonly alarm: string }[],
  ): Promise<void> {
    this.#log.error({ alarms }, "the store's quota is used up: history is dropped and its files are shrunk");
    const { revision } = await this.#store.list(keys.store);
    await this.#members.compact(revision);
    for (const endpoint of endpoints) await this.#members.defragment(endpoint);
    for (const { member, alarm } of alarms) await this.#members.disarm(member, alarm);
  }

  /** The first whose file is mostly empty. */
  async #defragOne(endpoints: readonly string[], now: number): Promise<void> {
    for (const endpoint of endpoints) {
      const status = await this.#members.statusOf(endpoint);
      if (status === null || status.dbBytes < WORTH_BYTES || status.dbBytesInUse * 2n > status.dbBytes)
        continue;
      this.#log.info({ endpoint, bytes: String(status.dbBytes) }, "a member of the store is defragmented");
      await this.#members.defragment(endpoint);
      this.#defraggedAt = now;
      return;
    }
  }
}
