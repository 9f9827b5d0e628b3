/**
 * What the store follows of XAPI's record of a disk: names and flags, so that a lost database of XAPI's can be made again.
 *
 * Must always hold:
 * - sizes and data are never among it: those the store knows, and XAPI is told;
 * - what only means something to XAPI as it runs (attach tags, hosts' caches) is not kept.
 */
import { keptConfig, SR_TEXT_MAX } from "../core/model/vdi.ts";
import type { VdiChanges } from "../core/wire/agent-client.ts";
import type { VdiAnswer } from "../core/wire/sr-api.ts";
import type { VdiRecord } from "./xapi-records.ts";

/** Of sm_config (design xapi.md 1.8). */
const MOMENTARY = /^(?:host_|read-caching-|paused$|activating$|relinking$)/;

/** `snapshotOf`: the uuid of what XAPI says that it is a snapshot of. Nothing in it: the store has it all. */
export function vdiChanges(record: VdiRecord, snapshotOf: string | null, vdi: VdiAnswer): VdiChanges {
  const label = cut(record.label, SR_TEXT_MAX.label);
  const description = cut(record.description, SR_TEXT_MAX.description);
  const smConfig = keptConfig(Array.from(record.smConfig).filter(([key]) => !MOMENTARY.test(key)));
  const isVolume = vdi.snapshot === null;
  return {
    ...(label === vdi.label ? {} : { label }),
    ...(description === vdi.description ? {} : { description }),
    ...(followsType(record.type, vdi) ? { type: record.type } : {}),
    ...(record.managed === vdi.managed ? {} : { managed: record.managed }),
    ...(record.sharable === vdi.sharable ? {} : { sharable: record.sharable }),
    ...(isVolume && record.readOnly !== vdi.readOnly ? { readOnly: record.readOnly } : {}),
    // A snapshot of ours is one whatever its record says; a volume is one where XAPI copied a snapshot into it.
    ...(isVolume && record.isSnapshot !== vdi.isSnapshot ? { isSnapshot: record.isSnapshot } : {}),
    ...(isVolume && snapshotOf !== vdi.snapshotOf ? { snapshotOf } : {}),
    ...(areSame(smConfig, vdi.smConfig) ? {} : { smConfig }),
  };
}

/** XAPI's texts have no limit, ours have. */
export function cut(text: string, max: number): string {
  return text.slice(0, max).toWellFormed();
}

/** XAPI says cbt_metadata before the data is gone: the command that takes it away says so to the store. */
function followsType(type: string, vdi: VdiAnswer): boolean {
  return type !== vdi.type && type !== "" && type.length <= SR_TEXT_MAX.type && type !== "cbt_metadata";
}

function areSame(one: Readonly<Record<string, string>>, other: Readonly<Record<string, string>>): boolean {
  const keys = Object.keys(one);
  return keys.length === Object.keys(other).length && keys.every((key) => one[key] === other[key]);
}
