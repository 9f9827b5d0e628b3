/**
 * What commands of SRs need first: a cluster, and this host in it.
 *
 * Must always hold:
 * - where the pool's hosts are in a cluster already, an SR's creation changes none of them, unless disks are named for it;
 * - what stands in the way is told with all findings, and nothing was done then.
 */
import type { SmContext } from "../call.ts";
import { faultCodes, SmFault } from "../faults.ts";
import { keyFindings, refuseFor, registrationFindings, wordFindings, wordsOf } from "./device-config.ts";
import { parseInventory } from "./inventory.ts";
import { callPlugin, hostOfRef, readPool } from "./pool-records.ts";
import { enterThroughPool } from "./reclaim-host.ts";
import { alone } from "./setup-lock.ts";
import { planPool, runPlan, uuidArg } from "./setup.ts";

/** A step may make a file system on a large disk of a slow host. */
const STEP_MS = 300_000;
/** All SRs of the host wait meanwhile. */
const JOIN_MS = 8000;

type Needed = Pick<SmContext, "agent" | "xapi" | "call" | "log">;

/** Before an SR is registered. A device-config that can't be had is refused with all that is wrong with it. */
export async function ensureCluster(needed: Needed & Pick<SmContext, "refusedDatapath">): Promise<void> {
  const { agent, xapi, call, log } = needed;
  const { deviceConfig, hostRef } = call;
  const words = wordsOf(deviceConfig);
  const keys = keyFindings(needed);
  const status = words.disks === null ? await agent.status() : null;
  if (status?.kind === "cluster") {
    refuseFor([...keys, ...(await registrationFindings(words, status, () => readPool(xapi)))]);
    return;
  }
  const certain = [...keys, ...wordFindings(words)];
  const context = { agent, xapi: xapi.patient(STEP_MS), hostRef, log };
  if (certain.length > 0) {
    // What is wrong with the pool besides is told with it; who can't be asked about that doesn't hide it.
    const decision = await planPool(context, words).then(
      (planned) => planned.decision,
      () => null,
    );
    refuseFor(decision?.kind === "refused" ? [...keys, ...decision.findings] : certain);
  }
  const { hostname } = hostOfRef(await readPool(context.xapi), hostRef);
  await alone(context.xapi, hostname, Date.now(), async () => {
    const planned = await planPool(context, words);
    const { decision } = planned;
    if (decision.kind === "refused") refuseFor(decision.findings);
    else await runPlan(context, planned, decision.plan);
  });
}

/** Why an SR that nobody knows here may be another cluster's: hosts of the pool are in one. Null: none says so. */
export async function otherCluster({ agent, xapi, call }: Needed): Promise<SmFault | null> {
  const status = await agent.status();
  if (status.kind !== "cluster" || !xapi.hasSession) return null;
  const { hosts } = await readPool(xapi);
  const others = hosts.filter(({ ref, isUp }) => isUp && ref !== call.hostRef);
  const found = await Promise.all(
    others.map(async ({ ref, hostname }) => {
      const seen = await callPlugin(xapi, ref, "inventory").then(parseInventory, () => null);
      if (seen?.weft.kind !== "member" || seen.weft.cluster === status.cluster.id) return [];
      return [`${hostname} in ${seen.weft.cluster.slice(0, 8)}`];
    }),
  );
  if (found.flat().length === 0) return null;
  return new SmFault(
    faultCodes.srUnavailable,
    `E-SETUP-02 Hosts of this pool belong to different clusters of weft: ${status.self.name} in ${status.cluster.id.slice(0, 8)}, ${found.flat().join(", ")}. This SR is not of this host's.`,
    `take this host out of its cluster (weft host remove ${status.self.name}, on another host of that), then plug the PBD again`,
  );
}

/** Before an SR is attached: a host that came to the pool joins, without a disk at first. */
export async function ensureMember({ agent, xapi, call, log }: Needed): Promise<void> {
  if ((await agent.status()).kind === "cluster") return;
  const over = xapi.patient(JOIN_MS);
  const { uuid, hostname } = hostOfRef(await readPool(over), call.hostRef);
  const network = call.deviceConfig.get("network");
  log.info({ host: hostname }, "this host is in no cluster yet: it joins that of its pool");
  const wish = { uuid, address: null, name: null, network: network === undefined ? null : uuidArg(network) };
  await enterThroughPool({ agent, xapi: over, log }, wish);
}
