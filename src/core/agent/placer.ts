/**
 * What only the elected agent does: where lost copies are made anew, and which surplus goes.
 *
 * Must always hold: it changes `want` only, by compare-and-swap on what it decided from.
 */
import type { Cluster } from "../model/cluster.ts";
import type { VolumeId } from "../model/ids.ts";
import type { LivenessState } from "../model/liveness.ts";
import { decideRebuild, type Rebuild } from "../model/redundancy.ts";
import { markRemoved, withPlace } from "../model/replica-change.ts";
import type { VolumeRecord, Want } from "../model/volume-record.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import { renderWant } from "../wire/record.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { type VolumeFacts, volumeOf, volumesOf } from "./facts.ts";
import type { Log } from "./log.ts";
import type { Mirror } from "./mirror.ts";

/** Between looks without an event: deadlines are of minutes. */
const LOOK_MS = 5000;

export type PlacerOptions = {
  readonly store: StoreClient;
  readonly mirror: Mirror;
  readonly log: Log;
  readonly cluster: () => Cluster;
  readonly liveness: () => LivenessState;
  readonly isPlacer: () => boolean;
  readonly rebuildAfterMs: number | null;
};

export class Placer {
  readonly #options: PlacerOptions;
  #timer: NodeJS.Timeout | null = null;
  #forget: (() => void) | null = null;
  #looking = false;
  #again = false;

  constructor(options: PlacerOptions) {
    this.#options = options;
  }

  start(): void {
    this.#forget = this.#options.mirror.onChange(() => this.nudge());
    this.#timer = setInterval(() => this.nudge(), LOOK_MS);
  }

  stop(): void {
    this.#forget?.();
    if (this.#timer !== null) clearInterval(this.#timer);
  }

  rebuildOf({ want, record }: VolumeFacts, now: number): Rebuild {
    if (want === null || record === null) return { kind: "none" };
    return decideRebuild(this.#input(want, record), now);
  }

  nudge(): void {
    this.#again = true;
    if (this.#looking || !this.#options.isPlacer()) return;
    this.#looking = true;
    this.#look()
      .catch((error: unknown) => {
        if (isWeftError(error)) this.#options.log.warn({ code: error.code }, error.message);
        else this.#options.log.error({ error: reasonOf(error) }, "placing: a bug");
      })
      .finally(() => {
        this.#looking = false;
      });
  }

  async #look(): Promise<void> {
    while (this.#again) {
      this.#again = false;
      for (const { id } of volumesOf(this.#options.mirror)) await this.#lookAt(id);
    }
  }

  async #lookAt(id: VolumeId): Promise<void> {
    const { mirror, store, log } = this.#options;
    const facts = volumeOf(mirror, id);
    const { want, record, wantEntry } = facts;
    if (want === null || record === null || wantEntry === null) return;
    const rebuild = this.rebuildOf(facts, Date.now());
    if (rebuild.kind !== "place" && rebuild.kind !== "drop") return;
    const next = rebuild.kind === "place" ? withPlace(want, record, rebuild) : markRemoved(want, rebuild.rid);
    const outcome = await store.cas(wantEntry.key, wantEntry.modRevision, renderWant(next, wantEntry.value));
    if (outcome.kind === "won") log.info({ volume: id, rebuild: rebuild.kind }, "the wanted places changed");
  }

  #input(want: Want, record: VolumeRecord): Parameters<typeof decideRebuild>[0] {
    const { cluster, liveness, rebuildAfterMs } = this.#options;
    return {
      want,
      record,
      cluster: cluster(),
      store: liveness().store,
      ...(rebuildAfterMs === null ? {} : { rebuildAfterMs }),
    };
  }
}
