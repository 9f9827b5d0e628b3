/**
 * What an operator asks of volumes. The asked agent writes the wish and waits for the fact.
 *
 * Must always hold:
 * - a name is taken back in the transaction that deletes its volume;
 * - a refusal changes nothing;
 * - a volume shrinks by this host's own request of its weftd, never by what is wanted: a wish outlives its moment.
 */
import { parseRid, type VolumeId } from "../model/ids.ts";
import { addCopy, removeCopy } from "../model/replica-change.ts";
import { type Decision, ok, refused } from "../model/finding.ts";
import { checkScrubRate } from "../model/scrub.ts";
import { headGone, isHeadGone } from "../model/headless.ts";
import { checkNoSnapshots, isShown, losesSnapshot, type Snapshot } from "../model/snapshot.ts";
import { checkDelete, checkDeleteHead, checkResize } from "../model/volume-check.ts";
import { checkLimits, sameLimits, type VolumeLimits } from "../model/volume-limits.ts";
import type { VolumeRecord, Want } from "../model/volume-record.ts";
import type * as api from "../wire/agent-api.ts";
import { decided, isWeftError, WeftError } from "../wire/errors.ts";
import { parseNameKey, renderWant } from "../wire/record.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { snapshotsOf, type VolumeFacts, volumeOf, volumesOf } from "./facts.ts";
import {
  deletionOf,
  findDeleted,
  findHost,
  findVolume,
  hasWant,
  type Heads,
  type WantedVolume,
} from "./find.ts";
import { byOwner, inCaretaker } from "./owner-work.ts";
import { changeWant } from "./perform.ts";
import { asked as askedToScrub } from "./scrub-keeper.ts";
import { scrubSettings } from "./settings.ts";

/** Replicas are made in parallel; a slow disk preallocates for seconds. */
export const MAKE_MS = 40_000;
export const CHANGE_MS = 20_000;

/**
 * Into the trash. One that has snapshots is refused (E-SNAP-10), or with `keepSnapshots` its head alone is deleted, and it lives
 * on in them; asked again of such a one, by its id, there is nothing to do.
 */
export async function deleteVolume(
  { mirror, store, view }: MemberContext,
  ref: string,
  { keepSnapshots }: { readonly keepSnapshots: boolean },
): Promise<void> {
  await mirror.sync();
  const { id, want, wantEntry } = findVolume(mirror, ref, "headless too");
  if (wantEntry === null) return;
  const shown = (): readonly Snapshot[] => snapshotsOf(mirror, id).known.filter(isShown);
  if (want.headDeletedAtMs !== null) {
    if (!keepSnapshots) decided(checkNoSnapshots(want, shown()));
    return;
  }
  const headOnly = keepSnapshots && (volumeOf(mirror, id).record?.snapshots ?? 0) > 0;
  const refuseOpen = ({ record, extra }: VolumeFacts): void => {
    if (!headOnly) decided(checkNoSnapshots(want, shown()));
    const known = { want, record, cluster: view.cluster(), ownerIsCaretaker: extra?.caretaker ?? false };
    decided(headOnly ? checkDeleteHead(known) : checkDelete(known));
  };
  refuseOpen(volumeOf(mirror, id));
  const now = Date.now();
  const deleted: Want = headOnly ? { ...want, headDeletedAtMs: now } : { ...want, deletedAtMs: now };
  const won = await store.cas(wantEntry.key, wantEntry.modRevision, renderWant(deleted, wantEntry.value), [
    { kind: "delete", key: keys.name(want.name) },
  ]);
  if (won.kind === "lost") throw changedMeanwhile(want.name);
  try {
    await mirror.until(`The deletion of "${want.name}"`, CHANGE_MS, () => {
      const now = volumeOf(mirror, id);
      if (now.want === null || now.record === null || now.record.deletedAtMs !== null) return true;
      if (headOnly && now.record.head !== null) return true;
      refuseOpen(now);
      return null;
    });
  } catch (error) {
    // Somebody opened it in between, took a snapshot, or begins to take it back to one: the deletion is taken back.
    if (isWeftError(error) && ["E-VOL-12", "E-VOL-14", "E-SNAP-10"].includes(error.code))
      await undelete(mirror, store, id, want.name);
    throw error;
  }
}

