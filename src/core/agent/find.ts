/** From what a person typed (a name or an identifier) to the thing, or E-ARG-01 with the nearest name. */
import { z } from "zod";

import { type HostId, parseHostId, parsePoolId, parseSnapshotId, parseUuid } from "../model/ids.ts";
import type { VolumeId } from "../model/ids.ts";
import { headDeleted } from "../model/headless.ts";
import { isShown, parseSnapshotRef, type Snapshot } from "../model/snapshot.ts";
import { suggest } from "../model/suggest.ts";
import type { Trust, TrustedHost } from "../model/trust.ts";
import type { Want } from "../model/volume-record.ts";
import { decided, WeftError } from "../wire/errors.ts";
import { uuid } from "../wire/json-types.ts";
import type { HostJson } from "../wire/record.ts";
import { keys } from "../wire/store-keys.ts";
import { hostsOf, type PoolFacts, poolsOf, snapshotsOf, type VolumeFacts, volumesOf } from "./facts.ts";
import type { Mirror } from "./mirror.ts";
import { readValue } from "./store-value.ts";

export type WantedVolume = VolumeFacts & { readonly want: Want };

/** `headless too`: one that lives on in its snapshots alone does as well, by its id: its name may be another one's by now. */
export type Heads = "with its head" | "headless too";

/**
 * A volume that isn't deleted; by the UUID of a disk that was composed the one that the disk is now, where none has that id any
 * more. One in the trash is E-VOL-11, one without a head is E-VOL-19 unless that does.
 */
export function findVolume(mirror: Mirror, ref: string, heads: Heads = "with its head"): WantedVolume {
  const all = volumesOf(mirror).filter(hasWant);
  const live = all.filter(({ want }) => want.deletedAtMs === null && want.headDeletedAtMs === null);
  const found = pick(live, ref);
  if (found !== null) return found;
  const headless = all.filter(({ want }) => want.deletedAtMs === null && want.headDeletedAtMs !== null);
  const byId = headless.find(({ id }) => id === parseUuid(ref));
  if (byId !== undefined && heads === "headless too") return byId;
  const composed = composedAs(mirror, ref);
  const disk = composed === null ? null : pick(live, composed);
  if (disk !== null) return disk;
  const without = byId ?? pick(headless, ref);
  if (without !== null) throw WeftError.fromFinding(headDeleted(without.want));
  const [deleted] = all.filter((volume) => matches(volume, ref));
  if (deleted === undefined)
    throw noSuch(
      "volume",
      ref,
      live.map(({ want }) => want.name),
    );
  throw new WeftError({
    code: "E-VOL-11",
    message: `"${deleted.want.name}" is in the trash.`,
    facts: { volume: deleted.id },
    safe: "Nothing was changed.",
    do: [{ why: "Bring it back", command: `weft trash restore ${ref}` }],
  });
}

const composedJson = z.looseObject({ volume: uuid, snapshot: z.null(), composedFrom: uuid });

/** The volume of a disk that was laid over another one: its UUID was its volume's id before. Null: it is no such disk's. */
function composedAs(mirror: Mirror, ref: string): string | null {
  const id = parseUuid(ref);
  const entry = id === null ? null : mirror.get(keys.vdi(id));
  return entry === null ? null : (readValue(composedJson, entry.value)?.volume ?? null);
}

/** A volume in the trash, or one of which the head is; of several with one name the last deleted. */
export function findDeleted(mirror: Mirror, ref: string): WantedVolume {
  const deleted = volumesOf(mirror)
    .filter(hasWant)
    .filter(({ want }) => deletionOf(want) !== null)
    .toSorted((a, b) => (deletionOf(b.want) ?? 0) - (deletionOf(a.want) ?? 0));
  const found = pick(deleted, ref);
  if (found !== null) return found;
  throw noSuch(
    "volume in the trash",
    ref,
    deleted.map(({ want }) => want.name),
  );
}

/** When it was deleted, or its head; null: it is there as a whole. */
export function deletionOf({ deletedAtMs, headDeletedAtMs }: Want): number | null {
  return deletedAtMs ?? headDeletedAtMs;
}

export type FoundSnapshot = { readonly volume: WantedVolume; readonly snapshot: Snapshot };

/** `VOLUME@NAME`, or the snapshot's id alone; of a volume without a head its id stands before the `@`. E-SNAP-09 where there is none, E-ARG-02 for what names none. */
export function findSnapshot(mirror: Mirror, ref: string): FoundSnapshot {
  const id = parseSnapshotId(ref);
  if (id !== null) {
    const found = volumesOf(mirror)
      .filter(hasWant)
      .flatMap((volume) => shownOf(mirror, volume.id).map((snapshot) => ({ volume, snapshot })))
      .find(({ snapshot }) => snapshot.id === id);
    if (found !== undefined) return found;
    throw noSnapshot(`No snapshot "${ref}".`, ref);
  }
  const named = decided(parseSnapshotRef(ref));
  const volume = findVolume(mirror, named.volume, "headless too");
  return { volume, snapshot: snapshotOf(mirror, volume, named.name, ref) };
}

