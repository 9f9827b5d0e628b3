/**
 * Tells the cluster what images of snapshots take in the pools of this host, and what of them is damaged, so that any host can
 * show it and a list asks nobody.
 *
 * Must always hold:
 * - damage is told at once; of bytes a change of 1 % within seconds, a smaller one within a minute;
 * - nothing is written for a snapshot that has no key, and nothing stays of one that has none any more.
 */
import { z } from "zod";

import { type HostId, parseRid, parseSnapshotId, parseVolumeId } from "../model/ids.ts";
import type { Rid, SnapshotId, VolumeId } from "../model/ids.ts";
import { memberOf } from "../model/volume-record.ts";
import type { ImageInfo } from "../wire/daemon.gen.ts";
import { u64 } from "../wire/json-types.ts";
import type { Entry, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { volumeOf } from "./facts.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import type { Log } from "./log.ts";
import type { Mirror } from "./mirror.ts";
import { Rounds } from "./rounds.ts";
import { readValue } from "./store-value.ts";

const SMALL_CHANGE_MS = 60_000;

const imageJson = z.object({
  host: z.string(),
  own: u64,
  damaged: u64.default(0n),
});

/** One copy's image, as its host said it last. */
export type ImageFacts = {
  readonly rid: Rid;
  /** Bytes that its own files take. */
  readonly ownBytes: bigint;
  /** Regions that can't be read there any more. */
  readonly damagedRegions: bigint;
};

/** Of a volume's snapshots, as far as their hosts have said something. */
export function imagesOf(mirror: Mirror, volume: VolumeId): ReadonlyMap<SnapshotId, readonly ImageFacts[]> {
  const found = new Map<SnapshotId, ImageFacts[]>();
  for (const entry of mirror.entries(keys.images(volume))) {
    const place = placeOf(entry);
    const told = readValue(imageJson, entry.value);
    if (place === null || told === null) continue;
    const image = { rid: place.rid, ownBytes: told.own, damagedRegions: told.damaged };
    found.set(place.snapshot, [...(found.get(place.snapshot) ?? []), image]);
  }
  return found;
}

/** Bytes that one copy's image takes; null: its host has not said. */
export function ownBytesOf(mirror: Mirror, volume: VolumeId, rid: Rid, snapshot: SnapshotId): bigint | null {
  const entry = mirror.get(keys.image(volume, rid, snapshot));
  return entry === null ? null : (readValue(imageJson, entry.value)?.own ?? null);
}

export type SnapshotImagesOptions = {
  readonly host: HostId;
  readonly mirror: Mirror;
  readonly store: StoreClient;
  readonly daemon: Pick<LocalDaemon, "client">;
  readonly log: Log;
};

export class SnapshotImages {
  readonly #options: SnapshotImagesOptions;
  readonly #rounds: Rounds;
  /** When each image's bytes were told. */
  readonly #toldAt = new Map<string, number>();

  constructor(options: SnapshotImagesOptions) {
    this.#options = options;
    this.#rounds = new Rounds("images", options.log, () => this.#look());
  }

  /** Returns when what has changed was told. */
  async settle(): Promise<void> {
    await this.#rounds.settle();
  }

  async #look(): Promise<void> {
    const { images } = await this.#options.daemon.client.call("image.list", {});
    for (const image of images)
      if (image.state === "ready" || image.state === "destroyed") await this.#tell(image);
    await this.#forget();
  }

  async #tell({ volume, rid, snap, own_bytes: own, damaged }: ImageInfo): Promise<void> {
    const { host, mirror, store, log } = this.#options;
    const key = keys.image(volume, rid, snap);
    const named = mirror.get(keys.snapshot(volume, snap));
    const before = mirror.get(key);
    const told = before === null ? null : readValue(imageJson, before.value);
    const now = { host, own: BigInt(own), damaged: BigInt(damaged) };
    if (named === null || !this.#isNews(key, now, told)) return;
    if (now.damaged > (told?.damaged ?? 0n))
      log.warn({ volume, rid, snapshot: snap, regions: damaged }, "a snapshot is damaged in this copy");
    const outcome = await store.txn(
      [{ key: named.key, modRevision: named.modRevision }],
      [{ kind: "put", key, value: JSON.stringify({ host, own, damaged }) }],
    );
    if (outcome.kind === "succeeded") this.#toldAt.set(key, performance.now());
  }

  #isNews(
    key: string,
    { own, damaged }: z.output<typeof imageJson>,
    told: z.output<typeof imageJson> | null,
  ): boolean {
    if (told === null || damaged !== told.damaged) return true;
    if (own === told.own) return false;
    const [less, more] = own < told.own ? [own, told.own] : [told.own, own];
    const age = performance.now() - (this.#toldAt.get(key) ?? -Infinity);
    return (more - less) * 100n >= more || age >= SMALL_CHANGE_MS;
  }

  /** What this host has told of snapshots that are gone, or of a copy that is none any more. */
  async #forget(): Promise<void> {
    const { host, mirror, store } = this.#options;
    for (const entry of mirror.entries(keys.volumes)) {
      const place = placeOf(entry);
      if (place === null || readValue(imageJson, entry.value)?.host !== host) continue;
      const { volume, rid, snapshot } = place;
      const { record } = volumeOf(mirror, volume);
      const isNamed = mirror.get(keys.snapshot(volume, snapshot)) !== null;
      // A record that can't be read now may name it still.
      if (isNamed && (record === null || memberOf(record, rid) !== null)) continue;
      this.#toldAt.delete(entry.key);
      await store.delete(entry.key);
    }
  }
}

type ImagePlace = { readonly volume: VolumeId; readonly rid: Rid; readonly snapshot: SnapshotId };

/** Null: it is no image's key. */
function placeOf({ key }: Pick<Entry, "key">): ImagePlace | null {
  const [of = "", part, number, snap, ...rest] = key.slice(keys.volumes.length).split("/");
  if (part !== "image" || snap === undefined || rest.length > 0) return null;
  const [volume, rid, snapshot] = [parseVolumeId(of), parseRid(Number(number)), parseSnapshotId(snap)];
  return volume === null || rid === null || snapshot === null ? null : { volume, rid, snapshot };
}
