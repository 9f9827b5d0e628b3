/**
 * Makes certificates and revocation lists: of authorities, hosts, store members. Only hosts that hold an authority's key
 * come here, and the libraries that encode X.509 are loaded when the first certificate is made.
 *
 *     authority A ── host leaf: URI weft://CLUSTER/host/HOST, nothing else; no address
 *     authority B ── store leaf: the member's address; etcd asks for nothing else
 *
 * Must always hold:
 * - keys are ECDSA on P-256, serials 126 random bits; validity begins 25 h before now, so that a clock that is a day
 *   behind finds it valid;
 * - a leaf may be server and client, and is never an authority; an authority signs leaves and lists, never authorities;
 * - private keys leave this file as `Secret` only.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, webcrypto } from "node:crypto";
import type { KeyObject } from "node:crypto";
import { isIP } from "node:net";

import type * as x509 from "@peculiar/x509";

import type { HostId } from "../model/ids.ts";
import { CLOCK_SLACK_MS } from "../model/limits.ts";
import { Secret } from "../model/secret.ts";
import { hostUri } from "../model/trust.ts";
import { kidOf } from "./certificate.ts";

/** An authority with its private key (PKCS#8, PEM). */
export type AuthorityKeys = { readonly kid: string; readonly pem: string; readonly keyPem: Secret<string> };
/** A leaf without its private key, which its owner has. `serial` is lower-case hex. */
export type MadeCert = { readonly pem: string; readonly serial: string; readonly notAfterMs: number };

export const HOST_CERT_LIFE_MS = 30 * 24 * 3600 * 1000;
const JOIN_CERT_LIFE_MS = 3600 * 1000;
const AUTHORITY_LIFE_MS = 3650 * 24 * 3600 * 1000;

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";

/** A new P-256 key (PKCS#8, PEM). */
export function makeKey(): Secret<string> {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  return new Secret(privateKey.export({ type: "pkcs8", format: "pem" }).toString());
}

export async function makeAuthority(options: {
  readonly kind: "host" | "store";
  readonly cluster: string;
  readonly nowMs: number;
}): Promise<AuthorityKeys> {
  const lib = await library();
  const keyPem = makeKey();
  const key = createPrivateKey(keyPem.reveal());
  const publicKey = createPublicKey(keyPem.reveal());
  const pair = { privateKey: await signing(key), publicKey: await verifying(publicKey) };
  const name = options.kind === "host" ? "weft" : "weft store";
  const certificate = await lib.X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerial(),
    name: `CN=${name} ${options.cluster.slice(0, 8)}`,
    ...validity(options.nowMs, AUTHORITY_LIFE_MS),
    signingAlgorithm: ALGORITHM,
    keys: pair,
    extensions: [
      new lib.BasicConstraintsExtension(true, 0, true),
      new lib.KeyUsagesExtension(lib.KeyUsageFlags.keyCertSign | lib.KeyUsageFlags.cRLSign, true),
      await lib.SubjectKeyIdentifierExtension.create(pair.publicKey),
    ],
  });
  return { kid: kidOf(publicKey), pem: pemOf(certificate), keyPem };
}

/** What a host proves itself with to every other part of weft. */
export async function makeHostCert(options: {
  readonly authority: AuthorityKeys;
  readonly cluster: string;
  readonly host: HostId;
  readonly publicKey: KeyObject;
  readonly nowMs: number;
  /** Shorter in tests of renewal. */
  readonly lifeMs?: number;
}): Promise<MadeCert> {
  const { authority, cluster, host, publicKey, nowMs, lifeMs } = options;
  const names = [{ type: "url" as const, value: hostUri(cluster, host) }];
  return makeLeaf({ authority, host, publicKey, nowMs, lifeMs: lifeMs ?? HOST_CERT_LIFE_MS, names });
}

/**
 * What a member of the store shows to clients and other members. etcd compares the name with where a connection comes
 * from: within 127/8 that is 127.0.0.1, whatever address the member listens on.
 */
export async function makeStoreCert(options: {
  readonly authority: AuthorityKeys;
  readonly host: HostId;
  readonly address: string;
  readonly publicKey: KeyObject;
  readonly nowMs: number;
  readonly lifeMs?: number;
}): Promise<MadeCert> {
  const { authority, host, address, publicKey, nowMs, lifeMs } = options;
  const isLoopback = isIP(address) === 4 && address.startsWith("127.");
  const addresses = isLoopback && address !== "127.0.0.1" ? [address, "127.0.0.1"] : [address];
  const names = addresses.map((value) => ({
    type: isIP(value) === 0 ? ("dns" as const) : ("ip" as const),
    value,
  }));
  return makeLeaf({ authority, host, publicKey, nowMs, lifeMs: lifeMs ?? HOST_CERT_LIFE_MS, names });
}

/** A certificate that must be refused, with its key: it is on the list of the revoked from its first moment on. */
export type Canary = { readonly cert: string; readonly keyPem: Secret<string>; readonly serial: string };

/**
 * To prove that etcd obeys its list of the revoked: signed as a host's is, and of no host. Its key is nowhere but in the
 * memory of who made it.
 */