/** One change of a volume. */
export function changeVolume(
  context: MemberContext,
  ref: string,
  { size, loseData, limits = null }: api.VolumeChange,
): Promise<VolumeId> {
  return size === undefined
    ? limitVolume(context, ref, limits)
    : resizeVolume(context, ref, { size, loseData });
}

/**
 * Grown while guests go on; shrunk where `checkResize` lets it. Whoever's weftd does it, what that thinks of it is the
 * answer; a volume whose owner can't be asked now grows by the wish.
 */
async function resizeVolume(
  context: MemberContext,
  ref: string,
  { size, loseData }: { readonly size: bigint; readonly loseData: string | null },
): Promise<VolumeId> {
  const { mirror, store, view, daemon } = context;
  await mirror.sync();
  const { id, want, wantEntry, record, extra, unreadable } = findVolume(mirror, ref);
  if (unreadable !== null) throw unreadable;
  const ownerIsCaretaker = extra?.caretaker ?? false;
  const known = { want, record, cluster: view.cluster(), ownerIsCaretaker };
  const change = decided(checkResize({ ...known, sizeBytes: size, loseData }));
  if (wantEntry === null || record === null) throw stillMade(want.name, id);
  const wish = async (): Promise<void> => {
    await changeWant(store, id, (now) => (now.sizeBytes === size ? null : { ...now, sizeBytes: size }));
  };
  if (change === "grow") {
    await byOwner(context, { kind: "grow", volume: id, size }).catch((error: unknown) => {
      // As soon as the owner's agent is back it does what is wished.
      if (!isWeftError(error, "E-HOST-09")) throw error;
    });
  }
  // A wish for less is heard by nobody: it must be there before it would be taken for one for more.
  await wish();
  if (change === "shrink") {
    const resize = { volume: id, size: String(size), lose: true };
    await inCaretaker(context, id, () => daemon.client.call("volume.resize", resize)).catch(
      async (error: unknown) => {
        await wantWhatItHas(context, id, error);
        throw error;
      },
    );
  }
  await mirror.until(`The size of "${want.name}"`, CHANGE_MS, () => {
    const now = volumeOf(mirror, id);
    return now.record?.sizeBytes === size && now.want?.sizeBytes === size ? true : null;
  });
  return id;
}

/** After a shrink that weftd refused. Where it only didn't answer, it may be done still. */
async function wantWhatItHas({ mirror, store }: MemberContext, id: VolumeId, error: unknown): Promise<void> {
  if (!isWeftError(error) || error.status === 503) return;
  await mirror.sync();
  const { record } = volumeOf(mirror, id);
  if (record === null) return;
  const { sizeBytes } = record;
  await changeWant(store, id, (want) => (want.sizeBytes < sizeBytes ? { ...want, sizeBytes } : null));
}

/** In force when it answers, where the volume is attached here; elsewhere as soon as that host's agent has heard of it. */
async function limitVolume(
  context: MemberContext,
  ref: string,
  limits: VolumeLimits | null,
): Promise<VolumeId> {
  const wanted = limits === null ? null : decided(checkLimits(limits));
  await context.mirror.sync();
  const { volume } = await changeWanted(context, ref, (want) =>
    ok(sameLimits(want.limits, wanted) ? want : { ...want, limits: wanted }),
  );
  await context.mirror.sync();
  await context.limitKeeper.settle();
  return volume;
}

/** Begun by whoever owns the volume, or by a caretaker; one that runs goes on at this rate. */
export async function scrubVolume(
  context: MemberContext,
  ref: string,
  { rate, by }: { readonly rate: bigint | null; readonly by: string },
): Promise<VolumeId> {
  const { mirror } = context;
  if (rate !== null) decided(checkScrubRate(rate));
  await mirror.sync();
  const bytes = rate ?? scrubSettings(mirror).rate;
  const { volume } = await changeWanted(
    context,
    ref,
    (want) => ok(want.scrub?.rate === bytes ? want : askedToScrub(want, by, bytes)),
    "headless too",
  );
  await mirror.sync();
  return volume;
}

