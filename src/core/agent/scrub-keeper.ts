/**
 * Scrubs: whoever owns a volume whose copies shall be compared has its weftd do it, and writes down what came of it. The
 * placer asks for those that are due.
 *
 *     want.scrub ──owner's session (a guest's, or a caretaker's)──▶ scrub.start … ended ──▶ vol/…/scrub, and the wish goes
 *
 * Must always hold:
 * - what was found is written in the transaction that takes the wish back: it is told once, and never lost;
 * - a restart of this agent, or another owner, begins nothing that nobody asks for any more.
 */
import { randomUUID } from "node:crypto";

import { isAlive } from "../model/cluster.ts";
import type { Cluster } from "../model/cluster.ts";
import { byText, parseSessionId, parseVolumeId } from "../model/ids.ts";
import type { HostId, VolumeId } from "../model/ids.ts";
import { dueScrubs, type ScrubAsk, type ScrubSettings, scrubStep, type Scrubbable } from "../model/scrub.ts";
import { insync, type Want } from "../model/volume-record.ts";
import type { ScrubStatus, SessionStatus } from "../wire/daemon.gen.ts";
import {
  parseScrubResult,
  parseWant,
  renderScrubResult,
  renderWant,
  type ScrubResult,
} from "../wire/record.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys, parseKey } from "../wire/store-keys.ts";
import { readable, type VolumeFacts, volumeOf, volumesOf } from "./facts.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import type { Log } from "./log.ts";
import type { Changed, Mirror } from "./mirror.ts";
import { changeWant } from "./perform.ts";
import { Rounds } from "./rounds.ts";

/** While one runs here: how far it is, and whether it has ended should an event be missed. */
const LOOK_MS = 2000;
const PROGRESS_LEASE_SECONDS = 10;
/** Turns are of days. */
const SCHEDULE_MS = 30_000;

export type ScrubKeeperOptions = {
  readonly host: HostId;
  readonly mirror: Mirror;
  readonly store: StoreClient;
  readonly daemon: Pick<LocalDaemon, "client">;
  readonly cluster: () => Cluster;
  readonly isPlacer: () => boolean;
  readonly settings: () => ScrubSettings;
  readonly log: Log;
};

export class ScrubKeeper {
  readonly #options: ScrubKeeperOptions;
  readonly #rounds: Rounds;
  #forget: (() => void) | null = null;
  readonly #timers: NodeJS.Timeout[] = [];
  /** There may be a scrub here that must be looked after. */
  #hasWork = true;

  constructor(options: ScrubKeeperOptions) {
    this.#options = options;
    this.#rounds = new Rounds("scrub", options.log, () => this.#look());
  }

