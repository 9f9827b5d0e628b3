/**
 * How a host enters a cluster that lets it in without a token: the newcomer's side (admit.ts has the member's).
 *
 *     nothing ──intent and key written──▶ request ── … ──▶ answer looked at ──▶ certificate, trust list, host.json ──▶ member
 *
 * Must always hold:
 * - its key never leaves this host, and an answer is taken only for the key and the host of the request that was made here;
 * - every step may be repeated; host.json is written last: until then this host is in no cluster.
 */
import { randomUUID } from "node:crypto";
import type { z } from "zod";

import type { AdmissionAnswer, AdmissionRequest, admissionWish } from "../wire/admission-api.ts";
import { kidOf, readCertificate } from "../wire/certificate.ts";
import { WeftError } from "../wire/errors.ts";
import { makeJoinCert, makeKey } from "../wire/x509-make.ts";
import { checkLocal, type JoinContext, ownName, refuseMember } from "./entering.ts";
import type { HostFile, JoinIntent } from "./host-file.ts";
import { settle } from "./join.ts";

/** Stands in the intent for the authority that a token would name: none is known yet. */
const NO_AUTHORITY = "0".repeat(32);

/** The same address again: the same host with the same key. */
export async function requestAdmission(
  { files, identityFiles, etcd }: JoinContext,
  { name, address }: z.output<typeof admissionWish>,
): Promise<AdmissionRequest> {
  await refuseMember(files);
  await checkLocal(address, etcd);
  const before = await files.readIntent();
  const again =
    before?.kind === "join" && before.authority === NO_AUTHORITY && before.address === address
      ? before
      : null;
  if (again === null) {
    await etcd.retire();
    await identityFiles.dropHost();
    await identityFiles.dropAuthorities();
  }
  const known = await identityFiles.readHostKey();
  const keyPem = known ?? makeKey();
  if (known === null) await identityFiles.writeHostKey(keyPem);
  const intent: JoinIntent = {
    kind: "join",
    authority: NO_AUTHORITY,
    // A key of its own for every identity.
    host: (known === null ? null : again?.host) ?? randomUUID(),
    name: name ?? again?.name ?? ownName(),
    address,
  };
  await files.writeIntent(intent);
  const cert = await makeJoinCert({ host: intent.host, keyPem, nowMs: Date.now() });
  return { host: intent.host, name: intent.name, address, cert };
}

export async function enterAdmitted(context: JoinContext, answer: AdmissionAnswer): Promise<HostFile> {
  const { files, identityFiles } = context;
  await refuseMember(files);
  const intent = await files.readIntent();
  const keyPem = await identityFiles.readHostKey();
  if (intent?.kind !== "join" || intent.authority !== NO_AUTHORITY || keyPem === null) {
    throw new WeftError({
      code: "E-HOST-09",
      message: "This host did not ask to be let in without a token.",
      safe: "Nothing was changed.",
    });
  }
  const authority = readCertificate(answer.authority);
  const by = {
    cluster: answer.cluster.id,
    authority: authority === null ? null : { kid: kidOf(authority.publicKey), pem: answer.authority },
  };
  return settle(context, intent, keyPem, { answer, by });
}
