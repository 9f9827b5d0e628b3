/**
 * A store that was lost or restored from a backup is rebuilt from the record copies that the replicas keep.
 *
 *     ask (a key) ──▶ each agent: replica.records of its weftd ──▶ answers (a key each) ──▶ the best of each volume
 *     ──▶ weftd writes them, every epoch raised by 2^20, at last the incarnation ──▶ wishes made to fit
 *
 * Must always hold:
 * - highest (epoch, rev) wins; a member named in the best copy that told nothing needs the operator's assent (4.15), be
 *   its host silent or there without it: its pool may be quarantined or gone, and a later record be there alone. A pool
 *   that starts passes with its host: it waits for the very store that is repaired, and can tell nothing before;
 * - the incarnation after it is above every watermark that any host has seen (protocol.md R11);
 * - repeating it finishes what was begun.
 */
import { randomUUID } from "node:crypto";
import { z } from "zod";

import { hostName } from "../model/cluster.ts";
import type { VolumeRecord, Want } from "../model/volume-record.ts";
import type { RepairAnswer } from "../wire/agent-api.ts";
import type { RecordJson } from "../wire/daemon.gen.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { u64, uuid } from "../wire/json-types.ts";
import { parseRecord, parseStore, renderWant } from "../wire/record.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { aliveOf, hostsOf, volumeOf } from "./facts.ts";
import { readValue } from "./store-value.ts";

/** For hosts that aren't back yet: after a restore their agents come within seconds. */
const ALL_MS = 5000;
/** For those that are there; reading the records of 500 replicas takes a while. */
const ALIVE_MS = 15_000;

const askJson = z.object({ id: uuid, by: uuid });
const answerJson = z.object({
  ask: uuid,
  incarnation: u64,
  records: z.array(z.record(z.string(), z.unknown())),
  /** The replicas that told what they keep, also if that is nothing yet. */
  told: z.array(z.string()),
  /** Pools that wait for the store. */
  starting: z.array(uuid),
});

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

async function answer({ host, daemon, store }: MemberContext, ask: string): Promise<void> {
  const { records } = await daemon.client.call("replica.records", {});
  const shown = await daemon.client.call("store.show", {});
  const best = new Map<string, { readonly record: VolumeRecord; readonly json: RecordJson }>();
  for (const { volume, record: json } of records) {
    if (json === null) continue;
    const record = parseRecord(`the copy of ${volume} on this host`, JSON.stringify(json));
    const known = best.get(volume);
    if (known === undefined || isNewer(record, known.record)) best.set(volume, { record, json });
  }
  const incarnation = shown.watermark?.incarnation ?? "0";
  const told = records.map(({ volume, rid }) => replicaName(volume, rid));
  const { pools } = await daemon.client.call("pool.list", {});
  const starting = pools.filter(({ state }) => state === "starting").map(({ pool }) => pool);
  const said = { ask, incarnation, records: [...best.values()].map(({ json }) => json), told, starting };
  await store.put(keys.repair(host), JSON.stringify(said));
}

export async function repairStore(context: MemberContext, assent: boolean): Promise<RepairAnswer> {
  const { mirror, store, daemon, self, log } = context;
  await mirror.sync();
  const ask = randomUUID();
  await store.put(keys.repairAsk, JSON.stringify({ id: ask, by: self.host }));
  const answers = await collect(context, ask);
  const best = bestOf(answers);
  const missing = missingOf(context, best, answers);
  if (missing.length > 0 && !assent) throw needsAssent(missing, [...best.values()]);
  const stored = mirror.get(keys.store);
  const known = stored === null ? 0n : parseStore(stored.key, stored.value).incarnation;
  const seen = [...answers.values()].map(({ incarnation }) => incarnation);
  const highest = [known, ...seen].reduce((a, b) => (a > b ? a : b));
  const incarnation = highest + 1n;
  await daemon.client.call("store.repair_apply", {
    incarnation: String(incarnation),
    records: [...best.values()].map(({ json }) => json),
  });
  await mirror.sync();
  for (const { record } of best.values()) await fitWish(context, record);
  await store.delete(keys.repairAsk);
  for (const host of answers.keys()) await store.delete(keys.repair(host));
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
  };
}

/** Answers of all hosts, or of those that answer in time. */
async function collect(
  context: MemberContext,
  ask: string,
): Promise<ReadonlyMap<string, z.output<typeof answerJson>>> {
  const { mirror } = context;
  const answers = (): ReadonlyMap<string, z.output<typeof answerJson>> => {
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

function bestOf(answers: ReadonlyMap<string, z.output<typeof answerJson>>): ReadonlyMap<string, Kept> {
  const best = new Map<string, Kept>();
  for (const [host, { records }] of answers) {
    for (const json of records) {
      const record = parseRecord(`the copy kept by ${host}`, JSON.stringify(json));
      const known = best.get(record.volume);
      if (known === undefined || isNewer(record, known.record))
        best.set(record.volume, { record, json, host });
    }
  }
  return best;
}

function isNewer(a: VolumeRecord, b: VolumeRecord): boolean {
  return a.epoch > b.epoch || (a.epoch === b.epoch && a.rev > b.rev);
}

/** Names of hosts with a member that a best copy names and that told nothing. */
function missingOf(
  context: MemberContext,
  best: ReadonlyMap<string, Kept>,
  answers: ReadonlyMap<string, z.output<typeof answerJson>>,
): string[] {
  const told = new Map(
    [...answers].map(([host, { told, starting }]) => [host, new Set([...told, ...starting])]),
  );
  const hosts = new Set<string>();
  for (const { record } of best.values()) {
    for (const { host, rid, pool } of record.replicas) {
      const names = told.get(host);
      if (names?.has(replicaName(record.volume, rid)) === true || names?.has(pool) === true) continue;
      hosts.add(nameOf(context, host));
    }
  }
  return [...hosts].toSorted();
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
    copies: want?.copies ?? record.copies,
    minIsr: want?.minIsr ?? record.minIsr,
    placements: [...kept, ...added].toSorted((a, b) => a.rid - b.rid),
    deletedAtMs: record.deletedAtMs,
    createdBy: want?.createdBy ?? `repair-${record.volume}`,
  };
  await store.cas(
    keys.want(record.volume),
    wantEntry?.modRevision ?? 0n,
    renderWant(next, wantEntry?.value ?? null),
  );
  if (record.deletedAtMs === null)
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
