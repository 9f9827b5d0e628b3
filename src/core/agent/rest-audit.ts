/**
 * What the audit is told of a request: its principal, where it comes from, what it is about, how it ended.
 *
 * Must always hold:
 * - of a body only the fields that the table of routes lists are shown;
 * - a mutation that was refused leaves a line, and so does a request that its principal may not make.
 */
import { randomUUID } from "node:crypto";
import type { FastifyRequest } from "fastify";

import type { VolumeId } from "../model/ids.ts";
import { type Principal, principalKey, type Subject } from "../model/roles.ts";
import { auditTarget, whoOf } from "../wire/audit-line.ts";
import { isWeftError, type WeftError } from "../wire/errors.ts";
import { type RouteName, routes, type RouteSpec, type RouteSubject } from "../wire/routes.ts";
import type { AuditRequest } from "./audit.ts";
import { findDeleted, findSnapshot, findVolume } from "./find.ts";
import type { AskedAgent } from "./handlers.ts";

/** Who asks, and the volume it is about where that decides: judged once, before the body is read. */
export type Asking = {
  readonly name: RouteName;
  readonly principal: Principal;
  readonly subject: Subject;
  /** The id of what was judged, where that decided; null: what its path says. */
  readonly ref: string | null;
  /** Its beginning stands in the audit: from then on an error is how it ended, and no refusal. */
  hasBegun: boolean;
};

/** Does it, and writes how it ended. */
export async function audited(
  agent: AskedAgent,
  request: AuditRequest,
  work: () => Promise<unknown>,
): Promise<unknown> {
  const begun = performance.now();
  const took = (): number => Math.round(performance.now() - begun);
  try {
    const answer = await work();
    await agent.audit.end(withMade(request, answer), "ok", took());
    return answer;
  } catch (error) {
    await agent.audit.end(request, isWeftError(error) ? error.code : "E-AGENT-06", took());
    throw error;
  }
}

/** The id of what was made, which had none before. */
function withMade(request: AuditRequest, answer: unknown): AuditRequest {
  if (typeof answer !== "object" || answer === null || !("id" in answer)) return request;
  return typeof answer.id === "string"
    ? { ...request, target: { ...request.target, made: answer.id } }
    : request;
}

/** Of the body only what the table lists; of the path everything: names and numbers. */
export function auditOf(
  agent: AskedAgent,
  asking: Asking,
  request: FastifyRequest,
  body: unknown,
): AuditRequest {
  const { name, principal } = asking;
  const spec: RouteSpec = routes[name];
  const params = Object.entries((request.params ?? {}) as Readonly<Record<string, string>>);
  const fields = Object.entries(body ?? {}).filter(([field]) => spec.logs.includes(field));
  const target = auditTarget.parse({
    ...Object.fromEntries(params),
    ...Object.fromEntries(fields.map(([field, value]) => [field, shownField(value)])),
    ...volumeOf(agent, spec, params),
    ...namedIn(agent, spec, body),
  });
  return {
    id: randomUUID(),
    who: whoOf(principal),
    from: fromOf(principal, request),
    what: name,
    target,
  };
}

/** Numbers that may pass 2^53 as text, and what has fields of its own as JSON. */
function shownField(value: unknown): unknown {
  if (typeof value === "bigint") return String(value);
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  return JSON.stringify(value, (_, part: unknown) => (typeof part === "bigint" ? String(part) : part));
}

/** Its id, so that what was done to it is found also after another one got the name. */
function volumeOf(
  agent: AskedAgent,
  spec: RouteSpec,
  params: readonly (readonly [string, string])[],
): { readonly volume?: VolumeId; readonly snapshot?: string } {
  const ref = params.find(([name]) => name === "ref")?.[1];
  const found = ref === undefined ? null : foundSubject(agent, spec.subject, ref);
  if (found === null) return {};
  const { volume, ref: id } = found;
  return id === volume ? { volume } : { volume, snapshot: id };
}

/** As far as they are volumes: their ids, for the same reason. */
function namedIn(agent: AskedAgent, { names }: RouteSpec, body: unknown): Readonly<Record<string, string[]>> {
  const refs =
    names === null ? undefined : (body as Readonly<Record<string, readonly string[]>> | null)?.[names];
  if (names === null || refs === undefined) return {};
  return { [names]: refs.map((ref) => foundSubject(agent, "volume", ref)?.volume ?? ref) };
}

function fromOf(principal: Principal, { ip, raw }: FastifyRequest): string {
  switch (principal.kind) {
    case "root":
    case "group":
      return `unix pid ${principal.pid}`;
    case "nobody":
      return principal.address;
    case "host":
    case "token":
      return `${ip}:${raw.socket.remotePort ?? 0}`;
  }
}

/** A mutation that was not even begun, and what nobody may ask: both are for the audit. */
export async function auditRefusal(
  agent: AskedAgent,
  asking: Asking | undefined,
  request: FastifyRequest,
  error: WeftError,
): Promise<void> {
  if (asking === undefined || asking.hasBegun) return;
  const isDenied = error.code.startsWith("E-AUTH-");
  if (!isDenied && routes[asking.name].audit === "read") return;
  const refused = auditOf(agent, asking, request, null);
  await agent.audit.refused(refused, principalKey(asking.principal), error.code);
}

/** One that is refused for its form, before it is looked at what it asks. */
export async function auditForm(
  agent: Pick<AskedAgent, "audit">,
  principal: Principal,
  request: FastifyRequest,
  code: string,
): Promise<void> {
  const what = `${request.method} ${request.url.split("?")[0] ?? ""}`.slice(0, 100);
  const from = fromOf(principal, request);
  const refused = { id: randomUUID(), who: whoOf(principal), from, what, target: {} };
  await agent.audit.refused(refused, principalKey(principal), code);
}

/** The volume that a name is about, and the id of what it names. Null: it stands for nothing that exists. */
export function foundSubject(
  agent: AskedAgent,
  subject: RouteSubject,
  ref: string,
): { readonly volume: VolumeId; readonly ref: string } | null {
  try {
    switch (subject) {
      case "cluster":
      case "volumes":
        return null;
      case "snapshot": {
        const { volume, snapshot } = findSnapshot(agent.member().mirror, ref);
        return { volume: volume.id, ref: snapshot.id };
      }
      case "volume":
      case "deleted volume": {
        const { mirror } = agent.member();
        const { id } =
          subject === "volume" ? findVolume(mirror, ref, "headless too") : findDeleted(mirror, ref);
        return { volume: id, ref: id };
      }
    }
  } catch (error) {
    if (isWeftError(error)) return null;
    throw error;
  }
}
