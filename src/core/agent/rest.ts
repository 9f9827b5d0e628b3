/**
 * The REST interface on RUN/agent.sock, registered from the table of routes.
 *
 * Must always hold:
 * - a route that isn't in the table and no door of the process can't be registered, and one of the table has a handler;
 * - who asks is judged before the body is read, and again when the body asks for more;
 * - a request with more headers than are read is refused, never read without them;
 * - bodies are parsed before anything is done, answers are encoded by the schema that clients decode with;
 * - every error has a code; what has none is a bug and says so (E-AGENT-06).
 */
import {
  fastify,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifyServerOptions,
} from "fastify";
import type { z } from "zod";

import { HEADERS_MAX } from "../model/limits.ts";
import {
  mayDo,
  type Principal,
  principalKey,
  type Right,
  roleOf,
  shownPrincipal,
  type Subject,
} from "../model/roles.ts";
import { badRequest } from "../wire/agent-client.ts";
import { whoOf } from "../wire/audit-line.ts";
import { doorRoutes } from "../wire/door-api.ts";
import { reasonOf, WeftError } from "../wire/errors.ts";
import { methodAndPath, type RouteName, routeNames, routes, type RouteSpec } from "../wire/routes.ts";
import { loadAddon } from "../wire/addon.ts";
import { type AskedAgent, handlers } from "./handlers.ts";
import { addLocalDoor, doorName, type LocalDoor } from "./local-door.ts";
import { boundConnections, listenLocal, removeLocal } from "./local-socket.ts";
import type { Log } from "./log.ts";
import type { AgentOptions } from "./options.ts";
import { type Asking, audited, auditForm, auditOf, auditRefusal, foundSubject } from "./rest-audit.ts";
import { UnixPrincipals } from "./principal.ts";

const BODY_MAX = 64 * 1024;
/** Longer names of volumes, pools and hosts are no path of ours; shorter ones are looked for, and not found. */
const PARAM_MAX = 256;
/** As much of a path that we don't know is repeated. */
const SHOWN_MAX = 100;

/** A door to the table: what is behind it, and how it knows who asks. */
export type RestDoor = {
  readonly agent: AskedAgent;
  readonly log: Log;
  readonly names: readonly RouteName[];
  readonly principalOf: (request: FastifyRequest) => Promise<Principal> | Principal;
};

/** The host's own socket: everything, and the doors that live in this process. */
export async function serveLocal(
  agent: AskedAgent,
  { runDir, viewerGroup, addon }: Pick<AgentOptions, "runDir" | "viewerGroup" | "addon">,
  log: Log,
  doors: readonly LocalDoor[] = [],
): Promise<FastifyInstance> {
  const principals = new UnixPrincipals(loadAddon(addon), process.getuid?.() ?? 0, viewerGroup !== null);
  const principalOf = ({ raw }: FastifyRequest): Principal => principals.of(raw.socket);
  const app = createApp({ agent, log, names: routeNames, principalOf }, doors);
  boundConnections(app.server, principals, (principal) => {
    const target = { reason: "more connections than a user may have" };
    const request = { id: null, who: whoOf(principal), from: "unix", what: "agent.sock", target };
    void agent.audit.refused(request, `agent.sock ${principalKey(principal)}`, "E-LIMIT-01");
  });
  app.addHook("onClose", () => removeLocal(runDir));
  await listenLocal(app, runDir, viewerGroup);
  return app;
}

export function createApp(door: RestDoor, doors: readonly LocalDoor[] = []): FastifyInstance {
  const askings: Askings = new WeakMap();
  const onRefused = async (request: FastifyRequest, error: WeftError): Promise<void> => {
    if (error.code !== "E-LIMIT-02") await auditRefusal(door.agent, askings.get(request), request, error);
    else await auditForm(door.agent, await door.principalOf(request), request, error.code);
  };
  const app = createBareApp(door.log, {}, onRefused, doors.map(doorName));
  addTable(app, door, askings);
  for (const local of doors) addLocalDoor(app, door.agent, door.principalOf, local);
  return app;
}

/**
 * What every door answers alike: bodies, errors, and what it has no route for. `onRefused`: for the audit. `others`: routes that
 * no table has.
 */
