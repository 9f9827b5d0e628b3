/**
 * The cluster's authorities as this host has them: their private keys lie on store members only.
 *
 * Must always hold:
 * - what is issued or signed is so by the authority that the trust list calls active; a host that doesn't hold that one's
 *   key refuses (E-CA-01), whatever else it holds;
 * - keys are read from their files once and kept as `Secret`;
 * - keys that were given to this host outlive the wait for the list that names their authority, and a restart within it:
 *   without them its member of the store could not follow the list.
 */
import { createPrivateKey } from "node:crypto";
import type { KeyObject } from "node:crypto";

import type { HostId } from "../model/ids.ts";
import { crlSerials } from "../model/trust.ts";
import type { Authority, Trust } from "../model/trust.ts";
import type { Secret } from "../model/secret.ts";
import { bundleKey, type BundleOf } from "../wire/bundle.ts";
import { WeftError } from "../wire/errors.ts";
import type { AuthorityKind, IdentityFiles, Unlisted, Unnamed } from "../wire/identity-files.ts";
import { sign } from "../wire/signed.ts";
import type { SignedKind } from "../wire/signed.ts";
import {
  HOST_CERT_LIFE_MS,
  makeAuthority,
  makeCanary,
  makeCrl,
  makeHostCert,
  makeStoreCert,
} from "../wire/x509-make.ts";
import type { AuthorityKeys, Canary, MadeCert } from "../wire/x509-make.ts";

/** Keys that were taken come before the list that names them: by a moment, or by what a revocation waits for hosts. */
const UNNAMED_MS = 600_000;

/** Of both kinds: those that sign hosts and lists, and those that sign etcd's own certificates. */
export type HeldAuthorities = Readonly<Record<AuthorityKind, readonly AuthorityKeys[]>>;

/** A certificate for the host that has its key, with the authority's beside it. */
export type Issued = MadeCert & { readonly chainPem: string; readonly by: string };

export type AuthorityOptions = {
  readonly files: IdentityFiles;
  /** How long certificates live; shorter in tests of renewal. */
  readonly certificateLifeMs?: number;
  readonly nowMs?: () => number;
};

export class AuthorityKeeper {
  readonly #files: IdentityFiles;
  readonly #lifeMs: number;
  readonly #nowMs: () => number;
  #held: HeldAuthorities;
  /** KIDs of keys that were taken and that no list has named since, and when, ms since 1970. */
  readonly #unnamed = new Map<string, number>();
  #writing: Promise<void> = Promise.resolve();

  private constructor(options: AuthorityOptions, held: HeldAuthorities, unnamed: readonly Unnamed[]) {
    this.#files = options.files;
    this.#lifeMs = options.certificateLifeMs ?? HOST_CERT_LIFE_MS;
    this.#nowMs = options.nowMs ?? Date.now;
    this.#held = held;
    // A clock that was set back since makes no key wait longer.
    const nowMs = this.#nowMs();
    for (const { kid, takenMs } of unnamed) this.#unnamed.set(kid, Math.min(takenMs, nowMs));
  }

  /** E-CA-05 where its files are damaged. */
  static async open(options: AuthorityOptions): Promise<AuthorityKeeper> {
    const { files } = options;
    return new AuthorityKeeper(options, await files.readAuthorities(), await files.readUnnamed());
  }

  /** Whether this host can sign and issue by this list. */
  holds(trust: Trust): boolean {
    const { host, store } = this.#held;
    return (
      find(host, active(trust.authorities)) !== null && find(store, active(trust.storeAuthorities)) !== null
    );
  }

  /** Whether this host has the key of every authority of this list, also of those to come. */
  holdsAll(trust: Trust): boolean {
    const kids = this.kids();
    return [...trust.authorities, ...trust.storeAuthorities].every(({ kid }) => kids.includes(kid));
  }

