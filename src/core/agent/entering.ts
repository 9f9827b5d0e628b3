/**
 * What `init` and `join` ask of a host before they begin: it is in no cluster, the address is its own, nobody else serves
 * there.
 *
 * Must always hold: a refusal here changed nothing.
 */
import { createServer } from "node:net";
import { hostname } from "node:os";

import type { HostId } from "../model/ids.ts";
import { parseName } from "../model/name.ts";
import type { Trust } from "../model/trust.ts";
import { decided, isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import type { IdentityFiles } from "../wire/identity-files.ts";
import { parseHost } from "../wire/record.ts";
import type { Entry } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { CLIENT_PORT, type EtcdProcess } from "./etcd-process.ts";
import type { HostFiles } from "./host-file.ts";
import type { Log } from "./log.ts";
import { runTool } from "./tool.ts";
import type { TrustExtra } from "./trust-change.ts";

/** XAPI's own program takes a moment for each port. */
const FIREWALL_MS = 10_000;

export type JoinContext = {
  readonly files: HostFiles;
  readonly identityFiles: IdentityFiles;
  readonly etcd: EtcdProcess;
  readonly bootIdFile: string | null;
  /** How long certificates live that this host issues; null: as always. */
  readonly certificateLifeMs: number | null;
  readonly log: Log;
};

/** A host's keys in the store: all of them are new, or the host isn't registered. */
export function registration(host: {
  readonly host: string;
  readonly name: string;
  readonly address: string;
  readonly joinedAt: string;
}): TrustExtra {
  const { name, address, joinedAt } = host;
  const holder = JSON.stringify({ host: host.host });
  const entries = [
    [keys.host(host.host), JSON.stringify({ id: host.host, name, address, joinedAt })],
    [keys.hostName(name), holder],
    [keys.hostAddress(address), holder],
  ] as const;
  return {
    compares: entries.map(([key]) => ({ key, modRevision: 0n })),
    ops: entries.map(([key, value]) => ({ kind: "put", key, value })),
  };
}

/**
 * Whether `entry` says of a host what the signed list says. Any host can write there, and what can't be read, or names another
 * one, hides this host from all others. True of a host that the list does not name: it has nothing to say.
 */
export function isRegistered(entry: Entry | null, host: HostId, trust: Trust): boolean {
  const listed = trust.hosts.get(host);
  if (listed === undefined) return true;
  if (entry === null) return false;
  try {
    const { id, name, address } = parseHost(entry.key, entry.value);
    return id === host && name === listed.name && address === listed.address;
  } catch (error) {
    if (isWeftError(error)) return false;
    throw error;
  }
}

/** Of the host's own firewall, by the program that came with weft: others ask here from now on. Where it isn't, the rules are somebody else's. */
export async function openPorts(log: Log): Promise<void> {
  try {
    const run = await runTool("weft-firewall", ["open"], FIREWALL_MS);
    if (run !== null && run.code !== 0) log.warn({ said: run.said }, "TCP 7400 to 7403 could not be opened");
  } catch (error) {
    if (!isWeftError(error)) throw error;
    log.warn({ reason: reasonOf(error) }, "TCP 7400 to 7403 could not be opened");
  }
}

export async function refuseMember(files: HostFiles): Promise<void> {
  const member = await files.readHost();
  if (member === null) return;
  throw new WeftError({
    code: "E-HOST-04",
    message: `This host is "${member.name}" of cluster ${member.cluster} already.`,
    facts: { cluster: member.cluster, host: member.host, name: member.name },
    safe: "Nothing was changed.",
    do: [{ why: "Look at it", command: "weft status" }],
  });
}

/** The address is one of this host's, and nobody else has the store's port there. */
export async function checkLocal(address: string, etcd: EtcdProcess): Promise<void> {
  if ((await etcd.runningPid()) !== null) return;
  const server = createServer();
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host: address, port: CLIENT_PORT, exclusive: true }, resolve);
    });
  } catch (cause) {
    const busy = cause instanceof Error && "code" in cause && cause.code === "EADDRINUSE";
    throw new WeftError({
      code: busy ? "E-HOST-08" : "E-ARG-02",
      message: busy
        ? `Port ${CLIENT_PORT} on ${address} is used by another program.`
        : `${address} is not an address of this host.`,
      facts: { address, port: CLIENT_PORT },
      safe: "Nothing was changed.",
      do: busy ? [{ why: "Debian's own etcd service?", command: "systemctl disable --now etcd" }] : [],
      cause,
    });
  } finally {
    server.close();
  }
}

/** The host's own name, where none was given: E-ARG-02 if it can't be one. */
export function ownName(): string {
  const name = (hostname().split(".")[0] ?? "").toLowerCase();
  return decided(parseName("host", name));
}

export function takenBy(name: string, address: string, isName: boolean): WeftError {
  return new WeftError({
    code: "E-HOST-03",
    message: isName
      ? `A host named "${name}" is a member already.`
      : `A host with the address ${address} is a member already.`,
    facts: { name, address },
    safe: "Nothing was changed in the cluster.",
    do: [{ why: "With another name", command: "weft join HOST --name NAME" }],
  });
}
