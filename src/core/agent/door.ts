/**
 * The host's door for other machines: HTTPS on port 7400 of its address.
 *
 *     TCP ──gate──▶ TLS 1.3 handshake ──▶ one request at a time: form ── caller ── right ── allowance ──▶ handler
 *      │                    │                         └─ each refusal has a code, and stands in the audit
 *      └─ over a bound ─────┴─ fails: closed, and a line or a count in the audit
 *
 * Must always hold:
 * - a caller is who its certificate's key proves by the trust list of now, judged at every request: never its address;
 * - TLS has no resumption: a resumed session would bring the old identity without its certificate;
 * - what a stranger can make this host keep, compute or wait for is bounded, by address and together (limits.ts);
 * - a host that the list no longer trusts has no connection here, from the moment that `dropPeer` is called.
 */
import { constants, randomUUID, type X509Certificate } from "node:crypto";
import { createServer as createTlsServer, type Server as TlsServer, type ServerOptions } from "node:https";
import type { IncomingMessage, RequestListener, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { z } from "zod";

import { Allowances, Gate, networkOf, type Place } from "../model/gate.ts";
import { type ApiTokenText, parseAuthorization } from "../model/api-token-text.ts";
import type { HostId } from "../model/ids.ts";
import {
  DOOR_BODY_BYTES_MAX,
  DOOR_HANDSHAKE_MS,
  DOOR_HEADER_BYTES_MAX,
  DOOR_HEADERS_MS,
  DOOR_IDLE_MS,
  DOOR_LIMITS,
  DOOR_REQUEST_MS,
  DOOR_REQUESTS,
  DOOR_REQUESTS_PER_CONNECTION,
  WRONG_TOKENS,
} from "../model/limits.ts";
import { type Principal, principalKey, type TokenPrincipal } from "../model/roles.ts";
import { Tries } from "../model/tries.ts";
import type { PeerVerdict, Trust } from "../model/trust.ts";
import { badRequest } from "../wire/agent-client.ts";
import { type AuditTarget, whoOf } from "../wire/audit-line.ts";
import { judgeCertificate } from "../wire/certificate.ts";
import { type DoorAnswer, type DoorBody, type DoorRouteName, doorRoutes } from "../wire/door-api.ts";
import { reasonOf, WeftError } from "../wire/errors.ts";
import { AGENT_PORT, peerRefusal } from "../wire/host-client.ts";
import { routeNames } from "../wire/routes.ts";
import type { ClientTls } from "../wire/tls-context.ts";
import type { Audit, AuditRequest } from "./audit.ts";
import type { AskedAgent } from "./handlers.ts";
import type { Log } from "./log.ts";
import { addTable, type Askings, createBareApp } from "./rest.ts";
import { auditRefusal } from "./rest-audit.ts";

/** Who asks. */
export type DoorCaller = {
  readonly address: string;
  /** Whose key the handshake has proven; null: it showed none. */
  readonly certificate: X509Certificate | null;
  /** By the trust list of now; null: it showed none. */
  readonly verdict: PeerVerdict | null;
};

export type DoorCall<Name extends DoorRouteName> = {
  readonly caller: DoorCaller;
  readonly body: DoorBody<Name>;
  /**
   * Called by a handler that changes something, as soon as it believes the caller, and before it does it: from then on how
   * it ends stands in the audit too. What strangers only try is counted there, and can't fill a disk.
   */
  readonly begin: (target: AuditTarget) => Promise<void>;
};

export type DoorHandlers = {
  readonly [Name in DoorRouteName]: (call: DoorCall<Name>) => Promise<DoorAnswer<Name>>;
};

export type DoorOptions = {
  readonly address: string;
  readonly tls: ClientTls;
  /** A request without a handler is none that this host serves. */
  readonly handlers: Partial<DoorHandlers>;
  /** Whether a host of the cluster has this address: a hint that keeps places for it. */
  readonly isHostAddress: (address: string) => boolean;
  /** The table of routes, for people and programs with a token; null: the door's own requests alone. */
  readonly rest: RestBehind | null;
  readonly audit: Pick<Audit, "begin" | "end" | "refused">;
  readonly log: Log;
};

export type RestBehind = {
  readonly agent: AskedAgent;
  /** Null: no token of this cluster, or not any more. */
  readonly judgeToken: (
    token: ApiTokenText,
    address: string,
    nowMs: number,
  ) => Promise<TokenPrincipal | null>;
};

/** By the list of a moment: signatures are verified once for each connection and list. */
type Judged = { readonly trust: Trust; readonly verdict: PeerVerdict | null };

/** A connection from its TCP handshake on. */
type Visit = {
  readonly place: Place;
  readonly socket: Socket;
  /** Null: its handshake isn't done. */
  tls: TLSSocket | null;
  /** Why it never was, where TLS says so. */
  fault: string | null;
  readonly atMs: number;
};

export class Door {
  readonly #options: DoorOptions;
  readonly #gate = new Gate(DOOR_LIMITS);
  readonly #requests = new Allowances(DOOR_REQUESTS);
  readonly #wrongTokens = new Tries(WRONG_TOKENS);
  readonly #askings: Askings = new WeakMap();
  readonly #atOnce = new Map<string, number>();
  /** By the other end's address and port. */
  readonly #visits = new Map<string, Visit>();
  readonly #busy = new WeakSet<Socket>();
  readonly #judged = new WeakMap<Socket, Judged>();
  readonly #app: FastifyInstance;
  #server: TlsServer | null = null;
  #closed = false;

  private constructor(options: DoorOptions) {
    this.#options = options;
    this.#app = createBareApp(
      options.log,
      { bodyLimit: DOOR_BODY_BYTES_MAX, serverFactory: (handler) => this.#serve(handler) },
      (request, error) => this.#refused(request, error),
    );
    this.#addRoutes();
  }

  /** Listens when it returns. E-HOST-08 when the port is taken or the address isn't this host's. */
  static async listen(options: DoorOptions): Promise<Door> {
    const door = new Door(options);
    const { address } = options;
    try {
      await door.#app.listen({ host: address, port: AGENT_PORT });
    } catch (cause) {
      throw new WeftError({
        code: "E-HOST-08",
        message: `Port ${AGENT_PORT} on ${address} can't be served: ${reasonOf(cause)}.`,
        facts: { address, port: AGENT_PORT },
        cause,
      });
    }
    return door;
  }

  /** Cuts what this host has open here. What it asks from now on is judged by the list of then. */
  dropPeer(host: HostId): void {
    for (const { tls, socket } of this.#visits.values()) {
      const verdict = tls === null ? null : this.#judge(tls);
      if (verdict !== null && "host" in verdict && verdict.host === host) socket.destroy();
    }
  }

  /** New connections are shown the certificate of now; those that are open go on. */
  renew(): void {
    this.#server?.setSecureContext(this.#shown());
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const { socket } of this.#visits.values()) socket.destroy();
    await this.#app.close();
  }

  /** Before TLS: a handshake costs this host more than the other end. */
  #admit(socket: Socket, goOn: () => void): void {
    const { remoteAddress: address = "", remotePort: port = 0 } = socket;
    const isHost = this.#options.isHostAddress(address);
    const place = this.#closed ? null : this.#gate.admit({ address, isHost }, performance.now());
    if (place === null) {
      socket.destroy();
      if (!this.#closed) this.#refusedEarly(address, port, "E-LIMIT-01", "more than the door takes");
      return;
    }
    const visit: Visit = { place, socket, tls: null, fault: null, atMs: performance.now() };
    const name = nameOf(address, port);
    this.#visits.set(name, visit);
    socket.once("close", () => {
      this.#gate.leave(place);
      this.#visits.delete(name);
      if (visit.tls === null && !this.#closed) this.#refusedEarly(address, port, "E-NET-01", faultOf(visit));
    });
    goOn();
  }

  #serve(handler: RequestListener): TlsServer {
    const options: ServerOptions = {
      ...this.#shown(),
      requestCert: true,
      // Judged by us: a joining host shows a certificate that nobody signed.
      rejectUnauthorized: false,
      handshakeTimeout: DOOR_HANDSHAKE_MS,
      headersTimeout: DOOR_HEADERS_MS,
      requestTimeout: DOOR_REQUEST_MS,
      keepAliveTimeout: DOOR_IDLE_MS,
      connectionsCheckingInterval: 500,
      maxHeaderSize: DOOR_HEADER_BYTES_MAX,
      requireHostHeader: true,
    };
    const server = createTlsServer(options, (request, response) => this.#one(handler, request, response));
    server.maxRequestsPerSocket = DOOR_REQUESTS_PER_CONNECTION;
    // In front of the listener that begins with TLS.
    const begin = server.listeners("connection");
    server.removeAllListeners("connection");
    server.on("connection", (socket: Socket) =>
      this.#admit(socket, () => {
        for (const listener of begin) listener.call(server, socket);
      }),
    );
    server.on("secureConnection", (socket: TLSSocket) => {
      const visit = this.#visits.get(nameOf(socket.remoteAddress ?? "", socket.remotePort ?? 0));
      if (visit === undefined || socket.isSessionReused()) {
        if (visit !== undefined) visit.fault = "a resumed session";
        socket.destroy();
        return;
      }
      visit.tls = socket;
      this.#gate.prove(visit.place);
    });
    server.on("tlsClientError", (error: Error, { remoteAddress = "", remotePort = 0 }: TLSSocket) => {
      const visit = this.#visits.get(nameOf(remoteAddress, remotePort));
      if (visit !== undefined) visit.fault = error.message;
    });
    this.#server = server;
    return server;
  }

  /** Who got no further than the port. Nothing waits for it: a flood is only counted. */
  #refusedEarly(address: string, port: number, code: string, reason: string): void {
    const who = whoOf({ kind: "nobody", address });
    const request = { id: null, who, from: `${address}:${port}`, what: "port 7400", target: { reason } };
    void this.#options.audit.refused(request, `7400 ${networkOf(address)}`, code);
  }

  /** What Node would queue up behind a running request is nothing that a client of ours sends. */
  #one(handler: RequestListener, request: IncomingMessage, response: ServerResponse): void {
    const { socket } = request;
    if (this.#busy.has(socket)) {
      socket.destroy();
      return;
    }
    this.#busy.add(socket);
    response.once("close", () => this.#busy.delete(socket));
    handler(request, response);
  }

  #shown(): ServerOptions {
    const { cert, key } = this.#options.tls.current();
    return {
      cert,
      key,
      // No names of authorities for the other end to choose by, and none that OpenSSL would believe.
      ca: [],
      minVersion: "TLSv1.3",
      secureOptions: constants.SSL_OP_NO_TICKET,
      ALPNProtocols: ["http/1.1"],
    };
  }

  #addRoutes(): void {
    const app = this.#app;
    app.addHook("onRequest", async (request, reply) => {
      try {
        this.#enter(request);
        // By the connection too: an answer whose reader has gone is never "finished".
        reply.raw.once("close", () => this.#leave(request));
      } catch (error) {
        // What else it sends on this connection is not looked at.
        void reply.header("connection", "close");
        throw error;
      }
    });
    for (const name of Object.keys(doorRoutes) as DoorRouteName[]) this.#addRoute(name);
    const { rest, log } = this.#options;
    if (rest === null) return;
    const principalOf = (request: FastifyRequest): Promise<Principal> => this.#principalOf(request, rest);
    addTable(app, { agent: rest.agent, log, names: routeNames, principalOf }, this.#askings);
  }

  #addRoute(name: DoorRouteName): void {
    const { right, request, answer } = doorRoutes[name];
    const [method = "GET", url = "/"] = name.split(" ");
    // The table's types tie each handler to its row; here they are walked through alike.
    const handle = this.#options.handlers[name] as
      | ((call: Omit<DoorCall<DoorRouteName>, "body"> & { readonly body: unknown }) => Promise<unknown>)
      | undefined;
    if (handle === undefined) return;
    this.#app.route({
      method,
      url,
      handler: async (call) => {
        const caller = this.#callerOf(call);
        if (right === "host") refuseStranger(caller);
        const body = parsedBody(request, call.body);
        const noted = await this.#noted(name, call, caller, (begin) => handle({ caller, body, begin }));
        return answer.encode(noted as never);
      },
    });
  }

  /** Form and allowance, before anything is read of the body. */
  #enter(request: FastifyRequest): void {
    const coding = request.headers["transfer-encoding"];
    // Node lets unknown codings through; who stands between may take the body's end to be elsewhere.
    if (coding !== undefined && coding !== "chunked") {
      throw new WeftError({
        code: "E-ARG-02",
        message: "The request's body is coded in a way that this door does not take.",
      });
    }
    const key = keyOf(this.#callerOf(request));
    const running = this.#atOnce.get(key) ?? 0;
    if (running >= DOOR_REQUESTS.atOnce || !this.#requests.take(key, performance.now())) {
      throw tooManyRequests();
    }
    this.#atOnce.set(key, running + 1);
    entered.set(request, key);
  }

  #leave(request: FastifyRequest): void {
    const key = entered.get(request);
    if (key === undefined) return;
    entered.delete(request);
    const running = (this.#atOnce.get(key) ?? 1) - 1;
    if (running === 0) this.#atOnce.delete(key);
    else this.#atOnce.set(key, running);
  }

  async #noted(
    name: DoorRouteName,
    request: FastifyRequest,
    caller: DoorCaller,
    work: (begin: (target: AuditTarget) => Promise<void>) => Promise<unknown>,
  ): Promise<unknown> {
    const { audit } = this.#options;
    const started = performance.now();
    let begun: AuditRequest | null = null;
    const end = async (outcome: string): Promise<void> => {
      if (begun !== null) await audit.end(begun, outcome, Math.round(performance.now() - started));
    };
    try {
      const answer = await work(async (target) => {
        const what = this.#auditOf(name, request, caller, target);
        await audit.begin(what, true);
        begun = what;
        begunRequests.add(request);
      });
      await end("ok");
      return answer;
    } catch (error) {
      await end(error instanceof WeftError ? error.code : "E-AGENT-06");
      throw error;
    }
  }

  async #refused(request: FastifyRequest, error: WeftError): Promise<void> {
    const { code } = error;
    const { rest } = this.#options;
    const asking = this.#askings.get(request);
    if (rest !== null && asking !== undefined) {
      await auditRefusal(rest.agent, asking, request, error);
      return;
    }
    const caller = this.#callerOf(request);
    const name = `${request.method} ${request.url.split("?")[0] ?? ""}`.slice(0, 100);
    const isRow = Object.hasOwn(doorRoutes, name) || isDenial(code);
    this.#options.log.debug({ from: caller.address, what: name, code }, "refused");
    if (!isRow || begunRequests.has(request)) return;
    await this.#options.audit.refused(this.#auditOf(name, request, caller, {}), keyOf(caller), code);
  }

  #auditOf(what: string, { raw }: FastifyRequest, caller: DoorCaller, target: AuditTarget): AuditRequest {
    const { address, verdict } = caller;
    const port = raw.socket.remotePort ?? 0;
    const who = whoOf(this.#peerOf(address, verdict));
    return { id: randomUUID(), who, from: `${address}:${port}`, what, target };
  }

  /** By the token that it shows, by its certificate, or not at all. */
  async #principalOf(request: FastifyRequest, rest: RestBehind): Promise<Principal> {
    const { address, verdict } = this.#callerOf(request);
    const header = request.headers.authorization;
    if (header === undefined) return this.#peerOf(address, verdict);
    const now = performance.now();
    if (!this.#wrongTokens.begin(address, now)) throw tooManyTokens();
    const token = parseAuthorization(header);
    const principal = token === null ? null : await rest.judgeToken(token, address, Date.now());
    if (principal === null) return { kind: "nobody", address };
    this.#wrongTokens.right(address, now);
    if (!this.#requests.take(principalKey(principal), now)) throw tooManyRequests();
    return principal;
  }

  #peerOf(address: string, verdict: PeerVerdict | null): Principal {
    if (verdict?.kind !== "ok") return { kind: "nobody", address };
    const { host } = verdict;
    return { kind: "host", host, name: this.#options.tls.peerTrust().hosts.get(host)?.name ?? host };
  }

  #callerOf(request: FastifyRequest): DoorCaller {
    const socket = request.raw.socket as TLSSocket;
    return {
      address: socket.remoteAddress ?? "",
      certificate: socket.getPeerX509Certificate() ?? null,
      verdict: this.#judge(socket),
    };
  }

  #judge(socket: TLSSocket): PeerVerdict | null {
    const trust = this.#options.tls.peerTrust();
    const known = this.#judged.get(socket);
    if (known !== undefined && known.trust === trust && isTimeless(known.verdict)) return known.verdict;
    const certificate = socket.getPeerX509Certificate();
    const verdict = certificate === undefined ? null : judgeCertificate(trust, certificate.raw, Date.now());
    this.#judged.set(socket, { trust, verdict });
    return verdict;
  }
}

