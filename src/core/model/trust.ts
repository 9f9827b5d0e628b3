/**
 * Who belongs to the cluster: one list of authorities, host keys and revocations, signed by an authority. A chain of
 * certificates alone never suffices: a key must stand here.
 *
 *     accepted list ──(higher generation, signed by an authority that this one names)──▶ accepted list
 *
 * Must always hold:
 * - the generation of what is accepted never sinks, and two lists of one generation are the same bytes: a store that
 *   was put back can't bring a revoked host back;
 * - what an accepted list revoked stays revoked in every list accepted after it;
 * - a revoked host is never `ok`, whatever its certificate, and none of its keys is listed again;
 * - a host that held the authority's key is never revoked without a new authority.
 */
import type { Decision, Finding } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import { byText, parseHostId, parseUuid } from "./ids.ts";
import type { HostId } from "./ids.ts";
import { CLOCK_SLACK_MS, HOST_CERTS_MAX } from "./limits.ts";

/** `active` signs. `incoming` is trusted, and will sign. `outgoing` is trusted for what it signed until it is dropped. */
export type AuthorityState = "active" | "incoming" | "outgoing";

export type Authority = {
  /** SHA-256 of its public key (SubjectPublicKeyInfo, DER), lower-case hex: its identity. */
  readonly kid: string;
  /** Its certificate. */
  readonly pem: string;
  readonly state: AuthorityState;
  readonly sinceMs: number;
};

export type ListedKey = { readonly kid: string; readonly sinceMs: number };
/** A certificate that may still be used: named when its host is revoked. `serial` is lower-case hex, `by` a KID. */
export type ListedCert = { readonly serial: string; readonly by: string; readonly notAfterMs: number };
export type RevokedCert = { readonly serial: string; readonly notAfterMs: number };

export type TrustedHost = {
  readonly name: string;
  /** Of the cluster's network: what the proof of its token signed when it was let in. Its etcd is looked for there alone. */
  readonly address: string;
  /** It is to be a member of the store: set before etcd adds it, taken out before etcd removes it. Only such a host gets keys. */
  readonly member: boolean;
  /** One; two while the host changes its key. */
  readonly keys: readonly ListedKey[];
  readonly certs: readonly ListedCert[];
  /** KIDs of authorities whose private key this host ever got, also after it stopped being a store member. */
  readonly held: readonly string[];
};

export type Revoked = {
  readonly name: string;
  readonly atMs: number;
  /** Who asked for it, for people. */
  readonly by: string;
  readonly keys: readonly string[];
  readonly serials: readonly RevokedCert[];
};

export type RotationPhase = "announce" | "bundle" | "issue" | "drop";
/** A change of the authority under way (rotation.ts). `revoked`: a host that held the old one's key was revoked. */
export type Rotation = {
  readonly id: string;
  readonly phase: RotationPhase;
  readonly why: "asked" | "revoked";
  readonly sinceMs: number;
  /** Hosts that the operator left behind: not waited for. They come back by their key. */
  readonly without: readonly HostId[];
};

export type Trust = {
  readonly cluster: string;
  readonly generation: bigint;
  /** Another one for each list, so that two lists of one generation are never taken for the same. */
  readonly nonce: string;
  readonly transport: "tls" | "auth" | "clear";
  /** They sign host certificates and this list; one is active. */
  readonly authorities: readonly Authority[];
  /** They sign certificates of store members only; one is active. */
  readonly storeAuthorities: readonly Authority[];
  readonly hosts: ReadonlyMap<HostId, TrustedHost>;
  readonly revoked: ReadonlyMap<HostId, Revoked>;
  readonly rotation: Rotation | null;
};

/** A list as it was signed: the very text, and the KID of the authority whose signature was verified. */
export type SignedTrust = { readonly trust: Trust; readonly body: string; readonly by: string };

/** What a certificate says, read and verified by the caller. */
export type CertFacts = {
  readonly kid: string;
  /** Names in the subject's alternative names that are URIs; others make a host's certificate a stranger's. */
  readonly uris: readonly string[];
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** The trusted authority whose signature on it verified; null: none. */
  readonly issuerKid: string | null;
  /** May be used by servers and by clients, and is not an authority's. */
  readonly serverAndClient: boolean;
};

