/**
 * Client of another host's door on port 7400, over TLS 1.3.
 *
 *     connect ──▶ handshake ──▶ peer proven ──▶ request ──▶ answer, and the connection ends
 *                                   └─ not who it shall be: the connection ends, and nothing was said
 *
 * Must always hold:
 * - not one byte of HTTP leaves before the other end has proven that it is who the caller expects: by the fingerprint of
 *   its authority, or by the trust list; its address and name prove nothing;
 * - an answer is parsed before anybody sees it, and is bounded in size and time;
 * - whatever goes wrong comes back as a WeftError.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import type { X509Certificate } from "node:crypto";
import { request as httpRequest } from "node:http";
import type { IncomingMessage } from "node:http";
import { connect } from "node:tls";
import type { TLSSocket } from "node:tls";
import type { z } from "zod";

import type { HostId } from "../model/ids.ts";
import { judgeKey, parseHostUri } from "../model/trust.ts";
import type { PeerVerdict, Trust } from "../model/trust.ts";
import { errorAnswer } from "./agent-api.ts";
import { factsOf, isP256, judgeCertificate } from "./certificate.ts";
import * as api from "./door-api.ts";
import { reasonOf, WeftError } from "./errors.ts";

export const AGENT_PORT = 7400;
const CONNECT_MS = 5000;
/** A member answers within this, or its store does not. */
const ANSWER_MS = 30_000;
/** 1,000 lines of an audit. */
const ANSWER_BYTES_MAX = 8 << 20;

/** Who the other end shall be. */
export type Expectation =
  /** Any host of the cluster whose authority has this key: the first 16 bytes of its SHA-256, as a token carries them. */
  | { readonly kind: "authority"; readonly fingerprint16: Uint8Array }
  /** A host of this list; null: whichever. */
  | { readonly kind: "host"; readonly trust: Trust; readonly host: HostId | null }
  /**
   * A host whose key this list names, whatever authority signed for it and until when: enough to be told of a newer list,
   * which is judged by itself. Never for anything that is a secret.
   */
  | { readonly kind: "key"; readonly trust: Trust };

export type HostClientOptions = {
  readonly address: string;
  readonly port?: number;
  /** What this end proves itself with: PEM. */
  readonly shown: { readonly cert: string; readonly key: string };
  readonly expect: Expectation;
  /** This host's own address, which the other end may know; null: whichever the way there has. */
  readonly from?: string | null;
  readonly answerMs?: number;
};

/** The other end, proven. */
export type ProvenHost = {
  readonly host: HostId;
  readonly cluster: string;
  /** The authority that signed its certificate; null where the trust list has vouched for it. */
  readonly authority: { readonly kid: string; readonly pem: string } | null;
};

export type Answered<Answer> = { readonly answer: Answer; readonly by: ProvenHost };

export class HostClient {
  readonly #options: HostClientOptions;

  constructor(options: HostClientOptions) {
    this.#options = options;
  }

  hello(): Promise<Answered<api.Hello>> {
    return this.#ask("GET /v1/hello", () => null);
  }

  /** What is asked is made for the host that has proven itself. */
  enrol(bodyFor: (by: ProvenHost) => api.EnrolRequest): Promise<Answered<api.EnrolAnswer>> {
    return this.#ask("POST /v1/enrol", bodyFor);
  }

  renew(): Promise<Answered<api.RenewAnswer>> {
    return this.#ask("POST /v1/identity/renew", () => ({}));
  }

  lists(): Promise<Answered<api.ListsAnswer>> {
    return this.#ask("GET /v1/identity/lists", () => null);
  }

  credentials(): Promise<Answered<api.CredentialsAnswer>> {
    return this.#ask("POST /v1/members/credentials", () => ({}));
  }

  bundleKey(): Promise<Answered<{ readonly kid: string; readonly key: string }>> {
    return this.#ask("POST /v1/identity/bundle-key", () => ({}));
  }

