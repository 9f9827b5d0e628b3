/**
 * A store that was lost or restored from a backup is rebuilt from the record copies that the replicas keep.
 *
 *     ask (a key) ──▶ each agent: replica.records of its weftd ──▶ answers (a key each) ──▶ the best of each volume
 *     ──▶ weftd writes them and their snapshots' keys, every epoch raised by 2^20, then the keys of pools, at last the incarnation
 *     ──▶ wishes made to fit
 *
 * Must always hold:
 * - highest (epoch, rev) wins, of those that changes can have led to (model/repair.ts); a member named in the best copy that told nothing needs the operator's assent (4.15), be
 *   its host silent or there without it: its pool may be gone, damaged or older than others remember it, and a later
 *   record be there alone. What the store itself still has of a volume counts like a copy, also if no replica tells of it;
 * - no pool's key ends below anything that is known of it, so that an old disk stays one (R10, docs/adr/0012);
 * - the incarnation after it is above every watermark that any host has seen (protocol.md R11);
 * - what somebody wrote near the end of its range is written over, not followed;
 * - repeating it finishes what was begun.
 */
import { randomUUID } from "node:crypto";
import { z } from "zod";

import { hostName } from "../model/cluster.ts";
import {
  bestKept,
  epochToRaise,
  isNewer,
  knownIncarnation,
  mayFollow,
  nextIncarnation,
} from "../model/repair.ts";
import { spreads } from "../model/spread.ts";
import type { VolumeRecord, Want } from "../model/volume-record.ts";
import type { RepairAnswer } from "../wire/agent-api.ts";
import type { RecordJson, RepairPool } from "../wire/daemon.gen.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { counter, uuid } from "../wire/json-types.ts";
import { parseRecord, renderWant } from "../wire/record.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { aliveOf, hostsOf, poolsOf, volumeOf, volumesOf } from "./facts.ts";
import { forgetImages, snapshotsToRepair, tellImages } from "./repair-snapshots.ts";
import { incarnationOf } from "./store-status.ts";
import { readValue } from "./store-value.ts";
import { putTrustBack } from "./trust-upkeep.ts";

/** For hosts that aren't back yet: after a restore their agents come within seconds. */
const ALL_MS = 5000;
/** For those that are there; reading the records of 500 replicas takes a while. */
const ALIVE_MS = 15_000;

const askJson = z.object({ id: uuid, by: uuid });
const answerJson = z.object({
  ask: uuid,
  incarnation: counter,
  records: z.array(z.record(z.string(), z.unknown())),
  /** The replicas that told what they keep, also if that is nothing yet. */
  told: z.array(z.string()),
  /** Pools whose disks are there: at which incarnation they are, and at which their host has served them. */
  pools: z.array(z.object({ pool: uuid, path: z.string(), inc: counter, served: counter })).default([]),
});
/** What a record says of its members' pools. */
const memberPools = z.object({ replicas: z.array(z.object({ pool: uuid, pool_inc: counter.default(0n) })) });

type Answers = ReadonlyMap<string, z.output<typeof answerJson>>;
type Kept = { readonly record: VolumeRecord; readonly json: RecordJson; readonly host: string };

/** Every agent: answers the ask that is in the store, once each. */
export async function answerRepair(context: MemberContext): Promise<void> {
  const { mirror, host } = context;
  const entry = mirror.get(keys.repairAsk);
  if (entry === null) return;
  const ask = readValue(askJson, entry.value);
  // The asker answers itself: an older answer that is still under way must not replace a newer one.
  if (ask === null || ask.by === host) return;
  const before = mirror.get(keys.repair(host));
  if (before !== null && readValue(answerJson, before.value)?.ask === ask.id) return;
  await answer(context, ask.id);
}

