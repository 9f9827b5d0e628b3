/**
 * `weft volume stats`: two looks at a guest's counters, and what happened between them.
 *
 * Must always hold:
 * - rates and times are those between the two looks; where the session is another one by then, there are none;
 * - with --json the counters themselves: whoever reads them takes differences by himself.
 */
import { setTimeout as delay } from "node:timers/promises";

import { countUpTo, histogramSince, quantileUs } from "../core/model/histogram.ts";
import { limitsText } from "../core/model/volume-limits.ts";
import type { StatsAnswer } from "../core/wire/agent-api.ts";
import { json } from "./console.ts";
import type { Context } from "./context.ts";
import { type Column, table } from "./table.ts";

const PERIOD_MS = 1000;
/** One of weftd's ends that is a second, nearly. */
const SECOND_US = 1_048_576;
/** In lines of --watch. */
const HEADING_EVERY = 20;

export async function showStats(context: Context, ref: string, watch: boolean): Promise<void> {
  const { client, globals } = context;
  const signal = context.interruption();
  let before = await client.stats(ref);
  if (globals.json === true && !watch) {
    context.show(before, ({ volume }) => volume, statsText);
    return;
  }
  for (let lines = 0; ; lines += 1) {
    if (before.open === null && !watch) {
      context.note(`"${before.name}" is not attached: nobody uses it. Limits: ${limitsText(before.limits)}.`);
      return;
    }
    if (!(await hasPassed(signal))) return;
    const now = await client.stats(ref);
    const text = statsText(now, before);
    before = now;
    if (globals.json === true) context.console.line(JSON.stringify(JSON.parse(json(now))));
    else context.console.line(lines % HEADING_EVERY === 0 ? text : withoutHeading(text));
    if (!watch) return;
  }
}

/** False: ^C came. */
async function hasPassed(signal: AbortSignal): Promise<boolean> {
  try {
    await delay(PERIOD_MS, undefined, { signal });
    return true;
  } catch {
    return false;
  }
}

type Row = {
  readonly name: string;
  readonly readOps: number;
  readonly writeOps: number;
  readonly readBytes: number;
  readonly writeBytes: number;
  readonly reads: readonly [p50: number | null, p99: number | null];
  readonly writes: readonly [p50: number | null, p99: number | null];
  readonly limits: string;
  readonly stalls: bigint;
};

const columns: readonly Column<Row>[] = [
  { title: "VOLUME", of: ({ name }) => name },
  { title: "READ/s", of: ({ readOps }) => rate(readOps), right: true },
  { title: "WRITE/s", of: ({ writeOps }) => rate(writeOps), right: true },
  { title: "READ MB/s", of: ({ readBytes }) => (readBytes / 1e6).toFixed(1), right: true },
  { title: "WRITE MB/s", of: ({ writeBytes }) => (writeBytes / 1e6).toFixed(1), right: true },
  { title: "p50 read", of: ({ reads }) => time(reads[0]), right: true },
  { title: "p99 read", of: ({ reads }) => time(reads[1]), right: true },
  { title: "p50 write", of: ({ writes }) => time(writes[0]), right: true },
  { title: "p99 write", of: ({ writes }) => time(writes[1]), right: true },
  { title: "LIMIT", of: ({ limits }) => limits },
  { title: "STALLS >1 s", of: ({ stalls }) => String(stalls), right: true },
];

/** One line under its heading. `before` is an earlier look at the same volume. */
export function statsText(now: StatsAnswer, before: StatsAnswer = now): string {
  return table([rowOf(now, before)], columns);
}

function rowOf({ name, limits, open }: StatsAnswer, before: StatsAnswer): Row {
  const nothing = { readOps: 0, writeOps: 0, readBytes: 0, writeBytes: 0 };
  const text = limitsText(limits);
  if (open === null || before.open === null || before.open.session !== open.session) {
    return { name, ...nothing, reads: [null, null], writes: [null, null], limits: text, stalls: 0n };
  }
  const { open: earlier } = before;
  const seconds = Math.max(1, Date.parse(open.at) - Date.parse(earlier.at)) / 1000;
  const each = (of: "reads" | "writes" | "readBytes" | "writtenBytes"): number =>
    Number(open[of] - earlier[of]) / seconds;
  const times = (of: "reads" | "writes"): readonly [number | null, number | null] => {
    const between = histogramSince(open.waits[of], earlier.waits[of]);
    return [quantileUs(between, 0.5), quantileUs(between, 0.99)];
  };
  const { stalls } = open.waits;
  return {
    name,
    readOps: each("reads"),
    writeOps: each("writes"),
    readBytes: each("readBytes"),
    writeBytes: each("writtenBytes"),
    reads: times("reads"),
    writes: times("writes"),
    limits: text,
    stalls: stalls.count - countUpTo(stalls, SECOND_US),
  };
}

function withoutHeading(text: string): string {
  return text.slice(text.indexOf("\n") + 1);
}

function rate(perSecond: number): string {
  return perSecond < 10 ? String(Number(perSecond.toFixed(1))) : String(Math.round(perSecond));
}

function time(us: number | null): string {
  if (us === null) return "—";
  if (us === Infinity) return ">67 s";
  if (us >= 1_000_000) return `${(us / 1_000_000).toPrecision(2)} s`;
  return `${Number((us / 1000).toPrecision(2))} ms`;
}
