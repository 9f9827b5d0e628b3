/**
 * Certificates that nobody should believe, signed by whatever key the attacker has.
 *
 * Must always hold: what is forged differs from the real one in what the attack is about, and in nothing else.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, webcrypto } from "node:crypto";

import "reflect-metadata";
import * as x509 from "@peculiar/x509";

import type { Credential, KnownAuthority } from "./knowledge.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
const HOUR_MS = 3_600_000;

export type Forgery = {
  /** Null: it signs itself. */
  readonly authority: KnownAuthority | null;
  readonly names: x509.JsonGeneralNames;
  /** PEM; a new key where none is given. */
  readonly key?: string;
  readonly notBeforeMs?: number;
  readonly notAfterMs?: number;
  readonly isAuthority?: boolean;
  readonly usages?: readonly string[];
};

export async function forge(what: Forgery): Promise<Credential> {
  const key = what.key ?? newKey();
  const publicKey = createPublicKey(key);
  const signer = what.authority?.key ?? key;
  const now = Date.now();
  const isAuthority = what.isAuthority ?? false;
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: `40${randomBytes(15).toString("hex")}`,
    subject: "CN=somebody",
    issuer: what.authority === null ? "CN=somebody" : new x509.X509Certificate(what.authority.pem).subject,
    notBefore: new Date(what.notBeforeMs ?? now - 25 * HOUR_MS),
    notAfter: new Date(what.notAfterMs ?? now + 720 * HOUR_MS),
    signingAlgorithm: ALGORITHM,
    publicKey: await webcrypto.subtle.importKey(
      "spki",
      publicKey.export({ type: "spki", format: "der" }),
      ALGORITHM,
      true,
      ["verify"],
    ),
    signingKey: await webcrypto.subtle.importKey(
      "pkcs8",
      createPrivateKey(signer).export({ type: "pkcs8", format: "der" }),
      ALGORITHM,
      false,
      ["sign"],
    ),
    extensions: [
      new x509.BasicConstraintsExtension(isAuthority, undefined, true),
      new x509.KeyUsagesExtension(
        isAuthority ? x509.KeyUsageFlags.keyCertSign : x509.KeyUsageFlags.digitalSignature,
        true,
      ),
      new x509.ExtendedKeyUsageExtension([...(what.usages ?? [SERVER_AUTH, CLIENT_AUTH])], true),
      ...(what.names.length === 0 ? [] : [new x509.SubjectAlternativeNameExtension(what.names)]),
    ],
  });
  const chain = what.authority === null ? "" : what.authority.pem;
  return { cert: `${certificate.toString("pem").trim()}\n${chain}`, key };
}

/** An authority of somebody else's, with names as ours has them. */
export async function otherAuthority(): Promise<KnownAuthority> {
  const { cert, key } = await forge({ authority: null, names: [], isAuthority: true, usages: [] });
  return { kid: "", pem: cert, key };
}

function newKey(): string {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  return privateKey.export({ type: "pkcs8", format: "pem" }).toString();
}