  audit(body: api.AuditLinesRequest): Promise<Answered<api.AuditLinesAnswer>> {
    return this.#ask("POST /v1/internal/audit", () => body);
  }

  stats(body: api.StatsRequest): Promise<Answered<api.SessionStatsAnswer>> {
    return this.#ask("POST /v1/internal/stats", () => body);
  }

  volumeUsers(body: api.VolumeUsersRequest): Promise<Answered<api.VolumeUsers>> {
    return this.#ask("POST /v1/internal/volume-users", () => body);
  }

  volumeWork(work: api.OwnerWork): Promise<Answered<api.OwnerWorkAnswer>> {
    return this.#ask("POST /v1/internal/volume-work", () => work);
  }

  groupWork(work: api.GroupWork): Promise<Answered<api.OwnerWorkAnswer>> {
    return this.#ask("POST /v1/internal/group-work", () => work);
  }

  async putAuthority(body: api.CredentialsAnswer): Promise<void> {
    await this.#ask("PUT /v1/members/authority", () => body);
  }

  async #ask<Name extends api.DoorRouteName>(
    name: Name,
    bodyFor: (by: ProvenHost) => api.DoorBody<Name>,
  ): Promise<Answered<api.DoorAnswer<Name>>> {
    const { address, answerMs = ANSWER_MS } = this.#options;
    const { socket, by } = await connectProven(this.#options);
    try {
      const [method = "GET", path = "/"] = name.split(" ");
      const { request }: { readonly request: z.ZodType | null } = api.doorRoutes[name];
      const body = bodyFor(by);
      const { status, text } = await exchange(socket, {
        method,
        path,
        headers: {},
        body: request === null ? null : request.encode(body),
        address,
        answerMs,
      });
      const json = jsonOf(text);
      if (status >= 400) throw errorOf(json, status, address);
      const parsed = api.doorRoutes[name].answer.safeParse(json);
      if (!parsed.success) throw unreachable(address, "its answer is none that this version understands");
      return { answer: parsed.data as api.DoorAnswer<Name>, by };
    } finally {
      socket.destroy();
    }
  }
}

/** Who is at the other end, and who this end says it is. */
export type Connecting = Omit<HostClientOptions, "shown" | "answerMs"> & {
  /** Null: it shows no certificate. */
  readonly shown: HostClientOptions["shown"] | null;
};

/** A connection on which nothing was written yet, its other end proven. */
export async function connectProven(
  options: Connecting,
): Promise<{ readonly socket: TLSSocket; readonly by: ProvenHost }> {
  const socket = await connected(options);
  try {
    return { socket, by: proven(socket, options) };
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** After the handshake, and nothing was written yet. */
async function connected({ address, port = AGENT_PORT, shown, from = null }: Connecting): Promise<TLSSocket> {
  const socket = connect({
    host: address,
    port,
    ...(from === null ? {} : { localAddress: from }),
    ...shown,
    minVersion: "TLSv1.3",
    ALPNProtocols: ["http/1.1"],
    // Identities are no addresses and no names of the DNS: `proven` judges.
    rejectUnauthorized: false,
    checkServerIdentity: () => undefined,
  });
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => socket.destroy(new Error(`no answer within ${CONNECT_MS} ms`)),
      CONNECT_MS,
    );
    const fail = (error: Error): void => {
      clearTimeout(timer);
      reject(unreachable(address, reasonOf(error), error));
    };
    // Not once: an error that follows the first one must not end the process.
    socket.on("error", fail);
    socket.once("secureConnect", () => {
      clearTimeout(timer);
      resolve(socket);
    });
    socket.once("close", () => fail(new Error("the connection ended")));
  });
}