  /** Of every authority whose key this host has. */
  kids(): readonly string[] {
    return [...this.#held.host, ...this.#held.store].map(({ kid }) => kid);
  }

  /** Of what a list has named, no key waits for a list any more. */
  async see(trust: Trust): Promise<void> {
    const named = [...trust.authorities, ...trust.storeAuthorities].map(({ kid }) => kid);
    await this.#waitFor((unnamed) => named.forEach((kid) => unnamed.delete(kid)));
  }

  /**
   * Keys of authorities that the list doesn't name: destroyed, unless they were taken in the last ten minutes and wait for
   * a list that does. Gives how many.
   */
  async dropOthers(trust: Trust): Promise<number> {
    await this.see(trust);
    let dropped = 0;
    for (const kind of ["host", "store"] as const) {
      const named = listOf(trust, kind).map(({ kid }) => kid);
      for (const { kid } of this.#held[kind].filter((keys) => !named.includes(keys.kid))) {
        if (this.#nowMs() < (this.#unnamed.get(kid) ?? -Infinity) + UNNAMED_MS) continue;
        await this.#files.dropAuthority(kind, kid);
        await this.#waitFor((unnamed) => unnamed.delete(kid));
        dropped += 1;
      }
    }
    if (dropped > 0) this.#held = await this.#files.readAuthorities();
    return dropped;
  }

  /** The first two authorities of a cluster; those that a crashed attempt left are taken again. */
  async init(cluster: string): Promise<{ readonly host: AuthorityKeys; readonly store: AuthorityKeys }> {
    const [host, store] = [await this.#first("host", cluster), await this.#first("store", cluster)];
    this.#held = await this.#files.readAuthorities();
    return { host, store };
  }

  /** Two more authorities, for a change of both: durable here, and trusted by nobody until a list names them. */
  async makeNext(cluster: string): Promise<{ readonly host: AuthorityKeys; readonly store: AuthorityKeys }> {
    const nowMs = this.#nowMs();
    const host = await makeAuthority({ kind: "host", cluster, nowMs });
    const store = await makeAuthority({ kind: "store", cluster, nowMs });
    await this.take({ host: [host], store: [store] });
    return { host, store };
  }

  /** What a host proves itself with: of its own public key. */
  async issueHost(
    trust: Trust,
    request: { readonly host: HostId; readonly publicKey: KeyObject },
  ): Promise<Issued> {
    const authority = this.#active("host", trust);
    const { cluster } = trust;
    const times = { nowMs: this.#nowMs(), lifeMs: this.#lifeMs };
    const made = await makeHostCert({ authority, cluster, ...request, ...times });
    return { ...made, chainPem: authority.pem, by: authority.kid };
  }

  /** What a store member's etcd shows. */
  async issueStore(
    trust: Trust,
    request: { readonly host: HostId; readonly address: string; readonly publicKey: KeyObject },
  ): Promise<Issued> {
    const authority = this.#active("store", trust);
    const times = { nowMs: this.#nowMs(), lifeMs: this.#lifeMs };
    const made = await makeStoreCert({ authority, ...request, ...times });
    return { ...made, chainPem: authority.pem, by: authority.kid };
  }

  /** Serials of the revoked, DER: for etcd, which looks at nothing else of it; with the canary's, whom it must refuse. */
  async crl(trust: Trust): Promise<{ readonly crl: Uint8Array; readonly canary: Canary }> {
    const nowMs = this.#nowMs();
    const canary = await makeCanary({
      authority: this.#active("host", trust),
      cluster: trust.cluster,
      nowMs,
    });
    const serials = [...crlSerials(trust, nowMs), canary.serial];
    return { crl: await makeCrl({ authority: this.#active("store", trust), serials, nowMs }), canary };
  }

  /** By the authority that is active in `trust`: for a list, the one before it. */
  sign(trust: Trust, kind: SignedKind, body: string): string {
    return sign(kind, body, createPrivateKey(this.#active("host", trust).keyPem.reveal()));
  }

  /** The key of this host's bundle, by the authority of that name; null: this host has not that one's key. */
  bundleKey(of: BundleOf): Secret<Uint8Array> | null {
    const keys = this.#held.host.find(({ kid }) => kid === of.kid);
    return keys === undefined ? null : bundleKey(keys.keyPem, of);
  }

  /** The keys of every authority that the list names, for a host that becomes a member. */
  give(trust: Trust): HeldAuthorities {
    const listed = (kind: AuthorityKind): readonly AuthorityKeys[] =>
      listOf(trust, kind).map((authority) => {
        const keys = find(this.#held[kind], authority);
        if (keys === null) throw notHeld(authority);
        return keys;
      });
    return { host: listed("host"), store: listed("store") };
  }

  /** Durable when it returns. */
  async take(authorities: HeldAuthorities): Promise<void> {
    const known = this.kids();
    const fresh = [...authorities.host, ...authorities.store].filter(({ kid }) => !known.includes(kid));
    // Before the keys are there: whatever happens, nobody takes them for ones that are gone.
    await this.#waitFor((unnamed) => fresh.forEach(({ kid }) => unnamed.set(kid, this.#nowMs())));
    for (const kind of ["host", "store"] as const)
      for (const authority of authorities[kind]) await this.#files.writeAuthority(kind, authority);
    this.#held = await this.#files.readAuthorities();
  }

  /** Certificates that were issued here and that the trust list may not name yet. */
  unlisted(): Promise<readonly Unlisted[]> {
    return this.#files.readUnlisted();
  }

  /** Before an issued certificate leaves this host. */
  remember(issued: Unlisted): Promise<void> {
    return this.#rewrite((known) => [...known, issued]);
  }

  /** The list names them now. */
  async forget(listed: readonly Unlisted[]): Promise<void> {
    if (listed.length === 0) return;
    await this.#rewrite((known) =>
      known.filter(({ serial }) => !listed.some((cert) => cert.serial === serial)),
    );
  }

  #rewrite(change: (known: readonly Unlisted[]) => readonly Unlisted[]): Promise<void> {
    return this.#inTurn(async () => this.#files.writeUnlisted(change(await this.#files.readUnlisted())));
  }

  /** In memory at once, on disk when it returns. */
  async #waitFor(change: (unnamed: Map<string, number>) => unknown): Promise<void> {
    const shown = (): readonly Unnamed[] => Array.from(this.#unnamed, ([kid, takenMs]) => ({ kid, takenMs }));
    const before = JSON.stringify(shown());
    change(this.#unnamed);
    if (JSON.stringify(shown()) !== before) await this.#inTurn(() => this.#files.writeUnnamed(shown()));
  }

  /** One after the other. */
  async #inTurn(write: () => Promise<void>): Promise<void> {
    const mine = this.#writing.then(write);
    this.#writing = mine.catch(() => undefined);
    await mine;
  }

  /** This host is no store member any more. */
  async drop(): Promise<void> {
    this.#held = { host: [], store: [] };
    this.#unnamed.clear();
    await this.#files.dropAuthorities();
  }

  #active(kind: AuthorityKind, trust: Trust): AuthorityKeys {
    const authority = active(listOf(trust, kind));
    const keys = find(this.#held[kind], authority);
    if (keys === null) throw notHeld(authority);
    return keys;
  }

  async #first(kind: AuthorityKind, cluster: string): Promise<AuthorityKeys> {
    const [known] = this.#held[kind];
    if (known !== undefined) return known;
    const made = await makeAuthority({ kind, cluster, nowMs: this.#nowMs() });
    await this.#files.writeAuthority(kind, made);
    return made;
  }
}

function listOf(trust: Trust, kind: AuthorityKind): readonly Authority[] {
  return kind === "host" ? trust.authorities : trust.storeAuthorities;
}

function active(list: readonly Authority[]): Authority {
  const found = list.find(({ state }) => state === "active");
  if (found === undefined) throw new Error("a trust list has one active authority of each kind");
  return found;
}

function find(held: readonly AuthorityKeys[], { kid }: Authority): AuthorityKeys | null {
  return held.find((keys) => keys.kid === kid) ?? null;
}

function notHeld({ kid }: Authority): WeftError {
  return new WeftError({
    code: "E-CA-01",
    message: `This host doesn't hold the key of authority ${kid.slice(0, 16)}: only members of the store do.`,
    facts: { kid },
    safe: "Nothing was changed.",
    do: [{ why: "Which hosts are members", command: "weft status" }],
  });
}
