/** Snapshots as text. */
import { formatSize } from "../core/model/size.ts";
import type { GroupCreated, SnapshotAnswer, SnapshotCreated, VolumeAnswer } from "../core/wire/agent-api.ts";
import type { Column } from "./table.ts";

export function refOf({ volumeName, name }: Pick<SnapshotAnswer, "volumeName" | "name">): string {
  return `${volumeName}@${name}`;
}

/** `Snapshot db@before-upgrade taken at 14:02:07.311 UTC on h1 h2, the guest's writes waited 11 ms.` */
export function takenText(taken: SnapshotCreated): string {
  const { takenAt, heldMs, copies, wantedCopies, missedBy } = taken;
  const waited = heldMs === 0n ? "" : `, the guest's writes waited ${heldMs} ms`;
  const first = `Snapshot ${refOf(taken)} taken at ${takenAt.slice(11, 23)} UTC on ${holdersText(taken)}${waited}.`;
  if (copies >= wantedCopies) return first;
  const missed = missedBy.length === 0 ? "" : `, ${missedText(missedBy)}`;
  return `${first}\n  In ${copies} of ${wantedCopies} copies${missed}.`;
}

/** `Snapshots "nightly" of db log taken at 14:02:07.311 UTC, at one moment; guests' writes waited 11 ms.`, and a line each. */
export function groupText({ name, takenAt, heldMs, snapshots }: GroupCreated): string {
  const volumes = snapshots.map(({ volumeName }) => volumeName).join(" ");
  const waited = heldMs === 0n ? "" : `; guests' writes waited ${heldMs} ms`;
  const first = `Snapshots "${name}" of ${volumes} taken at ${takenAt.slice(11, 23)} UTC, at one moment${waited}.`;
  return [first, ...snapshots.map((one) => `  ${refOf(one)}  ${copiesText(one)}`)].join("\n");
}

/** `Volume "db" is as it was at 2026-11-22 14:02:07 UTC (db@before-upgrade).` */
export function revertedText(snapshot: SnapshotAnswer, { name, inSync, copies }: VolumeAnswer): string {
  const first = `Volume "${name}" is as it was at ${momentText(snapshot.takenAt)} UTC (${refOf(snapshot)}).`;
  if (inSync >= copies) return first;
  return `${first}\n  ${inSync} of ${copies} copies in sync; the others are made level meanwhile.`;
}

export const snapshotColumns: readonly Column<SnapshotAnswer>[] = [
  { title: "SNAPSHOT", of: refOf },
  { title: "TAKEN (UTC)", of: ({ takenAt }) => momentText(takenAt) },
  { title: "SIZE", of: ({ size }) => formatSize(size), right: true },
  { title: "OWN", of: ({ ownBytes }) => (ownBytes === null ? "—" : formatSize(ownBytes)), right: true },
  { title: "COPIES", of: copiesText },
  { title: "STATE", of: stateText },
  { title: "ID", of: ({ id }) => id.slice(0, 8) },
];

export function snapshotText(snapshot: SnapshotAnswer): string {
  const facts: readonly (readonly [string, string])[] = [
    ["Snapshot", refOf(snapshot)],
    ["Id", snapshot.id],
    ["Taken", `${momentText(snapshot.takenAt)} UTC, by ${snapshot.createdBy}`],
    ["Size", formatSize(snapshot.size)],
    ["Own", ownText(snapshot)],
    ["Copies", copiesText(snapshot)],
    ["State", stateText(snapshot)],
    ...snapshot.members
      .filter(({ damagedRegions, left }) => damagedRegions > 0n && !left)
      .map(({ hostName, damagedRegions }) => ["Damaged", damagedText(hostName, damagedRegions)] as const),
    ...snapshot.copying.map((one) => ["Coming", comingText(one)] as const),
    ...(snapshot.group === null ? [] : [["Group", groupLine(snapshot.group)] as const]),
  ];
  return facts.map(([title, value]) => `${`${title}:`.padEnd(10)}${value}`).join("\n");
}

/** `1.2 GiB of a copy's pool`: what its files take there, of which others may share some. */
function ownText({ ownBytes }: SnapshotAnswer): string {
  return ownBytes === null ? "—" : `${formatSize(ownBytes)} of a copy's pool`;
}

