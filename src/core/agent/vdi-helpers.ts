/**
 * Snapshots of virtual disks that are nobody's disks: taken for a clone, for a comparison, as what a disk goes back to, or as
 * what many hosts read of it.
 *
 * Must always hold:
 * - they are known by their names, and go with the last who needs them: by whom they were taken for, or by vdi-keeper.ts;
 * - one that a disk's key names is taken before it is named, and goes after it is named no more;
 * - what a host reads is found by whoever closes it, by its name and by who has it open.
 */
import { createHash, randomUUID } from "node:crypto";

import { hostName } from "../model/cluster.ts";
import { type HostId, parseSnapshotId, type SnapshotId, type VolumeId } from "../model/ids.ts";
import { isShown } from "../model/snapshot.ts";
import { type Helper, HELPER_BY, helperName, isHelper, isReader, type Vdi } from "../model/vdi.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { renderVdi } from "../wire/sr-json.ts";
import type { MemberContext } from "./context.ts";
import { openOn, snapshotsOf } from "./facts.ts";
import { createSnapshot, deleteSnapshot } from "./snapshots.ts";
import { findVdi, type VdiFacts } from "./sr-facts.ts";

/** Their copies forget them within this in most cases; a copy that is away does so when it is back. */
const GOING_MS = 5000;

/** The disk's key, by compare-and-swap on what `change` was given. Null: there is nothing to change. */
export async function changeKey(
  { mirror, store }: MemberContext,
  uuid: string,
  change: (vdi: Vdi) => Vdi | null,
): Promise<void> {
  for (;;) {
    const { vdi, entry } = findVdi(mirror, uuid);
    const next = change(vdi);
    if (next === null) return;
    const value = renderVdi(next, entry.value);
    if (value === entry.value) return;
    const { kind } = await store.cas(entry.key, entry.modRevision, value);
    await mirror.sync();
    if (kind === "won") return;
  }
}

/** A snapshot that is nobody's disk, of which the disk's key says what it is for: it goes, and the key's word before it. */
export async function dropHelper(
  context: MemberContext,
  uuid: string,
  what: "reader" | "resetTo",
): Promise<void> {
  const facts = findVdi(context.mirror, uuid);
  const id = facts.vdi[what];
  if (id === null) return;
  if (what === "reader") refuseRead(context, facts);
  await changeKey(context, uuid, (now) => (now[what] === id ? { ...now, [what]: null } : null));
  await deleteIfThere(context, id);
}

/** E-VDI-04 while a host reads a disk that nobody writes. */
export function refuseRead({ mirror, view }: MemberContext, { vdi }: VdiFacts): void {
  const [host] = vdi.reader === null ? [] : openOn(mirror, vdi.reader);
  if (host === undefined) return;
  const name = hostName(view.cluster(), host);
  throw new WeftError({
    code: "E-VDI-04",
    message: `${name} reads the virtual disk "${vdi.label}" (${vdi.uuid}).`,
    facts: { vdi: vdi.uuid, host, since: null },
    safe: "Nothing was changed.",
    do: [{ why: `Unplug it on ${name} first`, command: null }],
  });
}

/** What this host reads of a disk: by the snapshot that its key names, or by one that it named when that was opened. */
export function readersOn(
  mirror: MemberContext["mirror"],
  { volume, reader }: Vdi,
  host: HostId,
): readonly SnapshotId[] {
  const opened = snapshotsOf(mirror, volume)
    .known.filter((snapshot) => isReader(snapshot) && openOn(mirror, snapshot.id).includes(host))
    .map(({ id }) => id);
  return reader === null || opened.includes(reader) ? opened : [reader, ...opened];
}

/**
 * A disk that is written at other times: what was read of it goes with the last host that read it, for it keeps what is written
 * over. It may be read again meanwhile, or its copies be away: then it goes with the next one, or later (vdi-keeper.ts).
 */