async function answer({ host, daemon, store, log, identity }: MemberContext, ask: string): Promise<void> {
  // The store's list of who is trusted went back too: revoked hosts stay revoked.
  if (await putTrustBack(store, identity))
    log.warn({}, "the newest trust list of this host is in the store again");
  const { records, pools } = await daemon.client.call("replica.records", {});
  const shown = await daemon.client.call("store.show", {});
  const best = new Map<string, { readonly record: VolumeRecord; readonly json: RecordJson }>();
  for (const { volume, record: json } of records) {
    if (json === null) continue;
    const record = parseRecord(`the copy of ${volume} on this host`, JSON.stringify(json));
    const known = best.get(volume);
    if (known === undefined || isNewer(record, known.record)) best.set(volume, { record, json });
  }
  const incarnation = shown.watermark?.incarnation ?? "0";
  const telling = new Set(pools.flatMap(({ pool, tells }) => (tells ? pool : [])));
  const said = {
    ask,
    incarnation,
    records: [...best.values()].map(({ json }) => json),
    told: records.filter(({ pool }) => telling.has(pool)).map(({ volume, rid }) => replicaName(volume, rid)),
    pools: pools.flatMap(({ pool, path, inc, served }) => (inc === null ? [] : { pool, path, inc, served })),
  };
  for (const { pool, path, tells, reason } of pools)
    if (!tells) log.warn({ pool, path, reason }, "the pool tells the repair of the store nothing");
  // Before the answer: who has that has all of it.
  await tellImages(
    store,
    { host, ask },
    records.filter(({ pool }) => telling.has(pool)),
  );
  await store.put(keys.repair(host), JSON.stringify(said));
}

export async function repairStore(context: MemberContext, assent: boolean): Promise<RepairAnswer> {
  const { mirror, store, daemon, self, log, confirmation } = context;
  // Those that could say which store is the cluster's may be gone for good: then the operator does.
  if (assent) await confirmation.vouch();
  confirmation.refuseUnconfirmed();
  await mirror.sync();
  const ask = randomUUID();
  await store.put(keys.repairAsk, JSON.stringify({ id: ask, by: self.host }));
  const answers = await collect(context, ask);
  const told = toldOf(answers);
  const best = bestOf(told);
  const named = withStored(context, best);
  for (const [volume, kept] of named) if (!best.has(volume)) best.set(volume, kept);
  const known = knownOf(context, answers);
  const missing = missingOf(context, named, answers, known);
  if (missing.length > 0 && !assent) throw needsAssent(missing, [...best.values()]);
  const stored = mirror.get(keys.store);
  const present = stored === null ? 0n : (incarnationOf(stored) ?? 0n);
  const seen = [...answers.values()].map((answered) => answered.incarnation);
  const incarnation = nextIncarnation(answers.get(self.host)?.incarnation ?? 0n, [present, ...seen]);
  const snaps = snapshotsToRepair(
    mirror,
    ask,
    [...best.values()].map(({ record }) => record),
  );
  await daemon.client.call("store.repair_apply", {
    incarnation: String(incarnation),
    records: [...best.values()].map(({ json, record }) => ({
      ...json,
      epoch: String(epochToRaise(record, told.get(record.volume) ?? [])),
    })),
    pools: raisedPools(context, answers, known),
    snaps,
  });
  await mirror.sync();
  for (const { record } of best.values()) await fitWish(context, record);
  await store.delete(keys.repairAsk);
  for (const host of answers.keys()) await store.delete(keys.repair(host));
  await forgetImages(store);
  log.warn({ incarnation: String(incarnation), volumes: best.size }, "the store was repaired");
  await mirror.sync();
  const cluster = context.view.cluster();
  return {
    incarnation,
    answered: [...answers.keys()].map((id) => nameOf(context, id)),
    missing,
    volumes: [...best.values()].map(({ record, host }) => {
      const now = volumeOf(mirror, record.volume).record ?? record;
      const from = cluster.hosts.find(({ id }) => id === host);
      return {
        volume: record.volume,
        epoch: now.epoch,
        rev: now.rev,
        from: from === undefined ? host : hostName(cluster, from.id),
      };
    }),
    snapshots: snaps.filter(({ image }) => image.state === "ready").length,
  };
}

