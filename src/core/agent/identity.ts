/**
 * This host's identity while its agent runs: key, certificate, and the trust list that it accepted.
 *
 *     certificate ──2/3 of its life──▶ renewed (again and again until it is) ──▶ shown by every new connection
 *     list of the store ──signed by an authority known here, newer──▶ accepted ──▶ whom every door believes
 *
 * Must always hold:
 * - the accepted list never goes back, whatever the store shows; what is refused is a finding, and the known list stays;
 * - a renewal keeps the key: the list of allowed keys needs no change, so nothing can be refused meanwhile;
 * - the trust list's file is weftd's to write: the agent does so only where weftd can't have the list (init, join, rescue).
 */
import { createPrivateKey, createPublicKey } from "node:crypto";
import type { KeyObject } from "node:crypto";

import type { Decision, Finding } from "../model/finding.ts";
import type { HostId } from "../model/ids.ts";
import { CLOCK_SLACK_MS } from "../model/limits.ts";
import type { SignedTrust, Trust } from "../model/trust.ts";
import { hostUri, signerOf } from "../model/trust.ts";
import { factsOf, readCertificate } from "../wire/certificate.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import type { HostIdentity, IdentityFiles } from "../wire/identity-files.ts";
import { type SignedKind, signByHost } from "../wire/signed.ts";
import { openFirstTrust, openNextTrust } from "../wire/signed-trust.ts";
import { keys } from "../wire/store-keys.ts";
import type { ClientTls } from "../wire/tls-context.ts";
import type { Log } from "./log.ts";
import { syncIfPossible } from "./mirror.ts";
import type { Mirror } from "./mirror.ts";

/** Of the life: between two tries of a renewal that failed, and how far hosts are spread (10 min and 6 h of 30 d). */
const RETRY_PART = 1 / 4320;
const SPREAD_PART = 1 / 120;
/** A renewal that fails and fails again is tried this often at least: it has a third of the life for it. */
const RETRY_STEPS_MAX = 6;
/** Wall clocks jump, and timers don't know more than 24 days: the next renewal is looked for anew after this. */
const LOOK_MS = 3600_000;
const RETRY_MS_MIN = 500;

/** A host that was away for more changes of the authority than this joins anew. */
const LINKS_MAX = 16;

/** What a renewal brings. */
export type RenewedCert = { readonly certPem: string; readonly chainPem: string };

export type IdentityChange =
  | { readonly kind: "certificate" }
  | { readonly kind: "trust"; readonly before: Trust; readonly after: Trust };

export type IdentityOptions = {
  readonly files: IdentityFiles;
  readonly cluster: string;
  readonly host: HostId;
  readonly log: Log;
  readonly nowMs?: () => number;
};

export type IdentityDuties = {
  readonly mirror: Mirror;
  /** Gets a new certificate for the key that this host has: from its own authority, or from a member. */
  readonly renew: () => Promise<RenewedCert>;
};

export class IdentityKeeper {
  /** What clients show and believe: getters, always of now. */
  readonly tls: ClientTls;
  readonly host: HostId;
  readonly #options: IdentityOptions;
  readonly #nowMs: () => number;
  #links: readonly string[];
  #keeping: Promise<void> = Promise.resolve();
  readonly #listeners = new Set<(change: IdentityChange) => void>();
  #identity: HostIdentity;
  #known: SignedTrust;
  #text: string;
  #refused: Finding | null = null;
  #duties: IdentityDuties | null = null;
  #forget: (() => void) | null = null;
  #timer: NodeJS.Timeout | null = null;
  #failures = 0;
  #renewing: Promise<void> | null = null;
  #spread = Math.random() * 2 - 1;

  private constructor(
    options: IdentityOptions,
    identity: HostIdentity,
    known: SignedTrust,
    { text, links }: { readonly text: string; readonly links: readonly string[] },
  ) {
    this.#options = options;
    this.#text = text;
    this.#links = links;
    this.host = options.host;
    this.#nowMs = options.nowMs ?? Date.now;
    this.#identity = identity;
    this.#known = known;
    this.tls = {
      current: () => this.current(),
      storeCa: () => bundle(this.trust().storeAuthorities),
      peerTrust: () => this.trust(),
    };
  }

  /** Of a host in a cluster: E-HOST-11 where it has no identity, E-HOST-06 where its files are damaged. */
  static async open(options: IdentityOptions): Promise<IdentityKeeper> {
    const { files, cluster, host } = options;
    const identity = await files.readHost();
    const text = await files.readTrust();
    if (identity === null || text === null) throw madeBeforeIdentity(files.stateDir);
    const opened = openFirstTrust(text);
    if (opened.kind === "refused") throw WeftError.fromFinding(opened.finding);
    const isOwn = identity.facts.uris.length === 1 && identity.facts.uris[0] === hostUri(cluster, host);
    if (!isOwn || opened.value.trust.cluster !== cluster) throw notThisHosts(files.stateDir, host);
    const links = await files.readLinks();
    return new IdentityKeeper(options, identity, opened.value, { text, links });
  }