/** Nothing is done where none runs. */
export async function stopScrub(context: MemberContext, ref: string): Promise<VolumeId> {
  const { mirror, scrubKeeper } = context;
  await mirror.sync();
  const { volume } = await changeWanted(
    context,
    ref,
    (want) => ok(want.scrub === null ? want : { ...want, scrub: null }),
    "headless too",
  );
  await mirror.sync();
  await scrubKeeper.settle();
  return volume;
}

export async function restoreVolume({ mirror, store }: MemberContext, ref: string): Promise<VolumeId> {
  await mirror.sync();
  const { id, want, record: before } = findDeleted(mirror, ref);
  if (before !== null && isHeadGone(before)) throw WeftError.fromFinding(headGone(want));
  await undelete(mirror, store, id, want.name);
  const gone = await mirror.until(`The restoring of "${want.name}"`, CHANGE_MS, () => {
    const { record } = volumeOf(mirror, id);
    if (record === null) return null;
    if (isHeadGone(record)) return "gone";
    return record.deletedAtMs === null && record.head === null ? "back" : null;
  });
  if (gone === "back") return id;
  // What only its head had began to go in the same moment.
  await changeWant(store, id, (now) => ({ ...now, headDeletedAtMs: want.headDeletedAtMs }));
  const name = await store.get(keys.name(want.name));
  if (name !== null && parseNameKey(name.key, name.value).volume === id)
    await store.txn([{ key: name.key, modRevision: name.modRevision }], [{ kind: "delete", key: name.key }]);
  throw WeftError.fromFinding(headGone(want));
}

async function undelete(
  mirror: MemberContext["mirror"],
  store: MemberContext["store"],
  id: VolumeId,
  name: string,
): Promise<void> {
  await mirror.sync();
  const { want, wantEntry } = volumeOf(mirror, id);
  if (want === null || wantEntry === null || deletionOf(want) === null) return;
  const whole: Want = { ...want, deletedAtMs: null, headDeletedAtMs: null };
  const outcome = await store.txn(
    [
      { key: wantEntry.key, modRevision: wantEntry.modRevision },
      { key: keys.name(name), modRevision: 0n },
    ],
    [
      { kind: "put", key: wantEntry.key, value: renderWant(whole, wantEntry.value) },
      { kind: "put", key: keys.name(name), value: JSON.stringify({ volume: id }) },
      { kind: "delete", key: keys.emptyTrash(id) },
    ],
  );
  if (outcome.kind === "succeeded") return;
  await mirror.sync();
  const now = volumeOf(mirror, id).want;
  if (now !== null && deletionOf(now) === null) return;
  throw mirror.get(keys.name(name)) === null ? changedMeanwhile(name) : nameTaken(name);
}

/** Of one volume, or of all that are deleted; of one that lives on in its snapshots what only its head has goes. */
export async function emptyTrash({ mirror, store }: MemberContext, ref: string | null): Promise<void> {
  await mirror.sync();
  const volumes = ref === null ? deletedVolumes(mirror) : [findDeleted(mirror, ref)];
  for (const { id } of volumes)
    await store.put(keys.emptyTrash(id), JSON.stringify({ at: new Date().toISOString() }));
  await mirror.until("The emptying of the trash", CHANGE_MS, () =>
    volumes.every(({ id }) => isEmptied(volumeOf(mirror, id))) ? true : null,
  );
}

function isEmptied({ want, record }: VolumeFacts): boolean {
  return want === null || (want.deletedAtMs === null && record !== null && isHeadGone(record));
}

/** Those that can be brought back: volumes, and heads of volumes that live on in their snapshots. */
export function deletedVolumes(mirror: MemberContext["mirror"]): readonly WantedVolume[] {
  return volumesOf(mirror)
    .filter(hasWant)
    .filter((volume) => deletionOf(volume.want) !== null && !isEmptied(volume));
}