/** Answers of all hosts, or of those that answer in time. */
async function collect(context: MemberContext, ask: string): Promise<Answers> {
  const { mirror } = context;
  const answers = (): Answers => {
    const found = new Map<string, z.output<typeof answerJson>>();
    for (const { key, value } of mirror.entries(keys.repairs)) {
      const answered = readValue(answerJson, value);
      if (answered?.ask === ask) found.set(key.slice(keys.repairs.length), answered);
    }
    return found;
  };
  await answer(context, ask).catch((error: unknown) => {
    throw new WeftError({
      code: "E-AGENT-05",
      message: `weftd of this host could not say which records it keeps: ${reasonOf(error)}.`,
      cause: error,
    });
  });
  const all = (): true | null => (hostsOf(mirror).every(({ id }) => answers().has(id)) ? true : null);
  const alive = (): true | null =>
    [...aliveOf(mirror).keys()].every((id) => answers().has(id)) ? true : null;
  try {
    await mirror.until("The answers of all hosts", ALL_MS, all).catch((error: unknown) => {
      if (!isWeftError(error, "E-AGENT-04")) throw error;
      return mirror.until("The answers of all hosts that are there", ALIVE_MS, alive);
    });
  } catch (error) {
    if (!isWeftError(error, "E-AGENT-04")) throw error;
  }
  await mirror.sync();
  return answers();
}

/** What hosts tell of each volume. */
function toldOf(answers: Answers): ReadonlyMap<string, readonly Kept[]> {
  const told = new Map<string, Kept[]>();
  for (const [host, { records }] of answers) {
    for (const json of records) {
      const record = parseRecord(`the copy kept by ${host}`, JSON.stringify(json));
      told.set(record.volume, [...(told.get(record.volume) ?? []), { record, json, host }]);
    }
  }
  return told;
}

function bestOf(told: ReadonlyMap<string, readonly Kept[]>): Map<string, Kept> {
  const best = new Map<string, Kept>();
  for (const [volume, copies] of told) {
    const kept = bestKept(copies);
    if (kept !== null) best.set(volume, kept);
  }
  return best;
}

/**
 * The best records with those that are in the store, where these are newer or the only ones: what names the members that
 * must have told. A tombstone of which nobody tells stays as it is: a copy that knows better is above it (R15).
 */
function withStored({ mirror }: MemberContext, best: ReadonlyMap<string, Kept>): ReadonlyMap<string, Kept> {
  const named = new Map(best);
  for (const { id, record } of volumesOf(mirror)) {
    if (record === null) continue;
    const told = best.get(id);
    if (told === undefined ? record.deletedAtMs !== null : !isNewer(record, told.record)) continue;
    if (told !== undefined && !mayFollow(told.record, record)) continue;
    const json = readValue(z.record(z.string(), z.unknown()), mirror.get(keys.state(id))?.value ?? "");
    if (json !== null) named.set(id, { record, json, host: "the store" });
  }
  return named;
}

/** The highest incarnation of each pool that the store, its disk, its host or any record knows of. */
function knownOf({ mirror }: MemberContext, answers: Answers): ReadonlyMap<string, bigint> {
  const others = new Map<string, bigint[]>();
  const note = (pool: string, inc: bigint): void => {
    others.set(pool, [...(others.get(pool) ?? []), inc]);
  };
  const disks = new Map<string, bigint>();
  for (const { id, inc } of poolsOf(mirror)) note(id, inc);
  const stored = volumesOf(mirror).map(({ id }) => mirror.get(keys.state(id))?.value ?? "");
  for (const value of stored)
    for (const { pool, pool_inc } of readValue(memberPools, value)?.replicas ?? []) note(pool, pool_inc);
  for (const { pools, records } of answers.values()) {
    for (const { pool, inc, served } of pools) {
      const disk = inc > served ? inc : served;
      if (disk > (disks.get(pool) ?? -1n)) disks.set(pool, disk);
      note(pool, disk);
    }
    for (const json of records)
      for (const { pool, pool_inc } of memberPools.parse(json).replicas) note(pool, pool_inc);
  }
  return new Map([...others].map(([pool, incs]) => [pool, knownIncarnation(disks.get(pool) ?? null, incs)]));
}