function proven(socket: TLSSocket, { address, expect }: Connecting): ProvenHost {
  const leaf = socket.getPeerX509Certificate();
  if (leaf === undefined) throw unreachable(address, "it shows no certificate");
  switch (expect.kind) {
    case "authority":
      return provenByToken(leaf, expect.fingerprint16, address);
    case "host":
      return provenByTrust(leaf, expect, address);
    case "key":
      return provenByKey(leaf, expect.trust, address);
  }
}

function provenByKey(leaf: X509Certificate, trust: Trust, address: string): ProvenHost {
  const verdict = judgeKey(trust, factsOf(leaf, trust.authorities));
  if (verdict.kind !== "ok") throw peerRefusal(verdict, address);
  return { host: verdict.host, cluster: trust.cluster, authority: null };
}

function provenByToken(leaf: X509Certificate, fingerprint16: Uint8Array, address: string): ProvenHost {
  const issuer = leaf.issuerCertificate;
  if (issuer === undefined || issuer.raw.equals(leaf.raw)) throw otherAuthority(address, null, fingerprint16);
  const spki = issuer.publicKey.export({ type: "spki", format: "der" });
  const shown = createHash("sha256").update(spki).digest();
  if (!timingSafeEqual(shown.subarray(0, fingerprint16.length), fingerprint16))
    throw otherAuthority(address, shown, fingerprint16);
  const authority = { kid: shown.toString("hex"), pem: pemOf(issuer) };
  const facts = factsOf(leaf, [authority]);
  const [uri = "", ...others] = facts.uris;
  const named = parseHostUri(uri);
  const isHost = facts.issuerKid !== null && facts.serverAndClient && others.length === 0;
  // Signed by another key than the one it shows, or no host's.
  if (!isHost || named === null || !isP256(leaf.publicKey))
    throw otherAuthority(address, null, fingerprint16);
  const nowMs = Date.now();
  if (nowMs < facts.notBeforeMs || nowMs > facts.notAfterMs) {
    const limitMs = nowMs < facts.notBeforeMs ? facts.notBeforeMs : facts.notAfterMs;
    const kind = nowMs < facts.notBeforeMs ? "not-yet-valid" : "expired";
    throw peerRefusal({ kind, host: named.host, limitMs, nowMs }, address);
  }
  return { ...named, authority };
}

function provenByTrust(
  leaf: X509Certificate,
  { trust, host }: Expectation & { readonly kind: "host" },
  address: string,
): ProvenHost {
  const verdict = judgeCertificate(trust, leaf.raw, Date.now());
  if (verdict.kind !== "ok") throw peerRefusal(verdict, address);
  if (host !== null && verdict.host !== host) throw peerRefusal({ kind: "stranger" }, address);
  return { host: verdict.host, cluster: trust.cluster, authority: null };
}

/** Why a peer is not believed, for who asked it or was asked by it: `who` names it as a person knows it. */
export function peerRefusal(verdict: Exclude<PeerVerdict, { kind: "ok" }>, who: string): WeftError {
  const safe = "Nothing was said to it.";
  switch (verdict.kind) {
    case "stranger":
    case "other-cluster":
    case "bad-chain":
      return new WeftError({
        code: "E-NET-01",
        message: `${who} ${strangerWords[verdict.kind]}.`,
        facts: { peer: who, reason: verdict.kind },
        safe,
      });
    case "not-listed":
      return new WeftError({
        code: "E-NET-02",
        message: `${who} shows a key that no list of this cluster's hosts names.`,
        facts: { peer: who },
        safe,
      });
    case "revoked":
      return new WeftError({
        code: "E-NET-03",
        message: `${who} was revoked at ${iso(verdict.atMs)}.`,
        facts: { peer: who, host: verdict.host, at: iso(verdict.atMs) },
        safe,
      });
    case "expired":
    case "not-yet-valid": {
      const { limitMs, nowMs, host, kind } = verdict;
      const what = kind === "expired" ? "was valid until" : "is valid from";
      return new WeftError({
        code: kind === "expired" ? "E-NET-04" : "E-NET-05",
        message: `The certificate of ${who} ${what} ${iso(limitMs)}; this host's clock says ${iso(nowMs)}.`,
        facts: { peer: who, host, limit: iso(limitMs), now: iso(nowMs) },
        safe,
        do: [{ why: "Is this host's clock right?", command: "timedatectl" }],
      });
    }
  }
}

