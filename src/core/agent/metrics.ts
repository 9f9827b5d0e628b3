/**
 * What a collector of figures reads: the cluster as this host sees it, and this process, in Prometheus' text format.
 *
 * Must always hold: no name of a volume, host or person is a label: figures go further than rights do. A volume that is
 * attached here goes by its id.
 */
import type { Registry } from "prom-client";

import { countUpTo, type Histogram } from "../model/histogram.ts";
import type { SessionStatus } from "../wire/daemon.gen.ts";
import { isWeftError } from "../wire/errors.ts";
import type { MemberContext } from "./context.ts";
import type { AskedAgent } from "./handlers.ts";
import { histogramOf } from "./stats.ts";
import { clusterStatus } from "./status.ts";

/** It answers from memory. */
const SESSIONS_MS = 2000;
/** Each fourth power of weftd's ends: a collector keeps a series for each, of each volume. */
const SHOWN_US = Array.from({ length: 12 }, (_, i) => 16 * 4 ** i);

/** Of one process: Node's own figures are collected once. */
let registered: Promise<{ readonly registry: Registry; readonly set: Setter }> | null = null;
type Figure = { readonly name: string; readonly help: string; readonly label: string | null };
type Setter = (figure: Figure, values: ReadonlyMap<string, number>) => void;

export async function metricsText(agent: AskedAgent): Promise<string> {
  const { registry, set } = await (registered ??= register());
  const { lines, refused, lost } = agent.audit.counts;
  one(set, "weft_audit_lines_total", "lines that this agent wrote into its audit", lines);
  one(set, "weft_audit_refused_total", "requests that this agent refused", refused);
  one(set, "weft_audit_lost_total", "lines of the audit that could not be written yet", lost);
  const context = memberOrNull(agent);
  if (context === null) return registry.metrics();
  await cluster(set, context);
  return `${await registry.metrics()}${volumeFigures(await guestSessions(context))}`;
}

/** Of guests on this host; none while weftd is away. */
async function guestSessions({ daemon }: MemberContext): Promise<readonly SessionStatus[]> {
  try {
    const { sessions } = await daemon.client.call("session.list", {}, SESSIONS_MS);
    return sessions.filter(({ phase, caretaker }) => phase !== "ended" && !caretaker);
  } catch (error) {
    if (isWeftError(error)) return [];
    throw error;
  }
}

/** Counts that are kept elsewhere, since the session's open: the collector's library has no place for such. */
export function volumeFigures(sessions: readonly Pick<SessionStatus, "volume" | "figures">[]): string {
  const counter = (name: string, help: string, of: (figures: Figures) => string): readonly string[] => [
    ...heading(name, help, "counter"),
    ...sessions.map(({ volume, figures }) => `${name}{volume="${volume}"} ${of(figures)}`),
  ];
  const histogram = (
    name: string,
    help: string,
    of: (waits: Figures["waits"]) => readonly (readonly [labels: string, histogram: Histogram])[],
  ): readonly string[] => [
    ...heading(name, help, "histogram"),
    ...sessions.flatMap(({ volume, figures }) =>
      of(figures.waits).flatMap(([labels, found]) => series(name, `volume="${volume}"${labels}`, found)),
    ),
  ];
  if (sessions.length === 0) return "";
  const lines = [
    ...counter("weft_volume_read_ops_total", "reads of guests here", ({ reads }) => reads),
    ...counter("weft_volume_write_ops_total", "writes, trims and zeroes", ({ writes }) => writes),
    ...counter("weft_volume_read_bytes_total", "bytes that guests read", (f) => f.read_bytes),
    ...counter("weft_volume_write_bytes_total", "bytes that guests wrote", (f) => f.written_bytes),
    ...histogram("weft_volume_latency_seconds", "as guests saw it", (waits) => [
      [',op="read"', histogramOf(waits.reads)],
      [',op="write"', histogramOf(waits.writes)],
    ]),
    ...histogram("weft_volume_stall_seconds", "requests that waited 100 ms or longer", (waits) => [
      ["", histogramOf(waits.stalls)],
    ]),
    ...histogram("weft_volume_limited_seconds", "what limits made requests wait", (waits) => [
      ["", histogramOf(waits.limited)],
    ]),
  ];
  return `${lines.join("\n")}\n`;
}

