/**
 * How much of the cluster one volume's guest may take: requests and bytes a second, and how long it may save up for more.
 *
 * Must always hold:
 * - a limit is more than nothing: a volume that may do nothing is a volume that hangs;
 * - what passes here is what weftd obeys; one that limits neither is none (null).
 */
import { finding, ok, refused } from "./finding.ts";
import type { Decision } from "./finding.ts";
import { LIMIT_BPS_MAX, LIMIT_BPS_MIN, LIMIT_BURST_SECONDS_MAX, LIMIT_IOPS_MAX } from "./limits.ts";
import { formatSize } from "./size.ts";

export type VolumeLimits = {
  /** Requests a second; null: as many as come. */
  readonly iops: number | null;
  /** Bytes a second, read and written together; null: as many as come. */
  readonly bps: bigint | null;
  /** So many seconds' worth may be saved up while less is asked for. */
  readonly burstS: number;
};

/** E-VOL-17 where a limit is out of its range or limits nothing. */
export function checkLimits(limits: VolumeLimits): Decision<VolumeLimits> {
  const { iops, bps, burstS } = limits;
  if (iops === null && bps === null) return no("Neither requests nor bytes a second are limited.", limits);
  if (iops !== null && !(Number.isInteger(iops) && iops >= 1 && iops <= LIMIT_IOPS_MAX))
    return no(`${iops} requests a second is no limit: from 1 to ${LIMIT_IOPS_MAX} are.`, limits);
  if (bps !== null && !(bps >= LIMIT_BPS_MIN && bps <= LIMIT_BPS_MAX)) {
    const range = `from ${formatSize(LIMIT_BPS_MIN)} to ${formatSize(LIMIT_BPS_MAX)} are`;
    return no(`${bps} bytes a second is no limit: ${range}.`, limits);
  }
  if (!(Number.isInteger(burstS) && burstS >= 0 && burstS <= LIMIT_BURST_SECONDS_MAX))
    return no(`A burst of ${burstS} s is not possible: 0 to ${LIMIT_BURST_SECONDS_MAX} are.`, limits);
  return ok(limits);
}

export function sameLimits(a: VolumeLimits | null, b: VolumeLimits | null): boolean {
  return a === null || b === null ? a === b : a.iops === b.iops && a.bps === b.bps && a.burstS === b.burstS;
}

/** `2000 IO/s, 100 MiB/s, burst 5 s`; `none` */
export function limitsText(limits: VolumeLimits | null): string {
  if (limits === null) return "none";
  const { iops, bps, burstS } = limits;
  return [
    ...(iops === null ? [] : [`${iops} IO/s`]),
    ...(bps === null ? [] : [`${formatSize(bps)}/s`]),
    `burst ${burstS} s`,
  ].join(", ");
}

function no(message: string, { iops, bps, burstS }: VolumeLimits): Decision<never> {
  const facts = { iops, bps: bps === null ? null : `${bps}`, burstS };
  return refused(finding("E-VOL-17", message, { facts, safe: "Nothing was changed." }));
}