const strangerWords = {
  stranger: "is no host of this cluster",
  "other-cluster": "is a host of another cluster",
  "bad-chain": "shows no certificate, or one that no host has",
};

/** One request on a connection that was proven; the connection is the caller's to end. */
export function exchange(
  socket: TLSSocket,
  asked: {
    readonly method: string;
    readonly path: string;
    readonly headers: Readonly<Record<string, string>>;
    /** Null: none. */
    readonly body: unknown;
    readonly address: string;
    readonly answerMs: number;
  },
): Promise<{ readonly status: number; readonly text: string }> {
  const { method, path, body, address, answerMs } = asked;
  const payload = body === null ? "" : JSON.stringify(body);
  const headers = {
    ...asked.headers,
    ...(body === null
      ? {}
      : { "content-type": "application/json", "content-length": Buffer.byteLength(payload) }),
  };
  return new Promise((resolve, reject) => {
    const fail = (error: Error): void => {
      clearTimeout(timer);
      reject(unreachable(address, reasonOf(error), error));
    };
    const timer = setTimeout(() => socket.destroy(new Error(`no answer within ${answerMs} ms`)), answerMs);
    // On the very connection that was looked at, never on another one.
    const request = httpRequest(
      { createConnection: () => socket, method, path, headers: { host: "weft", ...headers } },
      (response) => {
        const read = async (): Promise<void> => {
          const text = await readAll(response);
          clearTimeout(timer);
          resolve({ status: response.statusCode ?? 0, text });
        };
        read().catch(fail);
      },
    );
    request.on("error", fail);
    request.end(payload);
  });
}

async function readAll(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > ANSWER_BYTES_MAX) throw new Error(`its answer has more than ${ANSWER_BYTES_MAX} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function errorOf(json: unknown, status: number, address: string): WeftError {
  const parsed = errorAnswer.safeParse(json);
  if (parsed.success) return WeftError.fromBody(parsed.data.error);
  return unreachable(address, `it answers with status ${status} and no error of ours`);
}

function unreachable(address: string, reason: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-HOST-09",
    message: `${address} does not answer as a host of a cluster: ${reason}.`,
    facts: { address },
    safe: "Nothing was changed.",
    do: [{ why: "Is it a member, and does its agent run?", command: "weft status" }],
    ...(cause === undefined ? {} : { cause }),
  });
}

function otherAuthority(address: string, shown: Uint8Array | null, wanted: Uint8Array): WeftError {
  const found = shown === null ? "no authority that signed for it" : `authority ${fingerprintText(shown)}`;
  return new WeftError({
    code: "E-TOKEN-04",
    message: `${address} shows ${found}, the token is for ${fingerprintText(wanted)}.`,
    facts: { address, shown: shown === null ? null : fingerprintText(shown), token: fingerprintText(wanted) },
    safe: "The token's secret was not sent. Nothing was changed.",
    do: [
      {
        why: "Somebody else answers at this address, or the token is of another cluster: on a host of yours",
        command: "weft token create",
      },
    ],
  });
}

/** The first 8 bytes of an authority's fingerprint, as people compare them: `3f9c 21aa 77d0 4be1`. */
export function fingerprintText(fingerprint: Uint8Array | string): string {
  const hex = typeof fingerprint === "string" ? fingerprint : Buffer.from(fingerprint).toString("hex");
  return (hex.slice(0, 16).match(/.{4}/g) ?? []).join(" ");
}

function pemOf(certificate: X509Certificate): string {
  return `${certificate.toString().trim()}\n`;
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
