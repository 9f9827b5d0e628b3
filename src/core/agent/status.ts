/**
 * Answers that show: status, hosts, pools, volumes, trash. Facts of the mirror in the words of the interface.
 *
 * Must always hold: with the store away they show what was last known and say so; they never wait long for it.
 */
import { z } from "zod";

import { type Cluster, hostName } from "../model/cluster.ts";
import type { Finding } from "../model/finding.ts";
import type { HostId } from "../model/ids.ts";
import { TRASH_MS } from "../model/limits.ts";
import { overcommitted } from "../model/overcommit.ts";
import type { healthOf } from "../model/redundancy.ts";
import { formatSize } from "../model/size.ts";
import { summarise } from "../model/summary.ts";
import type { Want } from "../model/volume-record.ts";

import type * as api from "../wire/agent-api.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import { u64 } from "../wire/json-types.ts";
import { keys } from "../wire/store-keys.ts";
import type { Member } from "../wire/store-members.ts";
import type { MemberContext } from "./context.ts";
import { peerUrl } from "./etcd-process.ts";
import { aliveOf, clusterJsonOf, hostsOf, labelsOf, poolsOf, type VolumeFacts, volumesOf } from "./facts.ts";
import type { HostFile } from "./host-file.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import type { Mirror } from "./mirror.ts";
import { healthIn } from "./pause-keeper.ts";
import { revertingAnswer } from "./revert.ts";
import { lastScrub } from "./scrub-keeper.ts";
import { overcommitOf } from "./settings.ts";
import { snapshotProblems, snapshotSummary } from "./snapshot-summary.ts";
import { lostGuests } from "./lost-guests.ts";
import { membersOrNone, storeStatus } from "./store-status.ts";
import { readValue } from "./store-value.ts";
import { diskOfVolume } from "./sr-facts.ts";
import { usedOf } from "./used-keeper.ts";
import { trustProblems } from "./trust-status.ts";
import { deletionOf } from "./find.ts";
import { deletedVolumes } from "./volumes.ts";

export async function clusterStatus(context: MemberContext): Promise<api.StatusAnswer> {
  const { mirror, self } = context;
  const store = await storeStatus(context);
  const found = volumesOf(mirror);
  const hosts = hostAnswers(context, await membersOrNone(context, store.writable));
  const volumes = found.flatMap((volume) => volumeAnswer(context, volume) ?? []);
  const pools = poolAnswers(context);
  const now = Date.now();
  return {
    kind: "cluster",
    now: new Date(now).toISOString(),
    agent: agentFacts(),
    daemon: await daemonStatus(context.daemon),
    cluster: mirror.get(keys.cluster) === null ? unseenCluster(self) : clusterJsonOf(mirror),
    self: { host: self.host, name: self.name, address: self.address },
    health: healthOfAll(hosts, volumes, store.writable),
    store,
    hosts,
    pools,
    volumes,
    problems: [
      ...rollbackProblems(store, await isRolledBack(context.daemon)),
      ...trustProblems(
        {
          findings: [context.identity.refused, context.storeIdentity.finding, context.clocks.finding],
          validity: context.identity.certificate.facts,
        },
        now,
      ),
      ...context.devices.findings.map(problemOf),
      ...problems(store, found),
      ...roomProblems(pools, volumes),
      ...overcommitted(context.view.cluster(), overcommitOf(mirror)).map(problemOf),
      ...rotProblems(pools, volumes),
      ...snapshotProblems(context, found),
      ...(await lostGuests(context)).map(problemOf),
    ],
  };
}

/** The store was not reached since this agent started: what host.json says. */
function unseenCluster(self: HostFile): { id: string; name: string; createdAt: null } {
  return { id: self.cluster, name: self.clusterName ?? self.cluster.slice(0, 8), createdAt: null };
}

