/**
 * A pool of XAPI is made a cluster: what its hosts are, the plan of it, and its steps, over XAPI.
 *
 * Must always hold:
 * - nothing is done unless the plan has no finding, and the plan that is done is the one that was shown;
 * - each step may be repeated; what was cut short is gone on with by the next setup, on whichever host;
 * - what a plug-in is told is public: it stands in its arguments.
 */
import { parseUuid } from "../../core/model/ids.ts";
import { readWishes, type SetupHost, type SetupWords } from "../../core/model/setup-facts.ts";
import {
  plainName,
  planSetup,
  type SetupDecision,
  type SetupPlan,
  type SetupStep,
} from "../../core/model/setup-plan.ts";
import type { AgentClient } from "../../core/wire/agent-client.ts";
import { isWeftError, reasonOf } from "../../core/wire/errors.ts";
import type { Log } from "../call.ts";
import { isXapiError, type XenApi } from "../xen-api.ts";
import { disksOf, type Inventory, parseInventory, takeInventory, weftOf } from "./inventory.ts";
import { enterThroughPool } from "./reclaim-host.ts";
import { callPlugin, hostOfRef, type PoolHost, readPool, type XapiPool } from "./pool-records.ts";

export type SetupContext = {
  readonly agent: AgentClient;
  readonly xapi: XenApi;
  /** XAPI's ref of this host. */
  readonly hostRef: string | null;
  readonly log: Log;
};

export type PlannedSetup = {
  readonly pool: XapiPool;
  readonly self: PoolHost;
  readonly decision: SetupDecision;
};

export async function planPool(context: SetupContext, words: SetupWords): Promise<PlannedSetup> {
  const pool = await readPool(context.xapi);
  const self = hostOfRef(pool, context.hostRef);
  const hosts = await Promise.all(pool.hosts.map((host) => factsOf(context, self, host)));
  const wishes = readWishes(words, hosts);
  return { pool, self, decision: planSetup({ hosts, wishes, first: self.uuid }) };
}

/** Does the plan's steps, one after the other: each changes the list of those who are trusted, or a disk. */
export async function runPlan(
  context: SetupContext,
  { pool, self }: Pick<PlannedSetup, "pool" | "self">,
  plan: SetupPlan,
): Promise<void> {
  const { agent, xapi, log } = context;
  // Someone who is a member already, and lets the others in.
  const door = plan.hosts.find((host) => host.isMember)?.id ?? self.uuid;
  for (const step of plan.steps) {
    log.info({ ...step }, "a setup's step");
    const isHere = step.host === self.uuid;
    switch (step.kind) {
      case "init":
        await agent.init({ name: step.name, address: step.address, clusterName: plainName(pool.name) });
        break;
      case "join":
        await joinStep(context, { pool, isHere, door }, step);
        break;
      case "pool":
        if (isHere) await agent.createPool({ path: step.device, kind: "xfs" });
        else await callPlugin(xapi, refOf(pool, step.host), "pool-add", { device: step.device });
    }
  }
}

async function joinStep(
  { agent, xapi, log }: SetupContext,
  { pool, isHere, door }: { readonly pool: XapiPool; readonly isHere: boolean; readonly door: string },
  { host, name, address }: SetupStep & { readonly kind: "join" },
): Promise<void> {
  if (isHere)
    await enterThroughPool({ agent, xapi, log }, { uuid: host, network: null, address, name }, door);
  else await callPlugin(xapi, refOf(pool, host), "join", { host, via: door, name, address });
}

function refOf(pool: XapiPool, uuid: string): string {
  const host = pool.hosts.find((one) => one.uuid === uuid);
  if (host === undefined) throw new Error(`a plan names a host ${uuid} that the pool has not`);
  return host.ref;
}

async function factsOf(context: SetupContext, self: PoolHost, host: PoolHost): Promise<SetupHost> {
  const { agent, xapi } = context;
  const known = { id: host.uuid, name: host.hostname, isUp: host.isUp, networks: host.networks };
  const nothing = { disks: [], freeBytes: null, clockOffMs: null };
  if (!host.isUp) return { ...known, ...nothing, weft: { kind: "none", sealedFor: null } };
  const absent = (reason: string): SetupHost => ({ ...known, ...nothing, weft: { kind: "absent", reason } });
  try {
    const begun = Date.now();
    const seen: Inventory | null =
      host === self
        ? await takeInventory(agent)
        : parseInventory(await callPlugin(xapi, host.ref, "inventory"));
    if (seen === null) return absent("it is of another version, and what it says is not understood");
    // Half of the way there and back is nobody's clock.
    const middle = (begun + Date.now()) / 2;
    return {
      ...known,
      weft: weftOf(seen),
      disks: disksOf(seen),
      freeBytes: seen.freeBytes,
      clockOffMs: host === self ? 0 : Math.round(Date.parse(seen.now) - middle),
    };
  } catch (error) {
    if (isXapiError(error)) return absent(reasonText(error.failure, error.params));
    if (isWeftError(error)) return absent(reasonOf(error).replace(/\.$/, ""));
    throw error;
  }
}

function reasonText(failure: string, params: readonly string[]): string {
  if (failure === "XENAPI_MISSING_PLUGIN") return "it is not installed there";
  return (params[0] ?? failure).replace(/\.$/, "");
}

/** The host that XAPI means, in the form that keys have. */
export function uuidArg(text: string | undefined): string {
  return parseUuid(text ?? "") ?? "";
}
