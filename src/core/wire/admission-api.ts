/**
 * How a host is let in without a token, where something else vouches for it: XAPI, whose administrators are root on all hosts
 * of a pool anyway. Its key stays where it was made; what travels is public.
 *
 *     newcomer: request ──(XAPI)──▶ member: admission ──(XAPI)──▶ newcomer: answer
 *
 * Must always hold: nothing of it is a secret. A plug-in of XAPI has it on its command line.
 */
import { z } from "zod";

import { BUNDLE_BYTES_MAX, wrappedKey } from "./bundle.ts";
import { clusterAnswer } from "./agent-api.ts";
import { address, hostName, uuid } from "./json-types.ts";

const pem = z.string().max(8192);

/** Who the host wants to be. The same address again: the same host. */
export const admissionWish = z.strictObject({ name: hostName.nullable().default(null), address });

export const admissionRequest = z.strictObject({
  host: uuid,
  name: hostName,
  address,
  /** Signed by its own key, which it so proves to have. */
  cert: pem,
});

/** As a member gets it: `vouchedBy` is who says that this host may come in, for the audit. */
export const admissionOrder = z.strictObject({
  ...admissionRequest.shape,
  vouchedBy: z.string().min(1).max(256),
});

export const admissionAnswer = z.strictObject({
  /** `host` is the one that was let in. */
  cluster: clusterAnswer,
  cert: pem,
  /** The certificate of the authority that signed it. */
  authority: pem,
  /** The list in which it stands, signed. */
  trust: z.string().max(1 << 20),
});

/** What lies on this host's disks, each sealed. */
export const bundlesAnswer = z.object({ bundles: z.array(z.string()) });

/** As a member gets it. */
export const unsealOrder = z.strictObject({
  /** What stands on the bundle's outside. */
  bundle: z.strictObject({ cluster: uuid, host: uuid, kid: z.string().regex(/^[0-9a-f]{64}$/) }),
  /** Of the host that has the disk. */
  request: admissionRequest.strict(),
  /** Those that it has, by the word of whoever vouches for it. */
  addresses: z.array(address).max(64),
  vouchedBy: z.string().min(1).max(256),
});

export const reclaimRequest = z.strictObject({
  bundle: z.string().max(BUNDLE_BYTES_MAX),
  key: wrappedKey,
});

export type Bundles = z.output<typeof bundlesAnswer>;
export type UnsealOrder = z.output<typeof unsealOrder>;
export type Reclaim = z.output<typeof reclaimRequest>;
export type AdmissionWish = z.input<typeof admissionWish>;
export type AdmissionRequest = z.output<typeof admissionRequest>;
export type AdmissionOrder = z.output<typeof admissionOrder>;
export type AdmissionAnswer = z.output<typeof admissionAnswer>;
