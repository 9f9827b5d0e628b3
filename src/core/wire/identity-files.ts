/**
 * Keys, certificates and the trust list of this host, below its state directory:
 *
 *     identity/host.key              private key, made once, kept through renewals
 *     identity/host.pem              leaf, its authority, the key: one file, so that no reader sees halves of two
 *     identity/trust.json            the last accepted trust list, signed; after joining weftd alone writes it
 *     identity/links.json            the lists by which authorities took over from each other, as this host accepted them
 *     authority/{host,store}-KID8.pem, .key     store members only
 *     authority/unlisted.json        certificates that were issued while the list could not be changed
 *     authority/unnamed.json         keys that were given to this host before the list that names their authority
 *     authority/tls/etcd.pem         etcd's leaf and the host's key
 *     authority/tls/clients.pem, peers.pem, crl.der     whom etcd believes, and whom no more
 *     authority/tls/started.json     what the running etcd was started with
 *
 * Must always hold:
 * - directories are 0700 and files 0600, whatever the process's umask, also before the first byte is written;
 * - a file is replaced as a whole, durably; what a crash left half written is never read;
 * - keys leave as `Secret`; a file that doesn't fit together is E-HOST-06 or E-CA-05, never half an identity.
 */
import { createPrivateKey, createPublicKey } from "node:crypto";
import type { KeyObject, X509Certificate } from "node:crypto";
import { chmod, mkdir, open, readdir, readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { z } from "zod";

import { Secret } from "../model/secret.ts";
import type { CertFacts } from "../model/trust.ts";
import { factsOf, isP256, kidOf, readCertificate } from "./certificate.ts";
import { syncDirectory, writeDurably } from "./durable-file.ts";
import { WeftError } from "./errors.ts";
import type { KnownCode } from "./errors.ts";
import type { AuthorityKeys } from "./x509-make.ts";

export type HostIdentity = {
  readonly certPem: string;
  /** The authority that issued it. */
  readonly chainPem: string;
  readonly keyPem: Secret<string>;
  /** `issuerKid` is the authority's of the file: whether it is trusted says the trust list. */
  readonly facts: CertFacts;
};

const unlistedJson = z.array(
  z.object({ host: z.string(), serial: z.string(), by: z.string(), notAfterMs: z.number() }),
);
/** A certificate that was issued: to whom, its serial (lower-case hex), the issuing authority's KID. */
export type Unlisted = Readonly<z.output<typeof unlistedJson>[number]>;

const linksJson = z.array(z.string());

const unnamedJson = z.array(z.object({ kid: z.string(), takenMs: z.number() }));
/** A key of an authority that no list has named since it was taken; ms since 1970. */
export type Unnamed = Readonly<z.output<typeof unnamedJson>[number]>;

const startedJson = z.object({ bundle: z.array(z.string()), revoked: z.array(z.string()) });
/** KIDs that the running etcd believes, and hosts that were revoked before it started: they have nothing open there. */
export type EtcdStarted = Readonly<z.output<typeof startedJson>>;

export type AuthorityKind = "host" | "store";

/** What etcd is started with. Bundles are certificates one after the other. */
export type EtcdFiles = {
  readonly certPem: string;
  readonly keyPem: Secret<string>;
  /** Authorities whose certificates clients may show. */
  readonly clients: string;
  /** Authorities whose certificates other members may show. */
  readonly peers: string;
  /** DER. */
  readonly crl: Uint8Array;
};

const DIRECTORY_MODE = 0o700;
const FILE_MODE = 0o600;
const PEM_BLOCK = /-----BEGIN ([A-Z ]+)-----\n[A-Za-z0-9+/=\n]+-----END \1-----\n/g;

export class IdentityFiles {
  readonly stateDir: string;

  constructor(stateDir: string) {
    this.stateDir = stateDir;
  }

  /** Null: the host has no key yet. */
  async readHostKey(): Promise<Secret<string> | null> {
    const path = this.#identity("host.key");
    const text = await textOf(path);
    if (text === null) return null;
    keyOf(text, path, "E-HOST-06");
    return new Secret(text);
  }

  writeHostKey(keyPem: Secret<string>): Promise<void> {
    return this.#write(this.#identity("host.key"), keyPem.reveal());
  }

  /** Null: the host has no certificate yet. */
  async readHost(): Promise<HostIdentity | null> {
    const path = this.#identity("host.pem");
    const text = await textOf(path);
    if (text === null) return null;
    const [certPem, chainPem, keyPem, ...more] = Array.from(text.matchAll(PEM_BLOCK), ([block]) => block);
    if (certPem === undefined || chainPem === undefined || keyPem === undefined || more.length > 0)
      throw damaged(path, "it doesn't hold a certificate, its authority's and a key", "E-HOST-06");
    const identity = { certPem, chainPem, keyPem: new Secret(keyPem) };
    return { ...identity, facts: factsOfIdentity(identity, path) };
  }

  /** Certificate, chain and key must belong together. */
  async writeHost(identity: Omit<HostIdentity, "facts">): Promise<void> {
    const path = this.#identity("host.pem");
    factsOfIdentity(identity, path);
    const parts = [identity.certPem, identity.chainPem, identity.keyPem.reveal()];
    await this.#write(path, parts.map(endingLine).join(""));
  }

  /** What an attempt to make or enter another cluster left: key, certificate and list are overwritten and removed. */
  async dropHost(): Promise<void> {
    const directory = join(this.stateDir, "identity");
    for (const name of await namesIn(directory)) await shred(join(directory, name));
    await rm(directory, { recursive: true, force: true });
    await syncDirectory(this.stateDir);
  }

  /** The signed text; null: none yet. Whether it may be believed says `acceptTrust`. */
  readTrust(): Promise<string | null> {
    return textOf(this.#identity("trust.json"));
  }

  /** At init or join, before weftd knows the cluster, and where weftd can't hear of it; else weftd writes it. */
  writeTrustFirst(signed: string): Promise<void> {
    return this.#write(this.#identity("trust.json"), signed);
  }

  /** Signed texts, the oldest first. What can't be read is none: the store has them as well. */
  async readLinks(): Promise<readonly string[]> {
    const text = await textOf(this.#identity("links.json"));
    try {
      return text === null ? [] : linksJson.parse(JSON.parse(text));
    } catch {
      return [];
    }
  }

  writeLinks(links: readonly string[]): Promise<void> {
    return this.#write(this.#identity("links.json"), `${JSON.stringify(links)}\n`);
  }

  /** Authorities whose private key this host holds; none where it is no store member. */
  async readAuthorities(): Promise<Readonly<Record<AuthorityKind, readonly AuthorityKeys[]>>> {
    return { host: await this.#authoritiesOf("host"), store: await this.#authoritiesOf("store") };
  }

  /** The key goes first: a certificate without its key is never there. */
  async writeAuthority(kind: AuthorityKind, authority: AuthorityKeys): Promise<void> {
    const path = this.#authority(authorityName(kind, authority.kid));
    assertAuthority(authority, path);
    await this.#write(`${path}.key`, authority.keyPem.reveal());
    await this.#write(`${path}.pem`, authority.pem);
  }

  /** Overwritten, then removed: of one authority, with its certificate. */
  async dropAuthority(kind: AuthorityKind, kid: string): Promise<void> {
    const path = this.#authority(authorityName(kind, kid));
    await rm(`${path}.pem`, { force: true });
    for (const end of [".key", ".key.new"]) await shred(`${path}${end}`);
    await rm(`${path}.pem.new`, { force: true });
    await syncDirectory(dirname(path));
  }

  /** The host is no store member any more: every key of `authority/` is overwritten, and the directory removed. */
  async dropAuthorities(): Promise<void> {
    const directory = join(this.stateDir, "authority");
    for (const place of [directory, join(directory, "tls")]) {
      for (const name of await namesIn(place)) {
        if (/\.(?:key|pem)(?:\.new)?$/.test(name)) await shred(join(place, name));
      }
    }
    await rm(directory, { recursive: true, force: true });
    await syncDirectory(this.stateDir);
  }

  /** Certificates that this host issued and the trust list doesn't name yet. */
  async readUnlisted(): Promise<readonly Unlisted[]> {
    const path = this.#authority("unlisted.json");
    const text = await textOf(path);
    try {
      return text === null ? [] : unlistedJson.parse(JSON.parse(text));
    } catch {
      throw damaged(path, "it is no list of certificates", "E-CA-05");
    }
  }

  writeUnlisted(certs: readonly Unlisted[]): Promise<void> {
    return this.#write(this.#authority("unlisted.json"), `${JSON.stringify(certs)}\n`);
  }

  /** Keys that came before the list that names their authority. */
  async readUnnamed(): Promise<readonly Unnamed[]> {
    const path = this.#authority("unnamed.json");
    const text = await textOf(path);
    try {
      return text === null ? [] : unnamedJson.parse(JSON.parse(text));
    } catch {
      throw damaged(path, "it is no list of keys", "E-CA-05");
    }
  }

  writeUnnamed(keys: readonly Unnamed[]): Promise<void> {
    return this.#write(this.#authority("unnamed.json"), `${JSON.stringify(keys)}\n`);
  }

  /** In the order in which a reader may meet them: a certificate never stands there before what vouches for it. */
  async writeEtcd(files: EtcdFiles): Promise<void> {
    const { clients, peers, crl, certPem, keyPem } = files;
    await this.#write(this.#tls("crl.der"), crl);
    await this.#write(this.#tls("clients.pem"), clients);
    await this.#write(this.#tls("peers.pem"), peers);
    await this.writeEtcdCertificate(certPem, keyPem);
  }

  /** etcd reads it at every handshake. */
  writeEtcdCertificate(certPem: string, keyPem: Secret<string>): Promise<void> {
    return this.#write(this.#tls("etcd.pem"), endingLine(certPem) + endingLine(keyPem.reveal()));
  }

  /** What the running etcd was started with; null: nothing is known of it. */
  async readEtcdStart(): Promise<EtcdStarted | null> {
    const text = await textOf(this.#tls("started.json"));
    try {
      return text === null ? null : startedJson.parse(JSON.parse(text));
    } catch {
      // What it says is only whether a restart is due.
      return null;
    }
  }

  /** Right before a start. */
  writeEtcdStart(started: EtcdStarted): Promise<void> {
    return this.#write(this.#tls("started.json"), `${JSON.stringify(started)}\n`);
  }

  /** etcd reads it at every handshake. */
  writeCrl(crl: Uint8Array): Promise<void> {
    return this.#write(this.#tls("crl.der"), crl);
  }

  /** The member's own certificate, to see when it ends and for which address it is; null: none yet. */
  async readEtcdCertificate(): Promise<X509Certificate | null> {
    const path = this.#tls("etcd.pem");
    const text = await textOf(path);
    if (text === null) return null;
    const [block] = text.match(PEM_BLOCK) ?? [];
    const certificate = block === undefined ? null : readCertificate(block);
    if (certificate === null) throw damaged(path, "it doesn't begin with a certificate", "E-CA-05");
    return certificate;
  }

  async #authoritiesOf(kind: AuthorityKind): Promise<readonly AuthorityKeys[]> {
    const names = (await namesIn(join(this.stateDir, "authority"))).filter(
      (name) => name.startsWith(`${kind}-`) && name.endsWith(".pem"),
    );
    return Promise.all(
      names.toSorted().map(async (name) => {
        const path = this.#authority(name.slice(0, -".pem".length));
        const [pem, key] = [await textOf(`${path}.pem`), await textOf(`${path}.key`)];
        if (pem === null || key === null) throw damaged(path, "its key is missing", "E-CA-05");
        const certificate = readCertificate(pem);
        const kid = certificate === null ? "" : kidOf(certificate.publicKey);
        const authority: AuthorityKeys = { kid, pem, keyPem: new Secret(key) };
        assertAuthority(authority, path);
        return authority;
      }),
    );
  }

  async #write(path: string, content: string | Uint8Array): Promise<void> {
    await this.#directories(dirname(path));
    await writeDurably(path, content, FILE_MODE);
  }

  /** Each one between the state directory and here. */
  async #directories(path: string): Promise<void> {
    if (path === this.stateDir) return;
    await this.#directories(dirname(path));
    await mkdir(path, { recursive: true, mode: DIRECTORY_MODE });
    await chmod(path, DIRECTORY_MODE);
  }

  #identity(name: string): string {
    return join(this.stateDir, "identity", name);
  }

  #authority(name: string): string {
    return join(this.stateDir, "authority", name);
  }

  #tls(name: string): string {
    return join(tlsDirectory(this.stateDir), name);
  }
}