function healthOfAll(
  hosts: readonly api.HostAnswer[],
  volumes: readonly api.VolumeAnswer[],
  storeUp: boolean,
): "healthy" | "degraded" | "unavailable" {
  const { level } = summarise({
    hosts: hosts.map(({ name, alive }) => ({ name, alive, awayMs: null })),
    storeUp,
    volumes: volumes.map(({ name, health, minIsr, replicas }) => ({
      name,
      health,
      minIsr,
      insyncOn: replicas.filter((r) => r.state === "INSYNC" && r.alive).map((r) => r.hostName),
    })),
  });
  return level;
}

export async function daemonStatus(daemon: LocalDaemon): Promise<api.DaemonStatus> {
  try {
    const hello = await daemon.client.call("hello", {}, 2000);
    return { reachable: true, reason: null, version: hello.version, driver: hello.driver };
  } catch (error) {
    return { reachable: false, reason: reasonOf(error), version: null, driver: null };
  }
}

export function agentFacts(): { version: string; pid: number } {
  return { version: AGENT_VERSION, pid: process.pid };
}

export const AGENT_VERSION = "0.1.0";

export function hostAnswers(
  { mirror, self, view, identity }: MemberContext,
  members: readonly Member[],
): api.HostAnswer[] {
  const alive = aliveOf(mirror);
  const { hosts: listed } = identity.trust();
  return hostsOf(mirror).map((known) => {
    // By the names that commands go by, which are the signed list's.
    const { name, address } = listed.get(known.id) ?? known;
    const host = { ...known, name, address };
    const member = members.find((m) => m.peerUrls.includes(peerUrl(host.address)));
    const liveness = view.liveness.hosts.get(host.id);
    return {
      id: host.id,
      name: host.name,
      address: host.address,
      joinedAt: host.joinedAt,
      self: host.id === self.host,
      alive: liveness?.kind === "alive",
      aliveSince:
        liveness?.kind === "away" ? new Date(liveness.sinceMs).toISOString() : (alive.get(host.id) ?? null),
      store: member === undefined ? "none" : member.learner ? "learner" : "voter",
      labels: labelsOf(mirror, host.id),
    };
  });
}

export function poolAnswers({ mirror, view }: MemberContext): api.PoolAnswer[] {
  const cluster = view.cluster();
  return poolsOf(mirror).map((pool) => {
    const away = view.liveness.hosts.get(pool.node)?.kind === "away";
    return {
      id: pool.id,
      host: pool.node,
      hostName: hostName(cluster, pool.node),
      path: pool.path,
      kind: (pool.usage?.device ?? null) === null ? pool.kind : (pool.usage?.deviceKind ?? "xfs"),
      state: away ? "unknown" : (pool.usage?.state ?? "unknown"),
      reason: away ? "its host does not answer" : (pool.usage?.reason ?? null),
      free: pool.usage?.free ?? null,
      total: pool.usage?.total ?? null,
      device: pool.usage?.device ?? null,
      bitRot: pool.usage === null ? null : { found: pool.usage.bitRot, left: pool.usage.bitRotLeft },
      noSnapshots: pool.usage?.noSnapshots ?? null,
      room: away ? null : (pool.usage?.room ?? null),
    };
  });
}