type Figures = SessionStatus["figures"];

function heading(name: string, help: string, type: string): readonly string[] {
  return [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`];
}

function series(name: string, labels: string, found: Histogram): readonly string[] {
  return [
    ...SHOWN_US.map((us) => `${name}_bucket{${labels},le="${us / 1_000_000}"} ${countUpTo(found, us)}`),
    `${name}_bucket{${labels},le="+Inf"} ${found.count}`,
    `${name}_sum{${labels}} ${Number(found.sumUs) / 1_000_000}`,
    `${name}_count{${labels}} ${found.count}`,
  ];
}

async function cluster(set: Setter, context: MemberContext): Promise<void> {
  const status = await clusterStatus(context);
  if (status.kind !== "cluster") return;
  const { store, hosts, volumes, pools, daemon, problems } = status;
  one(set, "weft_store_writable", "1: the store answers a linearizable read", Number(store.writable));
  one(set, "weft_daemon_reachable", "1: this host's weftd answers", Number(daemon.reachable));
  one(set, "weft_problems", "lines under the headline of weft status", problems.length);
  by(
    set,
    "weft_hosts",
    "hosts of the cluster",
    "alive",
    hosts.map(({ alive }) => String(alive)),
  );
  by(
    set,
    "weft_volumes",
    "volumes, by how they are",
    "health",
    volumes.map(({ health }) => health),
  );
  by(
    set,
    "weft_pools",
    "pools, by their daemon's word",
    "state",
    pools.map(({ state }) => state),
  );
  const bytes = (of: "free" | "total"): number =>
    pools.reduce((sum, pool) => sum + Number(pool[of] ?? 0n), 0);
  one(set, "weft_pool_free_bytes", "room left in all pools", bytes("free"));
  one(set, "weft_pool_total_bytes", "size of all pools", bytes("total"));
  by(
    set,
    "weft_pools_room",
    "pools, by how full they are: low from 95 %, full from 98 %",
    "room",
    pools.map(({ room }) => room ?? "unknown"),
  );
  const { identity } = context;
  const { certificate } = identity;
  one(
    set,
    "weft_certificate_expires_seconds",
    "when this host's certificate ends, since 1970",
    Math.floor(certificate.facts.notAfterMs / 1000),
  );
  one(
    set,
    "weft_trust_generation",
    "of the trust list that this agent obeys",
    Number(identity.trust().generation),
  );
}

function one(set: Setter, name: string, help: string, value: number): void {
  set({ name, help, label: null }, new Map([["", value]]));
}

function by(set: Setter, name: string, help: string, label: string, values: readonly string[]): void {
  const counts = new Map<string, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  set({ name, help, label }, counts);
}

/** Loaded when it is first asked for: most hosts are never asked. */
async function register(): Promise<{ readonly registry: Registry; readonly set: Setter }> {
  const { collectDefaultMetrics, Gauge, Registry } = await import("prom-client");
  const registry = new Registry();
  collectDefaultMetrics({ register: registry, prefix: "weft_agent_" });
  const gauges = new Map<string, InstanceType<typeof Gauge<string>>>();
  const set: Setter = ({ name, help, label }, values) => {
    let gauge = gauges.get(name);
    if (gauge === undefined) {
      gauge = new Gauge({ name, help, labelNames: label === null ? [] : [label], registers: [registry] });
      gauges.set(name, gauge);
    }
    gauge.reset();
    for (const [value, count] of values) gauge.set(label === null ? {} : { [label]: value }, count);
  };
  return { registry, set };
}

function memberOrNull(agent: AskedAgent): MemberContext | null {
  try {
    return agent.member();
  } catch (error) {
    if (isWeftError(error, "E-AGENT-03")) return null;
    throw error;
  }
}
