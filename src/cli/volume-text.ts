/** A volume as text: one place for the words of `show`, `create` and `list`. */
import { formatSize } from "../core/model/size.ts";
import { limitsText } from "../core/model/volume-limits.ts";
import type { RevertingAnswer, VolumeAnswer } from "../core/wire/agent-api.ts";
import { scrubLine } from "./scrub-text.ts";
import { momentText, snapshotsLine } from "./snapshot-text.ts";
import { oneLine, table } from "./table.ts";

/** `2 copies`, `1 of 2 copies` */
export function copiesText({ inSync, copies }: VolumeAnswer): string {
  const noun = copies === 1 ? "copy" : "copies";
  return inSync >= copies ? `${inSync} ${noun}` : `${inSync} of ${copies} ${noun}`;
}

/** Hosts with a copy; one that is not in sync in brackets. */
export function whereText({ replicas }: VolumeAnswer): string {
  const places = replicas.map(({ hostName, state }) => (state === "INSYNC" ? hostName : `(${hostName})`));
  return places.length === 0 ? "—" : places.join(" ");
}

/** The host whose guest uses it; a caretaker's session has no guest. */
export function openOn({ owner }: VolumeAnswer): string {
  return owner === null || owner.caretaker ? "—" : owner.hostName;
}

/** `healthy, no head` */
export function listedHealth({ health, head }: VolumeAnswer): string {
  return head === null ? health : `${health}, no head`;
}

/** What `delete` did. Null: there is nothing left of it outside of the trash. */
export function deletedText(ref: string, after: Pick<VolumeAnswer, "id" | "head"> | null): string {
  const head = after?.head ?? null;
  if (after === null || head === null)
    return `Volume "${ref}" is in the trash for 24 h.  Bring it back:  weft trash restore ${ref}`;
  const kept = [
    `The head of "${ref}" is deleted. Its snapshots are kept, by the volume's id:`,
    `  weft snapshot list ${after.id}`,
  ];
  return head.keptUntil === null
    ? kept.join("\n")
    : [...kept, `Bring it back within 24 h:  weft trash restore ${ref}`].join("\n");
}

/** What `create` and `snapshot clone` made. */
export function madeText(volume: VolumeAnswer): string {
  const { name, size, thick, createdFrom, inSync, copies } = volume;
  const from = createdFrom === null ? "" : ` from ${originRef(createdFrom)}`;
  const first = `Volume "${name}" made${from}, ${formatSize(size)}${thick ? ", thick" : ""}, ${copiesText(volume)} on ${whereText(volume)}.`;
  const rest = inSync < copies ? ["The copies in brackets are filled from the others meanwhile."] : [];
  return [first, ...rest, `Next:  weft attach ${name}`].join("\n");
}

type Origin = NonNullable<VolumeAnswer["createdFrom"]>;

function originRef({ volumeName, snapshotName }: Origin): string {
  return `${volumeName}@${snapshotName}`;
}

/** What `resize` did. */
export function resizedText(before: bigint, volume: VolumeAnswer): string {
  const { name, size } = volume;
  if (size === before) return `Volume "${name}" has ${formatSize(size)}, as before.`;
  const text = `Volume "${name}" has ${formatSize(size)} now (was ${formatSize(before)}).`;
  const isSeen = volume.owner !== null && !volume.owner.caretaker;
  return isSeen ? `${text} An NBD client that asked for the size before sees it when it reconnects.` : text;
}

