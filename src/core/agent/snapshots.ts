/**
 * Snapshots of volumes: shown from the store, taken, deleted and changed by the volume's owner wherever that is, read on
 * this host.
 *
 * Must always hold:
 * - what is not logged is shown to nobody (R27);
 * - a request is asked of owners by the snapshot's id: asked again it does nothing twice.
 */
import { randomUUID } from "node:crypto";

import { hostName, isAlive } from "../model/cluster.ts";
import { refOf } from "../model/headless.ts";
import { maySee, type Principal } from "../model/roles.ts";
import { parseHostId, parseSnapshotId, type SnapshotId, type VolumeId } from "../model/ids.ts";
import {
  cannotHave,
  checkDestroyData,
  checkSnapshot,
  checkSnapshotDelete,
  coverage,
  dataIsGone,
  hasData,
  inOrder,
  isShown,
  nameOfMoment,
  nameTaken,
  type Snapshot,
  type SnapshotUse,
} from "../model/snapshot.ts";
import type { Want } from "../model/volume-record.ts";
import type * as api from "../wire/agent-api.ts";
import { decided, isWeftError, WeftError } from "../wire/errors.ts";
import type { MemberContext } from "./context.ts";
import { openOn, snapshotsOf, type VolumeFacts, volumeOf, volumesOf } from "./facts.ts";
import { findSnapshot, findVolume, hasWant, type WantedVolume } from "./find.ts";
import { byOwner } from "./owner-work.ts";
import { type ImageFacts, imagesOf } from "./snapshot-images.ts";
import { copiesUnderWay } from "./snapshot-keeper.ts";
import { stillMade } from "./volumes.ts";

export async function createSnapshot(
  context: MemberContext,
  ref: string,
  asked: { readonly name: string | null; readonly id: string | null; readonly by: string },
): Promise<api.SnapshotCreated> {
  const { mirror, view } = context;
  await mirror.sync();
  const { id: volume, want, record, unreadable } = findVolume(mirror, ref);
  if (unreadable !== null) throw unreadable;
  if (record === null) throw stillMade(want.name, volume);
  const { known } = snapshotsOf(mirror, volume);
  const id = parseSnapshotId(asked.id ?? randomUUID());
  if (id === null) throw new Error("the schema lets UUIDs through only");
  const name = asked.name ?? freeName(known, new Date().toISOString());
  const cluster = view.cluster();
  decided(checkSnapshot({ want, record, cluster, snapshots: known, name, id }));
  const { heldMs } = await byOwner(context, { kind: "snapshot", volume, id, name, by: asked.by }).catch(
    (error: unknown) => {
      throw explained(context, want, name, error);
    },
  );
  await mirror.sync();
  return { ...shownSnapshot(context, volume, id), heldMs: heldMs ?? 0n };
}

/** Answers when nobody can use it any more; its space comes back by and by. */
export async function deleteSnapshot(context: MemberContext, ref: string): Promise<void> {
  const { mirror } = context;
  await mirror.sync();
  const { volume, snapshot } = findSnapshot(mirror, ref);
  decided(checkSnapshotDelete(refOf(volume.want), snapshot, useOf(context, volume, snapshot)));
  if (snapshot.state === "DELETING") return;
  await byOwner(context, { kind: "delete-snapshot", volume: volume.id, id: snapshot.id });
  await mirror.sync();
}

/** Answers when nobody can read it any more; copies that are away destroy it when they are back. */
export async function destroyData(context: MemberContext, ref: string): Promise<api.SnapshotAnswer> {
  const { mirror } = context;
  await mirror.sync();
  const { volume, snapshot } = findSnapshot(mirror, ref);
  decided(checkDestroyData(refOf(volume.want), snapshot, useOf(context, volume, snapshot)));
  if (hasData(snapshot)) {
    await byOwner(context, { kind: "destroy-data", volume: volume.id, id: snapshot.id });
    await mirror.sync();
  }
  return shownSnapshot(context, volume.id, snapshot.id);
}

/** Who needs what it holds. */
function useOf({ mirror, view }: MemberContext, { record }: VolumeFacts, { id }: Snapshot): SnapshotUse {
  const cluster = view.cluster();
  return {
    openOn: openOn(mirror, id).map((host) => hostName(cluster, host)),
    clones: clonesInTheMaking(mirror, id),
    isReverting: record?.reverting?.snapshot === id,
  };
}

