/**
 * A volume is wished for, empty or as a snapshot of another one, and waited for.
 *
 * Must always hold:
 * - names are unique: given out in the transaction that makes the volume;
 * - creation is idempotent by its token;
 * - a clone is wished for only while its snapshot can be used: in one transaction on the snapshot as it was looked at.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { z } from "zod";

import { checkCloneSize, placeClone, type Source } from "../model/clone.ts";
import { type Cluster, hostName } from "../model/cluster.ts";
import type { HostId, Rid, VolumeId } from "../model/ids.ts";
import { defaultCopies, placeCopies, type Spot, roomOf } from "../model/placement.ts";
import { checkSize } from "../model/size.ts";
import { missing, placedAnew } from "../model/volume-making.ts";
import type { CreatedFrom, Want } from "../model/volume-record.ts";
import type * as api from "../wire/agent-api.ts";
import { decided, isWeftError, WeftError } from "../wire/errors.ts";
import { parseNameKey, renderWant } from "../wire/record.ts";
import type { Compare, Op } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { volumeOf } from "./facts.ts";
import { findHost, findSnapshot } from "./find.ts";
import { unreachable, without } from "./reachable.ts";
import { refuseDeleting, refuseDestroyed } from "./snapshots.ts";
import { MAKE_MS, nameTaken, stillMade } from "./volumes.ts";

/** Sharing the blocks of an aged snapshot takes a while; who waits longer is told that it goes on. */
const CLONE_MS = 60_000;
/** So often it is looked whether who makes copies is there. */
const LOOK_MS = 1500;

type Request = z.output<typeof api.volumeCreateRequest>;
type Choice = Pick<Want, "sizeBytes" | "copies" | "minIsr" | "spread" | "thick" | "createdFrom"> & {
  readonly spots: readonly Spot[];
  /** What it was chosen by. */
  readonly compares: readonly Compare[];
};

/** Whose id is given, and what else comes to be with the volume's wish or not at all. */
export type Beside = {
  readonly id: VolumeId;
  /** By what the mirror says now: it is looked at again when something of it has changed. */
  readonly write: () => { readonly compares: readonly Compare[]; readonly ops: readonly Op[] };
};

/** E-VOL-01 where its name, or the id that it shall have, is another volume's. */
export async function createVolume(
  context: MemberContext,
  request: Request,
  beside: Beside | null = null,
): Promise<VolumeId> {
  const { mirror, store, view } = context;
  await mirror.sync();
  const token = request.createdBy ?? randomUUID();
  const made = await store.get(keys.token(token));
  const id =
    made === null
      ? await wishVolume(context, request, token, beside)
      : parseNameKey(made.key, made.value).volume;
  const patienceMs = request.from === null ? MAKE_MS : CLONE_MS;
  const done = new AbortController();
  // Who says on which hosts its copies are waits for them.
  const moving = request.hosts === null ? moveFromDead(context, id, done.signal) : Promise.resolve();
  try {
    await mirror.until(`The volume "${request.name}"`, patienceMs, () => {
      const { want, record } = volumeOf(mirror, id);
      if (want !== null && want.refused !== null) throw notMade(want, view.cluster());
      return record;
    });
  } finally {
    done.abort();
    await moving;
  }
  return id;
}

/** What a host was to make that has died since is made by another one. Once is no sign: it must be away at two looks. */
async function moveFromDead(context: MemberContext, id: VolumeId, signal: AbortSignal): Promise<void> {
  const { mirror, store, view, log } = context;
  let before: ReadonlySet<HostId> = new Set();
  for (;;) {
    await delay(LOOK_MS, undefined, { signal, ref: false }).catch(() => undefined);
    if (signal.aborted) return;
    try {
      const { want, wantEntry, made, record } = volumeOf(mirror, id);
      if (want === null || wantEntry === null || record !== null) return;
      const away = await unreachable(
        context,
        missing(want, made).map(({ host }) => host),
      );
      const dead = new Set([...away].filter((host) => before.has(host)));
      before = away;
      const next = dead.size === 0 ? null : placedAnew(want, made, without(view.cluster(), away), dead);
      if (next === null) continue;
      const value = renderWant(next, wantEntry.value);
      const { kind } = await store.cas(wantEntry.key, wantEntry.modRevision, value);
      if (kind === "won")
        log.warn({ volume: id, dead: [...dead] }, "copies are made elsewhere: their hosts are dead");
      await mirror.sync();
    } catch (error) {
      // The store is away, or the hosts are: whoever waits is told in time.
      if (!isWeftError(error)) throw error;
    }
  }
}

