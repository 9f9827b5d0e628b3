/**
 * What commands of SRs need first: a cluster, and this host in it.
 *
 * Must always hold:
 * - where the pool's hosts are in a cluster already, an SR's creation changes none of them, unless disks are named for it;
 * - what stands in the way is told with all findings, and nothing was done then.
 */
import { findingsText } from "../../core/model/setup-text.ts";
import type { SmContext } from "../call.ts";
import { faultCodes, SmFault } from "../faults.ts";
import { joinThroughPool } from "./join-pool.ts";
import { hostOfRef, readPool } from "./pool-records.ts";
import { reclaimThroughPool } from "./reclaim-host.ts";
import { alone } from "./setup-lock.ts";
import { planPool, runPlan, uuidArg } from "./setup.ts";

/** A step may make a file system on a large disk of a slow host. */
const STEP_MS = 300_000;
/** All SRs of the host wait meanwhile. */
const JOIN_MS = 8000;

type Needed = Pick<SmContext, "agent" | "xapi" | "call" | "log">;

/** Before an SR is registered. Keys of the device-config: `disks`, `copies`, `network`. */
export async function ensureCluster({ agent, xapi, call, log }: Needed): Promise<void> {
  const { deviceConfig, hostRef } = call;
  const words = {
    disks: deviceConfig.get("disks") ?? null,
    copies: deviceConfig.get("copies") ?? null,
    network: deviceConfig.get("network") ?? null,
  };
  if (words.disks === null && (await agent.status()).kind === "cluster") return;
  const context = { agent, xapi: xapi.patient(STEP_MS), hostRef, log };
  const { hostname } = hostOfRef(await readPool(context.xapi), hostRef);
  await alone(context.xapi, hostname, Date.now(), async () => {
    const planned = await planPool(context, words);
    const { decision } = planned;
    if (decision.kind === "refused") {
      throw new SmFault(
        faultCodes.configParamsMissing,
        findingsText(decision.findings),
        "the same, with a plan that is shown first: weft init --plan",
      );
    }
    await runPlan(context, planned, decision.plan);
  });
}

/** Before an SR is attached: a host that came to the pool joins, without a disk at first. */
export async function ensureMember({ agent, xapi, call, log }: Needed): Promise<void> {
  if ((await agent.status()).kind === "cluster") return;
  const over = xapi.patient(JOIN_MS);
  const { uuid, hostname } = hostOfRef(await readPool(over), call.hostRef);
  if (await reclaimThroughPool({ agent, xapi: over, log }, uuid)) return;
  const network = call.deviceConfig.get("network");
  log.info({ host: hostname }, "this host is in no cluster yet: it joins that of its pool");
  const wish = { uuid, address: null, name: null, network: network === undefined ? null : uuidArg(network) };
  await joinThroughPool({ agent, xapi: over }, wish);
}
