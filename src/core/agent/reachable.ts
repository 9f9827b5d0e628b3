/**
 * Whether hosts are there in this moment. A lease says so for ten seconds after a host has died.
 *
 * Must always hold: it decides where something is put or what is waited for, never what is safe.
 */
import { connect } from "node:net";

import type { Cluster } from "../model/cluster.ts";
import type { HostId } from "../model/ids.ts";
import type { MemberContext } from "./context.ts";
import { findListed } from "./find.ts";

/** weftd's port for other hosts, and their agents'. */
export const DATA_PORT = 7401;
const DOOR_PORT = 7400;
const KNOCK_MS = 1000;

type Knock = "open" | "refused" | "silent";

/** Nothing is said: a connection is made, and ended. */
export async function knock(address: string, port: number, timeoutMs: number): Promise<Knock> {
  const socket = connect({ host: address, port });
  try {
    return await new Promise<Knock>((resolve) => {
      socket.setTimeout(timeoutMs, () => resolve("silent"));
      socket.once("connect", () => resolve("open"));
      socket.once("error", (error: NodeJS.ErrnoException) =>
        resolve(error.code === "ECONNREFUSED" ? "refused" : "silent"),
      );
    });
  } finally {
    socket.destroy();
  }
}

/** Those of which neither weftd nor the agent takes a connection: one of both is restarted now and then. */
export async function unreachable(
  { identity, host: here }: Pick<MemberContext, "identity" | "host">,
  hosts: Iterable<HostId>,
): Promise<ReadonlySet<HostId>> {
  const trust = identity.trust();
  const looks = [...new Set(hosts)].map(async (host): Promise<readonly HostId[]> => {
    if (host === here || !trust.hosts.has(host)) return [];
    const { address } = findListed(trust, host);
    for (const port of [DATA_PORT, DOOR_PORT])
      if ((await knock(address, port, KNOCK_MS)) === "open") return [];
    return [host];
  });
  return new Set((await Promise.all(looks)).flat());
}

/** As if their leases had ended now. */
export function without(cluster: Cluster, away: ReadonlySet<HostId>): Cluster {
  if (away.size === 0) return cluster;
  const liveness = { kind: "away" as const, sinceMs: Date.now() };
  return {
    ...cluster,
    hosts: cluster.hosts.map((host) => (away.has(host.id) ? { ...host, liveness } : host)),
  };
}
