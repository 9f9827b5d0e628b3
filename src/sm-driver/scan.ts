/**
 * What a scan does so that XAPI's records of an SR are as the store is: decided here, from one look at each.
 *
 * Must always hold:
 * - nothing is forgotten that the store has, and nothing because of what isn't known: the store's list is whole, if only by UUIDs,
 *   or there is none;
 * - done once, it has nothing to do the second time: XAPI repeats a scan that has changed which VDIs there are;
 * - of what both sides have, XAPI's words for names and the store's for sizes win: neither is ever taken back.
 */
import type { VdiChanges } from "../core/wire/agent-client.ts";
import type { VdiAnswer } from "../core/wire/sr-api.ts";
import { vdiChanges } from "./vdi-changes.ts";
import { NULL_REF, type VdiRecord, type VdiSetter } from "./xapi-records.ts";

/** What a call of XAPI was to make, and was cut off, is looked at after this: until then the call may still be under way. */
const LEFT_MS = 10 * 60_000;

export type ScanPlan = {
  /** Disks first, then their snapshots. */
  readonly introduce: readonly VdiAnswer[];
  readonly update: readonly {
    readonly ref: string;
    readonly uuid: string;
    readonly set: readonly (readonly [setter: VdiSetter, value: string | boolean])[];
  }[];
  /** The store's words follow XAPI's. */
  readonly follow: readonly { readonly uuid: string; readonly changes: VdiChanges }[];
  readonly forget: readonly { readonly ref: string; readonly uuid: string }[];
  /** Nobody knows of them, and nothing was ever written to them: whoever asked for them was told of a failure. */
  readonly remove: readonly VdiAnswer[];
};

/** `unread`: UUIDs of disks that are there, of which nothing is known. They stay as they are. */
export function planScan(
  { vdis, unread }: { readonly vdis: readonly VdiAnswer[]; readonly unread: readonly string[] },
  records: readonly VdiRecord[],
  nowMs: number,
): ScanPlan {
  const byUuid = new Map(records.map((record) => [record.uuid, record]));
  const byRef = new Map(records.map((record) => [record.ref, record]));
  const listed = new Set([...unread, ...vdis.map(({ uuid }) => uuid)]);
  const pairs = vdis.flatMap((vdi) => {
    const record = byUuid.get(vdi.uuid);
    return record === undefined ? [] : [{ vdi, record }];
  });
  const unknown = vdis.filter(({ uuid, whole }) => whole && !byUuid.has(uuid));
  const { left, introduce } = Object.groupBy(unknown, (vdi) => (isLeft(vdi, nowMs) ? "left" : "introduce"));
  return {
    introduce: (introduce ?? [])
      .filter(({ settled, createdAt }) => settled || isOld(createdAt, nowMs))
      .toSorted((one, other) => Number(one.isSnapshot) - Number(other.isSnapshot)),
    update: pairs.flatMap(({ vdi, record }) => {
      const set = settersOf(vdi, record, byUuid);
      return set.length === 0 ? [] : [{ ref: record.ref, uuid: vdi.uuid, set }];
    }),
    follow: pairs.flatMap(({ vdi, record }) => {
      const changes = {
        ...vdiChanges(record, originOf(record, vdi, byRef), vdi),
        ...(vdi.settled ? {} : { settled: true }),
      };
      return Object.keys(changes).length === 0 ? [] : [{ uuid: vdi.uuid, changes }];
    }),
    forget: records.filter(({ uuid }) => !listed.has(uuid)).map(({ ref, uuid }) => ({ ref, uuid })),
    remove: left ?? [],
  };
}

/** What one that is introduced is a snapshot of, where XAPI has that one; `refs` by uuid. */
export function snapshotOfRef({ snapshotOf }: VdiAnswer, refs: ReadonlyMap<string, string>): string | null {
  return snapshotOf === null ? null : (refs.get(snapshotOf) ?? null);
}

function isOld(createdAt: string, nowMs: number): boolean {
  return nowMs - Date.parse(createdAt) > LEFT_MS;
}

/** One that may hold something is shown instead: it is nobody's to throw away. What it takes is a hint, and says nothing of that. */
function isLeft({ settled, createdAt, untouched, openOn }: VdiAnswer, nowMs: number): boolean {
  return !settled && untouched && openOn === null && isOld(createdAt, nowMs);
}

function settersOf(
  vdi: VdiAnswer,
  record: VdiRecord,
  byUuid: ReadonlyMap<string, VdiRecord>,
): readonly (readonly [VdiSetter, string | boolean])[] {
  const origin = vdi.snapshotOf === null ? undefined : byUuid.get(vdi.snapshotOf)?.ref;
  const isOurSnapshot = vdi.snapshot !== null;
  const { size, physicalUtilisation, cbt } = vdi;
  const all: readonly (readonly [VdiSetter, string | boolean, boolean])[] = [
    ["set_virtual_size", String(size), size !== record.size],
    [
      "set_physical_utilisation",
      String(physicalUtilisation),
      physicalUtilisation !== record.physicalUtilisation,
    ],
    ["set_cbt_enabled", cbt, cbt !== record.cbt],
    ["set_is_a_snapshot", true, isOurSnapshot && !record.isSnapshot],
    ["set_read_only", false, isOurSnapshot && record.readOnly],
    [
      "set_snapshot_of",
      origin ?? NULL_REF,
      isOurSnapshot && origin !== undefined && record.snapshotOf === NULL_REF,
    ],
  ];
  return all.flatMap(([setter, value, differs]) => (differs ? [[setter, value] as const] : []));
}

/** By XAPI's word; where it names a VDI that isn't here the store's word stays. */
function originOf(
  { snapshotOf }: VdiRecord,
  vdi: VdiAnswer,
  byRef: ReadonlyMap<string, VdiRecord>,
): string | null {
  if (snapshotOf === NULL_REF || snapshotOf === "") return null;
  return byRef.get(snapshotOf)?.uuid ?? vdi.snapshotOf;
}
