/**
 * Tells the cluster why a session of this host waits, so that whoever looks at the volume from any host reads it.
 *
 * Must always hold:
 * - what lasts no longer than a moment is not told: the store is no place for each hiccup of a copy;
 * - what is told names its session, so that what an agent could not take back is believed no longer than that owns the volume.
 */
import { z } from "zod";

import { parseSessionId, parseVolumeId, type HostId, type VolumeId } from "../model/ids.ts";
import { type Pause, pauseReason } from "../model/pause.ts";
import { type Health, healthOf } from "../model/redundancy.ts";
import type { SessionStatus } from "../wire/daemon.gen.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { snapshotsOf } from "./facts.ts";
import type { WantedVolume } from "./find.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import type { Log } from "./log.ts";
import type { Mirror } from "./mirror.ts";
import { Rounds } from "./rounds.ts";
import { readValue } from "./store-value.ts";

const LASTS_MS = 1000;
/** While one waits here: looked at again, should an event be missed or the store be away. */
const LOOK_MS = 5000;
const REASON_MAX = 500;

const pauseJson = z.object({ session: z.string(), reason: z.string(), host: z.string() });

export type PauseKeeperOptions = {
  readonly host: HostId;
  readonly mirror: Mirror;
  readonly store: StoreClient;
  readonly daemon: Pick<LocalDaemon, "client">;
  readonly log: Log;
};

/** How the volume is, with what its owner's session says of it. */
export function healthIn(
  { mirror, view }: Pick<MemberContext, "mirror" | "view">,
  { id, want, record }: Pick<WantedVolume, "id" | "want" | "record">,
): Health {
  const cluster = view.cluster();
  const refOf = (snapshot: string): string | null => {
    const found = snapshotsOf(mirror, id).known.find((one) => one.id === snapshot);
    return found === undefined ? null : `${want.name}@${found.name}`;
  };
  return healthOf(want, record, cluster, pauseReason(pauseOf(mirror, id), record, cluster, refOf));
}

function pauseOf(mirror: Mirror, volume: VolumeId): Pause | null {
  const entry = mirror.get(keys.pause(volume));
  const told = entry === null ? null : readValue(pauseJson, entry.value);
  const session = told === null ? null : parseSessionId(told.session);
  return told === null || session === null ? null : { session, reason: told.reason };
}

export class PauseKeeper {
  readonly #options: PauseKeeperOptions;
  readonly #rounds: Rounds;
  /** Since when the sessions here that wait do. */
  readonly #since = new Map<VolumeId, number>();
  #timer: NodeJS.Timeout | null = null;
  #stopped = false;

  constructor(options: PauseKeeperOptions) {
    this.#options = options;
    this.#rounds = new Rounds("pause", options.log, () => this.#look());
  }

  stop(): void {
    this.#stopped = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
  }

  /** What weftd says of a session here: often, and seldom that it waits. */
  heard(session: SessionStatus): void {
    const id = parseVolumeId(session.volume);
    if (id === null) return;
    if (waits(session) || this.#since.has(id) || this.#options.mirror.get(keys.pause(id)) !== null)
      this.nudge();
  }

  /** Something may have changed, or weftd is back. */
  nudge(): void {
    if (!this.#stopped) void this.#rounds.settle();
  }

  async #look(): Promise<void> {
    const { daemon, mirror, host } = this.#options;
    const { sessions } = await daemon.client.call("session.list", {});
    const waiting = new Map(
      sessions.flatMap((session): [VolumeId, SessionStatus][] => {
        const id = parseVolumeId(session.volume);
        return id !== null && waits(session) ? [[id, session]] : [];
      }),
    );
    for (const id of this.#since.keys()) if (!waiting.has(id)) this.#since.delete(id);
    const told = mirror.entries(keys.volumes).flatMap(({ key, value }) => {
      const id = key.endsWith("/pause") ? parseVolumeId(key.split("/")[4] ?? "") : null;
      return id !== null && readValue(pauseJson, value)?.host === host ? [id] : [];
    });
    for (const id of told)
      if (!waiting.has(id)) await this.#rounds.guarded(() => this.#options.store.delete(keys.pause(id)));
    const now = performance.now();
    for (const [id, session] of waiting) {
      const since = this.#since.get(id) ?? now;
      this.#since.set(id, since);
      if (now - since >= LASTS_MS) await this.#rounds.guarded(() => this.#tell(id, session));
    }
    this.#again(Array.from(this.#since.values(), (since) => (now - since < LASTS_MS ? LASTS_MS : LOOK_MS)));
  }

  async #tell(volume: VolumeId, { session, paused_reason }: SessionStatus): Promise<void> {
    const { mirror, store, host } = this.#options;
    const want = mirror.get(keys.want(volume));
    const key = keys.pause(volume);
    const value = JSON.stringify({ host, session, reason: (paused_reason ?? "").slice(0, REASON_MAX) });
    if (want === null || mirror.get(key)?.value === value) return;
    // It goes with its volume: nothing is left of one that is gone.
    await store.txn([{ key: want.key, modRevision: want.modRevision }], [{ kind: "put", key, value }]);
  }

  #again(delays: readonly number[]): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    if (delays.length === 0 || this.#stopped) return;
    this.#timer = setTimeout(() => this.nudge(), Math.min(...delays));
  }
}

function waits({ phase, paused_reason }: SessionStatus): boolean {
  return phase === "paused" && paused_reason !== null;
}
