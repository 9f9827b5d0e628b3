/**
 * How a host proves that it has a join token, without showing it.
 *
 *     secret ──SHA-256──▶ Ed25519 key ──▶ public half, whose hash the store has
 *                                    └──▶ signature over cluster, token, and the host that joins with its key
 *
 * Must always hold:
 * - the secret never leaves the joining host: neither who answers (a host of the cluster that was stolen, say) nor who
 *   reads the store learns anything that would let another host in;
 * - a proof is good for one cluster, one token, one host and the one key that it shows.
 */
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from "node:crypto";

import type { JoinToken } from "../model/token-code.ts";

/** What is proven, beside the token. */
export type JoinClaim = {
  readonly cluster: string;
  /** KID of the key that the host's connection shows. */
  readonly kid: string;
  readonly host: string;
  readonly name: string;
  readonly address: string;
};

/** `key` is the public half, 32 bytes; `signature` 64 bytes; both hex. */
export type JoinProof = { readonly id: string; readonly key: string; readonly signature: string };

const PKCS8_ED25519 = Buffer.from("302e020100300506032b657004220420", "hex");
const SPKI_ED25519 = Buffer.from("302a300506032b6570032100", "hex");

export function proveToken(token: JoinToken, claim: JoinClaim): JoinProof {
  const id = Buffer.from(token.id4).toString("hex");
  const key = privateOf(id, token.secret12.reveal());
  return { id, key: publicOf(key), signature: sign(null, toSign(id, claim), key).toString("hex") };
}

/** What the store keeps of a token. */
export function tokenHash(cluster: string, id: string, secret: Uint8Array): string {
  return hashOfKey(cluster, id, publicOf(privateOf(id, secret)));
}

/** The same of the key that a proof shows. */
export function hashOfKey(cluster: string, id: string, key: string): string {
  return createHash("sha256").update(`weft join v1\0${cluster}${id}${key}`).digest("hex");
}

/** Whether who made this proof has the secret of the key that it shows, and meant this claim. */
export function isProven({ id, key, signature }: JoinProof, claim: JoinClaim): boolean {
  const spki = Buffer.concat([SPKI_ED25519, Buffer.from(key, "hex")]);
  const publicKey = createPublicKey({ key: spki, format: "der", type: "spki" });
  return verify(null, toSign(id, claim), publicKey, Buffer.from(signature, "hex"));
}

function privateOf(id: string, secret: Uint8Array): KeyObject {
  const seed = createHash("sha256").update(`weft join v1 key\0${id}`).update(secret).digest();
  return createPrivateKey({ key: Buffer.concat([PKCS8_ED25519, seed]), format: "der", type: "pkcs8" });
}

function publicOf(key: KeyObject): string {
  const spki = createPublicKey(key).export({ type: "spki", format: "der" });
  return spki.subarray(SPKI_ED25519.length).toString("hex");
}

/** As JSON, so that no two claims have the same bytes. */
function toSign(id: string, { cluster, kid, host, name, address }: JoinClaim): Buffer {
  return Buffer.from(`weft join v1 proof\0${JSON.stringify([cluster, id, kid, host, name, address])}`);
}
