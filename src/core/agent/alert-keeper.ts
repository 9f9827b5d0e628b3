/**
 * Tells the hypervisors' pool of trouble, once, and when it is over (core/model/alerts.ts). One agent of the cluster does: the
 * one that places. What was said stands in the store, so that the next one doesn't say it again. That the store itself has no
 * majority nobody can write there: each agent that misses it tells the pool, which knows whether it was told.
 *
 * Must always hold:
 * - it is noted after it was said: who ends in between says it twice rather than never;
 * - what others wrote into the store counts only if it can be read, and fails nothing.
 */
import { z } from "zod";

import {
  type AlertFacts,
  type AlertKind,
  alertKinds,
  type KnownAlert,
  type Message,
  STORE_AWAY_AFTER_MS,
  STORE_BACK_MESSAGE,
  stepAlerts,
  storeAwayMessage,
  troublesOf,
} from "../model/alerts.ts";
import type { HostId } from "../model/ids.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import { instant } from "../wire/json-types.ts";
import type { Entry, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import type { Log } from "./log.ts";
import { aliveOf } from "./facts.ts";
import type { Mirror } from "./mirror.ts";
import { xapiHostsOf } from "./sr-facts.ts";
import { clusterStatus } from "./status.ts";
import { readValue } from "./store-value.ts";
import { Wake } from "./wake.ts";

/** Where alerts go. */
export type AlertSink = {
  /** UUIDs of the pool's hosts; null: nobody can say, so nobody left it. */
  readonly hosts: () => Promise<ReadonlySet<string> | null>;
  /** What it throws is said again later. */
  readonly say: (messages: readonly Message[]) => Promise<void>;
  /** Once in the pool, whoever asks and however often. False: somebody is saying it just now; it is asked again. */
  readonly sayAway: (message: Message) => Promise<boolean>;
  /** Who said so, by the UUID that the pool knows it by; null: nobody did. */
  readonly away: () => Promise<{ readonly host: string; readonly isUp: boolean } | null>;
  readonly sayBack: (message: Message) => Promise<void>;
};

export type AlertKeeperOptions = {
  readonly store: StoreClient;
  /** Of this host. */
  readonly name: string;
  readonly isPlacer: () => boolean;
  readonly isStoreUp: () => boolean;
  /** Whether the host that the pool knows by this UUID reaches the store; true where nobody knows it. */
  readonly reachesStore: (poolHost: string) => boolean;
  /** Null: not known now. */
  readonly facts: (poolHosts: ReadonlySet<string> | null) => Promise<AlertFacts | null>;
  readonly sink: AlertSink;
  readonly nowMs?: () => number;
  readonly log: Log;
};

/** What a member knows of it. */
export async function alertFacts(
  context: MemberContext,
  poolHosts: ReadonlySet<string> | null,
): Promise<AlertFacts | null> {
  const status = await clusterStatus(context);
  if (status.kind !== "cluster" || !status.store.writable) return null;
  const { volumes, problems, hosts } = status;
  const uuids = xapiHostsOf(context.mirror);
  const left = hosts.filter(({ id }) => {
    const uuid = uuids.get(id as HostId);
    return poolHosts !== null && uuid !== undefined && !poolHosts.has(uuid);
  });
  return {
    volumes: volumes.map(({ name, health }) => ({ name, health })),
    problems,
    ejected: left.map(({ name }) => name),
    stopping: context.mirror.entries(keys.stopWaits).flatMap(({ value }) => {
      const found = readValue(stopWaitJson, value);
      return found === null ? [] : [{ host: found.name, why: found.why }];
    }),
  };
}

/** Whether the host of that UUID has its lease; true where it is of none that the store knows. */
export function reachesStore(mirror: Mirror, poolHost: string): boolean {
  const ids = Array.from(xapiHostsOf(mirror)).flatMap(([id, uuid]) => (uuid === poolHost ? [id] : []));
  const alive = aliveOf(mirror);
  return ids.length === 0 || ids.some((id) => alive.has(id));
}

const stopWaitJson = z.looseObject({ name: z.string().max(256), why: z.string().max(4096) });
const LOOK_MS = 15_000;
/** Somebody else may have said that the store is away. */
const ASK_MS = 60_000;

const alertJson = z.looseObject({ since: instant, said: z.boolean() });

export class AlertKeeper {
  readonly #options: AlertKeeperOptions;
  readonly #wake = new Wake();
  readonly #stop = new AbortController();
  #isStarted = false;
  #awaySinceMs: number | null = null;
  #isAwaySaid = false;
  #askedAtMs: number | null = null;

  constructor(options: AlertKeeperOptions) {
    this.#options = options;
  }

  start(): void {
    if (this.#isStarted) return;
    this.#isStarted = true;
    void this.#run();
  }

  /** What is being said is not waited for. */
  stop(): void {
    this.#stop.abort();
    this.#wake.nudge();
  }

  async #run(): Promise<void> {
    const { log } = this.#options;
    while (!this.#stop.signal.aborted) {
      await this.#wake.wait(LOOK_MS);
      if (this.#stop.signal.aborted) continue;
      try {
        await this.lookForStore();
        if (this.#options.isPlacer()) await this.look();
      } catch (error) {
        // XAPI or the store is away: the next look says it.
        if (isWeftError(error)) log.debug({ code: error.code }, "alerts wait");
        else log.warn({ reason: reasonOf(error) }, "alerts were not said, and are later");
      }
    }
  }

  /** Every agent: a store without a majority is told by those who miss it, and its return by who places. */
  async lookForStore(): Promise<void> {
    const { name, sink, isStoreUp, isPlacer, reachesStore, nowMs = Date.now } = this.#options;
    const now = nowMs();
    if (!isStoreUp()) {
      this.#askedAtMs = null;
      const since = this.#awaySinceMs;
      // A clock that was set back begins anew, rather than waiting for years.
      this.#awaySinceMs = since === null || since > now ? now : since;
      if (!this.#isAwaySaid && now - this.#awaySinceMs >= STORE_AWAY_AFTER_MS)
        this.#isAwaySaid = await sink.sayAway(storeAwayMessage(name));
      return;
    }
    this.#awaySinceMs = null;
    this.#isAwaySaid = false;
    const asked = this.#askedAtMs;
    if (!isPlacer() || (asked !== null && asked <= now && now - asked < ASK_MS)) return;
    const said = await sink.away();
    this.#askedAtMs = now;
    // Who is cut off alone would say it again at once; who is off says nothing any more.
    if (said !== null && (!said.isUp || reachesStore(said.host))) await sink.sayBack(STORE_BACK_MESSAGE);
  }

  /** One look, and what is due. */
  async look(): Promise<void> {
    const { store, facts, sink, nowMs = Date.now } = this.#options;
    const found = await facts(await sink.hosts().catch(() => null));
    if (found === null) return;
    const entries = (await store.list(keys.alerts)).entries;
    const known = entries.flatMap(knownOf);
    const { keep, say } = stepAlerts(known, troublesOf(found), nowMs());
    if (say.length > 0) await sink.say(say);
    for (const { kind, known: now } of keep) {
      const key = keys.alert(kind);
      if (now === null) await store.delete(key);
      else {
        const value = { format: 1, since: new Date(now.sinceMs).toISOString(), said: now.said };
        await store.put(key, JSON.stringify(value));
      }
    }
  }
}

function knownOf({ key, value }: Entry): readonly KnownAlert[] {
  const kind = key.slice(keys.alerts.length);
  const parsed = readValue(alertJson, value);
  if (parsed === null || !isKind(kind)) return [];
  return [{ kind, sinceMs: Date.parse(parsed.since), said: parsed.said }];
}

function isKind(text: string): text is AlertKind {
  return alertKinds.some((kind) => kind === text);
}
