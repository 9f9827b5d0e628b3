/**
 * What a certificate says, read by Node: whose key it is, which names it has, who signed it.
 *
 * Must always hold: a key is known by the hash of its public half (KID), never by a name or an address.
 */
import { createHash, X509Certificate } from "node:crypto";
import type { KeyObject } from "node:crypto";

import { judgePeer } from "../model/trust.ts";
import type { CertFacts, PeerVerdict, Trust } from "../model/trust.ts";

/** KID: SHA-256 of the public key (SubjectPublicKeyInfo, DER), lower-case hex. */
export function kidOf(publicKey: KeyObject): string {
  return createHash("sha256")
    .update(publicKey.export({ type: "spki", format: "der" }))
    .digest("hex");
}

/** The certificate of a PEM block, with a key that can be read; null: it is none, or there is more than one. */
export function readCertificate(pem: string): X509Certificate | null {
  if (pem.split("-----BEGIN").length !== 2) return null;
  try {
    const certificate = new X509Certificate(pem);
    // Node decodes the key when it is asked for: a damaged one shows itself only then.
    kidOf(certificate.publicKey);
    isP256(certificate.publicKey);
    return certificate;
  } catch {
    return null;
  }
}

/** ECDSA on P-256 is what hosts and authorities have; other keys are nobody's. */
export function isP256(key: KeyObject): boolean {
  return key.asymmetricKeyType === "ec" && key.asymmetricKeyDetails?.namedCurve === "prime256v1";
}

const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";

/** What the model judges a peer by. Signatures are verified here, against every one of `authorities` until one fits. */
export function factsOf(
  certificate: X509Certificate,
  authorities: readonly { readonly kid: string; readonly pem: string }[],
): CertFacts {
  const usages = certificate.keyUsage ?? [];
  return {
    kid: kidOf(certificate.publicKey),
    uris: urisOf(certificate.subjectAltName),
    notBeforeMs: Date.parse(certificate.validFrom),
    notAfterMs: Date.parse(certificate.validTo),
    issuerKid: authorities.find(({ pem }) => isSignedBy(certificate, pem))?.kid ?? null,
    serverAndClient:
      !mayBeAuthority(certificate) && usages.includes(SERVER_AUTH) && usages.includes(CLIENT_AUTH),
  };
}

/** `judgePeer` of what a peer sent: its leaf, DER; undefined: it sent none. */
export function judgeCertificate(trust: Trust, der: Uint8Array | undefined, nowMs: number): PeerVerdict {
  try {
    if (der === undefined) return { kind: "bad-chain" };
    return judgePeer(trust, factsOf(new X509Certificate(der), trust.authorities), nowMs);
  } catch (error) {
    // Node's reader and OpenSSL below it say so, each in their own words.
    if (error instanceof Error && "code" in error) return { kind: "bad-chain" };
    throw error;
  }
}

function isSignedBy(certificate: X509Certificate, authorityPem: string): boolean {
  const authority = readCertificate(authorityPem);
  return (
    authority !== null &&
    authority.ca &&
    certificate.checkIssued(authority) &&
    certificate.verify(authority.publicKey)
  );
}

/** `BasicConstraints`, critical or not, that says nothing: the only one that a leaf may have, as DER writes it. */
const BASIC_CONSTRAINTS = Buffer.from("0603551d13", "hex");
const NO_AUTHORITY = ["0101ff04023000", "04023000"].map((hex) => Buffer.from(hex, "hex"));

/**
 * Node's `ca` asks for the usage too, and so calls "CA:TRUE" without `keyCertSign` no authority; the daemon refuses it.
 * Where the bytes stand in another place by chance, the certificate is refused as well.
 */
function mayBeAuthority({ ca, raw }: X509Certificate): boolean {
  if (ca) return true;
  for (let at = raw.indexOf(BASIC_CONSTRAINTS); at >= 0; at = raw.indexOf(BASIC_CONSTRAINTS, at + 1)) {
    const value = raw.subarray(at + BASIC_CONSTRAINTS.length);
    if (!NO_AUTHORITY.some((none) => value.subarray(0, none.length).equals(none))) return true;
  }
  return false;
}

/** None where a name of another kind stands beside, or one that Node had to quote: a host's certificate has one plain URI. */
function urisOf(names: string | undefined): readonly string[] {
  if (names === undefined || names.includes('"')) return [];
  const parts = names.split(", ");
  return parts.every((part) => part.startsWith("URI:")) ? parts.map((part) => part.slice("URI:".length)) : [];
}
