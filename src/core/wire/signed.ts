/**
 * Values of the store that not every host may write: signed by an authority, whose key only members hold; or by the one host
 * that says them.
 *
 *     {"body": "<text>", "by": "<KID>", "sig": "<base64 of DER>"}      ECDSA P-256 over SHA-256 of "weft KIND v1\0" + body
 *     {"body": "<text>", "key": "<base64 of SPKI>", "sig": …}          the same by a host's key, which the trust list has
 *
 * Must always hold:
 * - the body is believed only after its signature was verified, byte for byte as it was signed;
 * - a body of one kind is never taken for another: the kind is signed with it;
 * - whether the signer may sign *now* is the model's to judge (`acceptTrust`).
 */
import { createPublicKey, sign as signBytes, verify } from "node:crypto";
import type { KeyObject } from "node:crypto";
import { z } from "zod";

import { finding, ok, refused } from "../model/finding.ts";
import type { Decision } from "../model/finding.ts";
import { isP256, kidOf, readCertificate } from "./certificate.ts";

export type SignedKind = "trust" | "join-token" | "api-token" | "revocation-ack" | "audit-head" | "trust-ack";
export type Opened = { readonly body: string; readonly by: string };

/** As the daemon reads it: what one of them takes and the other refuses would part a host in two. */
export const SIGNED_BYTES_MAX = 1 << 20;

const signedJson = z.object({
  // Text with half a surrogate pair has no bytes of its own: several such texts would have one signature.
  body: z.string().refine((text) => text.isWellFormed()),
  by: z.string().regex(/^[0-9a-f]{64}$/),
  sig: z
    .string()
    .max(100)
    .regex(/^[A-Za-z0-9+/]+={0,2}$/),
});

/** `key` is the private key of an authority; its KID is put down as the signer. */
export function sign(kind: SignedKind, body: string, key: KeyObject): string {
  if (!isP256(key)) throw new Error("an authority's key is on P-256");
  if (!body.isWellFormed()) throw new Error("a body is Unicode text");
  const by = kidOf(createPublicKey(key));
  const text = JSON.stringify({
    body,
    by,
    sig: signBytes("sha256", toSign(kind, body), key).toString("base64"),
  });
  if (Buffer.byteLength(text) > SIGNED_BYTES_MAX) throw new Error(`a signed ${kind} of ${text.length} bytes`);
  return text;
}

/** Refused with E-TRUST-01 when it isn't signed, as this kind, by one of `authorities`. */
export function openSigned(
  kind: SignedKind,
  text: string,
  authorities: readonly { readonly kid: string; readonly pem: string }[],
): Decision<Opened> {
  const parsed = signedJson.safeParse(Buffer.byteLength(text) > SIGNED_BYTES_MAX ? null : jsonOf(text));
  if (!parsed.success) return untrusted(kind, "is not a signed value");
  const { body, by, sig } = parsed.data;
  const pem = authorities.find((authority) => authority.kid === by)?.pem;
  const key = pem === undefined ? undefined : readCertificate(pem)?.publicKey;
  // The KID is what others believe, so it is the key's own hash and not what a list calls it.
  if (key === undefined || !isP256(key) || kidOf(key) !== by) {
    return untrusted(kind, `is signed by ${by.slice(0, 16)}, which is no authority that this host knows`);
  }
  return verify("sha256", toSign(kind, body), key, Buffer.from(sig, "base64"))
    ? ok({ body, by })
    : untrusted(kind, `is not what ${by.slice(0, 16)} signed`);
}

const byHostJson = z.object({
  body: z.string().refine((text) => text.isWellFormed()),
  key: z.base64().max(200),
  sig: z.base64().max(100),
});

/** By a host's own key, which lies beside it: the trust list has its hash alone. */
export function signByHost(kind: SignedKind, body: string, key: KeyObject): string {
  if (!isP256(key)) throw new Error("a host's key is on P-256");
  const spki = createPublicKey(key).export({ type: "spki", format: "der" });
  const sig = signBytes("sha256", toSign(kind, body), key);
  return JSON.stringify({ body, key: spki.toString("base64"), sig: sig.toString("base64") });
}

/** The body, where one of these keys has signed it as this kind; null: none has. */
export function openByHost(kind: SignedKind, text: string, kids: readonly string[]): string | null {
  const parsed = byHostJson.safeParse(Buffer.byteLength(text) > SIGNED_BYTES_MAX ? null : jsonOf(text));
  if (!parsed.success) return null;
  const { body, key: spki, sig } = parsed.data;
  const key = publicKeyOf(Buffer.from(spki, "base64"));
  if (key === null || !isP256(key) || !kids.includes(kidOf(key))) return null;
  return verify("sha256", toSign(kind, body), key, Buffer.from(sig, "base64")) ? body : null;
}

function publicKeyOf(der: Buffer): KeyObject | null {
  try {
    return createPublicKey({ key: der, format: "der", type: "spki" });
  } catch {
    return null;
  }
}

function toSign(kind: SignedKind, body: string): Buffer {
  return Buffer.from(`weft ${kind} v1\0${body}`, "utf8");
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function untrusted(kind: SignedKind, what: string): Decision<Opened> {
  return refused(
    finding("E-TRUST-01", `A value of kind ${kind} in the store ${what}.`, {
      facts: { kind },
      safe: "It is not believed, and nothing was changed.",
    }),
  );
}
