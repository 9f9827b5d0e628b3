/**
 * How a host enters a cluster: the joining side.
 *
 *     nothing ──intent and key written──▶ a member's authority proven ──token proven──▶ let in ──▶ certificate, trust list,
 *     host.json written ──▶ member
 *
 * Must always hold:
 * - what proves the token leaves this host only on a connection whose other end has proven the authority that the token
 *   names, and is good for this host and its key alone: who stands between learns nothing of use;
 * - every step may be repeated: after a crash the same request continues with the same identifier and key;
 * - host.json is written last: until then this host is in no cluster. The token is written nowhere.
 */
import { createPublicKey, randomUUID } from "node:crypto";
import type { z } from "zod";

import { type HostId, parseHostId } from "../model/ids.ts";
import type { Secret } from "../model/secret.ts";
import { decodeJoinToken, type JoinToken } from "../model/token-code.ts";
import { hostUri } from "../model/trust.ts";
import type { joinRequest } from "../wire/agent-api.ts";
import { factsOf, kidOf, readCertificate } from "../wire/certificate.ts";
import type { EnrolAnswer } from "../wire/door-api.ts";
import { decided, isWeftError, WeftError } from "../wire/errors.ts";
import { proveToken } from "../wire/join-proof.ts";
import { AGENT_PORT, HostClient, type ProvenHost } from "../wire/host-client.ts";
import { openFirstTrust } from "../wire/signed-trust.ts";
import { makeJoinCert, makeKey } from "../wire/x509-make.ts";
import { checkLocal, type JoinContext, ownName, refuseMember } from "./entering.ts";
import type { HostFile, JoinIntent } from "./host-file.ts";

/** Of members that are asked instead of a host that is none. */
const MEMBERS_MAX = 9;

type Request = z.output<typeof joinRequest>;
/** What a member answered, and whose word it is. */
type LetIn = {
  readonly answer: Pick<EnrolAnswer, "cert" | "trust" | "cluster">;
  readonly by: Pick<ProvenHost, "cluster" | "authority">;
};

export async function joinCluster(context: JoinContext, request: Request): Promise<HostFile> {
  const { files, etcd } = context;
  await refuseMember(files);
  const token = decoded(request.token);
  const target = joinTarget(request.from);
  await checkLocal(request.address, etcd);
  const { intent, keyPem } = await intend(context, request, token);
  const kid = kidOf(createPublicKey(keyPem.reveal()));
  const shown = {
    cert: await makeJoinCert({ host: intent.host, keyPem, nowMs: Date.now() }),
    key: keyPem.reveal(),
  };
  const letIn = await askMembers(target, { shown, kid, token, intent });
  return settle(context, intent, keyPem, letIn);
}

/** What a crash leaves: who this host will be, and its key. The same cluster and address: the same host. */
async function intend(
  { files, identityFiles, etcd }: JoinContext,
  { name, address }: Request,
  { fingerprint16 }: JoinToken,
): Promise<{ readonly intent: JoinIntent; readonly keyPem: Secret<string> }> {
  const authority = Buffer.from(fingerprint16).toString("hex");
  const before = await files.readIntent();
  const again =
    before?.kind === "join" && before.authority === authority && before.address === address ? before : null;
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
    authority,
    // A key of its own for every identity: one that was lost takes its identity with it.
    host: (known === null ? null : again?.host) ?? randomUUID(),
    name: name ?? again?.name ?? ownName(),
    address,
  };
  await files.writeIntent(intent);
  return { intent, keyPem };
}

type Ask = {
  readonly shown: { readonly cert: string; readonly key: string };
  readonly kid: string;
  readonly token: JoinToken;
  readonly intent: JoinIntent;
};

/** The host that was named; where it is no member, the members that it names. Each has to prove itself as the first. */
async function askMembers(target: { host: string; port: number }, ask: Ask): Promise<LetIn> {
  try {
    return await askOne(target, ask);
  } catch (error) {
    if (!isWeftError(error, "E-TOKEN-05")) throw error;
    const named = error.facts["members"];
    const members = Array.isArray(named) ? named.slice(0, MEMBERS_MAX).map(String) : [];
    let last: unknown = error;
    for (const host of members) {
      try {
        return await askOne({ host, port: AGENT_PORT }, ask);
      } catch (other) {
        // Away, or no member any more: another one may answer. A refusal is the cluster's answer.
        if (!isWeftError(other, "E-HOST-09") && !isWeftError(other, "E-TOKEN-05")) throw other;
        last = other;
      }
    }
    throw last;
  }
}

