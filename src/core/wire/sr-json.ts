/**
 * Values of the keys of storage repositories and virtual disks, read with distrust.
 *
 * Must always hold:
 * - a value that is not understood is an error that names the key, as in record.ts: a disk that can't be read is not gone;
 * - fields that we don't know survive our writing.
 */
import { z } from "zod";

import { parseSnapshotId, parseVolumeId, type SnapshotId, type VolumeId } from "../model/ids.ts";
import { COPIES_MAX } from "../model/limits.ts";
import type { Sr } from "../model/sr.ts";
import type { Vdi } from "../model/vdi.ts";
import { instant, u64, uuid } from "./json-types.ts";
import { objectOf, reader, RECORD_FORMAT } from "./record.ts";
import { description, label, vdiType } from "./sr-api.ts";

const srJson = z
  .object({
    uuid,
    label,
    description,
    copies: z.int().min(1).max(COPIES_MAX).nullable(),
    createdAt: instant,
    deletingAt: instant.nullable().default(null),
  })
  .transform((sr): Sr => sr);

const volumeId = uuid.transform((text, context): VolumeId => {
  const id = parseVolumeId(text);
  if (id !== null) return id;
  context.addIssue("expected a UUID");
  return z.NEVER;
});
const snapshotId = uuid.transform((text, context): SnapshotId => {
  const id = parseSnapshotId(text);
  if (id !== null) return id;
  context.addIssue("expected a UUID");
  return z.NEVER;
});

const vdiJson = z
  .object({
    uuid,
    sr: uuid,
    volume: volumeId,
    snapshot: snapshotId.nullable(),
    label,
    description,
    type: vdiType,
    readOnly: z.boolean(),
    sharable: z.boolean(),
    managed: z.boolean(),
    cbt: z.boolean(),
    isSnapshot: z.boolean(),
    snapshotOf: uuid.nullable(),
    snapshotTime: instant.nullable(),
    smConfig: z.record(z.string(), z.string()),
    settled: z.boolean(),
    createdAt: instant,
    resetTo: snapshotId.nullable().default(null),
    reader: snapshotId.nullable().default(null),
    composedFrom: uuid.nullable().default(null),
    layerOpened: z.boolean().default(false),
  })
  .refine(
    (vdi) =>
      vdi.uuid === (vdi.snapshot ?? vdi.volume) || (vdi.snapshot === null && vdi.composedFrom !== null),
    "expected its volume's or snapshot's id as uuid",
  )
  .transform((vdi): Vdi => vdi);

const xapiHostJson = z.object({ uuid });
/** `alive`: the revision of its sign of life then; null: there was none. */
const xapiDeadJson = z.object({ alive: u64.nullable() });
export type XapiDead = z.output<typeof xapiDeadJson>;

export const parseSr = reader<Sr>(srJson);
export const parseVdi = reader<Vdi>(vdiJson);
export const parseXapiDead = reader<XapiDead>(xapiDeadJson);
export const parseXapiHost = reader<{ readonly uuid: string }>(xapiHostJson);

/** `before` is the value that it replaces. */
export function renderSr({ deletingAt, ...sr }: Sr, before: string | null): string {
  return render({ ...sr, deletingAt: deletingAt ?? undefined }, before);
}

/** Nothing is said of composing where there was none, as before there was any. */
export function renderVdi({ composedFrom, layerOpened, ...vdi }: Vdi, before: string | null): string {
  const composed = { composedFrom: composedFrom ?? undefined, layerOpened: layerOpened || undefined };
  return render({ ...vdi, ...composed }, before);
}

export function renderXapiHost(uuid: string): string {
  return render({ uuid }, null);
}

export function renderXapiDead({ alive }: XapiDead): string {
  return render({ alive: alive === null ? null : String(alive) }, null);
}

function render(value: object, before: string | null): string {
  return JSON.stringify({ format: RECORD_FORMAT, ...(before === null ? {} : objectOf(before)), ...value });
}