/** Names of volumes that are being made of it. */
function clonesInTheMaking(mirror: MemberContext["mirror"], id: SnapshotId): readonly string[] {
  return volumesOf(mirror)
    .filter(hasWant)
    .filter(({ want, record }) => record === null && want.deletedAtMs === null)
    .filter(({ want: { createdFrom } }) => createdFrom?.snapshot === id)
    .map(({ want }) => want.name);
}

export async function changeSnapshot(
  context: MemberContext,
  ref: string,
  { name, protected: isProtected }: api.SnapshotChange,
): Promise<api.SnapshotAnswer> {
  const { mirror } = context;
  await mirror.sync();
  const { volume, snapshot } = findSnapshot(mirror, ref);
  refuseDeleting(volume, snapshot);
  const about = { volume: volume.id, id: snapshot.id };
  if (name !== undefined && name !== snapshot.name) {
    if (snapshotsOf(mirror, volume.id).known.some((other) => other.name === name))
      throw WeftError.fromFinding(nameTaken(volume.want, name));
    await byOwner(context, { kind: "rename-snapshot", ...about, name });
  }
  if (isProtected !== undefined && isProtected !== snapshot.isProtected)
    await byOwner(context, { kind: "protect-snapshot", ...about, protected: isProtected });
  await mirror.sync();
  return shownSnapshot(context, volume.id, snapshot.id);
}

/** Read-only, on this host, wherever its volume is open. */
export async function attachSnapshot(
  { mirror, daemon }: MemberContext,
  ref: string,
): Promise<api.SnapshotAttached> {
  await mirror.sync();
  const { volume, snapshot } = findSnapshot(mirror, ref);
  refuseDeleting(volume, snapshot);
  refuseDestroyed(volume, snapshot);
  const { path } = await daemon.client.call("snapshot.open", {
    volume: volume.id,
    id: snapshot.id,
    export: { nbd: { path: null } },
  });
  return { snapshot: snapshot.id, volume: volume.id, path };
}

export async function detachSnapshot({ mirror, daemon }: MemberContext, ref: string): Promise<void> {
  await mirror.sync();
  const { volume, snapshot } = findSnapshot(mirror, ref);
  await daemon.client.call("snapshot.close", { volume: volume.id, id: snapshot.id });
}

export function snapshotAnswers(context: MemberContext, volume: VolumeFacts): readonly api.SnapshotAnswer[] {
  const { known } = snapshotsOf(context.mirror, volume.id);
  const images = imagesOf(context.mirror, volume.id);
  return inOrder(known.filter(isShown)).flatMap(
    (snapshot) => snapshotAnswer(context, volume, snapshot, images.get(snapshot.id)) ?? [],
  );
}

/** Of all volumes that the principal may see, by their names. */
export function allSnapshots(context: MemberContext, principal: Principal): readonly api.SnapshotAnswer[] {
  return volumesOf(context.mirror)
    .filter(hasWant)
    .filter(({ id, want }) => want.deletedAtMs === null && maySee(principal, id))
    .toSorted((a, b) => (a.want.name < b.want.name ? -1 : 1))
    .flatMap((volume) => snapshotAnswers(context, volume));
}

export function shownSnapshot(context: MemberContext, volume: VolumeId, id: SnapshotId): api.SnapshotAnswer {
  const facts = volumeOf(context.mirror, volume);
  const snapshot = snapshotsOf(context.mirror, volume).known.find((known) => known.id === id) ?? null;
  const images = imagesOf(context.mirror, volume).get(id);
  const answer = snapshot === null ? null : snapshotAnswer(context, facts, snapshot, images);
  if (answer !== null) return answer;
  throw new WeftError({
    code: "E-SNAP-09",
    message: `The snapshot ${id} is gone: somebody deleted it in the same moment.`,
    facts: { snapshot: id },
  });
}