/** Whether it is still so while the list is the same. */
function isTimeless(verdict: PeerVerdict | null): boolean {
  switch (verdict?.kind) {
    case "ok":
      return Date.now() <= verdict.notAfterMs;
    case "expired":
    case "not-yet-valid":
      return false;
    case "stranger":
    case "other-cluster":
    case "bad-chain":
    case "not-listed":
    case "revoked":
    case undefined:
      return true;
  }
}

/** Somebody who may not ask, or not in this form, whatever was asked. */
function isDenial(code: string): boolean {
  return code.startsWith("E-AUTH-") || code === "E-LIMIT-02";
}

/** Requests whose beginning stands in the audit: an error is how they ended, and no refusal. */
const begunRequests = new WeakSet<FastifyRequest>();

/** Requests that count as running, with whose they are. */
const entered = new WeakMap<FastifyRequest, string>();

function tooManyRequests(): WeftError {
  return new WeftError({
    code: "E-AUTH-03",
    message: `Too many requests: ${DOOR_REQUESTS.perSecond} a second and ${DOOR_REQUESTS.atOnce} at once are answered.`,
    safe: "Nothing was changed.",
  });
}

function tooManyTokens(): WeftError {
  const { tries, windowMs } = WRONG_TOKENS;
  return new WeftError({
    code: "E-AUTH-03",
    message: `${tries} wrong tokens came from this address within ${windowMs / 1000} s: no other is looked at for now.`,
    safe: "Nothing was changed.",
  });
}

