/**
 * A door that lives in the agent's process and has its own language: a request on RUN/agent.sock that is handed on as text.
 *
 * Must always hold:
 * - only root on the host itself comes in, and is refused before the body is read;
 * - what a door does to volumes it asks of the agent's routes, which write that into the audit as ever; the door adds one line
 *   that says what was asked of it and how that ended.
 */
import { randomUUID } from "node:crypto";
import type { FastifyInstance, FastifyRequest } from "fastify";

import type { Principal } from "../model/roles.ts";
import { type AuditTarget, whoOf } from "../wire/audit-line.ts";
import { WeftError } from "../wire/errors.ts";
import type { AskedAgent } from "./handlers.ts";

export type LocalDoor = {
  readonly method: "POST";
  readonly path: `/v1/${string}`;
  /** Of requests: others are refused. */
  readonly contentType: string;
  /** Bytes; larger requests are refused. */
  readonly bodyLimit: number;
  /** `gone` is aborted when who asked has ended the connection. It answers whatever happens: what it throws is a bug. */
  readonly handle: (body: string, gone: AbortSignal) => Promise<DoorAnswer>;
};

export type DoorAnswer = {
  readonly contentType: string;
  readonly body: string;
  /** Of HTTP; 200 where it isn't said. */
  readonly status?: number;
  /** Null: nothing was asked that the audit is for. `outcome`: `ok`, or what it ended with. */
  readonly audit: { readonly target: AuditTarget; readonly outcome: string } | null;
};

export function doorName({ method, path }: LocalDoor): string {
  return `${method} ${path}`;
}

/** `principalOf`: by the kernel's word. */
export function addLocalDoor(
  app: FastifyInstance,
  agent: Pick<AskedAgent, "audit">,
  principalOf: (request: FastifyRequest) => Promise<Principal> | Principal,
  door: LocalDoor,
): void {
  const { contentType, bodyLimit } = door;
  if (!app.hasContentTypeParser(contentType)) {
    app.addContentTypeParser(contentType, { parseAs: "string" }, (_request, body, done) => done(null, body));
  }
  app.route({
    method: door.method,
    url: door.path,
    bodyLimit,
    onRequest: async (request) => {
      const principal = await principalOf(request);
      if (principal.kind === "root") return;
      const refused = {
        id: randomUUID(),
        who: whoOf(principal),
        from: "unix",
        what: doorName(door),
        target: {},
      };
      await agent.audit.refused(refused, `${doorName(door)} ${whoOf(principal).name}`, "E-AUTH-02");
      throw new WeftError({
        code: "E-AUTH-02",
        message: `${doorName(door)} is for root on the host itself.`,
        safe: "Nothing was changed.",
      });
    },
    handler: async (request, reply) => {
      const text = textOf(contentType, request.body);
      if (text === null) {
        throw new WeftError({ code: "E-ARG-02", message: `${doorName(door)} takes ${contentType}.` });
      }
      const gone = new AbortController();
      reply.raw.once("close", () => gone.abort(new Error("who asked is gone")));
      const begun = performance.now();
      const principal = await principalOf(request);
      const { contentType: type, body, status = 200, audit } = await door.handle(text, gone.signal);
      if (audit !== null) {
        const from = principal.kind === "root" ? `unix pid ${principal.pid}` : "unix";
        const line = {
          id: randomUUID(),
          who: whoOf(principal),
          from,
          what: doorName(door),
          target: audit.target,
        };
        await agent.audit.end(line, audit.outcome, Math.round(performance.now() - begun));
      }
      return reply.status(status).type(type).send(body);
    },
  });
}

/** JSON was parsed on its way in, as it is for every route: a door takes it as text. Null: another content type. */
function textOf(contentType: string, body: unknown): string | null {
  if (typeof body === "string") return body;
  return contentType === "application/json" && typeof body === "object" ? JSON.stringify(body) : null;
}