  start(): void {
    this.#forget ??= this.#options.mirror.onChange((changed) => {
      if (this.#isAboutUs(changed)) this.nudge();
      if (changed?.has(keys.settings) === true) this.schedule();
    });
    const look = (): void => {
      if (this.#hasWork) void this.settle();
    };
    this.#timers.push(
      setInterval(look, LOOK_MS),
      setInterval(() => this.schedule(), SCHEDULE_MS),
    );
    this.nudge();
  }

  stop(): void {
    this.#forget?.();
    this.#forget = null;
    for (const timer of this.#timers) clearInterval(timer);
  }

  /** What weftd says of a session here: often, and seldom about a scrub. */
  heard({ volume, scrub }: SessionStatus): void {
    const id = parseVolumeId(volume);
    const ask = id === null ? null : (volumeOf(this.#options.mirror, id).want?.scrub ?? null);
    if (ask !== null || scrub?.state === "running") this.nudge();
  }

  /** A wish or an owner changed, a session's scrub did, or weftd is back. */
  nudge(): void {
    this.#hasWork = true;
    if (this.#forget !== null) void this.settle();
  }

  /** Every session here does what is asked for in the mirror, as far as weftd answers. */
  settle(): Promise<void> {
    return this.#rounds.settle();
  }

  async #look(): Promise<void> {
    const { daemon, mirror, host } = this.#options;
    const { sessions } = await daemon.client.call("session.list", {});
    const open = sessions.filter(({ phase }) => phase === "serving" || phase === "paused");
    // A session that is still being opened is not among them, and its event may have come before the record did.
    let hasWork = volumesOf(mirror).some(
      ({ want, record }) => (want?.scrub ?? null) !== null && record?.owner?.host === host,
    );
    for (const session of open) {
      const id = parseVolumeId(session.volume);
      if (id === null) continue;
      const ask = volumeOf(mirror, id).want?.scrub ?? null;
      hasWork ||= ask !== null || session.scrub?.state === "running";
      // One that fails keeps no other from its own.
      await this.#rounds.guarded(() => this.#step(id, ask, session));
    }
    this.#hasWork = hasWork;
  }

  async #step(id: VolumeId, ask: ScrubAsk | null, { session, scrub }: SessionStatus): Promise<void> {
    const { daemon, store } = this.#options;
    const sessionId = parseSessionId(session);
    if (sessionId === null) return;
    const state =
      scrub === null ? null : { state: scrub.state, rate: scrub.rate === null ? null : BigInt(scrub.rate) };
    const step = scrubStep(ask, sessionId, state);
    switch (step.kind) {
      case "none":
        if (ask !== null && scrub !== null) await this.#publish(id, scrub);
        return;
      case "begin":
        if (scrub?.state === "running") await daemon.client.call("scrub.stop", { volume: id });
        await daemon.client.call("scrub.start", { volume: id, rate: String(step.rate) });
        await changeWant(store, id, (want) =>
          want.scrub === null || want.scrub.id !== ask?.id
            ? null
            : { ...want, scrub: { ...want.scrub, session: sessionId } },
        );
        return;
      case "change-rate":
        await daemon.client.call("scrub.start", { volume: id, rate: String(step.rate) });
        return;
      case "stop":
        await daemon.client.call("scrub.stop", { volume: id });
        return;
      case "tell":
        if (ask !== null && scrub !== null) await this.#tell(id, ask, scrub);
    }
  }

  async #publish(volume: VolumeId, { done_bytes, total_bytes }: ScrubStatus): Promise<void> {
    const { store, host } = this.#options;
    const lease = await store.grantLease(PROGRESS_LEASE_SECONDS);
    const value = JSON.stringify({ host, done: done_bytes, total: total_bytes });
    await store.put(keys.scrubProgress(volume), value, lease);
  }

  async #tell(volume: VolumeId, ask: ScrubAsk, scrub: ScrubStatus): Promise<void> {
    const { mirror, store, host, log } = this.#options;
    const { record } = volumeOf(mirror, volume);
    const found = new Map(scrub.members.map((member) => [member.rid, member]));
    const members = (record?.replicas ?? [])
      .filter(({ rid, state }) => state === "INSYNC" || found.has(rid))
      .map(({ rid, host: on, pool }) => {
        const { rotten = "0", repaired = "0" } = found.get(rid) ?? {};
        return { rid, host: on, pool, rotten: BigInt(rotten), repaired: BigInt(repaired) };
      });
    const now = Date.now();
    const result: ScrubResult = {
      startedAt: new Date(Number(scrub.started)).toISOString(),
      endedAt: new Date(scrub.ended === null ? now : Number(scrub.ended)).toISOString(),
      host,
      whole: scrub.state === "done",
      comparedBytes: BigInt(scrub.compared_bytes),
      rotten: BigInt(scrub.rotten),
      repaired: BigInt(scrub.repaired),
      divergent: BigInt(scrub.divergent),
      lost: BigInt(scrub.lost),
      members,
    };
    const more = [
      { kind: "put" as const, key: keys.scrub(volume), value: renderScrubResult(result) },
      { kind: "delete" as const, key: keys.scrubProgress(volume) },
    ];
    for (;;) {
      const entry = await store.get(keys.want(volume));
      const want = entry === null ? null : parseWant(entry.key, entry.value);
      if (entry === null || want === null || want.scrub?.id !== ask.id) return;
      const next = renderWant({ ...want, scrub: null }, entry.value);
      const outcome = await store.cas(entry.key, entry.modRevision, next, more);
      if (outcome.kind === "won") break;
    }
    const { rotten, divergent, lost } = result;
    const line = { volume, rotten: `${rotten}`, divergent: `${divergent}`, lost: `${lost}` };
    log[rotten + divergent + lost > 0n ? "warn" : "info"](line, "the volume's copies were compared");
  }

  /** By the placer, often: what is due is asked for. */
  schedule(): void {
    const { mirror, isPlacer, settings, store } = this.#options;
    if (!isPlacer()) return;
    const { rate, ...rest } = settings();
    const due = dueScrubs(
      volumesOf(mirror).flatMap((facts) => this.#scrubbable(facts) ?? []),
      { rate, ...rest },
      Date.now(),
    );
    for (const volume of due) {
      void this.#rounds.guarded(async () => {
        await changeWant(store, volume, (want) => (isFree(want) ? asked(want, "schedule", rate) : null));
      });
    }
  }

  #scrubbable({ id, want, record }: VolumeFacts): Scrubbable | null {
    if (want === null || record === null || !isFree({ ...want, scrub: null })) return null;
    const cluster = this.#options.cluster();
    const owner = record.owner?.host ?? null;
    const [keeper = null] = insync(record)
      .map((member) => member.host)
      .filter((host) => isAlive(cluster, host))
      .toSorted(byText);
    const host = owner !== null && isAlive(cluster, owner) ? owner : keeper;
    if (host === null) return null;
    const last = lastScrub(this.#options.mirror, id);
    const madeMs = Math.min(...record.replicas.map(({ sinceMs }) => sinceMs ?? 0));
    const lastMs = last === null ? madeMs : Date.parse(last.endedAt);
    return { volume: id, host, isAsked: want.scrub !== null, lastMs };
  }

  #isAboutUs(changed: Changed): boolean {
    if (changed === null) return true;
    const { mirror } = this.#options;
    return [...changed].some((key) => {
      const parsed = parseKey(key);
      if (parsed?.kind !== "want" && parsed?.kind !== "state") return false;
      if (parsed.kind === "want") return true;
      const id = parseVolumeId(parsed.volume);
      return id !== null && volumeOf(mirror, id).want?.scrub !== null;
    });
  }
}

function isFree({ scrub, deletedAtMs }: Want): boolean {
  return scrub === null && deletedAtMs === null;
}

/** Asked for anew, or at another rate while it runs. */
export function asked(want: Want, by: string, rate: bigint): Want {
  const scrub = want.scrub ?? { id: randomUUID(), atMs: Date.now(), by, session: null };
  return { ...want, scrub: { ...scrub, rate } };
}

/** What the last one found; null: there was none, or what is written there can't be read. */
export function lastScrub(mirror: Mirror, volume: VolumeId): ScrubResult | null {
  const entry = mirror.get(keys.scrub(volume));
  return entry === null ? null : readable(() => parseScrubResult(entry.key, entry.value));
}