/** Names of hosts with a member that a best copy names and that told nothing, or from a disk that is not the latest. */
function missingOf(
  context: MemberContext,
  best: ReadonlyMap<string, Kept>,
  answers: Answers,
  known: ReadonlyMap<string, bigint>,
): string[] {
  const hosts = new Set<string>();
  for (const { record } of best.values()) {
    for (const { host, rid, pool } of record.replicas) {
      const answer = answers.get(host);
      const disk = answer?.pools.find((there) => there.pool === pool);
      const latest = disk !== undefined && disk.inc >= (known.get(pool) ?? 0n);
      if (answer?.told.includes(replicaName(record.volume, rid)) === true && latest) continue;
      hosts.add(nameOf(context, host));
    }
  }
  return [...hosts].toSorted();
}

/**
 * What each pool's key has to say at least: what is known of it. A disk that is behind that is then found out at its
 * start, and one that a backup of the store was older than is not. Nothing is said of a pool that only records name.
 */
function raisedPools(
  { mirror }: MemberContext,
  answers: Answers,
  known: ReadonlyMap<string, bigint>,
): RepairPool[] {
  const places = new Map<string, { readonly node: string; readonly path: string }>();
  for (const [node, { pools }] of answers)
    for (const { pool, path } of pools) places.set(pool, { node, path });
  for (const { id, node, path } of poolsOf(mirror)) places.set(id, { node, path });
  return [...places].map(([pool, place]) => ({ pool, ...place, inc: String(known.get(pool) ?? 0n) }));
}

function replicaName(volume: string, rid: number): string {
  return `${volume}.${rid}`;
}

function nameOf({ mirror }: MemberContext, id: string): string {
  return hostsOf(mirror).find((host) => host.id === id)?.name ?? id;
}

/**
 * The wish that belongs to a record: made anew when the backup is older than the volume, and where both are there
 * the record is right about copies and deletion: it is the later fact.
 */
async function fitWish({ mirror, store }: MemberContext, record: VolumeRecord): Promise<void> {
  const { want, wantEntry } = volumeOf(mirror, record.volume);
  const name = want?.name ?? `recovered-${record.volume.slice(0, 8)}`;
  const kept = (want?.placements ?? []).filter(
    ({ rid }) => rid >= record.nextRid || record.replicas.some((member) => member.rid === rid),
  );
  const added = record.replicas
    .filter(({ rid }) => !kept.some((place) => place.rid === rid))
    .map(({ rid, host, pool, state }) => ({ rid, host, pool, remove: state === "REMOVING" }));
  const next: Want = {
    volume: record.volume,
    name,
    sizeBytes: record.sizeBytes,
    copies: record.copies,
    minIsr: record.minIsr,
    spread: spreads.find((known) => known === record.spread) ?? "host",
    thick: want?.thick ?? false,
    placements: [...kept, ...added].toSorted((a, b) => a.rid - b.rid),
    limits: want?.limits ?? null,
    scrub: want?.scrub ?? null,
    deletedAtMs: record.deletedAtMs,
    headDeletedAtMs: record.head?.deletedAtMs ?? null,
    createdBy: want?.createdBy ?? `repair-${record.volume}`,
    createdFrom: want?.createdFrom ?? null,
    refused: null,
  };
  await store.cas(
    keys.want(record.volume),
    wantEntry?.modRevision ?? 0n,
    renderWant(next, wantEntry?.value ?? null),
  );
  if (record.deletedAtMs === null && record.head === null)
    await store.cas(keys.name(name), 0n, JSON.stringify({ volume: record.volume }));
  for (const { rid, host, pool } of record.replicas) {
    await store.cas(keys.made(record.volume, rid), 0n, JSON.stringify({ rid, host, pool, made: true }));
  }
}

function needsAssent(missing: readonly string[], best: readonly Kept[]): WeftError {
  return new WeftError({
    code: "E-STORE-03",
    message: `${missing.join(", ")} did not tell what ${missing.length === 1 ? "it keeps" : "they keep"} of copies named in the best records found (${best.length} volumes). A later record may exist there alone.`,
    facts: { missing },
    safe: "Nothing was changed.",
    do: [
      { why: "Bring the host and its pools back, then again", command: "weft store repair" },
      { why: "It is lost for good", command: "weft store repair --assent" },
    ],
  });
}
