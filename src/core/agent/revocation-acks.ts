/**
 * What each host says about a revocation: that its agent and its weftd refuse the host and have cut it, and that its etcd,
 * if it has one, has no connection of it any more.
 *
 * Must always hold:
 * - it says so after it is so, and of this host only;
 * - it says so in the end: also after a restart in between, however late weftd follows, and again where somebody deleted it;
 * - it is signed by the host's own key, and believed by the key that the trust list has: until it is cut off, the revoked
 *   host itself can write every key of the store.
 */
import { z } from "zod";

import type { HostId } from "../model/ids.ts";
import type { Trust } from "../model/trust.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { openOfHost } from "../wire/signed-trust.ts";
import { keys } from "../wire/store-keys.ts";
import type { IdentityKeeper } from "./identity.ts";
import type { Log } from "./log.ts";
import type { Changed, Mirror } from "./mirror.ts";
import { readValue } from "./store-value.ts";
import { Wake } from "./wake.ts";

/** Events tell; this is for those that were missed. */
const LOOK_MS = 200;
/** Who asked has stopped waiting long before: from then on it is looked as often as this. */
const EAGER_MS = 60_000;
const LATE_LOOK_MS = 3000;
const IDLE_MS = 60_000;
/** Whoever begins anew says what it did of revocations that are no older: the one who asks again may wait for it. */
const RECENT_MS = 7 * 24 * 3600_000;

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
  const body = openOfHost(trust, by, "revocation-ack", text);
  const ack = body === null ? null : readValue(signedJson, body);
  return ack !== null && ack.revoked === revoked && ack.by === by ? ack : null;
}

export type RevocationAcksOptions = {
  readonly store: Pick<StoreClient, "put">;
  /** Shows what stands in the store: every host can delete it. */
  readonly mirror: Pick<Mirror, "get" | "onChange">;
  readonly identity: IdentityKeeper;
  readonly log: Log;
  /** Ends what the host has open at this agent. */
  readonly cut: (host: HostId) => void;
  /** Generation of the list that weftd goes by, and has on its disk; null: it doesn't answer. */
  readonly daemonGeneration: () => Promise<bigint | null>;
  /** Whether this host's etcd was started after the revocation; null: it has none. */
  readonly isStoreCut: () => Promise<boolean | null>;
};

/** `generation`: of a list that has the revocation. `said`: what was written last, and not seen to go. */
type Duty = {
  readonly generation: bigint;
  readonly sinceMs: number;
  said: string | null;
  isDone: boolean;
};

export class RevocationAcks {
  readonly #options: RevocationAcksOptions;
  readonly #wake = new Wake();
  readonly #duties = new Map<HostId, Duty>();
  readonly #forget: readonly (() => void)[];
  #isStopped = false;

  /** It begins at once: with the revocations that happened while this agent was down, too. */
  constructor(options: RevocationAcksOptions) {
    this.#options = options;
    const { identity, mirror, log } = options;
    this.#forget = [
      identity.onChange((change) => {
        if (change.kind === "trust") this.#follow(change.before, change.after);
      }),
      mirror.onChange((changed) => this.#check(changed)),
    ];
    const { revoked } = identity.trust();
    this.#add(Array.from(revoked.keys()).filter((host) => isRecent(revoked.get(host)?.atMs ?? 0)));
    this.#run().catch((error: unknown) => log.error({ error: reasonOf(error) }, "revocation: a bug"));
  }

  /** weftd has another list, or this host's etcd was started again. */
  nudge(): void {
    this.#wake.nudge();
  }

  stop(): void {
    this.#isStopped = true;
    for (const forget of this.#forget) forget();
    this.#wake.nudge();
  }

  #follow(before: Trust, after: Trust): void {
    const fresh = Array.from(after.revoked.keys()).filter((host) => !before.revoked.has(host));
    for (const host of fresh) this.#options.cut(host);
    this.#add(fresh);
  }

  #add(hosts: readonly HostId[]): void {
    const { generation } = this.#options.identity.trust();
    const sinceMs = performance.now();
    for (const host of hosts) this.#duties.set(host, { generation, sinceMs, said: null, isDone: false });
    if (hosts.length > 0) this.#wake.nudge();
  }

  /** What this host wrote and what somebody deleted, or wrote over, is written again. */
  #check(changed: Changed): void {
    const { identity } = this.#options;
    for (const [host, duty] of this.#duties) {
      const isChanged = changed?.has(keys.revocationBy(host, identity.host)) ?? true;
      if (duty.said === null || !isChanged) continue;
      const shown = this.#shown(host);
      if (shown !== null && JSON.stringify(shown) === duty.said) continue;
      duty.said = null;
      duty.isDone = false;
      // However often somebody does that.
      this.#wake.nudgeIn(LOOK_MS);
    }
  }

  #shown(host: HostId): Ack | null {
    const { mirror, identity } = this.#options;
    const entry = mirror.get(keys.revocationBy(host, identity.host));
    const ack = entry === null ? null : readAck(identity.trust(), entry.value, host, identity.host);
    return ack === null ? null : { agent: ack.agent, weftd: ack.weftd, member: ack.member };
  }

  #signed(ack: Ack, revoked: HostId): string {
    const { identity } = this.#options;
    return identity.sign("revocation-ack", JSON.stringify({ ...ack, revoked, by: identity.host }));
  }

  async #run(): Promise<void> {
    let complaint = "";
    while (!this.#isStopped) {
      const due = Array.from(this.#duties).filter(([, { isDone }]) => !isDone);
      try {
        if (due.length > 0) await this.#say(due);
        complaint = "";
      } catch (error) {
        // Members restart to cut the host off: the store may be without a majority for seconds, and is waited for.
        if (!isWeftError(error)) throw error;
        if (error.code !== complaint)
          this.#options.log.warn({ code: error.code }, `revocation: ${error.message}`);
        complaint = error.code;
      }
      const left = due.filter(([, { isDone }]) => !isDone);
      const isEager = left.some(([, { sinceMs }]) => performance.now() - sinceMs < EAGER_MS);
      await this.#wake.wait(left.length === 0 ? IDLE_MS : isEager ? LOOK_MS : LATE_LOOK_MS);
    }
  }

  async #say(due: readonly (readonly [HostId, Duty])[]): Promise<void> {
    const { store, identity, daemonGeneration, isStoreCut } = this.#options;
    // One that is out itself is believed by nobody.
    if (!identity.trust().hosts.has(identity.host)) return;
    const [known, member] = [await daemonGeneration(), await isStoreCut()];
    for (const [host, duty] of due) {
      const ack: Ack = { agent: true, weftd: known !== null && known >= duty.generation, member };
      const text = JSON.stringify(ack);
      const isThere = text === duty.said || text === JSON.stringify(this.#shown(host));
      // Before it is written: if it goes while its answer is under way, that is seen.
      duty.said = text;
      duty.isDone = ack.weftd && member !== false;
      if (isThere) continue;
      try {
        await store.put(keys.revocationBy(host, identity.host), this.#signed(ack, host));
      } catch (error) {
        duty.said = null;
        duty.isDone = false;
        throw error;
      }
    }
  }
}

function isRecent(atMs: number): boolean {
  return Date.now() - atMs < RECENT_MS;
}
