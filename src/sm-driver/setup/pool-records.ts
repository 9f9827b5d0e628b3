/**
 * XAPI's pool as far as a setup needs it: its hosts, their networks and addresses, its plug-ins, its tasks.
 *
 * Must always hold: what XAPI has is parsed; what isn't there counts as not known, and never as something better.
 */
import { parseUuid } from "../../core/model/ids.ts";
import type { SetupNetwork } from "../../core/model/setup-facts.ts";
import { SmFault, faultCodes } from "../faults.ts";
import { isXapiError, type XapiError, type XenApi } from "../xen-api.ts";
import { isStruct, memberOf, type XmlStruct, type XmlValue } from "../xml.ts";

export type PoolHost = {
  readonly ref: string;
  readonly uuid: string;
  /** As the host calls itself; labels are free text. */
  readonly hostname: string;
  readonly isUp: boolean;
  readonly isMaster: boolean;
  readonly networks: readonly SetupNetwork[];
};

export type XapiPool = {
  readonly uuid: string;
  readonly name: string;
  /** XAPI's HA: a toolstack that goes away is a reason to fence. */
  readonly hasHa: boolean;
  readonly hosts: readonly PoolHost[];
};

/** In a handful of calls, whatever its size. */
export async function readPool(xapi: XenApi): Promise<XapiPool> {
  const [pools, hosts, metrics, pifs, links, networks] = await Promise.all([
    records(xapi, "pool"),
    records(xapi, "host"),
    records(xapi, "host_metrics"),
    records(xapi, "PIF"),
    records(xapi, "PIF_metrics"),
    records(xapi, "network"),
  ]);
  const pool = Object.values(pools)[0];
  if (pool === undefined) throw new SmFault(faultCodes.apiFailure, "XAPI has no pool.");
  const master = text(pool, "master");
  return {
    uuid: text(pool, "uuid"),
    name: text(pool, "name_label"),
    hasHa: memberOf(pool, "ha_enabled") === true,
    hosts: Object.entries(hosts).map(([ref, host]) => ({
      ref,
      uuid: parseUuid(text(host, "uuid")) ?? "",
      hostname: text(host, "hostname") || text(host, "name_label"),
      isUp: memberOf(metrics[text(host, "metrics")] ?? null, "live") === true,
      isMaster: ref === master,
      networks: Object.values(pifs)
        .filter((pif) => text(pif, "host") === ref)
        .flatMap((pif) => networkOf(pif, links, networks)),
    })),
  };
}

export async function poolRef(xapi: XenApi): Promise<string> {
  const [ref] = Object.keys(await records(xapi, "pool"));
  if (ref !== undefined) return ref;
  throw new SmFault(faultCodes.apiFailure, "XAPI has no pool.");
}

/** False: the pool's other_config has this key already. XAPI adds one only where it isn't there, whoever asks at once. */
export async function addToPool(xapi: XenApi, pool: string, key: string, value: string): Promise<boolean> {
  try {
    await xapi.call("pool.add_to_other_config", pool, key, value);
    return true;
  } catch (error) {
    if (isXapiError(error, "MAP_DUPLICATE_KEY")) return false;
    throw error;
  }
}

/** Whether XAPI is at something with the pool as a whole (`current_operations`): `eject`, `ha_enable`, … */
export async function poolDoes(xapi: XenApi, operation: string): Promise<boolean> {
  const pools = Object.values(await records(xapi, "pool"));
  return pools.some((pool) => {
    const now = memberOf(pool, "current_operations");
    return isStruct(now) && Object.values(now).includes(operation);
  });
}

/** Of the pool's other_config; null: it isn't there. */
export async function readFromPool(xapi: XenApi, pool: string, key: string): Promise<string | null> {
  const value = memberOf(await xapi.call("pool.get_other_config", pool), key);
  return typeof value === "string" ? value : null;
}

export function hostOfRef(pool: XapiPool, ref: string | null): PoolHost {
  const host = pool.hosts.find((one) => one.ref === ref);
  if (host !== undefined) return host;
  throw new SmFault(faultCodes.badRequest, "XAPI names a host that its pool has not.", "nothing was changed");
}

