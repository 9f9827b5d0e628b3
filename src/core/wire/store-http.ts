/**
 * One request to the store over HTTP or HTTPS, and what is known of it when it failed.
 *
 *     connecting ──connected, the server proven──▶ sent ──head of the answer──▶ answered (the body streams)
 *         └─ failed: not executed                   └─ failed: unknown, but where our certificate was refused
 *
 * Must always hold:
 * - not one byte of HTTP leaves before the connection stands and, with TLS, before the server has proven itself: so a
 *   failure before that is known to have changed nothing (protocol.md R14);
 * - a failure after that is `unknown`, with one exception: an alert about our certificate on a fresh connection. In
 *   TLS 1.3 it arrives after we have written, and who sends it has not finished its handshake: it read nothing of ours;
 * - who has a certificate to show never speaks in clear, and who has none never over TLS;
 * - a connection is used for new requests only while it was made with the certificate and authorities of now.
 */
import {
  Agent as ClearAgent,
  type ClientRequest,
  type IncomingMessage,
  request as clearRequest,
} from "node:http";
import { Agent as TlsAgent, request as tlsRequest } from "node:https";

/** What a client of the store shows and whom it believes: getters, a renewal swaps what they return. */
export type StoreTls = {
  /** PEM: the certificate with its issuers, and its key. */
  readonly current: () => { readonly cert: string; readonly key: string };
  /** PEM: the authorities that may have issued a member's certificate. */
  readonly storeCa: () => string;
};

export type PostOptions = {
  /** Ends the request, and the body where it is read still; null: nothing does. */
  readonly signal: AbortSignal | null;
  readonly tls: StoreTls | null;
};

/** The body ends, or throws when the connection or the signal ended it; the connection is held until then. */
export type PostAnswer = { readonly status: number; readonly body: AsyncIterable<Uint8Array> };

/** The request failed before an answer began. */
export class PostFailure extends Error {
  /** `unknown`: it may have been executed, or may still be (protocol.md R14). */
  readonly kind: "not-executed" | "unknown";

  constructor(kind: PostFailure["kind"], cause: unknown) {
    const said = plain(cause);
    super(said.message, { cause: said });
    this.name = "PostFailure";
    this.kind = kind;
  }
}

/** A connection without a request is closed after this: a member that lost its power is then asked on a new one. */
const IDLE_MS = 4000;

/**
 * Posts `body` (JSON) to `path` at `url` (`http://` or `https://`, address and port) on a kept connection.
 *
 * Rejects with [PostFailure] until the head of the answer is there; later failures are thrown by the answer's body.
 */
export async function post(
  url: string,
  path: string,
  body: string,
  options: PostOptions,
): Promise<PostAnswer> {
  const { signal } = options;
  let sent = false;
  let request: ClientRequest;
  try {
    signal?.throwIfAborted();
    request = open(new URL(path, url), Buffer.byteLength(body), options.tls);
  } catch (error) {
    throw new PostFailure("not-executed", error);
  }
  return new Promise((resolve, reject) => {
    let ended: ClientRequest | IncomingMessage = request;
    const abort = (): void => void ended.destroy(asError(signal?.reason));
    signal?.addEventListener("abort", abort, { once: true });
    request.once("close", () => {
      if (ended === request) signal?.removeEventListener("abort", abort);
    });
    request.once("socket", (socket) => {
      const send = (): void => {
        sent = true;
        request.end(body);
      };
      if (request.reusedSocket) send();
      // With TLS only after the server's certificate was believed: it is not emitted otherwise.
      else socket.once(options.tls === null ? "connect" : "secureConnect", send);
    });
    request.once("response", (response) => {
      ended = response;
      response.once("close", () => signal?.removeEventListener("abort", abort));
      resolve({ status: response.statusCode ?? 0, body: response });
    });
    // Not once: an error that follows the first one must not end the process.
    request.on("error", (error) => {
      const unread = !sent || (!request.reusedSocket && isCertificateAlert(error));
      reject(new PostFailure(unread ? "not-executed" : "unknown", error));
    });
  });
}

/** Stands for the certificate and authorities of a moment. */
export type StoreMark = object | null;

/** What connections are made with now: a long stream that was begun with another mark is made anew. */
export function markOf(tls: StoreTls | null): StoreMark {
  return tls === null ? null : heldFor(tls).mark;
}

const clearAgent = new ClearAgent({ keepAlive: true, timeout: IDLE_MS });

type Held = {
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
  readonly agent: TlsAgent;
  readonly mark: object;
};

const agents = new WeakMap<StoreTls, Held>();

function heldFor(tls: StoreTls): Held {
  const { cert, key } = tls.current();
  const ca = tls.storeCa();
  const held = agents.get(tls);
  if (held !== undefined && held.cert === cert && held.key === key && held.ca === ca) return held;
  if (held !== undefined) retire(held.agent);
  const agent = new TlsAgent({
    keepAlive: true,
    timeout: IDLE_MS,
    cert,
    key,
    ca,
    minVersion: "TLSv1.3",
    rejectUnauthorized: true,
    // A resumed session would carry the proof of an older certificate.
    maxCachedSessions: 0,
  });
  const made = { cert, key, ca, agent, mark: {} };
  agents.set(tls, made);
  return made;
}

/** Idle connections end now, those in use after their answer. `destroy()` would cut these. */
function retire(agent: TlsAgent): void {
  agent.maxFreeSockets = 0;
  for (const sockets of Object.values(agent.freeSockets))
    for (const socket of sockets ?? []) socket.destroy();
}

/** Nothing is written before `end`. */
function open(url: URL, length: number, tls: StoreTls | null): ClientRequest {
  const wanted = tls === null ? "http:" : "https:";
  if (url.protocol !== wanted) throw new Error(`${url.origin} is not an address that begins with ${wanted}`);
  const options = {
    method: "POST",
    headers: { "content-type": "application/json", "content-length": length },
  };
  if (tls === null) return clearRequest(url, { ...options, agent: clearAgent });
  return tlsRequest(url, { ...options, agent: heldFor(tls).agent });
}

/**
 * bad_certificate, unsupported, revoked, expired, unknown, unknown_ca, access_denied, certificate_required (RFC 8446 6.2):
 * sent in a handshake only. Node has no field for the number; OpenSSL's sentence ends with it.
 */
function isCertificateAlert(error: Error): boolean {
  return /SSL alert number (?:42|43|44|45|46|48|49|116)\b/.test(error.message);
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}

/** OpenSSL's own words are for its developers; its `reason` is the part that says something. */
function plain(cause: unknown): Error {
  const error = asError(cause);
  const isOpenSsl = "library" in error && "reason" in error && typeof error.reason === "string";
  return isOpenSsl ? new Error(String(error.reason), { cause: error }) : error;
}
