/**
 * A host is let in without a token, since somebody vouches for it who is root on this host: the member's side.
 *
 * Must always hold:
 * - what is listed is a key that its owner has signed with, for the host that is named: nobody comes in by another's;
 * - only root on a member of the store asks for it, so nobody gets in who could not have been given a token.
 */
import type { X509Certificate } from "node:crypto";

import { parseHostId } from "../model/ids.ts";
import { CLOCK_SLACK_MS } from "../model/limits.ts";
import type { AdmissionAnswer, AdmissionOrder } from "../wire/admission-api.ts";
import { factsOf, kidOf, readCertificate } from "../wire/certificate.ts";
import { WeftError } from "../wire/errors.ts";
import { type EnrolContext, isJoinCert, notMember } from "./enrol.ts";
import { letIn } from "./let-in.ts";

export async function admitHost(context: EnrolContext, order: AdmissionOrder): Promise<AdmissionAnswer> {
  const { authority, identity } = context;
  const host = parseHostId(order.host);
  if (host === null) throw badRequest("it names no host");
  const shown = readJoinCert(order.cert, order.host);
  if (!authority.holds(identity.trust())) throw notMember(context.members());
  const { name, address } = order;
  const newcomer = { host, name, address, kid: kidOf(shown.publicKey) };
  const { cert, trust } = await letIn(context, newcomer, shown.publicKey, null);
  const leaf = readCertificate(cert);
  const { authorities } = identity.trust();
  const issuer = leaf === null ? null : factsOf(leaf, authorities).issuerKid;
  const pem = authorities.find(({ kid }) => kid === issuer)?.pem;
  if (pem === undefined)
    throw new Error("a certificate was issued by an authority that the list does not name");
  return { cluster: { ...context.cluster(), host }, cert, authority: pem, trust };
}

/** Of a key that has signed it itself, made for this host to be let in, and now. */
export function readJoinCert(pem: string, host: string): X509Certificate {
  const shown = readCertificate(pem);
  if (shown === null || !isJoinCert(shown, host) || !shown.verify(shown.publicKey))
    throw badRequest("its certificate is not of its own key, made for this");
  // An old one was kept by somebody.
  if (Math.abs(Date.now() - Date.parse(shown.validFrom)) > 2 * CLOCK_SLACK_MS)
    throw badRequest("its certificate is old, or its clock is more than a day off");
  return shown;
}

function badRequest(what: string): WeftError {
  return new WeftError({
    code: "E-ARG-02",
    message: `The host's request to be let in can't be used: ${what}.`,
    safe: "Nothing was changed.",
  });
}