/** One of the pool's, by XAPI's uuid of it. */
export function hostOfUuid(pool: XapiPool, uuid: string): PoolHost {
  const host = pool.hosts.find((one) => one.uuid === uuid);
  if (host !== undefined) return host;
  throw new SmFault(faultCodes.badRequest, `No host of the pool has the UUID "${uuid.slice(0, 80)}".`);
}

/** What XAPI or its hosts are doing: names of tasks. */
export async function pendingTasks(xapi: XenApi, own: ReadonlySet<string>): Promise<readonly string[]> {
  const tasks = await records(xapi, "task");
  return Object.entries(tasks)
    .filter(([ref, task]) => text(task, "status") === "pending" && !own.has(ref))
    .map(([, task]) => text(task, "name_label") || "a task without a name");
}

/** The SR of weft with this name, if there is one. */
export async function srNamed(xapi: XenApi, label: string): Promise<string | null> {
  const all = Object.values(await records(xapi, "SR"));
  const found = all.find((sr) => text(sr, "type") === "weft" && text(sr, "name_label") === label);
  return found === undefined ? null : text(found, "uuid");
}

/** What a message is about: the one SR of weft, else the pool. */
export async function aboutWhat(xapi: XenApi): Promise<{ readonly kind: string; readonly uuid: string }> {
  const srs = Object.values(await records(xapi, "SR")).filter((sr) => text(sr, "type") === "weft");
  const [sr] = srs;
  if (sr !== undefined && srs.length === 1) return { kind: "SR", uuid: text(sr, "uuid") };
  const [pool] = Object.values(await records(xapi, "pool"));
  return { kind: "Pool", uuid: text(pool ?? null, "uuid") };
}

/** Whether XAPI has taken up the driver: it looks at its start only. */
export async function isRegistered(xapi: XenApi): Promise<boolean> {
  return Object.values(await records(xapi, "SM")).some((sm) => text(sm, "type") === "weft");
}

/** What a plug-in answers; `XENAPI_MISSING_PLUGIN` and what the plug-in refused are XapiErrors with that word. */
export async function callPlugin(
  xapi: XenApi,
  hostRef: string,
  name: string,
  args: Readonly<Record<string, string>> = {},
): Promise<string> {
  return xapi.text("host.call_plugin", hostRef, "weft", name, args);
}

/** What a host without weft, or with an agent that can't, is refused with. */
export function isAbsent(error: unknown): error is XapiError {
  return isXapiError(error) && ABSENT.has(error.failure);
}

const ABSENT: ReadonlySet<string> = new Set([
  "XENAPI_MISSING_PLUGIN",
  "XENAPI_PLUGIN_FAILURE",
  "HOST_OFFLINE",
  "HOST_NOT_LIVE",
  "CANNOT_CONTACT_HOST",
  "E-AGENT-01",
  "E-AGENT-05",
]);

function networkOf(
  pif: XmlValue,
  links: Readonly<Record<string, XmlValue>>,
  networks: Readonly<Record<string, XmlValue>>,
): readonly SetupNetwork[] {
  const network = networks[text(pif, "network")];
  const id = network === undefined ? null : parseUuid(text(network, "uuid"));
  if (network === undefined || id === null) return [];
  const isPlugged = memberOf(pif, "currently_attached") === true;
  const speed = Number(text(links[text(pif, "metrics")] ?? null, "speed"));
  const v6 = memberOf(pif, "IPv6");
  const [first] = Array.isArray(v6) ? v6.map((one) => String(one).split("/")[0] ?? "") : [];
  const address = text(pif, "IP") || (first ?? "");
  return [
    {
      id,
      name: text(network, "name_label"),
      address: isPlugged && address !== "" ? address : null,
      linkMbps: Number.isFinite(speed) && speed > 0 ? speed : null,
      isManagement: memberOf(pif, "management") === true,
    },
  ];
}

async function records(xapi: XenApi, kind: string): Promise<XmlStruct> {
  const all = await xapi.call(`${kind}.get_all_records`);
  if (isStruct(all)) return all;
  throw new SmFault(faultCodes.apiFailure, `XAPI's answer to ${kind}.get_all_records can't be used.`);
}

function text(record: XmlValue, member: string): string {
  const value = memberOf(record, member);
  return typeof value === "string" ? value : typeof value === "number" ? String(value) : "";
}
