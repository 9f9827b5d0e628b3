/**
 * Between the store's disks and XAPI's records of them: the words of one in those of the other.
 *
 * Must always hold: XAPI's sizes of a disk are set before a command that changed them answers; those of the SR are for people,
 * and a command doesn't fail for them.
 */
import { parseUuid } from "../core/model/ids.ts";
import { reasonOf } from "../core/wire/errors.ts";
import type { VdiAnswer } from "../core/wire/sr-api.ts";
import { shown, type SmContext, srOf } from "./call.ts";
import { badRequest } from "./faults.ts";
import { NULL_REF, setSrSizes, setVdi, type VdiIntroduce } from "./xapi-records.ts";
import { isXapiError } from "./xen-api.ts";

/** What only XAPI can know of a disk. */
export type Introduction = {
  readonly srRef: string;
  /** Ref of the disk that it is a snapshot of; null: of none that XAPI knows. */
  readonly snapshotOf: string | null;
  /** Ref of the pool whose metadata it holds; null: of none. */
  readonly metadataOfPool: string | null;
  /** What the call says of it, of which the store keeps no more than fits there. */
  readonly words?: Partial<Pick<VdiIntroduce, "label" | "description" | "smConfig">>;
};

export function introductionOf(
  vdi: VdiAnswer,
  { srRef, snapshotOf, metadataOfPool, words = {} }: Introduction,
): VdiIntroduce {
  return {
    uuid: vdi.uuid,
    location: vdi.uuid,
    srRef,
    label: vdi.label,
    description: vdi.description,
    type: vdi.type,
    sharable: vdi.sharable,
    readOnly: isReadOnlyToXapi(vdi),
    managed: vdi.managed,
    size: vdi.size,
    physicalUtilisation: vdi.physicalUtilisation,
    isSnapshot: vdi.isSnapshot,
    snapshotTime: vdi.snapshotTime === null ? null : new Date(vdi.snapshotTime),
    snapshotOf,
    cbt: vdi.cbt,
    smConfig: vdi.smConfig,
    metadataOfPool,
    ...words,
  };
}

/**
 * As sm has it, a snapshot's record is not. XAPI makes disks by such records: where a VM is imported that was exported with its
 * snapshots, and where it moves to another SR. A disk so made would be read-only, and nothing could be written into it. Who attaches a
 * snapshot for writing is refused by the driver.
 */
export function isReadOnlyToXapi({ snapshot, readOnly }: Pick<VdiAnswer, "snapshot" | "readOnly">): boolean {
  return snapshot === null && readOnly;
}

export async function tellVdiSizes({ xapi }: SmContext, ref: string, vdi: VdiAnswer): Promise<void> {
  await setVdi(xapi, ref, "set_virtual_size", String(vdi.size));
  await setVdi(xapi, ref, "set_physical_utilisation", String(vdi.physicalUtilisation));
}

/** So that people see it at once; the next scan does it in any case. */
export async function tellSrSizes({ call, agent, xapi, log }: SmContext): Promise<void> {
  const { ref, uuid } = srOf(call);
  try {
    await setSrSizes(xapi, ref, await agent.sr(uuid));
  } catch (error) {
    log.warn({ sr: uuid, reason: reasonOf(error) }, "XAPI learns the SR's sizes with its next scan");
  }
}

/** Null: none. */
export function refOf(text: string): string | null {
  return text === "" || text === NULL_REF ? null : text;
}

/** Of a VDI that a call names by its ref or uuid; null: it names none, or one that XAPI has no more. */
export async function uuidOfVdi({ call, xapi }: SmContext, text: string): Promise<string | null> {
  if (refOf(text) === null) return null;
  const uuid = parseUuid(text);
  if (uuid !== null) return uuid;
  if (!text.startsWith("OpaqueRef:")) throw badRequest(`${call.command}: "${shown(text)}" is no VDI`);
  try {
    return parseUuid(await xapi.text("VDI.get_uuid", text));
  } catch (error) {
    if (isXapiError(error, "HANDLE_INVALID")) return null;
    throw error;
  }
}

/** XAPI's `20261122T21:40:00Z`, as ISO 8601; null: its word for none, the beginning of 1970. */
export function momentOf(text: string): string | null {
  if (text === "") return null;
  const found = /^(\d{4})-?(\d\d)-?(\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?Z?$/.exec(text);
  const at = found === null ? Number.NaN : Date.parse(`${found.slice(1, 4).join("-")}T${found[4] ?? ""}Z`);
  if (Number.isNaN(at)) throw badRequest(`"${shown(text)}" is no moment`);
  return at === 0 ? null : new Date(at).toISOString();
}