function refuseStranger({ address, verdict }: DoorCaller): void {
  const safe = "Nothing was changed.";
  switch (verdict?.kind) {
    case "ok":
      return;
    case "revoked":
      throw new WeftError({
        code: "E-HOST-14",
        message: "This host was revoked: its identity is never trusted again.",
        facts: { host: verdict.host },
        safe,
      });
    case "expired":
    case "not-yet-valid": {
      const { message, facts } = peerRefusal(verdict, "the host that asks");
      throw new WeftError({ code: "E-AUTH-01", message, facts, safe });
    }
    case "stranger":
    case "other-cluster":
    case "bad-chain":
    case "not-listed":
    case undefined:
      throw new WeftError({
        code: "E-AUTH-01",
        message: "Only hosts of this cluster may ask that, and this connection has proven none.",
        facts: { address },
        safe,
      });
  }
}

function parsedBody(schema: z.ZodType | null, body: unknown): unknown {
  if (schema === null) return null;
  const parsed = schema.safeParse(body ?? {});
  if (parsed.success) return parsed.data;
  throw badRequest(parsed.error);
}

/** Why there was no handshake. */
function faultOf({ fault, atMs }: Visit): string {
  if (fault !== null) return fault;
  const isSlow = performance.now() - atMs >= DOOR_HANDSHAKE_MS;
  return isSlow ? `no handshake within ${DOOR_HANDSHAKE_MS} ms` : "it ended before its handshake";
}

/** Who has an allowance of its own. */
function keyOf({ address, verdict }: DoorCaller): string {
  return verdict?.kind === "ok" ? verdict.host : networkOf(address);
}

function nameOf(address: string, port: number): string {
  return `${address} ${port}`;
}
