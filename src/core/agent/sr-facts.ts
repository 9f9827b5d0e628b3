/**
 * The mirror's keys as storage repositories and virtual disks: one pass over them, whatever their number.
 *
 * Must always hold:
 * - a repository's list has every disk that the store has of it, if only by its UUID where it can't be read, or it is an
 *   error: who misses one forgets it;
 * - a disk whose volume's record can't be read is there: only its own key decides that.
 */
import { z } from "zod";

import type { HostId, PoolId } from "../model/ids.ts";
import { parseHostId } from "../model/ids.ts";
import type { Snapshot } from "../model/snapshot.ts";
import {
  isUntouched,
  noVdi,
  stageOf,
  stillMade,
  type Vdi,
  type VdiBacking,
  uuidOfName,
  wrongKind,
} from "../model/vdi.ts";
import { placeableBytes, type Sr } from "../model/sr.ts";
import { insync, type Want } from "../model/volume-record.ts";
import { WeftError } from "../wire/errors.ts";
import type { RecordExtra } from "../wire/record.ts";
import type { Entry } from "../wire/store-client.ts";
import * as json from "../wire/sr-json.ts";
import { uuid as uuidText } from "../wire/json-types.ts";
import type * as sr from "../wire/sr-api.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { openOn, readable, readExtra, readRecord, readSnapshot, readWant } from "./facts.ts";
import type { Mirror } from "./mirror.ts";
import { readOnce } from "./read-once.ts";
import { ownBytesOf } from "./snapshot-images.ts";
import { readValue } from "./store-value.ts";
import { usedOf } from "./used-keeper.ts";

export type SrFacts = { readonly sr: Sr; readonly entry: Entry };

export type VdiFacts = VdiBacking & {
  readonly vdi: Vdi;
  readonly entry: Entry;
  readonly extra: RecordExtra | null;
  readonly stage: "making" | "whole" | "gone";
};

/** E-SR-01 where there is none. */
export function findSr(mirror: Mirror, uuid: string): SrFacts {
  const entry = mirror.get(keys.sr(uuid));
  if (entry !== null) return { sr: readSr(entry), entry };
  throw new WeftError({
    code: "E-SR-01",
    message: `No storage repository ${uuid}.`,
    facts: { sr: uuid },
    safe: "Nothing was changed.",
  });
}

/** One that can't be read hides none of the others. */
export function srsOf(mirror: Mirror): readonly SrFacts[] {
  return mirror.entries(keys.srs).flatMap((entry) => {
    const sr = readable(() => readSr(entry));
    return sr === null ? [] : [{ sr, entry }];
  });
}

/** E-VDI-01 where there is none, or none any more. */
export function findVdi(mirror: Mirror, uuid: string): VdiFacts {
  const found = vdiOf(mirror, uuid);
  if (found === null || found.stage === "gone")
    throw WeftError.fromFinding(noVdi(uuid, found === null && isLive(mirror, uuid)));
  return found;
}

/** There is a volume or a snapshot of this id that nobody deleted, as far as can be read. */
function isLive(mirror: Mirror, uuid: string): boolean {
  const wantEntry = mirror.get(keys.want(uuid));
  const want = wantEntry === null ? null : readable(() => readWant(wantEntry));
  if (want !== null)
    return want.deletedAtMs === null && want.headDeletedAtMs === null && want.refused === null;
  const isThere = wantEntry !== null || mirror.get(keys.state(uuid)) !== null;
  return isThere || mirror.entries(keys.volumes).some(({ key }) => key.endsWith(`/snap/${uuid}`));
}

/** E-VDI-05 while it is being made. */
export function whole(facts: VdiFacts): VdiFacts {
  if (facts.stage === "whole") return facts;
  throw WeftError.fromFinding(stillMade(facts.vdi));
}

/** E-VDI-03 for a snapshot. */
export function wholeDisk(facts: VdiFacts): VdiFacts {
  if (facts.vdi.snapshot !== null)
    throw WeftError.fromFinding(wrongKind(facts.vdi, "a disk, not a snapshot"));
  return whole(facts);
}

/** What its key says, also of one whose volume is gone. Null: there is no key. */
export function vdiOf(mirror: Mirror, uuid: string): VdiFacts | null {
  const entry = mirror.get(keys.vdi(uuid));
  return entry === null ? null : backed(mirror, entry);
}

/** Those of all repositories, or of one; the ones that are gone among them. */
export function vdisOf(mirror: Mirror, srUuid: string | null = null): readonly VdiFacts[] {
  return mirror
    .entries(keys.vdis)
    .filter((entry) => srUuid === null || mayBeOf(entry, srUuid))
    .map((entry) => backed(mirror, entry));
}

