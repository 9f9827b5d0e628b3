/**
 * What a collector of figures reads: the cluster as this host sees it, and this process, in Prometheus' text format.
 *
 * Must always hold: no name of a volume, host or person is a label: figures go further than rights do.
 */
import type { Registry } from "prom-client";

import { isWeftError } from "../wire/errors.ts";
import type { MemberContext } from "./context.ts";
import type { AskedAgent } from "./handlers.ts";
import { clusterStatus } from "./status.ts";

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
  if (context !== null) await cluster(set, context);
  return registry.metrics();
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
