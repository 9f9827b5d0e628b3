/**
 * Snapshots of a volume as the store knows them, and what follows from where they are (protocol.md 4.8).
 *
 *     taken ──every listed copy has logged it──▶ logged: shown and usable ──delete──▶ being deleted ──▶ gone
 *
 * Must always hold:
 * - one that is not logged was reported to nobody, and is shown to nobody: a loss of the store may undo it (R27);
 * - a copy has a snapshot if the snapshot lists it and it still belongs to the volume; a number is never given out twice,
 *   so that a later copy is never taken for one that took part;
 * - the last copy that has a snapshot is not taken away by a change of places.
 */
import { hostName, isAlive } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import { finding, ok, refused } from "./finding.ts";
import type { Decision, Finding } from "./finding.ts";
import { refOf } from "./headless.ts";
import { byText } from "./ids.ts";
import type { HostId, PoolId, Rid, SnapshotId, VolumeId } from "./ids.ts";
import { SNAPSHOTS_MAX } from "./limits.ts";
import { parseName } from "./name.ts";
import { insync, memberOf } from "./volume-record.ts";
import type { Member, Place, VolumeRecord, Want } from "./volume-record.ts";

export type Snapshot = {
  readonly id: SnapshotId;
  readonly volume: VolumeId;
  readonly name: string;
  readonly state: "READY" | "DELETING";
  /** Every copy that it lists has it in its log. */
  readonly isLogged: boolean;
  /** The copies that took part. */
  readonly members: readonly { readonly rid: Rid; readonly host: HostId; readonly pool: PoolId }[];
  readonly generation: bigint;
  /** Of the owner that took it. */
  readonly epoch: bigint;
  readonly regionShift: number;
  readonly sizeBytes: bigint;
  readonly createdMs: number;
  readonly createdBy: string;
  readonly isProtected: boolean;
  /** Destroying: nobody can read it any more, and a copy has not done it yet; what changed since it can be told still. */
  readonly data: "kept" | "destroying" | "destroyed";
  /** Taken at one moment with those of these volumes; null: alone. */
  readonly group: { readonly id: string; readonly volumes: readonly VolumeId[] } | null;
};

/** `VOLUME@NAME`, in either part an id may stand. E-ARG-02 for anything else. */
export type SnapshotRef = { readonly volume: string; readonly name: string };

export function parseSnapshotRef(text: string): Decision<SnapshotRef> {
  const [volume = "", name = "", ...rest] = text.split("@");
  if (volume !== "" && name !== "" && rest.length === 0) return ok({ volume, name });
  return refused(
    finding("E-ARG-02", `"${text}" names no snapshot. Write VOLUME@NAME, for example db@before-upgrade.`, {
      facts: { ref: text },
      safe: "Nothing was changed.",
    }),
  );
}

/** For who gives none: `snap-20261122-140207` of `2026-11-22T14:02:07.311Z`. */
export function nameOfMoment(at: string): string {
  const [date = "", time = ""] = at.replaceAll(/[-:]/g, "").split("T");
  return `snap-${date}-${time.slice(0, 6)}`;
}

/** As lists have them: the youngest first. */
export function inOrder(snapshots: readonly Snapshot[]): readonly Snapshot[] {
  return snapshots.toSorted((a, b) => b.createdMs - a.createdMs || byText(a.name, b.name));
}

export function isShown({ isLogged, state }: Snapshot): boolean {
  return isLogged || state === "DELETING";
}

/** It can be read, cloned and gone back to. */
export function hasData({ data }: Snapshot): boolean {
  return data === "kept";
}

/** Those that can be used, also those of which only what changed since can be told. */
export function ready(snapshots: readonly Snapshot[]): readonly Snapshot[] {
  return snapshots.filter(({ isLogged, state }) => isLogged && state === "READY");
}

/** The volume's copies that have it. One that is quarantined counts for nothing (R24). */
export function holders({ members }: Snapshot, record: VolumeRecord): readonly Member[] {
  return record.replicas.filter(
    ({ rid, state }) => state !== "QUARANTINED" && members.some((member) => member.rid === rid),
  );
}

export type Coverage = {
  readonly copies: number;
  /** Hosts whose copy of the volume has not this snapshot. */
  readonly missedBy: readonly HostId[];
};

export function coverage(snapshot: Snapshot, record: VolumeRecord): Coverage {
  const having = holders(snapshot, record);
  const missing = record.replicas.filter(
    (member) => member.state !== "REMOVING" && !having.some(({ rid }) => rid === member.rid),
  );
  return { copies: having.length, missedBy: missing.map(({ host }) => host) };
}

/** Those with fewer copies than the volume shall have. One whose data was destroyed is brought to no other copy, and needs none. */
export function withFewer(
  snapshots: readonly Snapshot[],
  want: Want,
  record: VolumeRecord,
): readonly Snapshot[] {
  return ready(snapshots).filter(
    (snapshot) => hasData(snapshot) && coverage(snapshot, record).copies < want.copies,
  );
}

/**
 * Whether an owner has something to end: a snapshot that not all have logged, one that is being deleted, or one whose data is
 * being destroyed. While a copy that it lists does not answer there is no end, and nothing is opened for it.
 */
