/**
 * Snapshots after a loss of the store: named again from what copies keep beside their images.
 *
 * Must always hold:
 * - a snapshot that was reported is named again as soon as one copy that tells has its image (protocol.md R27);
 * - what any copy knows to be deleted goes, also where a backup of the store still has it;
 * - who has it are copies of the volume's record alone.
 */
import { z } from "zod";

import type { HostId, VolumeId } from "../model/ids.ts";
import { bestSnapshots, type CopyImages, isGoing, type KeptImage } from "../model/repair.ts";
import type { VolumeRecord } from "../model/volume-record.ts";
import type * as daemonTypes from "../wire/daemon.gen.ts";
import { u32, u64, uuid } from "../wire/json-types.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { Mirror } from "./mirror.ts";
import { readValue } from "./store-value.ts";

const decimal = z.string().regex(/^(0|[1-9][0-9]{0,19})$/);
const noteJson = z.object({
  name: z.string(),
  created: decimal,
  created_by: z.string(),
  group: uuid.nullable().default(null),
});
const imageJson = z.object({
  snap: uuid,
  attempt: decimal,
  generation: decimal,
  epoch: decimal,
  incarnation: decimal,
  size: decimal,
  region_shift: z.int(),
  state: z.enum(["prepared", "ready", "deleting", "destroyed"]),
  note: noteJson.nullable(),
});
/** What one copy tells: a value for each, for a thousand snapshots are a third of what the store takes at once. */
const copyJson = z.object({
  ask: uuid,
  volume: uuid,
  rid: u32,
  images: z.array(imageJson).max(4096),
  gone: z.array(z.object({ snap: uuid, attempt: u64 })).max(65_536),
});
/** A snapshot's key, as far as a repair makes one like it. */
const keyJson = z
  .object({
    id: uuid,
    name: z.string(),
    gen: decimal,
    attempt: decimal,
    epoch: decimal,
    incarnation: decimal,
    size: decimal,
    region_shift: z.int(),
    created: decimal,
    created_by: z.string(),
    group: z.object({ id: uuid }).nullable().default(null),
    members: z.array(z.object({ rid: u32, node: uuid, pool: uuid })),
  })
  .transform(({ id, gen, name, created, created_by, group, members, ...rest }) => ({
    members,
    image: {
      ...rest,
      snap: id,
      generation: gen,
      state: "deleting",
      note: { name, created, created_by, group: group?.id ?? null },
    },
  }));

type Image = KeptImage & { readonly json: daemonTypes.KeptImage };
type Copy = CopyImages<Image>;

/** Into the store, for who asks: what the copies of this host that tell keep of snapshots. */
export async function tellImages(
  store: StoreClient,
  { host, ask }: { readonly host: HostId; readonly ask: string },
  records: readonly daemonTypes.KeptRecord[],
): Promise<void> {
  for (const { volume, rid, images, gone } of records) {
    if (images.length + gone.length === 0) continue;
    await store.put(keys.repairImages(host, volume, rid), JSON.stringify({ ask, volume, rid, images, gone }));
  }
}

/** The keys to be made or taken back of these volumes' snapshots, by what the hosts that answered tell. */
export function snapshotsToRepair(
  mirror: Mirror,
  ask: string,
  records: readonly VolumeRecord[],
): readonly daemonTypes.RepairSnapshot[] {
  const told = copiesTold(mirror, ask);
  return records.flatMap((record) => {
    const copies = told.get(record.volume) ?? [];
    const best = bestSnapshots(copies);
    const named = best.flatMap(
      ({ image, isGoing: goes, isDestroyed, rids }): daemonTypes.RepairSnapshot[] => {
        const members = record.replicas
          .filter(({ rid }) => rids.includes(rid))
          .map(({ rid, host, pool }) => ({ rid: rid as number, node: host, pool }));
        if (members.length === 0) return [];
        const state = goes ? "deleting" : isDestroyed ? "destroyed" : "ready";
        return [{ volume: record.volume, image: { ...image.json, state }, members }];
      },
    );
    // A backup of the store may be older than a deletion that no image tells of any more.
    const stored = mirror.entries(keys.snapshots(record.volume)).flatMap((entry) => {
      const key = readValue(keyJson, entry.value);
      if (key === null || named.some(({ image }) => image.snap === key.image.snap)) return [];
      const { snap, attempt } = key.image;
      return isGoing(copies, { snap, attempt: BigInt(attempt) })
        ? [{ volume: record.volume, ...key } as daemonTypes.RepairSnapshot]
        : [];
    });
    return [...named, ...stored];
  });
}

export async function forgetImages(store: StoreClient): Promise<void> {
  await store.txn([], [{ kind: "delete-prefix", prefix: keys.allRepairImages }]);
}

function copiesTold(mirror: Mirror, ask: string): ReadonlyMap<VolumeId, readonly Copy[]> {
  const told = new Map<VolumeId, Copy[]>();
  for (const { value } of mirror.entries(keys.allRepairImages)) {
    const copy = readValue(copyJson, value);
    if (copy === null || copy.ask !== ask) continue;
    const volume = copy.volume as VolumeId;
    const images = copy.images.map((json): Image => ({
      snap: json.snap,
      attempt: BigInt(json.attempt),
      generation: BigInt(json.generation),
      state: json.state,
      isNoted: json.note !== null,
      json,
    }));
    const rid = copy.rid as Copy["rid"];
    told.set(volume, [...(told.get(volume) ?? []), { rid, images, gone: copy.gone }]);
  }
  return told;
}