/** Where etcd's own files lie: `etcd.pem`, `clients.pem`, `peers.pem`, `crl.der`. */
export function tlsDirectory(stateDir: string): string {
  return join(stateDir, "authority", "tls");
}

function authorityName(kind: AuthorityKind, kid: string): string {
  return `${kind}-${kid.slice(0, 8)}`;
}

function factsOfIdentity(identity: Omit<HostIdentity, "facts">, path: string): CertFacts {
  const certificate = readCertificate(identity.certPem);
  const authority = readCertificate(identity.chainPem);
  const key = keyOf(identity.keyPem.reveal(), path, "E-HOST-06");
  if (certificate === null || authority === null)
    throw damaged(path, "a certificate in it can't be read", "E-HOST-06");
  if (kidOf(certificate.publicKey) !== kidOf(createPublicKey(key)))
    throw damaged(path, "its key is not its certificate's", "E-HOST-06");
  const facts = factsOf(certificate, [{ kid: kidOf(authority.publicKey), pem: identity.chainPem }]);
  if (facts.issuerKid === null)
    throw damaged(path, "its certificate is not signed by the authority beside it", "E-HOST-06");
  return facts;
}

function assertAuthority(authority: AuthorityKeys, path: string): void {
  const certificate = readCertificate(authority.pem);
  const key = keyOf(authority.keyPem.reveal(), path, "E-CA-05");
  if (certificate === null || !certificate.ca)
    throw damaged(path, "it is no authority's certificate", "E-CA-05");
  const kid = kidOf(createPublicKey(key));
  if (kid !== kidOf(certificate.publicKey) || kid !== authority.kid)
    throw damaged(path, "key and certificate don't belong together", "E-CA-05");
}