export type PeerVerdict =
  | { readonly kind: "ok"; readonly host: HostId; readonly notAfterMs: number }
  | { readonly kind: "bad-chain" | "stranger" | "other-cluster" | "not-listed" }
  /** `host` is whose identity it was, also where another name stands beside its key. */
  | { readonly kind: "revoked"; readonly host: HostId; readonly atMs: number }
  /** `limitMs` is the end or beginning of its validity, `nowMs` this host's clock: both belong in the message. */
  | {
      readonly kind: "expired" | "not-yet-valid";
      readonly host: HostId;
      readonly limitMs: number;
      readonly nowMs: number;
    };

export function hostUri(cluster: string, host: HostId): string {
  return `weft://${cluster}/host/${host}`;
}

/**
 * Whether a peer that has proven the key of this certificate (by TLS) is a host of the cluster. The first of these that
 * doesn't hold names the refusal, in the data daemon too: name · cluster · key not revoked · purpose · authority · host not
 * revoked · key listed · validity.
 */
export function judgePeer(trust: Trust, cert: CertFacts, nowMs: number): PeerVerdict {
  const named = judgeName(trust, cert);
  if (named.kind !== "ok") return named;
  if (!cert.serverAndClient) return { kind: "bad-chain" };
  if (!trust.authorities.some((authority) => authority.kid === cert.issuerKid)) return { kind: "stranger" };
  const listed = judgeListed(trust, cert, named.host);
  if (listed.kind !== "ok") return listed;
  const { host } = listed;
  if (nowMs < cert.notBeforeMs) return { kind: "not-yet-valid", host, limitMs: cert.notBeforeMs, nowMs };
  if (nowMs > cert.notAfterMs) return { kind: "expired", host, limitMs: cert.notAfterMs, nowMs };
  return listed;
}

/**
 * The same by the key alone: enough to be given a new certificate, for a host whose own has expired or was signed by an
 * authority that is gone. Never enough for anything else.
 */
export function judgeKey(trust: Trust, cert: CertFacts): PeerVerdict {
  const named = judgeName(trust, cert);
  return named.kind === "ok" ? judgeListed(trust, cert, named.host) : named;
}

function judgeName(trust: Trust, cert: CertFacts): PeerVerdict {
  const [uri, ...others] = cert.uris;
  const named = others.length > 0 || uri === undefined ? null : parseHostUri(uri);
  if (named === null) return { kind: "stranger" };
  if (named.cluster !== trust.cluster) return { kind: "other-cluster" };
  for (const [host, { keys, atMs }] of trust.revoked) {
    if (keys.includes(cert.kid)) return { kind: "revoked", host, atMs };
  }
  return { kind: "ok", host: named.host, notAfterMs: cert.notAfterMs };
}

function judgeListed(trust: Trust, cert: CertFacts, host: HostId): PeerVerdict {
  const revoked = trust.revoked.get(host);
  if (revoked !== undefined) return { kind: "revoked", host, atMs: revoked.atMs };
  const isListed = trust.hosts.get(host)?.keys.some((key) => key.kid === cert.kid) ?? false;
  return isListed ? { kind: "ok", host, notAfterMs: cert.notAfterMs } : { kind: "not-listed" };
}

/**
 * Whether `next` may take the place of `known`; `known` null: the first list, whose authority the caller has verified by
 * other means (a token's fingerprint, or that it lay in this host's own file). A host that was away during rotations needs
 * the list that ended each of them, in turn: every step is signed by an authority that the step before names.
 */
export function acceptTrust(known: SignedTrust | null, next: SignedTrust): Decision<SignedTrust> {
  const fault = faultOf(next.trust);
  if (fault !== null) return untrusted(next, `it contradicts itself: ${fault}`);
  if (known === null) {
    // Also one on its way out: it signed the list that says so.
    const isOwn = next.trust.authorities.some(({ kid }) => kid === next.by);
    return isOwn ? ok(next) : untrusted(next, "its signer is none of its authorities");
  }
  if (known.trust.cluster !== next.trust.cluster) {
    return untrusted(next, `it is of cluster ${next.trust.cluster}, this host is of ${known.trust.cluster}`);
  }
  if (next.trust.generation === known.trust.generation && next.body === known.body) return ok(known);
  if (next.trust.generation <= known.trust.generation) return older(known.trust, next.trust);
  if (!maySign(known.trust, next.by)) {
    return untrusted(next, `it is signed by ${shortKid(next.by)}, which this host's list does not let sign`);
  }
  for (const [host, { name, keys }] of known.trust.revoked) {
    const still = next.trust.revoked.get(host);
    if (still === undefined || keys.some((kid) => !still.keys.includes(kid)))
      return untrusted(next, `it takes back the revocation of ${name}`);
  }
  return ok(next);
}