async function askOne({ host: address, port }: { host: string; port: number }, ask: Ask): Promise<LetIn> {
  const { shown, token, intent, kid } = ask;
  const expect = { kind: "authority" as const, fingerprint16: token.fingerprint16 };
  const client = new HostClient({ address, port, shown, expect, from: intent.address });
  return client.enrol(({ cluster }) => {
    const host = { id: intent.host, name: intent.name, address: intent.address };
    return { token: proveToken(token, { cluster, kid, host: host.id, ...host }), host };
  });
}

/** What was answered is looked at as if it came from anybody, then written, host.json last. */
export async function settle(
  { files, identityFiles, bootIdFile }: JoinContext,
  intent: JoinIntent,
  keyPem: Secret<string>,
  { answer, by }: LetIn,
): Promise<HostFile> {
  const chainPem = by.authority?.pem ?? "";
  checkAnswer(intent, keyPem, { answer, by });
  await identityFiles.writeHost({ certPem: answer.cert, chainPem, keyPem });
  await identityFiles.writeTrustFirst(answer.trust);
  const file: HostFile = {
    cluster: answer.cluster.id,
    host: intent.host,
    name: intent.name,
    address: intent.address,
    etcd: [...answer.cluster.endpoints],
    clusterName: answer.cluster.name,
    ...(bootIdFile === null ? {} : { bootIdFile }),
  };
  await files.writeHost(file);
  await files.removeIntent();
  return file;
}

function checkAnswer(intent: JoinIntent, keyPem: Secret<string>, { answer, by }: LetIn): void {
  const host: HostId | null = parseHostId(intent.host);
  const kid = kidOf(createPublicKey(keyPem.reveal()));
  const leaf = readCertificate(answer.cert);
  const facts = leaf === null || by.authority === null ? null : factsOf(leaf, [by.authority]);
  if (facts === null || host === null || facts.kid !== kid)
    throw strange("the certificate is not of this host's key");
  if (facts.issuerKid === null || facts.uris[0] !== hostUri(by.cluster, host))
    throw strange("the certificate is not this host's, or not by the cluster's authority");
  const opened = openFirstTrust(answer.trust);
  if (opened.kind === "refused") throw WeftError.fromFinding(opened.finding);
  const { trust, by: signer } = opened.value;
  // During a rotation the next authority may sign as well: the pinned one names it.
  const isPinned = trust.authorities.some((authority) => authority.kid === by.authority?.kid);
  if (signer !== by.authority?.kid || !isPinned || trust.cluster !== by.cluster)
    throw strange("the trust list is not by the cluster's authority");
  if (trust.hosts.get(host)?.keys.some((key) => key.kid === kid) !== true)
    throw strange("the trust list does not name this host's key");
  if (answer.cluster.id !== by.cluster || answer.cluster.host !== host)
    throw strange("it is about another cluster or host");
}

/** `HOST`, `HOST:7400`, `[v6]`, `[v6]:7400`, or a bare v6 address. */
export function joinTarget(from: string): { readonly host: string; readonly port: number } {
  const bare = from.replace(/^https:\/\//, "").replace(/\/+$/, "");
  const bracketed = /^\[(.+)\](?::([0-9]{1,5}))?$/.exec(bare);
  const named = /^([^:]+)(?::([0-9]{1,5}))?$/.exec(bare);
  const [, host = bare, port = String(AGENT_PORT)] = bracketed ?? named ?? [];
  return { host, port: Number(port) };
}

function decoded(text: string): JoinToken {
  return decided(decodeJoinToken(text));
}

function strange(what: string): WeftError {
  return new WeftError({
    code: "E-HOST-09",
    message: `The member's answer can't be used: ${what}.`,
    safe: "This host is in no cluster. The same command continues.",
  });
}