function damagedText(host: string, regions: bigint): string {
  return `on ${host}: ${regions} ${regions === 1n ? "part" : "parts"} can't be read there any more`;
}

/** `to h2, 42 % of 10 GiB` */
function comingText({ hostName, doneBytes, totalBytes }: SnapshotAnswer["copying"][number]): string {
  const percent = totalBytes === 0n ? 0n : (doneBytes * 100n) / totalBytes;
  return `to ${hostName}, ${percent} % of ${formatSize(totalBytes)}`;
}

/** `db log, at one moment (1a2b3c4d)`; the id of a volume that is gone. */
function groupLine({ id, volumes }: NonNullable<SnapshotAnswer["group"]>): string {
  const names = volumes.map(({ id: volume, name }) => name ?? volume.slice(0, 8));
  return `${names.join(" ")}, at one moment (${id.slice(0, 8)})`;
}

/** For `volume show`: `2, 1 with fewer copies than the volume: nightly-21 (1 of 2, h2 missed it)`; null: nothing to say. */
export function snapshotsLine({ snapshots, copies, name }: VolumeAnswer): string | null {
  const { count, deleting, fewerCount, fewer, damagedCount, damaged, unable } = snapshots;
  const parts = [
    ...(count === 0 ? [] : [String(count)]),
    ...(deleting === 0 ? [] : [`${deleting} being deleted`]),
  ];
  if (fewerCount > 0) {
    const named = fewer.map(
      ({ name: snapshot, copies: having, missedBy }) =>
        `${snapshot} (${having} of ${copies}${missedBy.length === 0 ? "" : `, ${missedText(missedBy)}`})`,
    );
    const more = fewerCount > fewer.length ? `, and ${fewerCount - fewer.length} more` : "";
    parts.push(`${fewerCount} with fewer copies than the volume: ${named.join(", ")}${more}`);
  }
  if (damagedCount > 0) {
    const named = damaged.map(({ name: snapshot, hosts }) => `${snapshot} (on ${hosts.join(" ")})`);
    const more = damagedCount > damaged.length ? `, and ${damagedCount - damaged.length} more` : "";
    parts.push(`${damagedCount} damaged: ${named.join(", ")}${more}`);
  }
  if (unable !== null)
    parts.push(
      `${count === 0 ? "it can't have any" : "no new ones"}, for the copy on ${unable.hostName}: ${unable.why}`,
    );
  if (parts.length === 0) return null;
  const more = count === 0 ? "" : `  (weft snapshot list ${name})`;
  return `${parts.join(", ")}${more}`;
}

/** `2/2 h1 h2`, `1/2 h1 (h2 missed it)`. */
function copiesText(snapshot: SnapshotAnswer): string {
  const { copies, wantedCopies, missedBy } = snapshot;
  const where = holdersText(snapshot);
  const missed = missedBy.length === 0 ? "" : ` (${missedText(missedBy)})`;
  return `${copies}/${wantedCopies}${where === "" ? "" : ` ${where}`}${missed}`;
}

function missedText(hosts: readonly string[]): string {
  return `${hosts.join(" ")} missed it`;
}

function holdersText({ members }: SnapshotAnswer): string {
  return members
    .filter(({ left }) => !left)
    .map(({ hostName, alive }) => (alive ? hostName : `${hostName} (not answering)`))
    .toSorted()
    .join(" ");
}

function stateText(snapshot: SnapshotAnswer): string {
  const { state, protected: isProtected, openOn, dataDestroyed, members } = snapshot;
  if (state === "deleting") return "being deleted";
  const isDamaged = members.some(({ damagedRegions, left }) => damagedRegions > 0n && !left);
  const open = openOn.length === 0 ? "" : `, attached on ${openOn.join(" ")}`;
  const first = dataDestroyed ? "data destroyed" : "ready";
  return `${first}${isProtected ? ", protected" : ""}${isDamaged ? ", damaged" : ""}${open}`;
}

export function momentText(at: string): string {
  return at.slice(0, 19).replace("T", " ");
}