type Write = { readonly nonce: string };

/** A host's key is listed: at its join, or when it changes its key. A key that is listed already changes nothing. */
export function withKey(
  trust: Trust,
  add: Write & {
    readonly host: HostId;
    readonly name: string;
    readonly address: string;
    readonly kid: string;
    readonly nowMs: number;
  },
): Decision<Trust> {
  const { host, name, address, kid } = add;
  if (trust.revoked.has(host)) return hostRevoked(host, name);
  const before = trust.hosts.get(host) ?? { name, address, member: false, keys: [], certs: [], held: [] };
  if (before.keys.some((key) => key.kid === kid)) return ok(trust);
  const other = Array.from(trust.hosts.values()).find((host) => host.keys.some((key) => key.kid === kid));
  const taken = other ?? revokedKey(trust, kid);
  if (taken !== undefined) {
    return refused(
      finding("E-HOST-15", `The key of ${name} is, or was, the key of ${taken.name}.`, {
        facts: { host, kid },
        safe: "Nothing was changed.",
      }),
    );
  }
  return ok(withHost(trust, host, { ...before, keys: [...before.keys, { kid, sinceMs: add.nowMs }] }, add));
}

/** A certificate was issued to a listed host. Certificates that nobody's clock can still find valid are forgotten. */
export function withCert(
  trust: Trust,
  add: Write & { readonly host: HostId; readonly cert: ListedCert; readonly nowMs: number },
): Decision<Trust> {
  const { host, cert, nowMs } = add;
  const before = trust.hosts.get(host);
  if (before === undefined) return notListed(trust, host);
  if (before.certs.some((known) => known.serial === cert.serial)) return ok(trust);
  const certs = [...before.certs.filter((known) => isUsable(known, nowMs)), cert];
  return ok(withHost(trust, host, { ...before, certs }, add));
}

/**
 * Whether a host may be given another certificate. All that may still be used stand in the list, so that a revocation names
 * them: a host that asks without end would make the list too long for everybody. `pending`: issued, and not listed yet.
 */
export function mayIssue(
  trust: Trust,
  { host, pending, nowMs }: { readonly host: HostId; readonly pending: number; readonly nowMs: number },
): Decision<null> {
  const certs = trust.hosts.get(host)?.certs ?? [];
  const count = certs.filter((known) => isUsable(known, nowMs)).length + pending;
  if (count < HOST_CERTS_MAX) return ok(null);
  return refused(
    finding("E-LIMIT-01", `This host has ${count} certificates, the limit is ${HOST_CERTS_MAX}.`, {
      facts: { host, count, limit: HOST_CERTS_MAX },
      safe: "Nothing was changed. The certificates that it has go on.",
    }),
  );
}

/**
 * The same for one that was issued while the list couldn't be changed. If its host was revoked meanwhile, it is named among
 * the revoked; if it left the cluster, nobody believes it.
 */
export function withLateCert(
  trust: Trust,
  add: Write & { readonly host: HostId; readonly cert: ListedCert; readonly nowMs: number },
): Trust {
  const { host, cert } = add;
  const revoked = trust.revoked.get(host);
  if (revoked === undefined) {
    const listed = withCert(trust, add);
    return listed.kind === "ok" ? listed.value : trust;
  }
  if (revoked.serials.some(({ serial }) => serial === cert.serial)) return trust;
  const serials = [...revoked.serials, { serial: cert.serial, notAfterMs: cert.notAfterMs }];
  return next({ ...trust, revoked: new Map(trust.revoked).set(host, { ...revoked, serials }) }, add);
}

/** A host is about to be given an authority's private key. Kept for ever: it may have kept a copy. */
export function withHeld(
  trust: Trust,
  add: Write & { readonly host: HostId; readonly kids: readonly string[] },
): Decision<Trust> {
  const before = trust.hosts.get(add.host);
  if (before === undefined) return notListed(trust, add.host);
  const fresh = add.kids.filter((kid) => !before.held.includes(kid));
  if (fresh.length === 0) return ok(trust);
  return ok(withHost(trust, add.host, { ...before, held: [...before.held, ...fresh] }, add));
}

/** A host is to be a member of the store, or is to be none any more. What it ever held stays written. */
export function withMember(
  trust: Trust,
  change: Write & { readonly host: HostId; readonly member: boolean },
): Decision<Trust> {
  const before = trust.hosts.get(change.host);
  if (before === undefined) return notListed(trust, change.host);
  if (before.member === change.member) return ok(trust);
  return ok(withHost(trust, change.host, { ...before, member: change.member }, change));
}