export function volumeText(volume: VolumeAnswer): string {
  const scrubbed = scrubLine(volume);
  const snapshots = snapshotsLine(volume);
  const facts: readonly (readonly [string, string])[] = [
    ["Volume", volume.name],
    ["Id", volume.id],
    ...(volume.disk === null ? [] : [["Disk", diskText(volume.disk)] as const]),
    ["Size", sizeText(volume)],
    ["Used", bytesText(volume.used)],
    ["Health", volume.reason === null ? volume.health : `${volume.health}: ${volume.reason}`],
    ["Copies", `${volume.inSync} of ${volume.copies} in sync, at least ${volume.minIsr} for writes`],
    ...(volume.spread === "host" ? [] : [["Apart by", volume.spread] as const]),
    ["Open on", openOn(volume)],
    ...(volume.limits === null ? [] : [["Limits", limitsText(volume.limits)] as const]),
    ...(volume.owner?.caretaker === true && volume.reverting === null
      ? [["Work", `${volume.owner.hostName} makes the copies level`] as const]
      : []),
    ...(scrubbed === null ? [] : [["Scrub", scrubbed] as const]),
    ...(snapshots === null ? [] : [["Snapshots", snapshots] as const]),
    ...(volume.reverting === null ? [] : [["Revert", revertingText(volume.name, volume.reverting)] as const]),
    ...(volume.createdFrom === null ? [] : [["Made from", originText(volume.createdFrom)] as const]),
    ["Epoch", volume.epoch === null ? "—" : String(volume.epoch)],
    ...(volume.head === null ? [] : [["Head", headText(volume.head)] as const]),
    ...(volume.deletedAt === null ? [] : [["Deleted", volume.deletedAt] as const]),
  ];
  const replicas = table(volume.replicas, [
    { title: "COPY", of: ({ rid }) => String(rid), right: true },
    { title: "HOST", of: ({ hostName, alive }) => (alive ? hostName : `${hostName} (not answering)`) },
    {
      title: "STATE",
      of: ({ state, leaving }) => (leaving ? `${stateWord(state)}, leaves` : stateWord(state)),
    },
    { title: "USED", of: ({ used }) => bytesText(used), right: true },
    { title: "REASON", of: ({ reason }) => (reason === null || reason === "" ? "—" : reason) },
    { title: "POOL", of: ({ pool }) => pool.slice(0, 8) },
  ]);
  return [...facts.map(([title, value]) => `${`${title}: `.padEnd(9)}${value}`), "", replicas].join("\n");
}

/** `to db@before-upgrade, 3 GiB of 10 GiB brought back by h1` */
function revertingText(name: string, { snapshot, name: taken, progress }: RevertingAnswer): string {
  const to = `to ${name}@${taken ?? snapshot.slice(0, 8)}`;
  if (progress === null) return `${to}, begun; whoever opens the volume next goes on with it`;
  const { hostName, doneBytes, totalBytes, waitsFor } = progress;
  const far =
    totalBytes === null
      ? `${hostName} looks up what has changed`
      : `${formatSize(doneBytes)} of ${formatSize(totalBytes)} brought back by ${hostName}`;
  return `${to}, ${far}${waitsFor === null ? "" : `; waits for ${waitsFor}`}`;
}

/** `deleted 2026-11-22 14:02:07 UTC, can be restored until 2026-11-23 14:02:07 UTC` */
function headText({ deletedAt, data, keptUntil }: NonNullable<VolumeAnswer["head"]>): string {
  const since = `deleted ${momentText(deletedAt)} UTC`;
  if (keptUntil !== null) return `${since}, can be restored until ${momentText(keptUntil)} UTC`;
  return data === "released" ? `${since}, and gone` : `${since}, and being given back`;
}

/** `db@before-upgrade (2026-11-22 14:02:07 UTC)` */
function originText(origin: Origin): string {
  return `${originRef(origin)} (${momentText(origin.takenAt)} UTC)`;
}

/** `Debian: root, in the repository replicated`: people's own words, none of which may move the cursor. */
function diskText({ label, sr, srLabel }: NonNullable<VolumeAnswer["disk"]>): string {
  return oneLine(`${label}, in the repository ${srLabel ?? sr}`);
}

/** A dash where nobody has said it yet. */
export function bytesText(bytes: bigint | null): string {
  return bytes === null ? "—" : formatSize(bytes);
}

function sizeText({ size, wantedSize, thick }: VolumeAnswer): string {
  const now = thick ? `${formatSize(size)}, thick` : formatSize(size);
  return wantedSize > size ? `${now}, grows to ${formatSize(wantedSize)}` : now;
}

function stateWord(state: VolumeAnswer["replicas"][number]["state"]): string {
  switch (state) {
    case "INSYNC":
      return "in-sync";
    case "STALE":
      return "stale";
    case "JOINING":
      return "joining";
    case "REMOVING":
      return "removing";
    case "QUARANTINED":
      return "quarantined";
    case "WANTED":
      return "being made";
  }
}