export function isUnfinished(
  snapshots: readonly Snapshot[],
  record: VolumeRecord,
  cluster: Cluster,
): boolean {
  return snapshots.some(
    ({ isLogged, state, data, members }) =>
      (!isLogged || state === "DELETING" || data === "destroying") &&
      members.every(({ rid, host }) => memberOf(record, rid) === null || isAlive(cluster, host)),
  );
}

/**
 * The first snapshot that no copy would have any more, once those placements that shall go are gone; one that none has as
 * it is, is not counted against the change.
 */
export function lastHeld(
  snapshots: readonly Snapshot[],
  record: VolumeRecord,
  going: readonly Pick<Place, "rid">[],
): Snapshot | null {
  if (going.length === 0) return null;
  const goes = ({ rid }: Member): boolean => going.some((place) => place.rid === rid);
  return (
    snapshots.find((snapshot) => {
      const having = snapshot.state === "READY" ? holders(snapshot, record) : [];
      return having.length > 0 && having.every(goes);
    }) ?? null
  );
}

/** A change of places that would lose a snapshot: E-SNAP-07. Null: it loses none that the volume as it is wanted has. */
export function losesSnapshot(
  snapshots: readonly Snapshot[],
  { before, after }: { readonly before: Want; readonly after: Want },
  record: VolumeRecord,
  cluster: Cluster,
): Finding | null {
  const going = after.placements.filter(
    ({ rid, remove }) => remove && !before.placements.some((place) => place.rid === rid && place.remove),
  );
  const goingBefore = before.placements.filter(({ remove }) => remove);
  const lost = lastHeld(snapshots, record, [...going, ...goingBefore]);
  if (lost === null || going.length === 0) return null;
  const name = refOf(before);
  const where = holders(lost, record).map(({ host }) => hostName(cluster, host));
  return finding(
    "E-SNAP-07",
    `${name}@${lost.name} is only on ${where.join(" ")}: the copy there can't go before the snapshot.`,
    {
      facts: { volume: before.volume, snapshot: lost.id },
      safe: "All copies are kept as they are.",
      do: [
        { why: "See which copies have which snapshots", command: `weft snapshot list ${name}` },
        ...(hasData(lost)
          ? [
              {
                why: "Another copy is given it by and by; then this one can go",
                command: `weft replica add ${name} --wait`,
              },
            ]
          : []),
        {
          why: "Delete it when you don't need it",
          command: `weft snapshot delete ${name}@${lost.name}`,
        },
      ],
    },
  );
}

export type SnapshotInput = {
  readonly want: Want;
  readonly record: VolumeRecord;
  readonly cluster: Cluster;
  /** All of the volume, those that are not shown among them. */
  readonly snapshots: readonly Snapshot[];
  readonly name: string;
  /** Asked for by this id: one that is there already is the answer. */
  readonly id: SnapshotId;
};

/** What can be refused before an owner is asked; that one decides. E-ARG-02, E-SNAP-01, E-SNAP-02 and E-SNAP-06. */
export function checkSnapshot(input: SnapshotInput): Decision<null> {
  const { want, record, cluster, snapshots, name, id } = input;
  const parsed = parseName("snapshot", name);
  if (parsed.kind === "refused") return parsed;
  if (snapshots.some((snapshot) => snapshot.id === id)) return ok(null);
  if (snapshots.some((snapshot) => snapshot.name === name)) return refused(nameTaken(want, name));
  const count = snapshots.filter(({ state }) => state === "READY").length;
  if (count >= SNAPSHOTS_MAX) return refused(tooMany(want, count));
  const unable = unablePool(record, cluster);
  return unable === null ? ok(null) : refused(cannotHave(want, cluster, unable));
}

/** The first in-sync copy's pool that can hold no snapshots; null: all can, as far as is known. */
export function unablePool(record: VolumeRecord, { pools }: Cluster): Unable | null {
  for (const { pool, host } of insync(record)) {
    const found = pools.find(({ id }) => id === pool);
    if (found !== undefined && found.noSnapshots !== null)
      return { host, path: found.path, why: found.noSnapshots };
  }
  return null;
}

export type Unable = { readonly host: HostId; readonly path: string; readonly why: string };

/** E-SNAP-01: `"db" can't have snapshots: its copy on h2 (/srv/weft): the pool lies on ext4, …` */
export function cannotHave(want: Want, cluster: Cluster, { host, path, why }: Unable): Finding {
  const name = hostName(cluster, host);
  const at = path === "" ? "" : ` (${path})`;
  return finding("E-SNAP-01", `"${want.name}" can't have snapshots, for its copy on ${name}${at}: ${why}.`, {
    facts: { volume: want.volume, host, path, why },
    safe: "Nothing was done.",
    do: [
      { why: "See which pools can", command: "weft pool list" },
      {
        why: "Move that copy to one of them",
        command: `weft replica move ${want.name} --from ${name} --to HOST`,
      },
    ],
  });
}

