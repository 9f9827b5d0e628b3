/** `weft audit [verify]`: who did what, and whether that is all there. */
import type { Command } from "commander";

import type { AuditAnswer, AuditVerdict } from "../core/wire/agent-api.ts";
import type { AuditLine } from "../core/wire/audit-line.ts";
import { WeftError } from "../core/wire/errors.ts";
import { auditLimit, since } from "./arguments.ts";
import type { Bind } from "./context.ts";
import { oneLine, table } from "./table.ts";

type Filter = {
  readonly since?: string;
  readonly volume?: string;
  readonly host?: string;
  readonly who?: string;
  readonly refused?: true;
  readonly limit?: string;
};

export function addAuditCommands(program: Command, bind: Bind): void {
  const audit = program
    .command("audit")
    .description("who did what, from where, and how it ended")
    .option("--since <time>", "not older than this: 2h, 30m, 3d, or a date and time", since)
    .option("--volume <volume>", "what was done to this volume")
    .option("--host <host>", "what was done through this host")
    .option("--who <name>", "what this one did: root, a token's name, a host")
    .option("--refused", "only what was refused")
    .option("--limit <n>", "so many lines at most, the last ones (200; up to 1000)", auditLimit);
  bind<[], Filter>(audit, async (context, _, options) => {
    const answer = await context.client.audit({
      since: options.since ?? null,
      volume: options.volume ?? null,
      host: options.host ?? null,
      who: options.who ?? null,
      refused: options.refused === true ? "true" : null,
      limit: options.limit ?? null,
    });
    context.show(
      answer,
      ({ lines }) => lines.flatMap(({ id }) => id ?? []).join("\n"),
      (shown) => auditText(shown),
    );
    if (answer.missing.length > 0) context.exitCode = 3;
  });

  const verify = audit
    .command("verify")
    .description("whether every line of this host's audit is there and as it was written");
  bind(verify, async (context) => {
    const verdict = await context.client.verifyAudit();
    const damage = damageOf(verdict);
    if (damage !== null) throw damage;
    if (verdict.foreign) context.exitCode = 3;
    context.show(
      verdict,
      ({ last }) => String(last ?? 0n),
      ({ lines, first, last, kept, foreign }) =>
        lines === 0
          ? "The audit has no lines yet."
          : `The audit is whole: ${lines} lines, ${first} to ${last}.` +
            (foreign
              ? " What the store has of it was not written by this host, so that lines cut off at its end would not show."
              : kept === null
                ? " The store has kept nothing of it yet."
                : ` The store kept line ${kept.seq}, which agrees.`),
    );
  });
}

function auditText({ lines, missing, names }: AuditAnswer): string {
  const ended = new Set(lines.filter(({ event }) => event === "end").map(({ id }) => id));
  // What has ended is one row; what has only begun is one too.
  const rows = lines.filter(({ event, id }) => event !== "begin" || !ended.has(id));
  const text =
    rows.length === 0
      ? "Nothing was found."
      : table(rows, [
          { title: "TIME", of: ({ at }) => localTime(at) },
          { title: "HOST", of: ({ host }) => (host === null ? "—" : (names[host] ?? host.slice(0, 8))) },
          { title: "WHO", of: whoText },
          { title: "WHAT", of: whatText },
          { title: "OUTCOME", of: outcomeText },
          { title: "FROM", of: ({ from }) => from },
        ]);
  const notes = missing.map(({ host, reason }) => `Without ${host}: ${reason}.`);
  return [text, ...notes].join("\n");
}

function whoText({ who }: AuditLine): string {
  if (who === null) return "—";
  if (who.kind === "host") return `host ${who.name}`;
  return who.role === null || who.kind === "root" ? who.name : `${who.name} (${who.role})`;
}

/** `attach db`, `delete volume db`, `create pool /srv/weft`: the route, as one would say it. */
function whatText({ what, target, event }: AuditLine): string {
  const [method = "", path = ""] = what.split(" ");
  if (!path.startsWith("/v1/")) return event === "refused" ? what : `${what} ${event}`;
  const words = path.slice("/v1/".length).split("/");
  const named = words.filter((word) => word.startsWith(":")).map((word) => target[word.slice(1)]);
  const [noun = "", ...more] = words.filter((word) => !word.startsWith(":"));
  const last = more.at(-1) ?? noun;
  const verbs: Readonly<Record<string, string>> = { DELETE: "delete", GET: "show", PUT: "change" };
  const isPlural = last.endsWith("s") && last !== "status";
  const made = target["name"] ?? target["path"];
  const things = [...named, ...(named.length === 0 && made !== undefined ? [made] : [])];
  const what1 =
    method === "POST"
      ? isPlural
        ? `create ${last.slice(0, -1)}`
        : more.length > 0 && noun !== "volumes"
          ? `${noun} ${last}`
          : last
      : `${verbs[method] ?? method} ${isPlural && named.length > 0 ? last.slice(0, -1) : last}`;
  return [what1, ...things.map((thing) => oneLine(String(thing)))].join(" ");
}

function outcomeText({ event, outcome, ms, count }: AuditLine): string {
  if (event === "begin") return "not ended";
  const took = ms === null ? "" : `  ${ms} ms`;
  const times = count > 1 ? `  ${count} times` : "";
  return `${outcome ?? event}${took}${times}`;
}

/** In this terminal's time zone. */
function localTime(at: string): string {
  const date = new Date(at);
  const two = (value: number): string => String(value).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

function damageOf({ broken, kept, last }: AuditVerdict): WeftError | null {
  if (broken !== null) {
    return new WeftError({
      code: "E-AUDIT-02",
      message: `The audit is not whole: ${broken.file}, line ${broken.line}: ${broken.what}.`,
      facts: { file: broken.file, line: broken.line },
      do: [{ why: "A copy of each line is in the system's log", command: "journalctl -t weft-agent" }],
    });
  }
  if (kept === null || kept.agrees) return null;
  return new WeftError({
    code: "E-AUDIT-02",
    message: `The audit is not whole: the store kept the hash of line ${kept.seq}, which is not there (any more); the last line is ${last ?? 0n}.`,
    facts: { seq: String(kept.seq) },
    do: [{ why: "A copy of each line is in the system's log", command: "journalctl -t weft-agent" }],
  });
}
