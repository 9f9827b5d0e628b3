/**
 * New certificates for keys that the trust list allows.
 *
 * Must always hold:
 * - only a listed key that isn't revoked gets one, and it is the same host's;
 * - a member needs nobody for its own: also where the store is away, or never came up because its certificate ended.
 *   Such a certificate is listed as soon as the store serves.
 */
import type { X509Certificate } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { ok } from "../model/finding.ts";
import { parseHostId } from "../model/ids.ts";
import type { HostId } from "../model/ids.ts";
import { judgeKey, mayIssue, withLateCert } from "../model/trust.ts";
import type { ListedCert, Trust } from "../model/trust.ts";
import { factsOf, readCertificate } from "../wire/certificate.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import type { IdentityFiles } from "../wire/identity-files.ts";
import { generationOf } from "../wire/signed-trust.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { AuthorityKeeper } from "./authority.ts";
import { hostRevoked, type IdentityKeeper, type RenewedCert } from "./identity.ts";
import { changeTrust } from "./trust-change.ts";
import type { TrustWriter } from "./trust-change.ts";

/** A host that was away for more changes of the authority than this joins anew. */
const LINKS_MAX = 16;
const LINKS_BYTES_MAX = 2 << 20;
const STORED_LINKS_MS = 500;

/** By this host's own authority. */
export async function issueOwn(authority: AuthorityKeeper, identity: IdentityKeeper): Promise<RenewedCert> {
  const request = { host: identity.host, publicKey: identity.publicKey() };
  const { pem, chainPem } = await authority.issueHost(identity.trust(), request);
  return { certPem: pem, chainPem };
}

/** A member whose certificate is due, or has ended while it was off: before it asks anybody anything. */
export async function renewBeforeStart(authority: AuthorityKeeper, identity: IdentityKeeper): Promise<void> {
  if (!authority.holds(identity.trust()) || Date.now() < identity.renewAtMs) return;
  await identity.take(await issueOwn(authority, identity));
}

export type RenewAnswer = {
  readonly cert: string;
  readonly authority: string;
  readonly trust: string;
  /** Lists by which authorities took over from each other, the oldest first. */
  readonly links: string[];
};

export type RenewContext = TrustWriter & { readonly files: IdentityFiles };

/**
 * For a caller whose TLS handshake has proven the key of `certificate`, which may have ended, or be of an authority that is
 * gone. Served without the store too, by the list that this host has. E-AUTH-01 where the key is not listed, E-HOST-14
 * where it was revoked, E-CA-01 where this host is no member.
 */
export async function renewIdentity(
  context: RenewContext,
  certificate: X509Certificate | null,
): Promise<RenewAnswer> {
  const { authority, identity } = context;
  const trust = identity.trust();
  const host = certificate === null ? null : hostByKey(trust, certificate);
  if (certificate === null || host === null) throw notListed();
  const pending = (await authority.unlisted()).filter((issued) => issued.host === host).length;
  const allowed = mayIssue(trust, { host, pending, nowMs: Date.now() });
  if (allowed.kind === "refused") throw WeftError.fromFinding(allowed.finding);
  const { publicKey } = certificate;
  const { pem, chainPem, serial, by, notAfterMs } = await authority.issueHost(trust, { host, publicKey });
  // Before it leaves: whatever happens, the list names it sooner or later.
  await authority.remember({ host, serial, by, notAfterMs });
  try {
    await listIssued(context);
  } catch (error) {
    if (!isWeftError(error, "E-STORE-01")) throw error;
  }
  return { cert: pem, authority: chainPem, trust: identity.text, links: await linksOf(context) };
}

/**
 * The list of now, and those that lead to it, for a caller whose handshake has proven a listed key: it costs no certificate to
 * ask all members, again and again. E-AUTH-01 as above; E-HOST-14 says by which list, as a host that was off believes that to
 * the list alone, and then destroys its identity by itself.
 */
export async function listsFor(
  context: Pick<RenewContext, "store" | "identity">,
  certificate: X509Certificate | null,
): Promise<{ readonly trust: string; readonly links: string[] }> {
  const { identity } = context;
  const trust = identity.trust();
  const verdict = certificate === null ? null : judgeKey(trust, factsOf(certificate, trust.authorities));
  if (verdict?.kind !== "ok" && verdict?.kind !== "revoked") throw notListed();
  const lists = { trust: identity.text, links: await linksOf(context) };
  if (verdict.kind === "revoked") throw hostRevoked(verdict.host, verdict.atMs, lists);
  return lists;
}

