/**
 * A host that XAPI ejects from its pool: what only it has would go with it.
 *
 * Must always hold: it is refused where XAPI still gives up for it: as it unplugs the host's PBDs. XAPI's hook pool-eject comes when
 * the host is out already, and a refusal there leaves the host half in and half out (Pool.eject in xen-api's xapi_pool.ml).
 */
import type { AgentClient } from "../../core/wire/agent-client.ts";
import { isWeftError } from "../../core/wire/errors.ts";
import type { SmContext } from "../call.ts";
import { faultCodes, SmFault } from "../faults.ts";
import { poolDoes } from "./pool-records.ts";

/** As a PBD is unplugged. Null: nothing is to be refused, as far as can be seen. */
export async function ejectRefusal({
  agent,
  xapi,
}: Pick<SmContext, "agent" | "xapi">): Promise<SmFault | null> {
  if (!xapi.hasSession || !(await poolDoes(xapi, "eject"))) return null;
  const what = await onlyHere(agent);
  if (what === null) return null;
  return new SmFault(
    faultCodes.general,
    `E-HOST-01 ${what} They would leave the pool with it. It is in the pool as before.`,
    "move or copy them first (weft replica move, weft volume copies), then eject it; PBDs that were unplugged already: xe pbd-plug",
  );
}

/** A sentence about volumes of which this host has the only copy in sync; null: none, or nobody knows. */
export async function onlyHere(agent: AgentClient): Promise<string | null> {
  const status = await agent.status().catch((error: unknown) => {
    if (isWeftError(error)) return null;
    throw error;
  });
  if (status?.kind !== "cluster") return null;
  const { self, volumes } = status;
  const alone = volumes.filter(({ health, replicas }) => {
    const inSync = replicas.filter(({ state }) => state === "INSYNC");
    const here = inSync.some(({ host }) => host === self.host);
    return health !== "deleted" && here && !inSync.some(({ host, alive }) => host !== self.host && alive);
  });
  if (alone.length === 0) return null;
  const names = alone.slice(0, 5).map(({ name }) => name);
  const more = alone.length > names.length ? ` and ${alone.length - names.length} more` : "";
  const volumesOf = `${alone.length} ${alone.length === 1 ? "volume" : "volumes"} of weft (${names.join(", ")}${more})`;
  return `${self.name} has the only copy in sync of ${volumesOf}.`;
}
