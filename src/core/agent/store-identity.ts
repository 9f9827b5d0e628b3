/**
 * What this host's etcd shows and whom it believes: its certificate, two bundles of authorities, the list of the revoked.
 *
 *     trust list ──▶ etcd.pem (authority B)   clients.pem (A and B)   peers.pem (B)   crl.der ──▶ etcd
 *
 * etcd reads its certificate and the list of the revoked at every handshake, the bundles when it starts (2026-11, etcd
 * 3.4.23). Of the list it looks at serials only.
 *
 * Must always hold:
 * - the files are there, and of the accepted trust list, before etcd starts;
 * - a certificate is made anew when it is due, when the host has another address or key, and when another authority is
 *   active;
 * - that etcd obeys the list of the revoked is proven by a certificate which it must refuse: where it doesn't, that is a
 *   finding, and revocations are not believed to work (E-CA-06).
 */
import { createPublicKey } from "node:crypto";
import type { X509Certificate } from "node:crypto";

import type { Finding } from "../model/finding.ts";
import { finding } from "../model/finding.ts";
import { CLOCK_SLACK_MS } from "../model/limits.ts";
import { storeBundle } from "../model/rotation.ts";
import { crlSerials } from "../model/trust.ts";
import type { Authority, Trust } from "../model/trust.ts";
import { kidOf, readCertificate } from "../wire/certificate.ts";
import type { IdentityFiles } from "../wire/identity-files.ts";
import { pause } from "../wire/store-call.ts";
import { post } from "../wire/store-http.ts";
import type { StoreTls } from "../wire/store-http.ts";
import type { Canary } from "../wire/x509-make.ts";
import type { AuthorityKeeper } from "./authority.ts";
import { clientUrl } from "./etcd-process.ts";
import type { IdentityKeeper } from "./identity.ts";
import { bundle } from "./identity.ts";
import type { Log } from "./log.ts";

const PROBE_MS = 2000;
/** The turn of a member that is restarted ends then. */
const SERVED_MS = 2500;

export type StoreIdentityOptions = {
  readonly files: IdentityFiles;
  readonly authority: AuthorityKeeper;
  readonly identity: IdentityKeeper;
  readonly address: string;
  readonly log: Log;
};

export class StoreIdentity {
  readonly #options: StoreIdentityOptions;
  #canary: Canary | null = null;
  /** The list of the revoked that was written last. */
  #serials: readonly string[] | null = null;
  #proven = false;
  #finding: Finding | null = null;

  constructor(options: StoreIdentityOptions) {
    this.#options = options;
  }

  /** Why revocations may not work on this host's etcd; null: nothing is known against it. */
  get finding(): Finding | null {
    return this.#finding;
  }

  /** Everything that etcd is started with. E-CA-01 where this host doesn't hold the authorities. */
  async prepare(): Promise<void> {
    const { files, authority, identity } = this.#options;
    const trust = identity.trust();
    const certPem = await this.#certificate(trust);
    const { crl, canary } = await authority.crl(trust);
    const { keyPem } = identity.certificate;
    await files.writeEtcd({ certPem, keyPem, ...storeBundles(trust), crl });
    await files.writeEtcdStart({ bundle: [...storeBundle(trust)], revoked: revokedHosts(trust) });
    this.#wrote(trust, canary);
  }

  /**
   * Why the running etcd has to be started again: `bundle`: it believes other authorities than it should, and takes that
   * only at its start; `cut`: a host that was revoked may have connections open, which etcd never ends by itself.
   */
  async restartDue(): Promise<"bundle" | "cut" | null> {
    const { files, identity } = this.#options;
    const trust = identity.trust();
    const started = await files.readEtcdStart();
    if (started === null || !sameSet(started.bundle, storeBundle(trust))) return "bundle";
    return revokedHosts(trust).some((host) => !started.revoked.includes(host)) ? "cut" : null;
  }

