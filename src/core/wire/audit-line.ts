/**
 * One line of the audit: who did what, from where, to what, and how it ended.
 *
 * Must always hold:
 * - each line has the hash of the one before it, so that none can be changed or taken out unseen;
 * - a line is one line of at most 4 KiB, whatever a name holds;
 * - it holds no secret: principals are named, and of a body only what the table of routes lists.
 */
import { createHash } from "node:crypto";
import { z } from "zod";

import { type Principal, roleOf } from "../model/roles.ts";
import { instant, u64, uuid } from "./json-types.ts";

export const LINE_BYTES_MAX = 4096;
/** What the first line of a host has for the hash of the one before. */
export const NO_HASH = "0".repeat(64);
const TEXT_MAX = 256;
const LIST_MAX = 32;

export const auditWho = z.object({
  kind: z.enum(["root", "group", "host", "token", "nobody"]),
  /** As people call it: a user, a host, a token. */
  name: z.string(),
  role: z.enum(["viewer", "operator", "admin"]).nullable(),
  /** Of the host or token; null for others. */
  id: z.string().nullable(),
});

export const auditTarget = z.record(
  z.string(),
  z.union([z.string(), z.number(), z.boolean(), z.null(), z.array(z.string())]),
);

/**
 * begin and end: a mutation; refused: one that was not done, or a request that nobody may make; lost: so many lines could
 * not be written; torn: the file ended within a line and was cut there; broken: the file before this line is not whole.
 */
export const auditEvent = z.enum(["begin", "end", "refused", "lost", "torn", "broken"]);

export const auditLine = z.object({
  seq: u64,
  at: instant,
  /** Null before the host is in a cluster. */
  host: uuid.nullable(),
  /** Of the request: its begin and end have the same. */
  id: uuid.nullable(),
  event: auditEvent,
  who: auditWho.nullable(),
  /** `unix pid 123`, or address and port. */
  from: z.string(),
  /** The route, as in the table. */
  what: z.string(),
  target: auditTarget,
  /** `ok`, or the code of the error; null: it has only begun. */
  outcome: z.string().nullable(),
  ms: z.int().nullable(),
  /** More than 1: so many of one source within a second. */
  count: z.int(),
  prev: z.string().regex(/^[0-9a-f]{64}$/),
});

export type AuditWho = z.output<typeof auditWho>;
export type AuditTarget = z.output<typeof auditTarget>;
export type AuditLine = z.output<typeof auditLine>;
export type AuditEntry = Omit<AuditLine, "seq" | "prev">;

export function whoOf(principal: Principal): AuditWho {
  const role = roleOf(principal);
  switch (principal.kind) {
    case "root":
      return { kind: "root", name: principal.uid === 0 ? "root" : `uid ${principal.uid}`, role, id: null };
    case "group":
      return { kind: "group", name: `uid ${principal.uid}`, role, id: null };
    case "host":
      return { kind: "host", name: principal.name, role, id: principal.host };
    case "token":
      return { kind: "token", name: principal.name, role, id: principal.id };
    case "nobody":
      return { kind: "nobody", name: "nobody", role, id: null };
  }
}

/** The text of a line, without its end. */
export function renderAuditLine(line: AuditLine): string {
  const text = escaped(JSON.stringify(auditLine.encode({ ...line, target: shortened(line.target) })));
  if (Buffer.byteLength(text) < LINE_BYTES_MAX) return text;
  return escaped(JSON.stringify(auditLine.encode({ ...line, target: {} })));
}

/** Null: it isn't one. */
export function parseAuditLine(text: string): AuditLine | null {
  try {
    return auditLine.parse(JSON.parse(text));
  } catch {
    return null;
  }
}

/** What the line after this text has as `prev`: SHA-256 of its bytes. */
export function hashOfLine(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

export type AuditFilter = {
  readonly sinceMs: number | null;
  /** The volume's id and its name, as far as they are known. */
  readonly volume: readonly string[] | null;
  readonly who: string | null;
  readonly refusedOnly: boolean;
};

export function matchesAudit(line: AuditLine, { sinceMs, volume, who, refusedOnly }: AuditFilter): boolean {
  if (sinceMs !== null && Date.parse(line.at) < sinceMs) return false;
  if (refusedOnly && line.event !== "refused") return false;
  if (who !== null && line.who?.name !== who && line.who?.id !== who) return false;
  if (volume === null) return true;
  const { volume: id, made, ref, name, volumes } = line.target;
  return [id, made, ref, name, ...(Array.isArray(volumes) ? volumes : [])].some(
    (value) => typeof value === "string" && volume.includes(value),
  );
}

/**
 * Lines of several hosts, each in its own order, in the order in which they happened by their clocks; the last `limit` of
 * them. One host's lines stay in its order also where its clock was set back.
 */
export function mergeAudit(hosts: readonly (readonly AuditLine[])[], limit: number): readonly AuditLine[] {
  const next = hosts.map(() => 0);
  const merged: AuditLine[] = [];
  for (;;) {
    let first: { readonly host: number; readonly line: AuditLine } | null = null;
    for (const [host, lines] of hosts.entries()) {
      const line = lines[next[host] ?? 0];
      if (line !== undefined && (first === null || line.at < first.line.at)) first = { host, line };
    }
    if (first === null) return merged.slice(Math.max(0, merged.length - limit));
    next[first.host] = (next[first.host] ?? 0) + 1;
    merged.push(first.line);
  }
}

function shortened(target: AuditTarget): AuditTarget {
  const cut = (text: string): string => (text.length <= TEXT_MAX ? text : `${text.slice(0, TEXT_MAX)}…`);
  return Object.fromEntries(
    Object.entries(target).map(([name, value]) => {
      if (typeof value === "string") return [name, cut(value)];
      return [name, Array.isArray(value) ? value.slice(0, LIST_MAX).map(cut) : value];
    }),
  );
}

/** JSON leaves some characters as they are that end lines or turn text around where people look at it. */
function escaped(text: string): string {
  return text.replaceAll(
    /[\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