export async function makeCanary(options: {
  readonly authority: AuthorityKeys;
  readonly cluster: string;
  readonly nowMs: number;
}): Promise<Canary> {
  const { authority, cluster, nowMs } = options;
  const keyPem = makeKey();
  const publicKey = createPublicKey(keyPem.reveal());
  const names = [{ type: "url" as const, value: `weft://${cluster}/canary` }];
  const { pem, serial } = await makeLeaf({
    authority,
    host: "canary",
    publicKey,
    nowMs,
    lifeMs: HOST_CERT_LIFE_MS,
    names,
  });
  return { cert: pem, keyPem, serial };
}

/**
 * What a host shows that has no certificate yet: signed by its own key, so that the handshake proves that key and nothing
 * else. Nobody is to believe its name.
 */
export async function makeJoinCert(options: {
  readonly host: string;
  readonly keyPem: Secret<string>;
  readonly nowMs: number;
}): Promise<string> {
  const lib = await library();
  const key = createPrivateKey(options.keyPem.reveal());
  const certificate = await lib.X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerial(),
    name: `CN=${options.host}`,
    ...validity(options.nowMs, JOIN_CERT_LIFE_MS),
    signingAlgorithm: ALGORITHM,
    keys: { privateKey: await signing(key), publicKey: await verifying(createPublicKey(key)) },
    extensions: [
      new lib.BasicConstraintsExtension(false, undefined, true),
      new lib.SubjectAlternativeNameExtension([{ type: "url", value: `weft://join/${options.host}` }]),
    ],
  });
  return pemOf(certificate);
}

/** The list of certificates that etcd refuses, DER. etcd looks at the serials only; it must exist before etcd starts. */
export async function makeCrl(options: {
  readonly authority: AuthorityKeys;
  readonly serials: readonly string[];
  readonly nowMs: number;
}): Promise<Uint8Array> {
  const { authority, serials, nowMs } = options;
  const lib = await library();
  const { notBefore, notAfter } = validity(nowMs, AUTHORITY_LIFE_MS);
  const list = await lib.X509CrlGenerator.create({
    issuer: new lib.X509Certificate(authority.pem).subject,
    thisUpdate: notBefore,
    nextUpdate: notAfter,
    signingAlgorithm: ALGORITHM,
    signingKey: await signing(createPrivateKey(authority.keyPem.reveal())),
    entries: serials.map((serialNumber) => ({ serialNumber, revocationDate: new Date(nowMs) })),
  });
  return new Uint8Array(list.rawData);
}

async function makeLeaf(options: {
  readonly authority: AuthorityKeys;
  /** The subject's common name, for people. */
  readonly host: string;
  readonly publicKey: KeyObject;
  readonly nowMs: number;
  readonly lifeMs: number;
  readonly names: x509.JsonGeneralNames;
}): Promise<MadeCert> {
  const { authority, host, publicKey, nowMs, lifeMs, names } = options;
  const lib = await library();
  const issuer = new lib.X509Certificate(authority.pem);
  const serial = newSerial();
  const dates = validity(nowMs, lifeMs);
  const certificate = await lib.X509CertificateGenerator.create({
    serialNumber: serial,
    subject: `CN=${host}`,
    issuer: issuer.subject,
    ...dates,
    signingAlgorithm: ALGORITHM,
    publicKey: await verifying(publicKey),
    signingKey: await signing(createPrivateKey(authority.keyPem.reveal())),
    extensions: [
      new lib.BasicConstraintsExtension(false, undefined, true),
      new lib.KeyUsagesExtension(lib.KeyUsageFlags.digitalSignature, true),
      new lib.ExtendedKeyUsageExtension([SERVER_AUTH, CLIENT_AUTH], true),
      new lib.SubjectAlternativeNameExtension(names),
      await lib.AuthorityKeyIdentifierExtension.create(issuer.publicKey),
    ],
  });
  return { pem: pemOf(certificate), serial, notAfterMs: dates.notAfter.getTime() };
}

/** Whole seconds, as certificates have them. */
function validity(nowMs: number, lifeMs: number): { readonly notBefore: Date; readonly notAfter: Date } {
  const second = Math.floor(nowMs / 1000) * 1000;
  return {
    notBefore: new Date(second - CLOCK_SLACK_MS),
    notAfter: new Date(second + Math.floor(lifeMs / 1000) * 1000),
  };
}

/** 16 bytes, the highest two bits 01: positive, and of the same length in every encoding. */
function newSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40;
  return bytes.toString("hex");
}

function pemOf(certificate: x509.X509Certificate): string {
  return `${certificate.toString("pem").trim()}\n`;
}

function signing(key: KeyObject): Promise<webcrypto.CryptoKey> {
  const der = key.export({ type: "pkcs8", format: "der" });
  return webcrypto.subtle.importKey("pkcs8", der, ALGORITHM, false, ["sign"]);
}

function verifying(key: KeyObject): Promise<webcrypto.CryptoKey> {
  const der = key.export({ type: "spki", format: "der" });
  return webcrypto.subtle.importKey("spki", der, ALGORITHM, true, ["verify"]);
}

/** The library wants its decorators' metadata there before it is loaded. */
async function library(): Promise<typeof x509> {
  await import("reflect-metadata");
  const lib = await import("@peculiar/x509");
  lib.cryptoProvider.set(webcrypto);
  return lib;
}