/** Null: its volume has no name that it could be shown by. */
function snapshotAnswer(
  { mirror, view }: MemberContext,
  { id, want, record }: VolumeFacts,
  snapshot: Snapshot,
  images: readonly ImageFacts[] = [],
): api.SnapshotAnswer | null {
  if (want === null) return null;
  const cluster = view.cluster();
  const own = images.flatMap(({ rid, ownBytes }) =>
    snapshot.members.some((member) => member.rid === rid) ? [ownBytes] : [],
  );
  const { copies, missedBy } = record === null ? { copies: 0, missedBy: [] } : coverage(snapshot, record);
  const named = (host: Parameters<typeof hostName>[1]): string => hostName(cluster, host);
  return {
    id: snapshot.id,
    name: snapshot.name,
    volume: id,
    volumeName: refOf(want),
    size: snapshot.sizeBytes,
    takenAt: new Date(snapshot.createdMs).toISOString(),
    createdBy: snapshot.createdBy,
    state: snapshot.state === "READY" ? "ready" : "deleting",
    protected: snapshot.isProtected,
    dataDestroyed: !hasData(snapshot),
    ownBytes: own.length === 0 ? null : own.reduce((most, bytes) => (bytes > most ? bytes : most)),
    copies,
    wantedCopies: want.copies,
    members: snapshot.members.map(({ rid, host, pool }) => {
      const image = images.find((one) => one.rid === rid);
      return {
        rid,
        host,
        hostName: named(host),
        pool,
        alive: isAlive(cluster, host),
        left: record?.replicas.every((member) => member.rid !== rid) ?? true,
        ownBytes: image?.ownBytes ?? null,
        damagedRegions: image?.damagedRegions ?? 0n,
      };
    }),
    missedBy: missedBy.map(named),
    copying: copiesUnderWay(mirror)
      .filter(({ snapshot: brought }) => brought === snapshot.id)
      .map(({ host, doneBytes, totalBytes }) => ({ hostName: named(host), doneBytes, totalBytes })),
    openOn: openOn(mirror, snapshot.id).map(named),
    group: groupAnswer(mirror, snapshot),
  };
}

function groupAnswer(mirror: MemberContext["mirror"], { group }: Snapshot): api.SnapshotAnswer["group"] {
  if (group === null) return null;
  const volumes = group.volumes.map((id) => ({ id, name: volumeOf(mirror, id).want?.name ?? null }));
  return { id: group.id, volumes };
}

/** By the moment, and a number where there is one already. */
export function freeName(known: readonly Snapshot[], at: string): string {
  const name = nameOfMoment(at);
  const isFree = (candidate: string): boolean => !known.some((snapshot) => snapshot.name === candidate);
  if (isFree(name)) return name;
  for (let n = 2; ; n += 1) if (isFree(`${name}-${n}`)) return `${name}-${n}`;
}

/** E-SNAP-09 for one that is on its way out. */
export function refuseDeleting({ want }: WantedVolume, { id, name, state }: Snapshot): void {
  if (state === "READY") return;
  throw new WeftError({
    code: "E-SNAP-09",
    message: `${refOf(want)}@${name} is being deleted.`,
    facts: { snapshot: id },
    safe: "Nothing was changed.",
  });
}

/** E-SNAP-18 for one whose data is gone. */
export function refuseDestroyed({ want }: WantedVolume, snapshot: Snapshot): void {
  const gone = dataIsGone(refOf(want), snapshot);
  if (gone !== null) throw WeftError.fromFinding(gone);
}

/** weftd's refusal with the names that people know copies by. */
export function explained({ view }: MemberContext, want: Want, name: string, error: unknown): unknown {
  if (!isWeftError(error)) return error;
  const cluster = view.cluster();
  const { rid, node, pool, why } = error.facts;
  const host = typeof node === "string" ? parseHostId(node) : null;
  switch (error.code) {
    case "E-SNAP-01": {
      if (host === null) return error;
      const { path = "", noSnapshots = null } = cluster.pools.find(({ id }) => id === pool) ?? {};
      const reason = typeof why === "string" ? why : (noSnapshots ?? "its pool can't keep any");
      return WeftError.fromFinding(cannotHave(want, cluster, { host, path, why: reason }));
    }
    case "E-SNAP-02":
      return WeftError.fromFinding(nameTaken(want, name));
    case "E-SNAP-03": {
      const { for: reason } = error.facts;
      if (typeof reason !== "string") return error;
      const what =
        host === null
          ? `it waits for ${reason}`
          : `its copy on ${hostName(cluster, host)} did not answer in time`;
      return new WeftError({
        ...error.toBody(),
        message: `"${want.name}" gets no snapshot now: ${what}. Tried for 20 s.`,
        safe: "Nothing was done; guests go on as before.",
        do: [
          { why: "What it waits for", command: `weft why ${want.name}` },
          { why: "Then again", command: `weft snapshot create ${want.name}@${name}` },
        ],
        cause: error,
      });
    }
    case "E-SNAP-08": {
      const where = host === null ? `its copy ${String(rid)}` : `its copy on ${hostName(cluster, host)}`;
      return new WeftError({
        ...error.toBody(),
        message: `"${want.name}" gets no snapshot: ${where} has no room for one.`,
        safe: "Nothing was done.",
        do: [
          { why: "See how full the pools are", command: "weft pool list" },
          { why: "Older snapshots may go", command: `weft snapshot list ${want.name}` },
        ],
        cause: error,
      });
    }
    default:
      return error;
  }
}