function keyOf(pem: string, path: string, code: KnownCode): KeyObject {
  try {
    const key = createPrivateKey(pem);
    if (isP256(key)) return key;
  } catch {
    // The cause may quote what it read.
  }
  throw damaged(path, "the key in it can't be used", code);
}

function damaged(path: string, what: string, code: KnownCode): WeftError {
  return new WeftError({
    code,
    message: `${path} can't be used: ${what}.`,
    facts: { path },
    safe: "Nothing was changed.",
  });
}

/** Null: there is no such file. */
async function textOf(path: string): Promise<string | null> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    if (isMissing(cause)) return null;
    throw new WeftError({
      code: "E-HOST-06",
      message: `${path} can't be read.`,
      facts: { path },
      safe: "Nothing was changed.",
      cause,
    });
  }
}

async function namesIn(directory: string): Promise<readonly string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
}

/** Best effort below the file system: a disk may keep what it replaced. */
async function shred(path: string): Promise<void> {
  try {
    await using file = await open(path, "r+");
    const { size } = await file.stat();
    await file.write(new Uint8Array(size), 0, size, 0);
    await file.sync();
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
  await rm(path, { force: true });
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ENOENT";
}

function endingLine(text: string): string {
  return text.endsWith("\n") ? text : `${text}\n`;
}