/** Null: there is neither a wish nor a name, or its making was refused: nothing to show. */
export function volumeAnswer(context: MemberContext, volume: VolumeFacts): api.VolumeAnswer | null {
  const { view, mirror } = context;
  const { want, record, extra, unreadable } = volume;
  if (want === null || want.refused !== null) return null;
  const cluster = view.cluster();
  const health = healthIn(context, { id: volume.id, want, record });
  const owner = record?.owner ?? null;
  const replicas = replicaAnswers(mirror, volume, cluster);
  return {
    id: volume.id,
    name: want.name,
    size: record?.sizeBytes ?? want.sizeBytes,
    wantedSize: want.sizeBytes,
    used: mostUsed(replicas),
    limits: want.limits,
    scrub: scrubAnswer(mirror, volume, cluster),
    snapshots: snapshotSummary(context, volume),
    reverting: revertingAnswer(mirror, volume, cluster),
    copies: want.copies,
    minIsr: want.minIsr,
    spread: want.spread,
    thick: want.thick,
    inSync: record?.replicas.filter(({ state }) => state === "INSYNC").length ?? 0,
    health: unreadable === null ? health.kind : "unreadable",
    reason: unreadable?.message ?? reasonOfHealth(health, cluster),
    epoch: record?.epoch ?? null,
    rev: record?.rev ?? null,
    owner:
      owner === null
        ? null
        : {
            host: owner.host,
            hostName: hostName(cluster, owner.host),
            session: owner.session,
            caretaker: extra?.caretaker ?? false,
          },
    replicas,
    createdBy: want.createdBy,
    createdFrom: originOf(want),
    disk: diskOfVolume(mirror, want),
    deletedAt: want.deletedAtMs === null ? null : new Date(want.deletedAtMs).toISOString(),
    head: headAnswer(volume),
  };
}

/** Null: it has its head, or is deleted as a whole. */
function headAnswer({ want, record }: VolumeFacts): api.VolumeAnswer["head"] {
  const deletedAtMs = want?.headDeletedAtMs ?? null;
  if (want === null || want.deletedAtMs !== null || deletedAtMs === null) return null;
  const { deletedAtMs: since, data } = record?.head ?? { deletedAtMs, data: "kept" as const };
  return {
    deletedAt: new Date(deletedAtMs).toISOString(),
    data,
    keptUntil: data === "kept" ? new Date(since + TRASH_MS).toISOString() : null,
  };
}

function originOf({ createdFrom }: Want): api.VolumeAnswer["createdFrom"] {
  if (createdFrom === null) return null;
  const { volume, volumeName, snapshot, snapshotName, takenMs } = createdFrom;
  return { volume, volumeName, snapshot, snapshotName, takenAt: new Date(takenMs).toISOString() };
}

const scrubProgress = z.object({ host: z.string(), done: u64, total: u64 });

function scrubAnswer(mirror: Mirror, { id, want }: VolumeFacts, cluster: Cluster): api.VolumeAnswer["scrub"] {
  const asked = want?.scrub ?? null;
  const entry = mirror.get(keys.scrubProgress(id));
  const progress = entry === null || asked === null ? null : readValue(scrubProgress, entry.value);
  const last = lastScrub(mirror, id);
  const named = (host: string): string => hostName(cluster, host as HostId);
  return {
    asked: asked === null ? null : { at: new Date(asked.atMs).toISOString(), by: asked.by, rate: asked.rate },
    progress:
      progress === null
        ? null
        : { hostName: named(progress.host), doneBytes: progress.done, totalBytes: progress.total },
    last:
      last === null
        ? null
        : {
            ...last,
            hostName: named(last.host),
            members: last.members.map((member) => ({ ...member, hostName: named(member.host) })),
          },
  };
}

/** What is written is on all of them; one that was resynced may have fewer holes, or more. */
function mostUsed(replicas: readonly api.ReplicaAnswer[]): bigint | null {
  const known = replicas.flatMap(({ state, used }) => (state === "INSYNC" && used !== null ? [used] : []));
  return known.length === 0 ? null : known.reduce((most, used) => (used > most ? used : most));
}

