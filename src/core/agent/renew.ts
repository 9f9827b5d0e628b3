/**
 * New certificates for keys that the trust list allows.
 *
 * Must always hold:
 * - only a listed key that isn't revoked gets one, and it is the same host's;
 * - a member needs nobody for its own: also where the store is away, or never came up because its certificate ended.
 *   Such a certificate is listed as soon as the store serves.
 */
import type { X509Certificate } from "node:crypto";

import { ok } from "../model/finding.ts";
import type { Decision } from "../model/finding.ts";
import { withCert } from "../model/trust.ts";
import type { ListedCert, Trust } from "../model/trust.ts";
import { readCertificate } from "../wire/certificate.ts";
import type { IdentityFiles } from "../wire/identity-files.ts";
import type { AuthorityKeeper } from "./authority.ts";
import type { IdentityKeeper, RenewedCert } from "./identity.ts";
import { changeTrust } from "./trust-change.ts";
import type { TrustWriter } from "./trust-change.ts";

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

/** The certificates that this member made for itself are named in the list, so that a revocation names them too. */
export async function listOwn(writer: TrustWriter, files: IdentityFiles): Promise<void> {
  const { identity, authority } = writer;
  const { host } = identity;
  if (!authority.holds(identity.trust())) return;
  const own = await ownCerts(identity, files);
  const isListed = (trust: Trust): boolean => {
    const listed = trust.hosts.get(host)?.certs ?? [];
    return own.every(({ serial }) => listed.some((cert) => cert.serial === serial));
  };
  if (isListed(identity.trust()) || !identity.trust().hosts.has(host)) return;
  await changeTrust(writer, (trust) =>
    own.reduce<Decision<Trust>>(
      (so, cert) =>
        so.kind === "refused" ? so : withCert(so.value, { host, cert, nowMs: Date.now(), nonce: "" }),
      ok(trust),
    ),
  );
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