export async function dropUnread(context: MemberContext, uuid: string): Promise<void> {
  const { mirror, log } = context;
  await mirror.sync();
  const { vdi } = findVdi(mirror, uuid);
  if (vdi.reader === null || openOn(mirror, vdi.reader).length > 0) return;
  dropHelper(context, uuid, "reader").catch((error: unknown) => {
    log.info({ vdi: uuid, reason: reasonOf(error) }, "what was read of a disk goes later");
  });
}

export async function deleteIfThere(context: MemberContext, snapshot: string): Promise<void> {
  try {
    await deleteSnapshot(context, snapshot);
  } catch (error) {
    if (!isWeftError(error, "E-SNAP-09")) throw error;
  }
}

type HelperSnapshot = { readonly helper: Helper; readonly name: string; readonly id: SnapshotId };

/** A snapshot of the disk for this work alone. */
export async function withHelper<Result>(
  context: MemberContext,
  { vdi }: VdiFacts,
  { helper, name, id }: HelperSnapshot,
  work: () => Promise<Result>,
): Promise<Result> {
  await createSnapshot(context, vdi.volume, { name: helperName(helper, name), id, by: HELPER_BY });
  try {
    return await work();
  } finally {
    // What can't be deleted now is found later (vdi-keeper.ts): the work's own outcome is the answer.
    await deleteIfThere(context, id).catch((error: unknown) => {
      if (!isWeftError(error)) throw error;
      context.log.info({ snapshot: id, code: error.code }, "a snapshot for a moment goes later");
    });
  }
}

/** The same for the same request, so that who asks again finds what was left. */
export function helperIdOf(helper: Helper, uuid: string): SnapshotId {
  const hash = createHash("sha256").update(helperName(helper, uuid)).digest("hex");
  const id = parseSnapshotId(`${hash.slice(0, 12)}8${hash.slice(13, 16)}8${hash.slice(17, 32)}`);
  if (id === null) throw new Error("a hash has digits enough for a UUID");
  return id;
}

/** A snapshot of the disk that its key names from now on; another one that somebody named in the same moment is as good. */
export async function nameHelper(
  context: MemberContext,
  { vdi }: VdiFacts,
  what: "reader" | "resetTo",
): Promise<SnapshotId> {
  const { mirror } = context;
  const before = vdi[what];
  const id = newSnapshotId();
  const name = helperName(what === "reader" ? "reader" : "reset", id);
  await createSnapshot(context, vdi.volume, { name, id, by: HELPER_BY });
  await changeKey(context, vdi.uuid, (now) => (now[what] === before ? { ...now, [what]: id } : null));
  const named = findVdi(mirror, vdi.uuid).vdi[what] ?? id;
  const over = named === id ? before : id;
  // A host that reads what was before keeps it until it closes it.
  if (over !== null && openOn(mirror, over).length === 0) await deleteIfThere(context, over);
  return named;
}

export function newSnapshotId(): SnapshotId {
  const id = parseSnapshotId(randomUUID());
  if (id === null) throw new Error("a random UUID is one");
  return id;
}

/** Of a disk that goes into the trash: it comes back without them, and nobody keeps it for their sake. */
export async function dropHelpers(context: MemberContext, volume: VolumeId): Promise<void> {
  const { mirror, log } = context;
  const left = (): readonly SnapshotId[] =>
    snapshotsOf(mirror, volume)
      .known.filter((snapshot) => isShown(snapshot) && isHelper(snapshot))
      .map(({ id }) => id);
  try {
    for (const id of left()) await deleteIfThere(context, id);
    await mirror.until("The end of its snapshots", GOING_MS, () => (left().length === 0 ? true : null));
  } catch (error) {
    // They keep the volume's data a while longer, and go by themselves.
    if (!isWeftError(error)) throw error;
    log.info({ volume, code: error.code }, "snapshots for a moment go later");
  }
}
