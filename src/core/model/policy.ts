/**
 * What a volume's record says is wanted of it, brought to what is wanted.
 *
 * Must always hold:
 * - what writes need is lowered at once, and raised only when as many copies are in sync: guests would wait else;
 * - it is written by the volume's owner, whose swap raises the epoch (protocol.md R25).
 */
import { insync } from "./volume-record.ts";
import type { VolumeRecord, Want } from "./volume-record.ts";

export type Policy = { readonly copies: number; readonly minIsr: number; readonly spread: string };

/** The next change of the record's policy; null: it is as wanted, or what it lacks must wait. */
export function policyStep(
  { copies, minIsr, spread }: Pick<Want, "copies" | "minIsr" | "spread">,
  record: VolumeRecord,
): Policy | null {
  const isEnough = minIsr <= record.minIsr || insync(record).length >= minIsr;
  const policy: Policy = { copies, minIsr: isEnough ? minIsr : record.minIsr, spread };
  // No more than the copies wanted can be needed for a write.
  if (policy.minIsr > copies) return null;
  const isSame =
    policy.copies === record.copies && policy.minIsr === record.minIsr && policy.spread === record.spread;
  return isSame ? null : policy;
}