/** This host's own, which it has accepted, and the store's, which anybody may have written or removed, where there is room. */
async function linksOf({ store, identity }: Pick<RenewContext, "store" | "identity">): Promise<string[]> {
  const links = [...identity.links];
  const room = (): number => LINKS_BYTES_MAX - links.reduce((sum, { length }) => sum + length, 0);
  while (room() < 0) links.shift();
  // The newest first, which is what is most likely missing here.
  for (const text of await storedLinks(store))
    if (!links.includes(text) && links.length < LINKS_MAX && text.length <= room()) links.push(text);
  return links.toSorted((a, b) => Number(generationOf(a) - generationOf(b)));
}

/** The newest first; none while the store is away, which who asks can't wait for: it may be what the store lacks. */
async function storedLinks(store: StoreClient): Promise<readonly string[]> {
  const late = new AbortController();
  const none = sleep(STORED_LINKS_MS, [], { signal: late.signal }).catch(() => []);
  try {
    return await Promise.race([readLinks(store), none]);
  } finally {
    late.abort();
  }
}

async function readLinks(store: StoreClient): Promise<readonly string[]> {
  try {
    const { entries } = await store.list(keys.trustLinks);
    return entries.toSorted((a, b) => Number(b.modRevision - a.modRevision)).map(({ value }) => value);
  } catch (error) {
    if (isWeftError(error, "E-STORE-01")) return [];
    throw error;
  }
}

/** A member whose loop calls it: certificates that it made are named in the list, so that a revocation names them too. */
export async function listIssued(context: RenewContext): Promise<void> {
  const { identity, authority, files } = context;
  if (!authority.holds(identity.trust())) return;
  const { host } = identity;
  const late = await authority.unlisted();
  const own = (await ownCerts(identity, files)).map((cert) => ({ ...cert, host }));
  const listed = identity.trust().hosts.get(host)?.certs ?? [];
  const fresh = own.filter(({ serial }) => !listed.some((cert) => cert.serial === serial));
  if (late.length + fresh.length === 0) return;
  await changeTrust(context, (trust) =>
    ok(
      [...late, ...fresh].reduce((so, { serial, by, notAfterMs, ...of }) => {
        const whose = parseHostId(of.host);
        const cert = { serial, by, notAfterMs };
        return whose === null ? so : withLateCert(so, { host: whose, cert, nowMs: Date.now(), nonce: "" });
      }, trust),
    ),
  );
  await authority.forget(late);
}

function hostByKey(trust: Trust, certificate: X509Certificate): HostId | null {
  const verdict = judgeKey(trust, factsOf(certificate, trust.authorities));
  if (verdict.kind === "ok") return verdict.host;
  if (verdict.kind !== "revoked") return null;
  throw hostRevoked(verdict.host, verdict.atMs);
}

function notListed(): WeftError {
  return new WeftError({
    code: "E-AUTH-01",
    message: "Only a host of this cluster is given that, and this connection has proven no key of one.",
    safe: "Nothing was changed.",
  });
}

async function ownCerts(identity: IdentityKeeper, files: IdentityFiles): Promise<readonly ListedCert[]> {
  const { authorities, storeAuthorities } = identity.trust();
  const shown = readCertificate(identity.certificate.certPem);
  const certificates = [shown, await files.readEtcdCertificate()].filter((read) => read !== null);
  return certificates.flatMap((certificate) => {
    const issuer = [...authorities, ...storeAuthorities].find(({ pem }) => isOf(certificate, pem));
    if (issuer === undefined) return [];
    const notAfterMs = Date.parse(certificate.validTo);
    return [{ serial: serialOf(certificate), by: issuer.kid, notAfterMs }];
  });
}

function isOf(certificate: X509Certificate, authorityPem: string): boolean {
  const authority = readCertificate(authorityPem);
  return authority !== null && certificate.verify(authority.publicKey);
}

/** Lower-case hex, as it was made. */
function serialOf(certificate: X509Certificate): string {
  return certificate.serialNumber.toLowerCase();
}