export async function addReplica(
  context: MemberContext,
  ref: string,
  host: string | null,
): Promise<VolumeId> {
  const { mirror, view } = context;
  await mirror.sync();
  const on = host === null ? null : findHost(mirror, host).id;
  const { volume, want, before } = await changeWanted(
    context,
    ref,
    (w, record) => addCopy(w, record, view.cluster(), on),
    "headless too",
  );
  const added = want.placements.find((place) => !before.placements.some(({ rid }) => rid === place.rid));
  if (added === undefined) return volume;
  await mirror.until(`Copy ${added.rid} of "${want.name}"`, MAKE_MS, () => {
    const { record } = volumeOf(mirror, volume);
    return record?.replicas.some((member) => member.rid === added.rid) === true ? true : null;
  });
  return volume;
}

export async function removeReplica(context: MemberContext, ref: string, number: number): Promise<VolumeId> {
  const { mirror, view } = context;
  const rid = parseRid(number);
  if (rid === null) {
    throw new WeftError({
      code: "E-ARG-02",
      message: `${number} is not the number of a copy.`,
      facts: { rid: number },
    });
  }
  await mirror.sync();
  const { volume, want } = await changeWanted(
    context,
    ref,
    (w, record) => keepingSnapshots(context, w, record, removeCopy(w, record, view.cluster(), rid)),
    "headless too",
  );
  await mirror.until(`The removal of copy ${rid} of "${want.name}"`, CHANGE_MS, () => {
    const { record } = volumeOf(mirror, volume);
    const member = record?.replicas.find((candidate) => candidate.rid === rid);
    return member === undefined || member.state === "REMOVING" ? true : null;
  });
  return volume;
}

/** The change, unless a snapshot would be lost by it. */
export function keepingSnapshots(
  { mirror, view }: Pick<MemberContext, "mirror" | "view">,
  before: Want,
  record: VolumeRecord,
  decision: Decision<Want>,
): Decision<Want> {
  if (decision.kind === "refused") return decision;
  const { known } = snapshotsOf(mirror, before.volume);
  const lost = losesSnapshot(known, { before, after: decision.value }, record, view.cluster());
  return lost === null ? decision : refused(lost);
}

/** The next `want`, by compare-and-swap on what `change` was decided from. */
export async function changeWanted(
  { mirror, store }: MemberContext,
  ref: string,
  change: (want: Want, record: VolumeRecord) => Decision<Want>,
  heads: Heads = "with its head",
): Promise<{ readonly volume: VolumeId; readonly want: Want; readonly before: Want }> {
  for (;;) {
    const { id, want, wantEntry, record, unreadable } = findVolume(mirror, ref, heads);
    if (unreadable !== null) throw unreadable;
    if (wantEntry === null || record === null) throw stillMade(want.name, id);
    const next = decided(change(want, record));
    if (next === want) return { volume: id, want, before: want };
    const outcome = await store.cas(wantEntry.key, wantEntry.modRevision, renderWant(next, wantEntry.value));
    if (outcome.kind === "won") return { volume: id, want: next, before: want };
    await mirror.sync();
  }
}

export function nameTaken(name: string): WeftError {
  return new WeftError({
    code: "E-VOL-01",
    message: `A volume "${name}" exists already.`,
    facts: { name },
    safe: "Nothing was changed.",
    do: [{ why: "Look at it", command: `weft volume show ${name}` }],
  });
}

export function stillMade(name: string, volume: VolumeId): WeftError {
  return new WeftError({
    code: "E-VOL-14",
    message: `"${name}" is still being made.`,
    facts: { volume, name },
  });
}

function changedMeanwhile(name: string): WeftError {
  return new WeftError({
    code: "E-VOL-14",
    message: `"${name}" was changed by somebody else in the same moment.`,
    facts: { name },
    safe: "Nothing was changed.",
    do: [{ why: "Look at it", command: `weft volume show ${name}` }],
  });
}