export function createBareApp(
  log: Log,
  more: Pick<FastifyServerOptions, "bodyLimit" | "serverFactory"> = {},
  onRefused: (request: FastifyRequest, error: WeftError) => Promise<void> = async () => undefined,
  others: readonly string[] = [],
): FastifyInstance {
  const app = fastify({
    logger: false,
    bodyLimit: BODY_MAX,
    forceCloseConnections: true,
    exposeHeadRoutes: false,
    routerOptions: { maxParamLength: PARAM_MAX },
    ...more,
    // What fastify refuses before it has looked for a route: a path that can't be decoded, or is too long.
    frameworkErrors: (error, _request: FastifyRequest, reply: FastifyReply) => {
      const known = unexpected(error);
      void reply.status(known.status).send({ error: known.toBody() });
    },
  });
  // One more than may be there, so that too many are seen.
  app.server.maxHeadersCount = HEADERS_MAX + 1;
  app.addHook("onRequest", async ({ raw }, reply) => {
    if (raw.rawHeaders.length <= 2 * HEADERS_MAX) return;
    // Where its body ends may stand in one that was dropped.
    void reply.header("connection", "close");
    throw new WeftError({
      code: "E-LIMIT-02",
      message: `The request has more than ${HEADERS_MAX} headers.`,
      safe: "Nothing was changed.",
    });
  });
  app.addHook("onRoute", ({ method, url }) => {
    const name = `${String(method)} ${url}`;
    if (Object.hasOwn(routes, name) || Object.hasOwn(doorRoutes, name) || others.includes(name)) return;
    throw new Error(`${name} is not in the table of routes`);
  });
  // A POST without a body is one with an empty body.
  app.addContentTypeParser("application/json", { parseAs: "string" }, (_request, body, done) => {
    try {
      done(null, body === "" ? {} : JSON.parse(String(body)));
    } catch (cause) {
      done(new WeftError({ code: "E-ARG-02", message: "The request's body is not JSON.", cause }));
    }
  });
  app.setErrorHandler(async (error, request, reply) => {
    const known = error instanceof WeftError ? error : unexpected(error);
    if (known.code === "E-AGENT-06")
      log.error({ url: request.url, error: reasonOf(error), stack: stackOf(error) }, "a bug");
    await onRefused(request, known);
    return reply.status(known.status).send({ error: known.toBody() });
  });
  app.setNotFoundHandler((request, reply) => {
    const error = new WeftError({
      code: "E-ARG-01",
      message: `No request ${request.method} ${request.url.slice(0, SHOWN_MAX)}.`,
    });
    return reply.status(404).send({ error: error.toBody() });
  });
  return app;
}

/** What is known of each request from its first hook on. */
export type Askings = WeakMap<FastifyRequest, Asking>;

/** The table's routes, at a door that may have others of its own. */
export function addTable(app: FastifyInstance, door: RestDoor, askings: Askings): void {
  for (const name of door.names) addRoute(app, door, askings, name);
}

function addRoute(app: FastifyInstance, door: RestDoor, askings: Askings, name: RouteName): void {
  const { agent, principalOf } = door;
  const { method, path } = methodAndPath(name);
  const spec: RouteSpec = routes[name];
  // The table's types tie each handler to its row; here they are walked through alike.
  const handle = handlers[name] as (agent: AskedAgent, asked: object) => unknown;
  app.route({
    method,
    url: path,
    bodyLimit: spec.bodyMax,
    onRequest: async (request) => {
      const principal = await principalOf(request);
      const { subject, ref } = subjectOf(agent, principal, spec, request);
      askings.set(request, { name, principal, subject, ref, hasBegun: false });
      judge(principal, spec.right, subject, name);
    },
    handler: async (request, reply) => {
      const asking = askings.get(request);
      if (asking === undefined) throw new Error(`${name} was reached without knowing who asks`);
      const { principal, subject, ref } = asking;
      const parsed = spec.request === null ? null : parse(spec.request, request.body);
      const query = spec.query === null ? null : parse(spec.query, request.query);
      const right = spec.raise === null ? spec.right : spec.raise(parsed);
      if (spec.raise !== null) judge(principal, right, subject, name);
      const body =
        spec.names === null ? parsed : judgeNamed(agent, { principal, right, name }, spec.names, parsed);
      // What was judged is what is done, should the name mean another volume by now.
      const params = { ...(request.params as object), ...(ref === null ? {} : { ref }) };
      const work = async (): Promise<unknown> =>
        spec.answer.encode(await handle(agent, { principal, params, body, query }));
      if (spec.audit === "read") {
        const answer = await work();
        // The one that isn't JSON is for collectors of figures.
        if (typeof answer === "string") void reply.type("text/plain; version=0.0.4; charset=utf-8");
        return answer;
      }
      const begun = auditOf(agent, asking, request, body);
      await agent.audit.begin(begun, right === "admin" || right === "local-root");
      asking.hasBegun = true;
      return audited(agent, begun, work);
    },
  });
}