function snapshotOf(
  mirror: Mirror,
  { id, want }: Pick<WantedVolume, "id" | "want">,
  wanted: string,
  ref: string,
): Snapshot {
  const shown = shownOf(mirror, id);
  const byId = parseSnapshotId(wanted);
  // One that is being deleted makes way for another one of its name.
  const [found] = shown
    .filter(({ id: one, name }) => one === byId || name === wanted)
    .toSorted((a, b) => Number(a.state === "DELETING") - Number(b.state === "DELETING"));
  if (found !== undefined) return found;
  const near = suggest(
    wanted,
    shown.map(({ name }) => name),
  );
  const hint = near === null ? "" : ` Did you mean "${want.name}@${near}"?`;
  throw noSnapshot(`"${want.name}" has no snapshot "${wanted}".${hint}`, ref);
}

/**
 * Another snapshot of the same volume: `VOLUME@NAME`, `NAME`, or its id. E-ARG-02 for one of another volume, of which nothing is
 * said: who asks may have been let in to this one alone.
 */
export function findSibling(mirror: Mirror, { id, want }: WantedVolume, ref: string): Snapshot {
  const [first = "", second, ...rest] = ref.split("@");
  const name = second ?? first;
  if (
    rest.length > 0 ||
    name === "" ||
    (second !== undefined && first !== want.name && parseUuid(first) !== id)
  )
    throw new WeftError({
      code: "E-ARG-02",
      message: `"${ref}" names no snapshot of "${want.name}". Write ${want.name}@NAME.`,
      facts: { ref },
      safe: "Nothing was changed.",
    });
  return snapshotOf(mirror, { id, want }, name, ref);
}

function shownOf(mirror: Mirror, volume: VolumeId): readonly Snapshot[] {
  return snapshotsOf(mirror, volume).known.filter(isShown);
}

function noSnapshot(message: string, ref: string): WeftError {
  return new WeftError({
    code: "E-SNAP-09",
    message,
    facts: { ref },
    safe: "Nothing was changed.",
    do: [{ why: "See all of them", command: "weft snapshot list" }],
  });
}

export function findHost(mirror: Mirror, ref: string): HostJson {
  const hosts = hostsOf(mirror);
  const id = parseUuid(ref);
  const found = hosts.find((host) => host.id === id || host.name === ref);
  if (found !== undefined) return found;
  throw noSuch(
    "host",
    ref,
    hosts.map(({ name }) => name),
  );
}

export type ListedHost = Pick<TrustedHost, "name" | "address"> & { readonly id: HostId };

/**
 * Whom an act of trust means: by the signed list, never by what the store says, whose names are every host's to write.
 * E-ARG-01 where the list has no such host.
 */
export function findListed(trust: Trust, ref: string): ListedHost {
  const id = parseHostId(ref);
  const all = Array.from(trust.hosts, ([id, { name, address }]) => ({ id, name, address }));
  // A host may be named like another one's identifier.
  const found = all.find((host) => host.id === id) ?? all.find(({ name }) => name === ref);
  if (found !== undefined) return found;
  throw noSuch(
    "host",
    ref,
    all.map(({ name }) => name),
  );
}

export function findPool(mirror: Mirror, ref: string): PoolFacts {
  const pools = poolsOf(mirror);
  const id = parsePoolId(ref);
  const found = pools.find((pool) => pool.id === id);
  if (found !== undefined) return found;
  throw noSuch(
    "pool",
    ref,
    pools.map((pool) => pool.id),
  );
}

/** One whose making was refused never was a volume. */
export function hasWant(volume: VolumeFacts): volume is WantedVolume {
  return volume.want !== null && volume.want.refused === null;
}

function pick(volumes: readonly WantedVolume[], ref: string): WantedVolume | null {
  return volumes.find((volume) => matches(volume, ref)) ?? null;
}

function matches({ id, want }: WantedVolume, ref: string): boolean {
  return id === parseUuid(ref) || want.name === ref;
}

function noSuch(thing: string, ref: string, known: readonly string[]): WeftError {
  const near = suggest(ref, known);
  return new WeftError({
    code: "E-ARG-01",
    message: `No ${thing} "${ref}".${near === null ? "" : ` Did you mean "${near}"?`}`,
    facts: near === null ? { ref } : { ref, near },
    safe: "Nothing was changed.",
  });
}