  /** The accepted list as it was signed. */
  get known(): SignedTrust {
    return this.#known;
  }

  /** The same with its signature, as it is passed on. */
  get text(): string {
    return this.#text;
  }

  /**
   * The lists by which authorities took over from each other while this host looked on, the oldest first: for hosts that were
   * away then, also where the store has lost them. Each was accepted here.
   */
  get links(): readonly string[] {
    return this.#links;
  }

  /** Why the store's list is not the accepted one; null: it is, or none is known. */
  get refused(): Finding | null {
    return this.#refused;
  }

  get certificate(): HostIdentity {
    return this.#identity;
  }

  /** KID of the authority of the list that issued this host's certificate; null: none of them. */
  issuerOf(trust: Trust): string | null {
    const leaf = readCertificate(this.#identity.certPem);
    return leaf === null ? null : factsOf(leaf, trust.authorities).issuerKid;
  }

  trust(): Trust {
    return this.#known.trust;
  }

  /** PEM: leaf and its authority, and the key. */
  current(): { readonly cert: string; readonly key: string } {
    const { certPem, chainPem, keyPem } = this.#identity;
    return { cert: certPem + chainPem, key: keyPem.reveal() };
  }

  publicKey(): KeyObject {
    return createPublicKey(this.#identity.keyPem.reveal());
  }

  /** What this host says of itself, signed with its own key: believed by whoever knows the trust list. */
  sign(kind: SignedKind, body: string): string {
    return signByHost(kind, body, createPrivateKey(this.#identity.keyPem.reveal()));
  }

  /** Called after each change, until the returned function is called. */
  onChange(listener: (change: IdentityChange) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** What was refused before it was offered; forgotten when a list is accepted. */
  doubt(finding: Finding): void {
    if (this.#refused?.message !== finding.message)
      this.#options.log.error({ code: finding.code }, finding.message);
    this.#refused = finding;
  }

  /** That doubt is over. */
  undoubt(code: Finding["code"]): void {
    if (this.#refused?.code === code) this.#refused = null;
  }

  /** A list from the store or from a member's answer. Refused ones change nothing but what `refused` says. */
  offer(text: string): Decision<SignedTrust> {
    const before = this.#known;
    const taken = openNextTrust(before, text);
    if (taken.kind === "refused") {
      this.doubt(taken.finding);
      return taken;
    }
    this.#refused = null;
    if (taken.value === before) return taken;
    this.#known = taken.value;
    this.#text = text;
    this.#options.log.info(
      { generation: String(taken.value.trust.generation) },
      "a newer trust list is in force",
    );
    if (isLink(before.trust, taken.value) && taken.value.trust.hosts.has(this.host)) this.#keepLink(text);
    this.#tell({ kind: "trust", before: before.trust, after: taken.value.trust });
    return taken;
  }

  /** Best effort: the store has it too. */
  #keepLink(text: string): void {
    const { files, log } = this.#options;
    const links = [...this.#links, text].slice(-LINKS_MAX);
    this.#links = links;
    this.#keeping = this.#keeping
      .then(() => files.writeLinks(links))
      .catch((error: unknown) => log.warn({ reason: reasonOf(error) }, "a list for others was not kept"));
  }

  /** Lists in the order in which they were made: each one that follows what is known then. The last one is the newest. */
  offerAll(texts: readonly string[]): void {
    const last = texts.at(-1);
    for (const text of texts) if (openNextTrust(this.#known, text).kind === "ok") this.offer(text);
    if (last !== undefined && last !== this.#text) this.offer(last);
  }

  /** From here on the store's list is followed, and the certificate is renewed when it is time. */
  start(duties: IdentityDuties): void {
    this.#duties = duties;
    const { mirror } = duties;
    this.#forget = mirror.onChange((changed) => {
      if (changed === null || changed.has(keys.trust)) this.#follow(mirror);
    });
    this.#follow(mirror);
    this.#plan();
  }

  /** The list as the mirror shows it. One that is older than ours may be a mirror that lags behind our own change. */
  #follow(mirror: Mirror): void {
    this.#catchUp(mirror);
    const entry = mirror.get(keys.trust);
    if (entry === null || !isOlder(this.#known, entry.value)) {
      if (entry !== null) this.offer(entry.value);
      return;
    }
    this.#settle(mirror).catch((error: unknown) =>
      this.#options.log.error({ error: reasonOf(error) }, "the trust list: a bug"),
    );
  }

  /** Where this host was away while other authorities took over: the lists that say so, one after the other. */
  #catchUp(mirror: Mirror): void {
    for (;;) {
      const link = mirror.get(keys.trustLink(signerOf(this.trust())));
      if (link === null || openNextTrust(this.#known, link.value).kind === "refused") return;
      if (this.offer(link.value).kind === "refused" || this.#text !== link.value) return;
    }
  }

  async #settle(mirror: Mirror): Promise<void> {
    const known = this.#known;
    if (!(await syncIfPossible(mirror))) return;
    const entry = mirror.get(keys.trust);
    if (entry === null) return;
    // Older than what was known before the store was asked: it went back. Older than what came meanwhile: it will come.
    if (isOlder(known, entry.value) || !isOlder(this.#known, entry.value)) this.offer(entry.value);
  }

  /** Nothing happens any more after the call; when it returns, what others may need of this host is on its disk. */
  async stop(): Promise<void> {
    this.#duties = null;
    this.#forget?.();
    if (this.#timer !== null) clearTimeout(this.#timer);
    await this.#keeping;
  }

  /** When the certificate is to be renewed, ms since 1970: 2/3 of its life after it was issued, hosts spread a little. */
  get renewAtMs(): number {
    const life = this.#lifeMs();
    return this.#identity.facts.notAfterMs - life / 3 + this.#spread * life * SPREAD_PART;
  }

  /** Rejects as the renewal does; several at once are one. */
  renewNow(): Promise<void> {
    this.#renewing ??= this.#renew().finally(() => {
      this.#renewing = null;
      this.#plan();
    });
    return this.#renewing;
  }

  async #renew(): Promise<void> {
    const duties = this.#duties;
    if (duties === null) throw new Error("a renewal of a host whose identity isn't kept");
    const revoked = this.trust().revoked.get(this.host);
    if (revoked !== undefined) throw hostRevoked(this.host, revoked.atMs);
    try {
      await this.take(await duties.renew());
      this.#failures = 0;
    } catch (error) {
      this.#failures += 1;
      throw error;
    }
  }

  /** A new certificate of this host's key: durable, then in use. */
  async take({ certPem, chainPem }: RenewedCert): Promise<void> {
    const { files, log } = this.#options;
    await files.writeHost({ certPem, chainPem, keyPem: this.#identity.keyPem });
    const read = await files.readHost();
    if (read === null) throw new Error("host.pem was written and is gone");
    this.#identity = read;
    this.#spread = Math.random() * 2 - 1;
    log.info(
      { notAfter: new Date(read.facts.notAfterMs).toISOString() },
      "this host's certificate was renewed",
    );
    this.#tell({ kind: "certificate" });
  }

  #plan(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    if (this.#duties === null) return;
    const life = this.#lifeMs();
    const retry = life * RETRY_PART * 2 ** Math.min(this.#failures - 1, RETRY_STEPS_MAX);
    const left = this.renewAtMs - this.#nowMs();
    const wait = this.#failures === 0 ? Math.max(0, left) : Math.max(RETRY_MS_MIN, retry);
    this.#timer = setTimeout(() => this.#look(), Math.min(wait, LOOK_MS));
    // The agent's end is not held up by a renewal in twenty days.
    this.#timer.unref();
  }

  #look(): void {
    if (this.#failures === 0 && this.#nowMs() < this.renewAtMs) {
      this.#plan();
      return;
    }
    this.renewNow().catch((error: unknown) => {
      const { log } = this.#options;
      if (isWeftError(error)) log.warn({ code: error.code }, `renewal: ${error.message}`);
      else log.error({ error: reasonOf(error) }, "renewal: a bug");
    });
  }

  #lifeMs(): number {
    const { notBeforeMs, notAfterMs } = this.#identity.facts;
    return notAfterMs - notBeforeMs - CLOCK_SLACK_MS;
  }

  #tell(change: IdentityChange): void {
    for (const listener of this.#listeners) listener(change);
  }
}

/** The list with which the authority that signs before it hands over to another one. */
function isLink(before: Trust, { trust, by }: SignedTrust): boolean {
  return signerOf(trust) !== signerOf(before) && by === signerOf(before);
}

function isOlder(known: SignedTrust, text: string): boolean {
  const next = openNextTrust(known, text);
  return next.kind === "refused" && next.finding.code === "E-TRUST-02";
}

/** Certificates one after the other. */
export function bundle(authorities: readonly { readonly pem: string }[]): string {
  return authorities.map(({ pem }) => (pem.endsWith("\n") ? pem : `${pem}\n`)).join("");
}

/** Said by the host itself, and to it; `lists` prove it. */
export function hostRevoked(
  host: HostId,
  atMs: number,
  lists: { readonly trust?: string; readonly links?: readonly string[] } = {},
): WeftError {
  return new WeftError({
    code: "E-HOST-14",
    message: `This host was revoked at ${new Date(atMs).toISOString()}: its identity is never trusted again.`,
    facts: { host, ...lists },
    safe: "Nothing was changed.",
  });
}

function madeBeforeIdentity(stateDir: string): WeftError {
  return new WeftError({
    code: "E-HOST-11",
    message: `${stateDir} is of a host without an identity: it was made by a weft whose hosts did not prove who they are.`,
    facts: { stateDir },
    safe: "Nothing was changed. Its volumes' data lies in its pools as before.",
    do: [{ why: "Move the state directory aside and begin anew", command: "weft init" }],
  });
}

function notThisHosts(stateDir: string, host: HostId): WeftError {
  return new WeftError({
    code: "E-HOST-06",
    message: `The identity in ${stateDir} is not that of host ${host}, which host.json names.`,
    facts: { stateDir, host },
    safe: "Nothing was changed.",
  });
}
