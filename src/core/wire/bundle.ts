/**
 * Who a host is, sealed, so that it may lie on the disk of a pool: a host whose system is installed anew gets it back there.
 *
 *     authority's private key ──HKDF, host──▶ key of the host's bundle ──AES-256-GCM──▶ the bundle
 *     ECDH with the key of who is installed anew ──HKDF──▶ AES-256-GCM of the bundle's key, for its way back
 *
 * Must always hold:
 * - the disk alone opens nothing: the bundle's key is made of the authority's, which only members of the store have, and is
 *   kept nowhere;
 * - which cluster, host and authority it is of is in the clear, and bound to what is sealed;
 * - the bundle's key leaves a member for one public key only, and says nothing to whoever sees it on its way;
 * - what can't be opened, or is not of the form, is null: who asks has other bundles to try.
 */
import {
  createCipheriv,
  createDecipheriv,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
  hkdfSync,
  type KeyObject,
  randomBytes,
} from "node:crypto";
import { z } from "zod";

import { Secret } from "../model/secret.ts";
import { uuid } from "./json-types.ts";

const FORMAT = 1;
const TAG_BYTES = 16;
const NONCE_BYTES = 12;
const KEY_BYTES = 32;
/** Of a file on a disk that anybody may have written. */
export const BUNDLE_BYTES_MAX = 4 << 20;

const kid = z.string().regex(/^[0-9a-f]{64}$/);
const base64 = z.string().regex(/^[A-Za-z0-9+/]+={0,2}$/);

const sealedJson = z.object({
  format: z.literal(FORMAT),
  cluster: uuid,
  host: uuid,
  /** Of the authority that its key was made of. */
  kid,
  nonce: base64.max(16),
  box: base64.max(BUNDLE_BYTES_MAX),
});

const payloadJson = z.object({
  /** Texts of the files that say who the host is. */
  hostFile: z.string(),
  keyPem: z.string(),
  certPem: z.string(),
  chainPem: z.string(),
  trust: z.string(),
  devices: z.string().nullable(),
});

export const wrappedKey = z.object({
  /** SubjectPublicKeyInfo, DER. */
  from: base64.max(1024),
  box: base64.max(256),
});

export type SealedBundle = z.output<typeof sealedJson>;
export type BundlePayload = z.output<typeof payloadJson>;
export type WrappedKey = z.output<typeof wrappedKey>;
export type BundleOf = Pick<SealedBundle, "cluster" | "host" | "kid">;

/** The key of a host's bundle: the same at every member that has this authority's key. */
export function bundleKey(authorityPem: Secret<string>, of: BundleOf): Secret<Uint8Array> {
  const der = createPrivateKey(authorityPem.reveal()).export({ type: "pkcs8", format: "der" });
  const info = `weft bundle v1\0${JSON.stringify([of.cluster, of.host, of.kid])}`;
  return new Secret(new Uint8Array(hkdfSync("sha256", der, "weft", info, KEY_BYTES)));
}

export function sealBundle(key: Secret<Uint8Array>, of: BundleOf, payload: BundlePayload): string {
  const nonce = randomBytes(NONCE_BYTES);
  const { cluster, host, kid: by } = of;
  const box = sealed(key.reveal(), nonce, aadOf(of), Buffer.from(JSON.stringify(payload)));
  const value: SealedBundle = {
    format: FORMAT,
    cluster,
    host,
    kid: by,
    nonce: nonce.toString("base64"),
    box: box.toString("base64"),
  };
  return `${JSON.stringify(value)}\n`;
}

/** What stands on the outside. */
export function parseBundle(text: string): SealedBundle | null {
  return parsed(sealedJson, text);
}

export function openBundle(key: Secret<Uint8Array>, bundle: SealedBundle): BundlePayload | null {
  const nonce = Buffer.from(bundle.nonce, "base64");
  const text = opened(key.reveal(), nonce, aadOf(bundle), Buffer.from(bundle.box, "base64"));
  return text === null ? null : parsed(payloadJson, text.toString());
}

/** For whoever has the private half of `to`, and nobody else. */
export function wrapKey(key: Secret<Uint8Array>, to: KeyObject): WrappedKey {
  const once = generateKeyPairSync("ec", { namedCurve: "prime256v1" });
  const from = spkiOf(once.publicKey);
  const shared = diffieHellman({ privateKey: once.privateKey, publicKey: to });
  const wrapping = wrappingKey(shared, from, spkiOf(to));
  // Its key is used once, so its nonce is too.
  const box = sealed(wrapping, Buffer.alloc(NONCE_BYTES), from, Buffer.from(key.reveal()));
  return { from: from.toString("base64"), box: box.toString("base64") };
}

export function unwrapKey(wrapped: WrappedKey, keyPem: Secret<string>): Secret<Uint8Array> | null {
  try {
    const privateKey = createPrivateKey(keyPem.reveal());
    const from = Buffer.from(wrapped.from, "base64");
    const publicKey = createPublicKey({ key: from, format: "der", type: "spki" });
    const shared = diffieHellman({ privateKey, publicKey });
    const wrapping = wrappingKey(shared, from, spkiOf(createPublicKey(privateKey)));
    const key = opened(wrapping, Buffer.alloc(NONCE_BYTES), from, Buffer.from(wrapped.box, "base64"));
    return key?.length === KEY_BYTES ? new Secret(new Uint8Array(key)) : null;
  } catch {
    // Another curve, or no key at all.
    return null;
  }
}

function wrappingKey(shared: Buffer, from: Buffer, to: Buffer): Uint8Array {
  const salt = Buffer.concat([from, to]);
  return new Uint8Array(hkdfSync("sha256", shared, salt, "weft bundle key v1", KEY_BYTES));
}

function spkiOf(key: KeyObject): Buffer {
  return key.export({ type: "spki", format: "der" });
}

function aadOf({ cluster, host, kid: by }: BundleOf): Buffer {
  return Buffer.from(`weft bundle v1\0${JSON.stringify([FORMAT, cluster, host, by])}`);
}

function sealed(key: Uint8Array, nonce: Uint8Array, aad: Uint8Array, text: Uint8Array): Buffer {
  const cipher = createCipheriv("aes-256-gcm", key, nonce);
  cipher.setAAD(aad);
  return Buffer.concat([cipher.update(text), cipher.final(), cipher.getAuthTag()]);
}

function opened(key: Uint8Array, nonce: Uint8Array, aad: Uint8Array, box: Buffer): Buffer | null {
  if (nonce.length !== NONCE_BYTES || box.length < TAG_BYTES) return null;
  try {
    const decipher = createDecipheriv("aes-256-gcm", key, nonce);
    decipher.setAAD(aad);
    decipher.setAuthTag(box.subarray(box.length - TAG_BYTES));
    return Buffer.concat([decipher.update(box.subarray(0, box.length - TAG_BYTES)), decipher.final()]);
  } catch {
    return null;
  }
}

function parsed<T>(schema: z.ZodType<T>, text: string): T | null {
  try {
    const result = schema.safeParse(JSON.parse(text));
    return result.success ? result.data : null;
  } catch {
    return null;
  }
}