export function nameTaken({ name: volume, volume: id }: Want, name: string): Finding {
  return finding("E-SNAP-02", `"${volume}" has a snapshot "${name}" already.`, {
    facts: { volume: id, name },
    safe: "Nothing was changed.",
    do: [{ why: "Look at it", command: `weft snapshot show ${volume}@${name}` }],
  });
}

function tooMany({ name, volume }: Want, count: number): Finding {
  return finding("E-SNAP-06", `"${name}" has ${count} snapshots, the limit.`, {
    facts: { volume, limit: SNAPSHOTS_MAX },
    safe: "Nothing was done.",
    do: [{ why: "See which can go", command: `weft snapshot list ${name}` }],
  });
}

/** Who needs what a snapshot holds, as people call them. */
export type SnapshotUse = {
  /** Hosts on which it is read. */
  readonly openOn: readonly string[];
  /** Volumes that are being made of it. */
  readonly clones: readonly string[];
  /** Its volume is being taken back to it. */
  readonly isReverting: boolean;
};

/** What stands against deleting it: E-SNAP-05 protected, E-SNAP-04 open on these hosts or in use, E-SNAP-13 these are made of it. */
export function checkSnapshotDelete(volume: string, snapshot: Snapshot, use: SnapshotUse): Decision<null> {
  if (snapshot.state === "DELETING") return ok(null);
  return checkUnused(volume, snapshot, use, "Not deleted.");
}

/** The same stands against destroying what it holds. E-SNAP-09 where that goes already with the snapshot. */
export function checkDestroyData(volume: string, snapshot: Snapshot, use: SnapshotUse): Decision<null> {
  const { id, name, state } = snapshot;
  if (state === "READY")
    return hasData(snapshot) ? checkUnused(volume, snapshot, use, "Its data was kept.") : ok(null);
  return refused(
    finding("E-SNAP-09", `${volume}@${name} is being deleted.`, {
      facts: { snapshot: id },
      safe: "Nothing was changed.",
    }),
  );
}

function checkUnused(
  volume: string,
  { id, name, isProtected }: Snapshot,
  { openOn, clones: [clone], isReverting }: SnapshotUse,
  verdict: string,
): Decision<null> {
  const ref = `${volume}@${name}`;
  if (isProtected)
    return refused(
      finding("E-SNAP-05", `${ref} is protected. ${verdict}`, {
        facts: { snapshot: id },
        safe: "Nothing was changed.",
        do: [{ why: "When it may go", command: `weft snapshot unprotect ${ref}` }],
      }),
    );
  if (clone !== undefined)
    return refused(
      finding("E-SNAP-13", `${ref} is being cloned: the volume "${clone}" is made of it. ${verdict}`, {
        facts: { snapshot: id, clone },
        safe: "Nothing was changed.",
        do: [
          { why: "When it is made, the snapshot may go", command: `weft volume show ${clone}` },
          { why: "Or give that volume up", command: `weft volume delete ${clone}` },
        ],
      }),
    );
  if (isReverting)
    return refused(
      finding("E-SNAP-04", `${ref} is in use: "${volume}" is being taken back to it. ${verdict}`, {
        facts: { snapshot: id },
        safe: "Nothing was changed.",
        do: [{ why: "When that is done, it may go", command: `weft volume show ${volume} --watch` }],
      }),
    );
  const [host] = openOn;
  if (host === undefined) return ok(null);
  return refused(
    finding("E-SNAP-04", `${ref} is attached on ${openOn.join(" ")}. ${verdict}`, {
      facts: { snapshot: id, hosts: openOn.join(" ") },
      safe: "Who reads it there is not disturbed.",
      do: [{ why: `Detach it, on ${host}`, command: `weft snapshot detach ${ref}` }],
    }),
  );
}

/** E-SNAP-18: there is nothing left to read, clone or go back to. Null: there is. */
export function dataIsGone(volume: string, snapshot: Snapshot): Finding | null {
  if (hasData(snapshot)) return null;
  const { id, name } = snapshot;
  const ref = `${volume}@${name}`;
  return finding("E-SNAP-18", `The data of ${ref} was destroyed: only what changed since it can be told.`, {
    facts: { snapshot: id },
    safe: "Nothing was changed.",
    do: [{ why: "See which snapshots have their data", command: `weft snapshot list ${volume}` }],
  });
}

/** A volume goes after its snapshots: E-SNAP-10. */
export function checkNoSnapshots({ name, volume }: Want, snapshots: readonly Snapshot[]): Decision<null> {
  if (snapshots.length === 0) return ok(null);
  const coming = snapshots.every(({ state }) => state === "DELETING");
  const count = snapshots.length === 1 ? "a snapshot" : `${snapshots.length} snapshots`;
  return refused(
    finding(
      "E-SNAP-10",
      coming
        ? `"${name}" has ${count} on the way out. Not deleted: in a moment they are gone.`
        : `"${name}" has ${count}. Not deleted: they would be lost with it.`,
      {
        facts: { volume, snapshots: snapshots.length },
        safe: "Nothing was changed.",
        do: [
          { why: "Delete them first", command: `weft snapshot list ${name}` },
          { why: "Or keep them without it", command: `weft volume delete ${name} --keep-snapshots` },
        ],
      },
    ),
  );
}