/** Hosts that are to be members of the store, in the order of their identifiers. */
export function membersOf(trust: Trust): readonly HostId[] {
  return Array.from(trust.hosts)
    .filter(([, { member }]) => member)
    .map(([host]) => host)
    .toSorted(byText);
}

/** Whether revoking this host calls for a new authority: it ever had a key of one that is trusted now. */
export function holdsAuthority(trust: Trust, host: HostId): boolean {
  const held = trust.hosts.get(host)?.held ?? [];
  return [...trust.authorities, ...trust.storeAuthorities].some(({ kid }) => held.includes(kid));
}

export type Replacement = {
  readonly id: string;
  readonly authority: Authority;
  readonly storeAuthority: Authority;
};

/**
 * Nothing of this host is listened to from here on. A host that held an authority's key can mint certificates for the
 * store, so it goes together with that authority (`replacement`): the store believes the new one alone at once, the data
 * path believes the old one's chains for listed keys until every host has a new certificate (rotation.ts).
 * Revoking twice changes nothing.
 */
export function revokeHost(
  trust: Trust,
  revoke: Write & {
    readonly host: HostId;
    readonly by: string;
    readonly nowMs: number;
    readonly replacement: Replacement | null;
  },
): Decision<Trust> {
  const { host, nowMs, replacement } = revoke;
  if (trust.revoked.has(host)) return ok(trust);
  const before = trust.hosts.get(host);
  if (before === undefined) return notListed(trust, host);
  if (replacement === null && holdsAuthority(trust, host))
    throw new Error(`${host} held the authority's key: it can't be revoked without a new authority`);
  const hosts = new Map(trust.hosts);
  hosts.delete(host);
  const entry: Revoked = {
    name: before.name,
    atMs: nowMs,
    by: revoke.by,
    keys: before.keys.map((key) => key.kid),
    serials: before.certs.map(({ serial, notAfterMs }) => ({ serial, notAfterMs })),
  };
  const after: Trust = { ...trust, hosts, revoked: new Map(trust.revoked).set(host, entry) };
  if (replacement === null) return ok(next(after, revoke));
  const outgoing = trust.authorities
    .filter(({ state }) => state !== "incoming")
    .map((authority): Authority => ({ ...authority, state: "outgoing" }));
  return ok(
    next(
      {
        ...after,
        authorities: [{ ...replacement.authority, state: "active" }, ...outgoing],
        storeAuthorities: [{ ...replacement.storeAuthority, state: "active" }],
        rotation: { id: replacement.id, phase: "issue", why: "revoked", sinceMs: nowMs, without: [] },
      },
      revoke,
    ),
  );
}

/**
 * Certificates of revoked hosts that nobody's clock can still find valid are forgotten: so long lists them etcd, and no longer.
 * That a host and its keys are revoked is never forgotten. The same list where nothing has ended.
 */
export function withoutEnded(trust: Trust, nowMs: number): Trust {
  const revoked = Array.from(trust.revoked, ([host, entry]): [HostId, Revoked] => {
    const serials = entry.serials.filter((cert) => isUsable(cert, nowMs));
    return [host, serials.length === entry.serials.length ? entry : { ...entry, serials }];
  });
  const isSame = revoked.every(([host, entry]) => trust.revoked.get(host) === entry);
  return isSame ? trust : { ...trust, revoked: new Map(revoked) };
}

/** A step of a rotation: which authorities are trusted, and where it stands. Decided by rotation.ts. */
export function setRotation(
  trust: Trust,
  step: Write & Pick<Trust, "authorities" | "storeAuthorities" | "rotation">,
): Trust {
  const { authorities, storeAuthorities, rotation } = step;
  const after = next({ ...trust, authorities, storeAuthorities, rotation }, step);
  const fault = faultOf(after);
  if (fault !== null) throw new Error(`a rotation would make a list that contradicts itself: ${fault}`);
  return after;
}

/** KID of the authority that signs the list after this one. */
export function signerOf(trust: Trust): string {
  const active = trust.authorities.find(({ state }) => state === "active");
  if (active === undefined) throw new Error("a trust list has one active authority");
  return active.kid;
}

/** Serials that the store's members must refuse, in the order of text. */
export function crlSerials(trust: Trust, nowMs: number): readonly string[] {
  const usable = Array.from(trust.revoked.values()).flatMap(({ serials }) =>
    serials.filter((cert) => isUsable(cert, nowMs)).map(({ serial }) => serial),
  );
  return Array.from(new Set(usable)).toSorted(byText);
}