export type VdiLook = {
  readonly vdis: readonly VdiFacts[];
  /** UUIDs of those of which something can't be read. They are there, and that is all that is known. */
  readonly unread: readonly string[];
};

/** As `vdisOf`, for who shows them: one that can't be read does not hide the others. */
export function lookAtVdis(mirror: Mirror, srUuid: string | null = null): VdiLook {
  const vdis: VdiFacts[] = [];
  const unread: string[] = [];
  for (const entry of mirror.entries(keys.vdis)) {
    if (srUuid !== null && !mayBeOf(entry, srUuid)) continue;
    const facts = readable(() => sized(backed(mirror, entry)));
    if (facts === null) unread.push(entry.key.slice(keys.vdis.length));
    else vdis.push(facts);
  }
  return { vdis, unread };
}

/** E-STORE-07 where its size can't be told. */
function sized(facts: VdiFacts): VdiFacts {
  if (facts.stage !== "gone") sizeOf(facts);
  return facts;
}

const saysSr = z.looseObject({ sr: uuidText });

/** What can't be read at all may be a disk of any. */
function mayBeOf({ value }: Entry, srUuid: string): boolean {
  const said = readValue(saysSr, value);
  return said === null || said.sr === srUuid;
}

/** A list has thousands, and is asked for twice a minute. */
const readVdi = readOnce(json.parseVdi);
const readSr = readOnce(json.parseSr);

function backed(mirror: Mirror, entry: Entry): VdiFacts {
  const vdi = readVdi(entry);
  const wantEntry = mirror.get(keys.want(vdi.volume));
  const stateEntry = mirror.get(keys.state(vdi.volume));
  const want = wantEntry === null ? null : readable(() => readWant(wantEntry));
  const found = stateEntry === null ? null : readable(() => readRecord(stateEntry));
  const extra = stateEntry === null ? null : readable(() => readExtra(stateEntry));
  const backing = { want, record: found, snapshot: snapshotOf(mirror, vdi) };
  const isUnread =
    vdi.snapshot === null &&
    ((wantEntry !== null && want === null) || (stateEntry !== null && found === null));
  const stage = isUnread ? stageOfUnread(backing) : stageOf(vdi, backing);
  return { vdi, entry, ...backing, extra, stage };
}

/** Newer software's, or damaged: it is there, unless what can be read of it says otherwise. */
function stageOfUnread({ want, record: state }: VdiBacking): "whole" | "gone" {
  const deletedAt = want?.deletedAtMs ?? want?.headDeletedAtMs ?? state?.deletedAtMs ?? state?.head ?? null;
  return deletedAt === null ? "whole" : "gone";
}

function snapshotOf(mirror: Mirror, { volume, snapshot }: Vdi): Snapshot | null {
  const entry = snapshot === null ? null : mirror.get(keys.snapshot(volume, snapshot));
  // One that can't be read is not gone.
  return entry === null ? null : readSnapshot(entry);
}

export function vdiAnswer(
  { mirror, view }: Pick<MemberContext, "mirror" | "view">,
  facts: VdiFacts,
): sr.VdiAnswer {
  const { vdi, stage, snapshot } = facts;
  const [host] = openHosts(mirror, facts);
  const { label, description, type, readOnly, sharable, managed, cbt, isSnapshot, snapshotOf: of } = vdi;
  const found = host === undefined ? null : view.cluster().hosts.find(({ id }) => id === host);
  return {
    uuid: vdi.uuid,
    sr: vdi.sr,
    volume: vdi.volume,
    snapshot: vdi.snapshot,
    label,
    description,
    type,
    size: sizeOf(facts),
    physicalUtilisation: utilisationOf(mirror, facts),
    readOnly,
    sharable,
    managed,
    cbt,
    dataDestroyed: snapshot !== null && snapshot.data !== "kept",
    isSnapshot,
    snapshotOf: of,
    snapshotTime: vdi.snapshotTime,
    smConfig: { ...vdi.smConfig },
    createdAt: vdi.createdAt,
    settled: vdi.settled,
    resets: vdi.resetTo !== null,
    untouched: isUntouched(vdi, facts),
    layer: facts.extra?.layer === true && vdi.snapshot === null,
    composedFrom: vdi.composedFrom,
    whole: stage === "whole",
    openOn: host === undefined ? null : { uuid: host, name: found?.name ?? host.slice(0, 8) },
  };
}

/** Where a guest has it open. */
export function openHosts(mirror: Mirror, { vdi, record: state, extra }: VdiFacts): readonly HostId[] {
  const readers = [vdi.snapshot, vdi.reader].flatMap((id) => (id === null ? [] : openOn(mirror, id)));
  if (vdi.snapshot !== null) return readers;
  const owner = extra?.caretaker === true ? null : (state?.owner ?? null);
  return owner === null ? readers : [owner.host, ...readers];
}

