/**
 * What each host says about a revocation: that its agent and its weftd refuse the host and have cut it, and that its etcd,
 * if it has one, has no connection of it any more.
 *
 * Must always hold:
 * - it says so after it is so, and of this host only;
 * - it is signed by the host's own key, and believed by the key that the trust list has: until it is cut off, the revoked
 *   host itself can write every key of the store.
 */
import { z } from "zod";

import type { HostId } from "../model/ids.ts";
import type { Trust } from "../model/trust.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { openByHost } from "../wire/signed.ts";
import { keys } from "../wire/store-keys.ts";
import type { IdentityKeeper } from "./identity.ts";
import type { Log } from "./log.ts";
import { readValue } from "./store-value.ts";
import { Wake } from "./wake.ts";

/** Events tell; this is for those that were missed. */
const LOOK_MS = 200;
/** Who asked has stopped waiting long before. */
const GIVE_UP_MS = 60_000;

const ackJson = z.object({
  agent: z.boolean(),
  weftd: z.boolean(),
  /** Null: the host has no member of the store. */
  member: z.boolean().nullable(),
});
type Ack = z.output<typeof ackJson>;

const signedJson = ackJson.extend({ revoked: z.string(), by: z.string() });

/** Null: the host `by` has not said, and signed, anything about this one. */
export function readAck(trust: Trust, text: string, revoked: HostId, by: HostId): Ack | null {
  const kids = (trust.hosts.get(by)?.keys ?? []).map(({ kid }) => kid);
  const body = openByHost("revocation-ack", text, kids);
  const ack = body === null ? null : readValue(signedJson, body);
  return ack !== null && ack.revoked === revoked && ack.by === by ? ack : null;
}

export type RevocationAcksOptions = {
  readonly store: StoreClient;
  readonly identity: IdentityKeeper;
  readonly log: Log;
  /** Ends what the host has open at this agent. */
  readonly cut: (host: HostId) => void;
  /** Generation of the list that weftd goes by, and has on its disk; null: it doesn't answer. */
  readonly daemonGeneration: () => Promise<bigint | null>;
  /** Whether this host's etcd was started after the revocation; null: it has none. */
  readonly isStoreCut: () => Promise<boolean | null>;
};

export class RevocationAcks {
  readonly #options: RevocationAcksOptions;
  readonly #wake = new Wake();
  readonly #forget: () => void;
  #isStopped = false;

  constructor(options: RevocationAcksOptions) {
    this.#options = options;
    this.#forget = options.identity.onChange((change) => {
      if (change.kind === "trust") this.#follow(change.before, change.after);
    });
  }

  /** weftd has another list, or this host's etcd was started again. */
  nudge(): void {
    this.#wake.nudge();
  }

  stop(): void {
    this.#isStopped = true;
    this.#forget();
    this.#wake.nudge();
  }

  #follow(before: Trust, after: Trust): void {
    const fresh = Array.from(after.revoked.keys()).filter((host) => !before.revoked.has(host));
    if (fresh.length === 0) return;
    for (const host of fresh) this.#options.cut(host);
    this.#report(fresh, after.generation).catch((error: unknown) => {
      const { log } = this.#options;
      if (isWeftError(error)) log.warn({ code: error.code }, `revocation: ${error.message}`);
      else log.error({ error: reasonOf(error) }, "revocation: a bug");
    });
  }

  #signed(ack: Ack, revoked: HostId): string {
    const { identity } = this.#options;
    return identity.sign("revocation-ack", JSON.stringify({ ...ack, revoked, by: identity.host }));
  }

  async #report(hosts: readonly HostId[], generation: bigint): Promise<void> {
    const { store, identity, daemonGeneration, isStoreCut, log } = this.#options;
    const end = performance.now() + GIVE_UP_MS;
    let said = "";
    while (!this.#isStopped && performance.now() < end) {
      const known = await daemonGeneration();
      const ack: Ack = {
        agent: true,
        weftd: known !== null && known >= generation,
        member: await isStoreCut(),
      };
      const value = JSON.stringify(ack);
      try {
        if (value !== said) {
          for (const host of hosts)
            await store.put(keys.revocationBy(host, identity.host), this.#signed(ack, host));
          said = value;
        }
        if (ack.weftd && ack.member !== false) return;
      } catch (error) {
        // Members restart to cut the host off: the store may be without a majority for seconds, and is waited for.
        if (!isWeftError(error)) throw error;
        log.warn({ code: error.code }, `revocation: ${error.message}`);
      }
      await this.#wake.wait(LOOK_MS);
    }
  }
}