/** What no list may say, whoever signed it; null: nothing of that. */
export function faultOf(trust: Trust): string | null {
  for (const [what, list] of [
    ["authorities", trust.authorities],
    ["store authorities", trust.storeAuthorities],
  ] as const) {
    const active = list.filter(({ state }) => state === "active").length;
    if (active !== 1) return `${active} active ${what}`;
    if (trust.rotation === null && list.length > 1) return `${list.length} ${what} and no rotation`;
  }
  const kids = [...trust.authorities, ...trust.storeAuthorities].map(({ kid }) => kid);
  if (new Set(kids).size < kids.length) return "an authority stands there twice";
  const seen = new Set(Array.from(trust.revoked.values()).flatMap(({ keys }) => keys));
  for (const [host, { name, keys }] of trust.hosts) {
    if (trust.revoked.has(host)) return `${name} is listed and revoked`;
    for (const { kid } of keys) {
      if (seen.has(kid)) return `a key of ${name} is another host's, or revoked`;
      seen.add(kid);
    }
  }
  return null;
}

/** `weft://CLUSTER/host/HOST`, nothing else: no other case, no escapes, nothing behind it. */
export function parseHostUri(uri: string): { readonly cluster: string; readonly host: HostId } | null {
  const [, cluster = "", id = ""] = /^weft:\/\/([0-9a-f-]{36})\/host\/([0-9a-f-]{36})$/.exec(uri) ?? [];
  const host = parseHostId(id);
  // Not even a hyphen in another place.
  return host === id && parseUuid(cluster) === cluster ? { cluster, host } : null;
}

/**
 * An incoming authority may sign before this host saw the list that makes it active: that one is signed by the old
 * authority, and a host that reads only the newest list can miss it. It is no wider a door: its key is where the old one's
 * is, and the old one announced it.
 */
function maySign(trust: Trust, kid: string): boolean {
  return trust.authorities.some((authority) => authority.kid === kid && authority.state !== "outgoing");
}

function revokedKey(trust: Trust, kid: string): Revoked | undefined {
  return Array.from(trust.revoked.values()).find(({ keys }) => keys.includes(kid));
}

function isUsable(cert: { readonly notAfterMs: number }, nowMs: number): boolean {
  return nowMs <= cert.notAfterMs + CLOCK_SLACK_MS;
}

function withHost(trust: Trust, host: HostId, entry: TrustedHost, write: Write): Trust {
  return next({ ...trust, hosts: new Map(trust.hosts).set(host, entry) }, write);
}

function next(trust: Trust, { nonce }: Write): Trust {
  return { ...trust, generation: trust.generation + 1n, nonce };
}

function shortKid(kid: string): string {
  return kid.slice(0, 16);
}

function untrusted({ trust, by }: SignedTrust, why: string): Decision<SignedTrust> {
  return refused(
    finding("E-TRUST-01", `A trust list of generation ${trust.generation} is refused: ${why}.`, {
      facts: { generation: String(trust.generation), by },
      safe: "The list that this host has stays in force.",
    }),
  );
}

function older(known: Trust, next: Trust): Decision<SignedTrust> {
  const same = next.generation === known.generation;
  const what = same
    ? `is another one of the same generation ${known.generation}`
    : `has generation ${next.generation}, this host's has ${known.generation}`;
  return refused(
    finding("E-TRUST-02", `The store has gone back: its trust list ${what}.`, {
      facts: { found: String(next.generation), known: String(known.generation) },
      safe: "The list that this host has stays in force: nobody who was revoked is trusted again.",
      do: [
        { why: "Write the newest list that any host has back into the store", command: "weft store repair" },
      ],
    }),
  );
}

function hostRevoked(host: HostId, name: string): { readonly kind: "refused"; readonly finding: Finding } {
  return refused(
    finding("E-HOST-14", `${name} was revoked: this identity is never trusted again.`, {
      facts: { host },
      safe: "Nothing was changed.",
    }),
  );
}

function notListed(trust: Trust, host: HostId): Decision<Trust> {
  const revoked = trust.revoked.get(host);
  if (revoked !== undefined) return hostRevoked(host, revoked.name);
  return refused(
    finding("E-ARG-01", `The trust list knows no host ${host}.`, {
      facts: { host },
      safe: "Nothing was changed.",
    }),
  );
}