function sizeOf({ vdi, want, record: state, snapshot }: VdiFacts): bigint {
  const size = snapshot?.sizeBytes ?? state?.sizeBytes ?? want?.sizeBytes;
  if (size !== undefined) return size;
  throw new WeftError({
    code: "E-STORE-07",
    message: `What the store has of the virtual disk "${vdi.label}" (${vdi.uuid}) can't be read: its size is not known.`,
    facts: { key: keys.state(vdi.volume), path: "" },
    safe: "Nothing was changed.",
  });
}

/** Bytes that one copy takes, as hosts said some seconds ago. */
function utilisationOf(mirror: Mirror, { vdi, record: state, snapshot }: VdiFacts): bigint {
  if (snapshot !== null)
    return most(snapshot.members.map(({ rid }) => ownBytesOf(mirror, vdi.volume, rid, snapshot.id)));
  return state === null ? 0n : most(insync(state).map(({ rid }) => usedOf(mirror, vdi.volume, rid)));
}

function most(bytes: readonly (bigint | null)[]): bigint {
  return bytes.reduce<bigint>((found, one) => (one !== null && one > found ? one : found), 0n);
}

/** `vdis`: those of all repositories, of one look. */
export function srAnswer(
  { mirror, view }: Pick<MemberContext, "mirror" | "view">,
  { sr: { uuid, label, description, copies, createdAt } }: SrFacts,
  vdis: readonly VdiFacts[],
): sr.SrAnswer {
  const own = vdis.filter(({ vdi, stage }) => vdi.sr === uuid && stage !== "gone");
  const used = own.reduce((sum, facts) => sum + utilisationOf(mirror, facts), 0n);
  return {
    uuid,
    label,
    description,
    copies,
    createdAt,
    physicalSize: used + placeableBytes(view.cluster(), copies, trashBytes(mirror)),
    physicalUtilisation: used,
    virtualAllocation: own.reduce((sum, facts) => sum + sizeOf(facts), 0n),
  };
}

/**
 * The key of the disk that a volume is: by its id, or by its name where it was composed. Null: it is none, or the key can't be
 * read.
 */
export function vdiOfVolume(mirror: Mirror, { volume, name }: Pick<Want, "volume" | "name">): Vdi | null {
  for (const uuid of [volume, uuidOfName(name)]) {
    const entry = uuid === null ? null : mirror.get(keys.vdi(uuid));
    const vdi = entry === null ? null : readable(() => readVdi(entry));
    if (vdi !== null && vdi.snapshot === null && vdi.volume === volume) return vdi;
  }
  return null;
}

/** For who looks at the volume: the disk that it is, by people's names. Null: it is none, or its key can't be read. */
export function diskOfVolume(
  mirror: Mirror,
  volume: Pick<Want, "volume" | "name">,
): { readonly label: string; readonly sr: string; readonly srLabel: string | null } | null {
  const vdi = vdiOfVolume(mirror, volume);
  if (vdi === null) return null;
  const srEntry = mirror.get(keys.sr(vdi.sr));
  const found = srEntry === null ? null : readable(() => readSr(srEntry));
  return { label: vdi.label, sr: vdi.sr, srLabel: found?.label ?? null };
}

/** What deleted volumes still take of each pool. */
function trashBytes(mirror: Mirror): ReadonlyMap<PoolId, bigint> {
  const bytes = new Map<PoolId, bigint>();
  for (const entry of mirror.entries(keys.volumes)) {
    if (!entry.key.endsWith("/want")) continue;
    const want = readable(() => readWant(entry));
    if (want === null || want.deletedAtMs === null) continue;
    for (const { rid, pool } of want.placements)
      bytes.set(pool, (bytes.get(pool) ?? 0n) + (usedOf(mirror, want.volume, rid) ?? 0n));
  }
  return bytes;
}

/** Whether XAPI has declared it dead, and nothing was seen of its agent since. */
export function isDeclaredDead(mirror: Mirror, host: HostId): boolean {
  const entry = mirror.get(keys.xapiDead(host));
  const dead = entry === null ? null : readable(() => json.parseXapiDead(entry.key, entry.value));
  if (dead === null) return false;
  const alive = mirror.get(keys.alive(host));
  return alive === null || alive.modRevision === dead.alive;
}

/** Hosts by the UUID that XAPI knows them by. */
export function xapiHostsOf(mirror: Mirror): ReadonlyMap<HostId, string> {
  const hosts = new Map<HostId, string>();
  for (const entry of mirror.entries(keys.xapiHosts)) {
    const id = parseHostId(entry.key.slice(keys.xapiHosts.length));
    const value = readable(() => json.parseXapiHost(entry.key, entry.value));
    if (id !== null && value !== null) hosts.set(id, value.uuid);
  }
  return hosts;
}