function judge(principal: Principal, right: Right, subject: Subject, name: RouteName): void {
  if (mayDo(principal, right, subject)) return;
  if (principal.kind === "nobody") {
    throw new WeftError({
      code: "E-AUTH-01",
      message: "Who asks is not known here.",
      safe: "Nothing was changed.",
      do: [{ why: "With a token of this cluster", command: "weft login URL" }],
    });
  }
  const bound = mayDo(principal, right, { kind: "volumes" }) && roleOf(principal) !== null;
  throw new WeftError({
    code: "E-AUTH-02",
    message: bound
      ? `${shownPrincipal(principal)} may do this, but not here: the token is bound to other volumes.`
      : `${shownPrincipal(principal)} may not do this: it takes ${shownRight(right)}.`,
    facts: { route: name, right },
    safe: "Nothing was changed.",
  });
}

function shownRight(right: Right): string {
  switch (right) {
    case "open":
      return "nothing";
    case "host":
      return "a host of the cluster";
    case "local-root":
      return "root on the host itself";
    case "viewer":
    case "operator":
    case "admin":
      return `the role ${right}`;
  }
}

/**
 * Looked up only for who is bound to volumes. A name that stands for nothing is no volume: whether it exists is not said
 * to who may not see it.
 */
function subjectOf(
  agent: AskedAgent,
  principal: Principal,
  { subject }: RouteSpec,
  { params }: FastifyRequest,
): Pick<Asking, "subject" | "ref"> {
  if (subject === "cluster" || subject === "volumes") return { subject: { kind: subject }, ref: null };
  if (principal.kind !== "token" || principal.volumes === null)
    return { subject: { kind: "volume", volume: null }, ref: null };
  const found = foundSubject(agent, subject, (params as { readonly ref: string }).ref);
  return { subject: { kind: "volume", volume: found?.volume ?? null }, ref: found?.ref ?? null };
}

/** The body with the ids of the volumes that it names, where who asks is bound to some: what was judged is what is done. */
function judgeNamed(
  agent: AskedAgent,
  { principal, right, name }: Pick<Asking, "principal" | "name"> & { readonly right: Right },
  field: string,
  body: unknown,
): unknown {
  if (principal.kind !== "token" || principal.volumes === null) return body;
  const refs = (body as Readonly<Record<string, readonly string[]>>)[field] ?? [];
  const ids = refs.map((ref) => {
    const volume = foundSubject(agent, "volume", ref)?.volume ?? null;
    judge(principal, right, { kind: "volume", volume }, name);
    return volume;
  });
  return { ...(body as object), [field]: ids };
}

function parse(schema: z.ZodType, body: unknown): unknown {
  const parsed = schema.safeParse(body ?? {});
  if (parsed.success) return parsed.data;
  throw badRequest(parsed.error);
}

function unexpected(error: unknown): WeftError {
  // fastify's own refusals: too large, another content type.
  if (error instanceof Error && "statusCode" in error && Number(error.statusCode) < 500) {
    if (Number(error.statusCode) === 413) {
      const message = `The request's body has more than ${BODY_MAX} bytes.`;
      return new WeftError({ code: "E-LIMIT-01", message, safe: "Nothing was changed.", cause: error });
    }
    const message = `${error.message.slice(0, SHOWN_MAX)}.`;
    return new WeftError({ code: "E-ARG-02", message, cause: error });
  }
  return new WeftError({
    code: "E-AGENT-06",
    message: `The agent failed in a way that it believed impossible: ${reasonOf(error)}.`,
    safe: "The data path does not depend on the agent.",
    cause: error,
  });
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? "") : "";
}
