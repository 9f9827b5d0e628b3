/**
 * XAPI's records of an SR and its VDIs, in XAPI's words (design xapi.md 1.8).
 *
 * Must always hold:
 * - sizes go as text, moments as dates, and each member that a record needs is there;
 * - what XAPI has is parsed; a record that lacks something is an error, since a scan that took it for another would forget it.
 */
import { faultCodes, SmFault } from "./faults.ts";
import { isXapiError, type XenApi } from "./xen-api.ts";
import { isStruct, memberOf, textsOf, XmlDate, type XmlOut, type XmlValue } from "./xml.ts";

export const NULL_REF = "OpaqueRef:NULL";
const EPOCH = "19700101T00:00:00Z";

/** What a VDI's record says of it, as far as a storage driver decides it. */
export type VdiRecord = {
  readonly ref: string;
  readonly uuid: string;
  readonly location: string;
  readonly label: string;
  readonly description: string;
  readonly type: string;
  readonly sharable: boolean;
  readonly readOnly: boolean;
  readonly managed: boolean;
  readonly size: bigint;
  readonly physicalUtilisation: bigint;
  readonly isSnapshot: boolean;
  /** A ref; NULL_REF: none. */
  readonly snapshotOf: string;
  readonly cbt: boolean;
  readonly smConfig: ReadonlyMap<string, string>;
};

export type VdiIntroduce = {
  readonly uuid: string;
  readonly srRef: string;
  readonly label: string;
  readonly description: string;
  readonly type: string;
  readonly sharable: boolean;
  readonly readOnly: boolean;
  readonly managed: boolean;
  readonly location: string;
  readonly size: bigint;
  readonly physicalUtilisation: bigint;
  readonly isSnapshot: boolean;
  /** Null: it is none. */
  readonly snapshotTime: Date | null;
  /** The VDI's ref; null: none, or not known. */
  readonly snapshotOf: string | null;
  readonly cbt: boolean;
  readonly smConfig: Readonly<Record<string, string>>;
  /** Of a VDI that holds a pool's database: the pool's ref; null: it holds none. */
  readonly metadataOfPool: string | null;
};

/** Its ref. A record of this uuid that is there already is the one: the call before this one was cut off. */
export async function introduceVdi(xapi: XenApi, vdi: VdiIntroduce): Promise<string> {
  try {
    return await xapi.text(
      "VDI.db_introduce",
      vdi.uuid,
      vdi.label,
      vdi.description,
      vdi.srRef,
      vdi.type,
      vdi.sharable,
      vdi.readOnly,
      {},
      vdi.location,
      {},
      vdi.smConfig,
      vdi.managed,
      String(vdi.size),
      String(vdi.physicalUtilisation),
      vdi.metadataOfPool ?? NULL_REF,
      vdi.isSnapshot,
      dateOf(vdi.snapshotTime),
      vdi.snapshotOf ?? NULL_REF,
      vdi.cbt,
    );
  } catch (error) {
    const known = isXapiError(error) ? await vdiRef(xapi, vdi.uuid) : null;
    if (known === null || (await vdiRecord(xapi, known)).location !== vdi.location) throw error;
    return known;
  }
}

/** Gone already: ok. */
export async function forgetVdi(xapi: XenApi, ref: string): Promise<void> {
  try {
    await xapi.call("VDI.db_forget", ref);
  } catch (error) {
    if (!isXapiError(error, "HANDLE_INVALID")) throw error;
  }
}

/** Null: XAPI has no VDI of this uuid. */
export async function vdiRef(xapi: XenApi, uuid: string): Promise<string | null> {
  try {
    return await xapi.text("VDI.get_by_uuid", uuid);
  } catch (error) {
    if (isXapiError(error, "UUID_INVALID") || isXapiError(error, "HANDLE_INVALID")) return null;
    throw error;
  }
}

/** All that XAPI has of an SR, in one call. */
export async function vdiRecords(xapi: XenApi, srRef: string): Promise<readonly VdiRecord[]> {
  const all = await xapi.call("VDI.get_all_records_where", `field "SR" = "${srRef}"`);
  if (!isStruct(all)) throw notARecord("VDI.get_all_records_where", "answer");
  return Object.entries(all).map(([ref, record]) => vdiRecordOf(ref, record));
}