  /** What the running etcd takes without a restart: its certificate when it is due, and the list of the revoked. */
  async follow(): Promise<void> {
    const { files, authority, identity, log } = this.#options;
    const trust = identity.trust();
    const known = await files.readEtcdCertificate();
    if (known === null || this.#isDue(known, trust)) {
      await files.writeEtcdCertificate(await this.#certificate(trust), identity.certificate.keyPem);
      log.info({}, "this host's etcd has a new certificate");
    }
    if (sameList(this.#serials, crlSerials(trust, Date.now()))) return;
    const { crl, canary } = await authority.crl(trust);
    await files.writeCrl(crl);
    this.#wrote(trust, canary);
    log.info({ serials: this.#serials?.length ?? 0 }, "this host's etcd has a new list of the revoked");
  }

  /** Once after each new list, as soon as etcd serves this host itself: else a refusal would prove nothing. */
  async prove(): Promise<void> {
    const canary = this.#canary;
    if (this.#proven || canary === null) return;
    const { identity, address, log } = this.#options;
    const { tls } = identity;
    if (!(await this.#isServed(tls))) return;
    const current = { cert: canary.cert, key: canary.keyPem.reveal() };
    const isObeyed = !(await this.#isServed({ current: () => current, storeCa: tls.storeCa }));
    // A newer one may have been written meanwhile: it has a proof of its own.
    if (this.#canary !== canary) return;
    this.#proven = true;
    this.#finding = isObeyed ? null : notObeyed(address);
    if (this.#finding !== null) log.error({ code: this.#finding.code }, this.#finding.message);
  }

  /** After a start: until it serves this host itself, with a majority or without; or for some seconds. */
  async untilServed(): Promise<void> {
    const end = performance.now() + SERVED_MS;
    while (!(await this.#isServed(this.#options.identity.tls)) && performance.now() < end) await pause(20);
  }

  async #certificate(trust: Trust): Promise<string> {
    const { files, authority, identity, address } = this.#options;
    const known = await files.readEtcdCertificate();
    if (known !== null && !this.#isDue(known, trust)) return known.toString();
    const request = { host: identity.host, address, publicKey: identity.publicKey() };
    return (await authority.issueStore(trust, request)).pem;
  }

  #isDue(known: X509Certificate, trust: Trust): boolean {
    const { identity, address } = this.#options;
    const [notBefore, notAfter] = [Date.parse(known.validFrom) + CLOCK_SLACK_MS, Date.parse(known.validTo)];
    const issuer = trust.storeAuthorities.find(({ state }) => state === "active");
    const authority = issuer === undefined ? null : readCertificate(issuer.pem);
    return (
      Date.now() >= notAfter - (notAfter - notBefore) / 3 ||
      known.checkIP(address) === undefined ||
      kidOf(known.publicKey) !== kidOf(createPublicKey(identity.certificate.keyPem.reveal())) ||
      authority === null ||
      !known.verify(authority.publicKey)
    );
  }

  #wrote(trust: Trust, canary: Canary): void {
    this.#serials = crlSerials(trust, Date.now());
    this.#canary = canary;
    this.#proven = false;
  }

  async #isServed(tls: StoreTls): Promise<boolean> {
    const url = clientUrl(this.#options.address);
    try {
      const signal = AbortSignal.timeout(PROBE_MS);
      const answer = await post(url, "/v3/maintenance/status", "{}", { signal, tls });
      for await (const _ of answer.body);
      return answer.status === 200;
    } catch {
      return false;
    }
  }
}

/** By the phase of a rotation: whose clients etcd believes, and whose members. */
export function storeBundles(trust: Trust): { readonly clients: string; readonly peers: string } {
  const wanted = storeBundle(trust);
  const among = (list: readonly Authority[]): string =>
    bundle(list.filter(({ kid }) => wanted.includes(kid)));
  const peers = among(trust.storeAuthorities);
  // etcd's own gateway is a client of it, with the member's certificate.
  return { clients: among(trust.authorities) + peers, peers };
}

function revokedHosts(trust: Trust): string[] {
  return Array.from(trust.revoked.keys());
}

function sameSet(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((item) => b.includes(item));
}

function sameList(a: readonly string[] | null, b: readonly string[]): boolean {
  return a !== null && a.length === b.length && a.every((item, i) => item === b[i]);
}

function notObeyed(address: string): Finding {
  return finding(
    "E-CA-06",
    `The etcd of this host served a certificate that is on its list of the revoked: a revocation would not keep a host out of the store.`,
    { facts: { address }, safe: "Weft's own doors refuse revoked hosts as ever." },
  );
}
