/**
 * Effects of a volume's life, performed: by this host's weftd, or in the store by the placer.
 *
 * Must always hold:
 * - each is idempotent: it is asked for again until the facts show it;
 * - a change of a volume's state is asked of weftd, never written here (architecture.md, "Records");
 * - a replica's made-key is written after weftd made it durable, and deleted after weftd says that it is gone;
 * - a volume is given up only while it has no record, in one transaction with its name.
 */
import { randomUUID } from "node:crypto";
import { z } from "zod";

import type { HostId, Rid, VolumeId } from "../model/ids.ts";
import { MAKE_MS_MAX } from "../model/limits.ts";
import { uuidOfName } from "../model/vdi.ts";
import type { VolumeEffect, VolumeState } from "../model/volume.ts";
import { missing } from "../model/volume-making.ts";
import { type CreatedFrom, firstPlaces, type Want } from "../model/volume-record.ts";
import type { DaemonClient } from "../wire/daemon-client.ts";
import type { RecordJson } from "../wire/daemon.gen.ts";
import { WeftError } from "../wire/errors.ts";
import { parseRecordExtra, parseWant, RECORD_FORMAT, renderWant } from "../wire/record.ts";
import { uuid as uuidText } from "../wire/json-types.ts";
import type { Entry, Op, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { readValue } from "./store-value.ts";

/**
 * Asked again it would be refused again: there is no room for a copy that needs all of its own, or the snapshot is not to
 * be had there.
 */
function isForGood(code: string, isClone: boolean): boolean {
  return code === "E-POOL-06" || (isClone && (code.startsWith("E-SNAP-") || ofClones.has(code)));
}

const ofClones: ReadonlySet<string> = new Set(["E-ARG-01", "E-ARG-02", "E-DISK-01"]);

/** Null: the copy begins empty. */
function originOf(want: Want | null, rid: Rid): CreatedFrom | null {
  const origin = want?.createdFrom ?? null;
  return origin?.rids.includes(rid) === true ? origin : null;
}

export type PerformContext = {
  readonly store: StoreClient;
  readonly daemon: DaemonClient;
  readonly self: HostId;
  /** Whose session without a guest is used by a request. */
  readonly held: ReadonlySet<VolumeId>;
};

export async function perform(
  context: PerformContext,
  volume: VolumeId,
  effect: VolumeEffect,
  state: VolumeState,
): Promise<void> {
  const { daemon, store, self } = context;
  switch (effect.kind) {
    case "make-replica": {
      const { rid, pool } = effect;
      const thick = state.want?.thick ?? false;
      // With a record the volume is: whoever comes then is filled by the others.
      const origin = state.record === null ? originOf(state.want, rid) : null;
      const size = state.record?.sizeBytes ?? state.want?.sizeBytes ?? 0n;
      const shift = origin?.regionShift ?? (await regionShift(store, volume, size));
      const from = origin === null ? null : { volume: origin.volume, rid: null, snap: origin.snapshot };
      const replica = { volume, rid, pool, size: String(size), region_shift: shift, thick, from };
      const isSlow = thick || from !== null;
      try {
        await daemon.call("replica.create", replica, isSlow ? MAKE_MS_MAX : undefined);
      } catch (error) {
        const isOver = error instanceof WeftError && isForGood(error.code, origin !== null);
        if (state.record === null && isOver) await giveUp(context, volume, error);
        throw error;
      }
      await store.put(keys.made(volume, rid), JSON.stringify({ rid, host: self, pool, made: true }));
      return;
    }
    case "create-record": {
      const entry = await store.get(keys.want(volume));
      if (entry === null) return;
      const want = parseWant(entry.key, entry.value);
      // Another place may have been found since for a copy that was not made.
      if (missing(want, state.made).length > 0) return;
      const rids = firstPlaces(want).map(({ rid }) => rid);
      await daemon.call("volume.create", { record: firstRecord(want, rids, Date.now()) });
      return;
    }
    case "create-tombstone": {
      const entry = await store.get(keys.want(volume));
      if (entry === null) return;
      const rids = state.made.map(({ rid }) => rid);
      const now = Date.now();
      const record = firstRecord(parseWant(entry.key, entry.value), rids, now);
      const deleted = String(Math.floor(now / 1000));
      await daemon.call("volume.create", { record: { ...record, deleted } });
      return;
    }
    case "add-member": {
      const { rid, host, pool } = effect.place;
      await daemon.call("replica.add", { volume, rid, node: host, pool });
      return;
    }
    case "remove-member":
      await daemon.call("replica.remove", { volume, rid: effect.rid });
      return;
    case "grow":
      await daemon.call("volume.resize", { volume, size: String(effect.sizeBytes), lose: false });
      return;
    case "set-policy": {
      const { copies, minIsr, spread } = effect.policy;
      await daemon.call("volume.policy", { volume, copies, min_isr: minIsr, spread });
      return;
    }
    case "open-caretaker":
      await openCaretaker(daemon, volume);
      return;
    case "close-caretaker":
      if (context.held.has(volume)) return;
      await daemon.call("session.close", { volume, abandon: false });
      return;
    case "delete-record":
      await daemon.call("volume.delete", { volume, keep_snapshots: false });
      return;
    case "restore-record":
    case "restore-head":
      await daemon.call("volume.restore", { volume });
      return;
    case "delete-head":
      await daemon.call("volume.delete", { volume, keep_snapshots: true });
      return;
    case "release-head":
      await daemon.call("volume.release", { volume });
      return;
    case "end-headless":
      await changeWant(store, volume, (want) =>
        want.headDeletedAtMs === null ? null : { ...want, deletedAtMs: want.headDeletedAtMs },
      );
      return;
    case "trash-replica":
      await trashReplica(context, volume, effect, state);
      return;
    case "untrash-replica":
      await daemon.call("trash.restore", { volume });
      return;
    case "empty-trash":
      // It may not have got there yet.
      if (await isThere(daemon, volume, effect)) await trashReplica(context, volume, effect, state);
      await daemon.call("trash.empty", { volume });
      await store.delete(keys.made(volume, effect.rid));
      return;
    case "drop-place":
      await changeWant(store, volume, (want) => ({
        ...want,
        placements: want.placements.filter((place) => place.rid !== effect.rid),
      }));
      return;
    case "forget":
      await forget(store, volume, effect.name);
      return;
  }
}

/** A session without a guest on this host. weftd takes a volume from another caretaker, too; a guest that came in keeps it. */
export async function openCaretaker(daemon: DaemonClient, volume: VolumeId): Promise<void> {
  await daemon.call("session.open", {
    volume,
    mode: "closed",
    export: null,
    caretaker: true,
    old_stopped: false,
    expected: null,
    limits: null,
  });
}

/** The wish is given up, its name is free, and why is kept for who asked. */
async function giveUp(
  { store, self }: PerformContext,
  volume: VolumeId,
  { code, message }: WeftError,
): Promise<void> {
  for (;;) {
    const entry = await store.get(keys.want(volume));
    if (entry === null) return;
    const want = parseWant(entry.key, entry.value);
    if (want.deletedAtMs !== null) return;
    const refused = { ...want, deletedAtMs: Date.now(), refused: { host: self, code, message } };
    await store.txn(
      [
        { key: entry.key, modRevision: entry.modRevision },
        { key: keys.state(volume), modRevision: 0n },
      ],
      [
        { kind: "put", key: entry.key, value: renderWant(refused, entry.value) },
        { kind: "delete", key: keys.name(want.name) },
      ],
    );
    // It became a volume in the same moment: this copy is asked for again.
    if ((await store.get(keys.state(volume))) !== null) return;
  }
}

async function isThere(
  daemon: DaemonClient,
  volume: VolumeId,
  { rid, pool }: { readonly rid: Rid; readonly pool: string },
): Promise<boolean> {
  const { replicas } = await daemon.call("replica.list", {});
  return replicas.some((one) => one.volume === volume && one.rid === rid && one.pool === pool);
}

/** A tombstoned volume's replica stays made: it can be restored until the trash is emptied. */
async function trashReplica(
  { daemon, store }: PerformContext,
  volume: VolumeId,
  { rid, pool }: { readonly rid: number; readonly pool: string },
  state: VolumeState,
): Promise<void> {
  const { trashed, reason } = await daemon.call("replica.trash", { volume, rid, pool });
  if (!trashed) {
    throw new WeftError({
      code: "E-REPL-05",
      message: `weftd keeps replica ${rid}: ${reason ?? "no reason given"}.`,
      facts: { volume, rid },
    });
  }
  if (state.record === null || state.record.deletedAtMs === null) await store.delete(keys.made(volume, rid));
}

/**
 * The next `want` by compare-and-swap, computed anew from what is there until one wins.
 * `change` gives null: nothing to change any more.
 */
export async function changeWant(
  store: StoreClient,
  volume: VolumeId,
  change: (want: Want) => Want | null,
): Promise<Want | null> {
  const key = keys.want(volume);
  for (;;) {
    const entry = await store.get(key);
    if (entry === null) return null;
    const before = parseWant(key, entry.value);
    const after = change(before);
    if (after === null) return before;
    const outcome = await store.cas(key, entry.modRevision, renderWant(after, entry.value));
    if (outcome.kind === "won") return after;
  }
}

/** Everything of a volume whose replicas are all gone, in one transaction on the `want` that was seen. */
async function forget(store: StoreClient, volume: VolumeId, name: string): Promise<void> {
  const want = await store.get(keys.want(volume));
  if (want === null) return;
  const made = await store.list(`${keys.volume(volume)}replica/`);
  const parsed = parseWant(want.key, want.value);
  if (made.entries.length > 0 || parsed.deletedAtMs === null) return;
  const disk = await diskKeyOf(store, parsed);
  const nameEntry = await store.get(keys.name(name));
  const ops: Op[] = [
    { kind: "delete-prefix", prefix: keys.volume(volume) },
    { kind: "delete", key: keys.token(parsed.createdBy) },
  ];
  const compares = [{ key: want.key, modRevision: want.modRevision }];
  if (disk !== null) {
    ops.push({ kind: "delete", key: disk.key });
    compares.push({ key: disk.key, modRevision: disk.modRevision });
  }
  if (nameEntry !== null && nameEntry.value.includes(volume)) {
    ops.push({ kind: "delete", key: nameEntry.key });
    compares.push({ key: nameEntry.key, modRevision: nameEntry.modRevision });
  }
  await store.txn(compares, ops);
}

/**
 * What XAPI had beside it, where it was a disk of a storage repository. The key of its id may be a disk's that was composed: that
 * one has another volume, and lives.
 */
async function diskKeyOf(store: StoreClient, { volume, name }: Want): Promise<Entry | null> {
  for (const uuid of [volume, uuidOfName(name)]) {
    const entry = uuid === null ? null : await store.get(keys.vdi(uuid));
    const said = entry === null ? null : readValue(saysVolume, entry.value);
    // Of one that says nothing of its volume that can be read, its own UUID is that.
    if (entry !== null && (said === null ? uuid === volume : said.volume === volume)) return entry;
  }
  return null;
}

const saysVolume = z.looseObject({ volume: uuidText, snapshot: z.null() });

/**
 * The first record of a volume: these replicas in sync, closed in order, empty (protocol.md 4.2) or as the snapshot of
 * which they are made; then its epochs are above the snapshot's (docs/model.md, finding 26).
 */
function firstRecord(want: Want, rids: readonly Rid[], nowMs: number): RecordJson {
  const places = want.placements.filter(({ rid }) => rids.includes(rid));
  const { createdFrom } = want;
  const replicas = places.map(({ rid, host, pool }) => ({
    rid,
    node: host,
    pool,
    // None yet: a session says at which one the pool serves. The pool's key may be ahead of its disk for a moment.
    pool_inc: "0",
    state: "INSYNC",
    base: "0",
    reason: "",
    since: String(nowMs),
  }));
  return {
    fmt: RECORD_FORMAT,
    min_reader: RECORD_FORMAT,
    vol: want.volume,
    size: String(want.sizeBytes),
    region_shift: createdFrom?.regionShift ?? regionShiftFor(want.sizeBytes),
    mode: "excl",
    policy: {
      copies: want.copies,
      // Raised to what is wanted when as many copies have joined.
      min_isr: Math.min(want.minIsr, places.length),
      ack: "durable",
      on_loss: "pause",
      spread: want.spread,
    },
    epoch: String((createdFrom?.epoch ?? 0n) + 1n),
    rev: "1",
    next_rid: Math.max(0, ...rids.map((rid) => rid + 1)),
    deleted: null,
    created_by: want.createdBy,
    nonce: randomUUID(),
    owner: null,
    next: null,
    clean: true,
    closed_gen: String(createdFrom?.generation ?? 0n),
    replicas,
    snaps: { count: 0, newest: null },
    parent: null,
    lineage: [],
    wait: false,
  };
}

/** Regions are volume-wide: the record's word where there is one. */
async function regionShift(store: StoreClient, volume: VolumeId, size: bigint): Promise<number> {
  const entry = await store.get(keys.state(volume));
  return entry === null ? regionShiftFor(size) : parseRecordExtra(entry.key, entry.value).regionShift;
}

/** 1 MiB, raised so that there are at most 2^20 regions. */
function regionShiftFor(sizeBytes: bigint): number {
  let shift = 20;
  while (sizeBytes > 1n << BigInt(shift + 20)) shift += 1;
  return shift;
}