function replicaAnswers(
  mirror: Mirror,
  { id, want, record }: VolumeFacts,
  cluster: Cluster,
): api.ReplicaAnswer[] {
  const alive = (host: string): boolean =>
    cluster.hosts.some(({ id, liveness }) => id === host && liveness.kind === "alive");
  const members = (record?.replicas ?? []).map((member) => ({
    rid: member.rid as number,
    host: member.host as string,
    hostName: hostName(cluster, member.host),
    pool: member.pool as string,
    state: member.state as api.ReplicaAnswer["state"],
    reason: member.reason === "" ? null : member.reason,
    alive: alive(member.host),
    leaving:
      member.state === "REMOVING" ||
      want?.placements.some((place) => place.rid === member.rid && place.remove) === true,
    used: usedOf(mirror, id, member.rid),
  }));
  const wanted = (want?.placements ?? [])
    .filter(({ rid, remove }) => !remove && !members.some((member) => member.rid === rid))
    .map((place) => ({
      rid: place.rid as number,
      host: place.host as string,
      hostName: hostName(cluster, place.host),
      pool: place.pool as string,
      state: "WANTED" as const,
      reason: null,
      alive: alive(place.host),
      leaving: false,
      used: null,
    }));
  return [...members, ...wanted].toSorted((a, b) => a.rid - b.rid);
}

function reasonOfHealth(health: ReturnType<typeof healthOf>, cluster: Cluster): string | null {
  switch (health.kind) {
    case "healthy":
    case "deleted":
      return null;
    case "creating":
      return "its copies are being made";
    case "degraded":
      return `${health.have} of ${health.wanted} copies are in sync on hosts that answer`;
    case "paused":
      return [
        ...(health.have < health.minIsr
          ? [`${health.have} in-sync copies answer, min-isr is ${health.minIsr}`]
          : []),
        ...(health.because === null ? [] : [health.because]),
      ].join("; ");
    case "unavailable":
      return `waits for ${health.waitingFor.map((id) => hostName(cluster, id)).join(", ")}`;
  }
}

/** Restored and not repaired, or further back than this host has seen it: nothing opens (protocol.md R11). */
function rollbackProblems(store: api.StoreStatus, seenByDaemon: boolean): api.Problem[] {
  if (store.incarnation !== 0n && !seenByDaemon) return [];
  const what = store.incarnation === 0n ? "was restored from a backup" : "has gone back in time";
  return [
    {
      code: "E-STORE-02",
      message: `The store ${what}; no volume opens until it is repaired.`,
      do: [{ why: "On a host that has copies", command: "weft store repair" }],
    },
  ];
}

async function isRolledBack(daemon: LocalDaemon): Promise<boolean> {
  try {
    return (await daemon.client.call("store.show", {}, 2000)).rolled_back;
  } catch (error) {
    if (isWeftError(error)) return false;
    throw error;
  }
}

function problems(store: api.StoreStatus, volumes: readonly VolumeFacts[]): api.Problem[] {
  const found: api.Problem[] = [];
  if (!store.writable) {
    const code = store.alarms.includes("NOSPACE") ? "E-STORE-08" : "E-STORE-01";
    found.push({ code, message: `The store takes no changes: ${store.reason ?? ""}.`, do: [] });
  }
  for (const member of store.members) {
    if (member.answers) continue;
    found.push({
      code: "E-STORE-01",
      message: `The store's member on ${member.name} does not answer.`,
      do: [{ why: `Start weft, on ${member.name}`, command: "systemctl start weft-agent" }],
    });
  }
  for (const { unreadable } of volumes) {
    if (unreadable !== null)
      found.push({ code: unreadable.code, message: unreadable.message, do: [...unreadable.do] });
  }
  return found;
}

