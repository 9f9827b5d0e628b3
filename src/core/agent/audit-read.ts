/** What the audit is asked: its lines, and whether they are all there. */
import { parseUuid } from "../model/ids.ts";
import type { AuditAnswer, AuditQuery, AuditVerdict, Problem } from "../wire/agent-api.ts";
import type { AuditLinesRequest } from "../wire/door-api.ts";
import { HostClient } from "../wire/host-client.ts";
import type { HostJson } from "../wire/record.ts";
import {
  type AuditFilter,
  type AuditLine,
  matchesAudit,
  mergeAudit,
  renderAuditLine,
} from "../wire/audit-line.ts";
import { isWeftError } from "../wire/errors.ts";
import type { Audit } from "./audit.ts";
import { type FoundHead, readHead } from "./audit-head.ts";
import type { MemberContext } from "./context.ts";
import { hostsOf, volumesOf } from "./facts.ts";
import { findHost } from "./find.ts";

/** A host that is there reads its audit within this. */
const ANSWER_MS = 5000;
/** What the asking host takes is a little more. */
const ANSWER_BYTES = 3 << 20;

type AskedAudit = {
  readonly audit: Pick<Audit, "last" | "verify">;
  member(): MemberContext;
};

export async function auditAnswer(agent: AskedAudit, query: AuditQuery): Promise<AuditAnswer> {
  const context = memberOrNull(agent);
  const hosts = context === null ? [] : hostsOf(context.mirror);
  const names = Object.fromEntries(hosts.map(({ id, name }) => [id, name]));
  const self = context?.host ?? null;
  const only = context === null || query.host === null ? null : findHost(context.mirror, query.host).id;
  const filter = filterOf(context, query);
  const own = only === null || only === self ? ownLines(agent.audit, filter, query.limit) : [];
  const others = hosts.filter(({ id }) => id !== self && (only === null || only === id));
  const volume = filter.volume === null ? null : [...filter.volume];
  const asked = { ...filter, volume, limit: query.limit };
  const heard = await Promise.all(others.map((host) => linesOf(context, host, asked)));
  const missing = heard.flatMap((part, i) =>
    part.kind === "missing" ? [{ host: others[i]?.name ?? "", reason: part.reason }] : [],
  );
  const parts = heard.map((part) => (part.kind === "heard" ? part.lines : []));
  return { lines: [...mergeAudit([await own, ...parts], query.limit)], missing, names };
}

type Heard =
  | { readonly kind: "heard"; readonly lines: readonly AuditLine[] }
  | { readonly kind: "missing"; readonly reason: string };

/** A host that doesn't answer soon is named. It tells of itself only: what it says of others is left out. */
async function linesOf(
  context: MemberContext | null,
  { id, address }: HostJson,
  asked: AuditLinesRequest,
): Promise<Heard> {
  if (context === null) return { kind: "missing", reason: "this host is in no cluster" };
  const { identity, self } = context;
  const expect = { kind: "host" as const, trust: identity.trust(), host: id };
  const shown = identity.current();
  const client = new HostClient({ address, shown, from: self.address, expect, answerMs: ANSWER_MS });
  try {
    const { lines } = (await client.audit(asked)).answer;
    return { kind: "heard", lines: lines.filter(({ host }) => host === null || host === id) };
  } catch (error) {
    if (isWeftError(error)) return { kind: "missing", reason: withoutPeriod(error.message) };
    throw error;
  }
}

function withoutPeriod(sentence: string): string {
  return sentence.replace(/\.$/, "");
}

/** Also as another host asks for them. So many bytes at most: the oldest are left out. */
export async function ownLines(
  audit: Pick<Audit, "last">,
  filter: AuditFilter,
  limit: number,
): Promise<readonly AuditLine[]> {
  const lines = await audit.last(limit, filter.sinceMs, (line) => matchesAudit(line, filter));
  let bytes = 0;
  const tooMany = lines.findLastIndex((line) => {
    bytes += Buffer.byteLength(renderAuditLine(line));
    return bytes > ANSWER_BYTES;
  });
  return lines.slice(tooMany + 1);
}

/** What `weft status` has to say of it. */
export function auditProblems(audit: Pick<Audit, "isFailing" | "isDamaged">): readonly Problem[] {
  const failing: Problem = {
    code: "E-AUDIT-01",
    message: "This host's audit can't be written: nothing can be changed through it.",
    do: [{ why: "Make room in its state directory", command: "df" }],
  };
  const damaged: Problem = {
    code: "E-AUDIT-02",
    message: "This host's audit had been changed by somebody: it goes on in a new file.",
    do: [{ why: "Look where", command: "weft audit verify" }],
  };
  return [...(audit.isFailing ? [failing] : []), ...(audit.isDamaged ? [damaged] : [])];
}

export async function auditVerdict(agent: AskedAudit): Promise<AuditVerdict> {
  const found = await keptHead(memberOrNull(agent));
  const head = found.kind === "own" ? found : null;
  const { lines, first, head: last, broken, hashOfAsked } = await agent.audit.verify(head?.seq ?? null);
  // A head that is older than what is kept says nothing any more.
  const kept =
    head === null || (first !== null && head.seq < first)
      ? null
      : { seq: head.seq, agrees: hashOfAsked === head.hash };
  return { lines, first, last: last?.seq ?? null, broken, kept, foreign: found.kind === "foreign" };
}

function filterOf(context: MemberContext | null, query: AuditQuery): AuditFilter {
  const { since, volume, who, refused } = query;
  return {
    sinceMs: since === null ? null : Date.parse(since),
    volume: volume === null ? null : [volume, ...alsoKnownAs(context, volume)],
    who,
    refusedOnly: refused,
  };
}

/** The id of a volume of this name, or the name of the one with this id: lines may have either. */
function alsoKnownAs(context: MemberContext | null, ref: string): readonly string[] {
  if (context === null) return [];
  const id = parseUuid(ref);
  return volumesOf(context.mirror)
    .filter((volume) => volume.id === id || volume.want?.name === ref)
    .flatMap((volume) => [volume.id, ...(volume.want === null ? [] : [volume.want.name])]);
}

async function keptHead(context: MemberContext | null): Promise<FoundHead> {
  if (context === null) return { kind: "none" };
  try {
    const { host, identity } = context;
    return await readHead(context.store, { host, trust: () => identity.trust() });
  } catch (error) {
    if (isWeftError(error)) return { kind: "none" };
    throw error;
  }
}

function memberOrNull(agent: AskedAudit): MemberContext | null {
  try {
    return agent.member();
  } catch (error) {
    if (isWeftError(error, "E-AGENT-03")) return null;
    throw error;
  }
}