export async function vdiRecord(xapi: XenApi, ref: string): Promise<VdiRecord> {
  return vdiRecordOf(ref, await xapi.call("VDI.get_record", ref));
}

export type SrSizes = {
  readonly physicalSize: bigint;
  readonly physicalUtilisation: bigint;
  readonly virtualAllocation: bigint;
};

export async function setSrSizes(xapi: XenApi, srRef: string, sizes: SrSizes): Promise<void> {
  await xapi.call("SR.set_virtual_allocation", srRef, String(sizes.virtualAllocation));
  await xapi.call("SR.set_physical_size", srRef, String(sizes.physicalSize));
  await xapi.call("SR.set_physical_utilisation", srRef, String(sizes.physicalUtilisation));
}

/** XAPI's hosts, and whether it believes that they live. */
export async function hostsByLiveness(
  xapi: XenApi,
): Promise<readonly { readonly ref: string; readonly uuid: string; readonly live: boolean }[]> {
  const hosts = await xapi.call("host.get_all_records");
  const metrics = await xapi.call("host_metrics.get_all_records");
  if (!isStruct(hosts) || !isStruct(metrics)) throw notARecord("host.get_all_records", "answer");
  return Object.entries(hosts).map(([ref, record]) => ({
    ref,
    uuid: textIn(record, "uuid"),
    // Dead is only what XAPI says so of: a host without figures is not.
    live: memberOf(memberOf(metrics, textIn(record, "metrics")), "live") !== false,
  }));
}

/** `20261122T21:40:00Z`. */
export function dateOf(at: Date | null): XmlDate {
  if (at === null) return new XmlDate(EPOCH);
  return new XmlDate(`${at.toISOString().slice(0, 19).replaceAll("-", "")}Z`);
}

function vdiRecordOf(ref: string, record: XmlValue): VdiRecord {
  return {
    ref,
    uuid: textIn(record, "uuid"),
    location: textIn(record, "location"),
    label: textIn(record, "name_label"),
    description: textIn(record, "name_description"),
    type: textIn(record, "type"),
    sharable: flagIn(record, "sharable"),
    readOnly: flagIn(record, "read_only"),
    managed: flagIn(record, "managed"),
    size: sizeIn(record, "virtual_size"),
    physicalUtilisation: sizeIn(record, "physical_utilisation"),
    isSnapshot: flagIn(record, "is_a_snapshot"),
    snapshotOf: textIn(record, "snapshot_of"),
    cbt: flagIn(record, "cbt_enabled"),
    smConfig: textsOf(memberOf(record, "sm_config")) ?? new Map(),
  };
}

function textIn(record: XmlValue, member: string): string {
  const value = memberOf(record, member);
  if (typeof value === "string") return value;
  throw notARecord("a record", member);
}

function flagIn(record: XmlValue, member: string): boolean {
  const value = memberOf(record, member);
  if (typeof value === "boolean") return value;
  throw notARecord("a record", member);
}

function sizeIn(record: XmlValue, member: string): bigint {
  const text = textIn(record, member);
  if (/^-?[0-9]{1,19}$/.test(text)) return BigInt(text);
  throw notARecord("a record", member);
}

function notARecord(what: string, member: string): SmFault {
  return new SmFault(faultCodes.apiFailure, `XAPI's ${what} has no ${member} that can be used.`);
}

/** For setters of one member. */
export type VdiSetter =
  | "set_name_label"
  | "set_name_description"
  | "set_virtual_size"
  | "set_physical_utilisation"
  | "set_managed"
  | "set_read_only"
  | "set_sharable"
  | "set_is_a_snapshot"
  | "set_snapshot_of"
  | "set_snapshot_time"
  | "set_cbt_enabled";

export async function setVdi(xapi: XenApi, ref: string, setter: VdiSetter, value: XmlOut): Promise<void> {
  await xapi.call(`VDI.${setter}`, ref, value);
}