/** Pools that fill up, with the volumes that wait, or will wait, for room there. */
function roomProblems(
  pools: readonly api.PoolAnswer[],
  volumes: readonly api.VolumeAnswer[],
): readonly api.Problem[] {
  return pools.flatMap(({ id, hostName: host, path, room, free, total }) => {
    if (room !== "low" && room !== "full") return [];
    const there = volumes
      .filter(({ replicas }) => replicas.some(({ pool, state }) => pool === id && state === "INSYNC"))
      .map(({ name }) => `"${name}"`);
    const whose = there.length === 0 ? "no volume" : listed(there);
    const where = `The pool ${path} on ${host}`;
    const left = free === null || total === null ? "" : ` (${formatSize(free)} of ${formatSize(total)} free)`;
    return [
      {
        code: room === "full" ? "E-POOL-10" : "E-POOL-09",
        message:
          room === "full"
            ? `${where} is full${left}: it takes no more data until less than 97 % of it are used. It has copies of ${whose}; writes go on where other copies are, or wait.`
            : `${where} is filling up${left}. At 98 % it takes no more data; it has copies of ${whose}.`,
        do: [
          { why: "Give room back that nobody needs", command: "weft trash empty" },
          { why: "Move a copy away", command: `weft replica move VOLUME --from ${host} --to HOST` },
        ],
      },
    ];
  });
}

function problemOf({ code, message, do: remedies }: Finding): api.Problem {
  return { code, message, do: [...remedies] };
}

function listed(names: readonly string[]): string {
  const shown = names.slice(0, 5).join(", ");
  return names.length > 5 ? `${shown} and ${names.length - 5} more` : shown;
}

/** What reading and comparing copies has found: disks that lose what they hold, and copies that differ. */
function rotProblems(
  pools: readonly api.PoolAnswer[],
  volumes: readonly api.VolumeAnswer[],
): readonly api.Problem[] {
  const rotten = pools.flatMap(({ bitRot, hostName: host, path }) => {
    if (bitRot === null || bitRot.found === 0n) return [];
    const rest = bitRot.left === 0n ? "all repaired" : `${bitRot.left} not repaired yet`;
    return [
      {
        code: "E-DISK-11",
        message: `${blocks(bitRot.found)} of the pool ${path} on ${host} had rotted, ${rest}.`,
        do: [{ why: "Look for more", command: "weft scrub" }],
      },
    ];
  });
  const differing = volumes.flatMap(({ name, scrub: { last } }) => {
    if (last === null || last.divergent + last.lost === 0n) return [];
    const words = [
      ...(last.lost === 0n ? [] : [`${blocks(last.lost)} of "${name}" could be read from no copy`]),
      ...(last.divergent === 0n ? [] : [`${blocks(last.divergent)} of "${name}" differ between its copies`]),
    ];
    return [
      {
        code: "E-VOL-18",
        message: `${words.join(", ")} (compared ${last.endedAt}).`,
        do: [{ why: "Compare them again", command: `weft scrub ${name} --wait` }],
      },
    ];
  });
  return [...rotten, ...differing];
}

function blocks(count: bigint): string {
  return `${count} ${count === 1n ? "block" : "blocks"}`;
}

export function trashAnswers({ mirror }: MemberContext): api.TrashAnswer[] {
  return deletedVolumes(mirror).map(({ id, want, record }) => {
    const deletedAt = deletionOf(want) ?? 0;
    const isHead = want.deletedAtMs === null;
    const since = record?.deletedAtMs ?? record?.head?.deletedAtMs;
    return {
      volume: id,
      name: want.name,
      size: want.sizeBytes,
      deletedAt: new Date(deletedAt).toISOString(),
      keptUntil: new Date((since ?? deletedAt) + TRASH_MS).toISOString(),
      snapshots: isHead ? (record?.snapshots ?? 0) : 0,
      diskLabel: diskOfVolume(mirror, want)?.label ?? null,
    };
  });
}

/** What a host hears that has just entered a cluster. */
export function enteredAnswer(context: MemberContext): api.EnteredAnswer {
  const { facts } = context.identity.certificate;
  return {
    ...clusterAnswer(context),
    authority: facts.issuerKid ?? "",
    certificateUntil: new Date(facts.notAfterMs).toISOString(),
  };
}

export function clusterAnswer({ mirror, self, store }: MemberContext): api.ClusterAnswer {
  const { id, name, createdAt } = clusterJsonOf(mirror);
  return { id, name, createdAt, host: self.host, endpoints: [...store.call.endpoints] };
}