async function wishVolume(
  context: MemberContext,
  request: Request,
  token: string,
  beside: Beside | null,
): Promise<VolumeId> {
  const { store, mirror } = context;
  const { name } = request;
  const only = request.hosts === null ? null : request.hosts.map((ref) => findHost(mirror, ref).id);
  const { spots, compares, ...chosen } = await chosenOnLiving(context, (cluster) =>
    request.from === null
      ? empty(cluster, request, only)
      : cloned(context, cluster, request, request.from, only),
  );
  const want: Want = {
    ...chosen,
    volume: beside?.id ?? (randomUUID() as VolumeId),
    name,
    placements: spots.map((spot, rid) => ({ rid: rid as Rid, ...spot, remove: false })),
    limits: null,
    scrub: null,
    deletedAtMs: null,
    headDeletedAtMs: null,
    createdBy: token,
    refused: null,
  };
  const pointer = JSON.stringify({ volume: want.volume });
  const all = [keys.token(token), keys.name(name), keys.want(want.volume)] as const;
  const more = beside?.write() ?? { compares: [], ops: [] };
  for (;;) {
    const outcome = await store.txn(
      [...all.map((key) => ({ key, modRevision: 0n })), ...compares, ...more.compares],
      [
        ...all.map((key, i) => ({
          kind: "put" as const,
          key,
          value: i === 2 ? renderWant(want, null) : pointer,
        })),
        ...more.ops,
      ],
    );
    if (outcome.kind === "succeeded") return want.volume;
    const byToken = await store.get(all[0]);
    if (byToken !== null) return parseNameKey(byToken.key, byToken.value).volume;
    if (outcome.kind !== "compare-failed") continue;
    for (const key of [all[1], all[2]]) if ((await store.get(key)) !== null) throw nameTaken(name);
    // The snapshot was changed: it may be protected now, or on its way out. Or what comes beside the volume was.
    await mirror.sync();
    return wishVolume(context, request, token, beside);
  }
}

/** On hosts that are there: one that has died has its lease for ten seconds more. */
async function chosenOnLiving(context: MemberContext, choose: (cluster: Cluster) => Choice): Promise<Choice> {
  let away: ReadonlySet<HostId> = new Set();
  for (;;) {
    const choice = choose(without(context.view.cluster(), away));
    const found = await unreachable(
      context,
      choice.spots.map(({ host }) => host),
    );
    if (found.size === 0) return choice;
    away = new Set([...away, ...found]);
  }
}

function empty(
  cluster: Cluster,
  { name, size, thick, ...request }: Request,
  only: readonly HostId[] | null,
): Choice {
  if (size === null) throw new Error("the schema lets no request without a size and a snapshot through");
  const sizeBytes = decided(checkSize(size));
  const spread = request.spread ?? "host";
  const copies = request.copies ?? only?.length ?? defaultCopies(cluster, spread);
  const minIsr = request.minIsr ?? 1;
  if (minIsr > copies) throw minIsrAbove(name, minIsr, copies);
  const roomBytes = roomOf({ thick, sizeBytes });
  const spots = decided(
    placeCopies(cluster, { name, copies, taken: [], only, pool: null, spread, beside: [], roomBytes }),
  );
  return { sizeBytes, copies, minIsr, spread, thick, createdFrom: null, spots, compares: [] };
}

/** What is not asked for is as the snapshot's volume has it. */
function cloned(
  { mirror }: MemberContext,
  cluster: Cluster,
  { name, size, ...request }: Request,
  from: string,
  only: readonly HostId[] | null,
): Choice {
  const { volume, snapshot } = findSnapshot(mirror, from);
  const { want, record, extra, unreadable } = volume;
  refuseDeleting(volume, snapshot);
  refuseDestroyed(volume, snapshot);
  if (unreadable !== null) throw unreadable;
  if (record === null) throw stillMade(want.name, volume.id);
  if (extra?.layer === true)
    throw new WeftError({
      code: "E-VOL-23",
      message: `"${want.name}" is a layer: what is written in it is to be laid over another volume. Not cloned.`,
      facts: { volume: volume.id },
      safe: "Nothing was changed.",
    });
  const source: Source = { ref: `${want.name}@${snapshot.name}`, snapshot, record };
  const wrong = checkCloneSize(name, source, size);
  if (wrong !== null) throw WeftError.fromFinding(wrong);
  const spread = request.spread ?? want.spread;
  const copies = request.copies ?? only?.length ?? want.copies;
  const minIsr = request.minIsr ?? Math.min(want.minIsr, copies);
  if (minIsr > copies) throw minIsrAbove(name, minIsr, copies);
  const { spots, made } = decided(placeClone(cluster, source, { name, copies, only, spread }));
  const createdFrom: CreatedFrom = {
    volume: volume.id,
    volumeName: want.name,
    snapshot: snapshot.id,
    snapshotName: snapshot.name,
    takenMs: snapshot.createdMs,
    generation: snapshot.generation,
    epoch: snapshot.epoch,
    regionShift: snapshot.regionShift,
    rids: spots.slice(0, made).map((_, rid) => rid as Rid),
  };
  const key = keys.snapshot(volume.id, snapshot.id);
  const modRevision = mirror.get(key)?.modRevision ?? 0n;
  const { sizeBytes } = snapshot;
  return {
    sizeBytes,
    copies,
    minIsr,
    spread,
    thick: false,
    createdFrom,
    spots,
    compares: [{ key, modRevision }],
  };
}

function notMade({ name, refused, createdFrom }: Want, cluster: Cluster): WeftError {
  if (refused === null) throw new Error(`"${name}" was not refused`);
  const { host, code, message } = refused;
  const where = hostName(cluster, host);
  return new WeftError({
    code,
    message: `"${name}" could not be made, for its copy on ${where}: ${message}`,
    facts: { name, host },
    safe: "Nothing is left of it.",
    do: [
      createdFrom === null
        ? { why: "See what the pools can take", command: "weft pool list" }
        : {
            why: "See which copies have the snapshot",
            command: `weft snapshot list ${createdFrom.volumeName}`,
          },
    ],
  });
}

function minIsrAbove(name: string, minIsr: number, copies: number): WeftError {
  return new WeftError({
    code: "E-VOL-06",
    message: `"${name}" shall have ${copies} ${copies === 1 ? "copy" : "copies"}, so min-isr can't be ${minIsr}.`,
    facts: { name, minIsr, copies },
    safe: "Nothing was changed.",
  });
}
