/**
 * A host of XAPI's pool becomes a host of its cluster: both sides, over XAPI.
 *
 *     newcomer ──admit──▶ member ──join-request──▶ newcomer
 *              ◀──────── certificate and trust list ────────
 *
 * Must always hold:
 * - a member takes the request from the host itself, by XAPI's word for which one that is, never from who asks for it;
 * - what goes through XAPI is public (docs/adr/0028);
 * - a host that is a member already is left as it is.
 */
import { freeName, plainName } from "../../core/model/setup-plan.ts";
import { admissionAnswer, admissionRequest } from "../../core/wire/admission-api.ts";
import type { AgentClient } from "../../core/wire/agent-client.ts";
import { isWeftError, reasonOf, WeftError } from "../../core/wire/errors.ts";
import { faultCodes, SmFault } from "../faults.ts";
import { isXapiError, type XenApi } from "../xen-api.ts";
import { callPlugin, hostOfUuid, isAbsent, type PoolHost, readPool, type XapiPool } from "./pool-records.ts";

/** What a host that can't let others in says: another one is asked. */
const ASK_ANOTHER: ReadonlySet<string> = new Set([
  "E-AGENT-03",
  "E-TOKEN-05",
  "E-STORE-01",
  "E-CA-01",
  "E-TRUST-07",
]);

export type Newcomer = {
  /** XAPI's uuid of it. */
  readonly uuid: string;
  /** Null: where the members are. */
  readonly network: string | null;
  /** As a plan says; null: by the network, and by what the host calls itself. */
  readonly address: string | null;
  readonly name: string | null;
};

/** The newcomer's side. `via`: hosts that are asked, one after the other; others of the pool where it is null. */
export async function joinThroughPool(
  { agent, xapi }: { readonly agent: AgentClient; readonly xapi: XenApi },
  wish: Newcomer,
  via: string | null = null,
): Promise<void> {
  const pool = await readPool(xapi);
  const others = pool.hosts
    .filter(({ uuid, isUp }) => uuid !== wish.uuid && (via === null ? isUp : uuid === via))
    .toSorted((a, b) => Number(b.isMaster) - Number(a.isMaster));
  const refusals: string[] = [];
  const texts = Object.entries({ network: wish.network, address: wish.address, name: wish.name });
  const args = Object.fromEntries(texts.flatMap(([name, value]) => (value === null ? [] : [[name, value]])));
  for (const other of others) {
    try {
      const answer = await callPlugin(xapi, other.ref, "admit", { host: wish.uuid, ...args });
      await agent.enter(admissionAnswer.parse(JSON.parse(answer)));
      return;
    } catch (error) {
      const isTheirs = isXapiError(error) && ASK_ANOTHER.has(error.failure);
      if (!isTheirs && !isAbsent(error)) throw error;
      refusals.push(
        `${other.hostname}: ${isXapiError(error) ? (error.params[0] ?? error.failure) : reasonOf(error)}`,
      );
    }
  }
  throw new SmFault(
    faultCodes.srUnavailable,
    `E-SETUP-08 This host is in no cluster of weft, and no host of the pool can let it in${refusals.length === 0 ? "" : ` (${refusals.join("; ")})`}.`,
    "it is tried again when the PBD is plugged: xe pbd-plug",
  );
}

/** The member's side: the answer for the newcomer, as text. */
export async function admitFromPool(
  { agent, xapi }: { readonly agent: AgentClient; readonly xapi: XenApi },
  wish: Newcomer,
): Promise<string> {
  const status = await agent.status();
  if (status.kind === "no-cluster")
    throw new WeftError({ code: "E-AGENT-03", message: "This host is not in a cluster yet." });
  const pool = await readPool(xapi);
  const newcomer = hostOfUuid(pool, wish.uuid);
  const address =
    wish.address ??
    addressFor(newcomer, wish.network ?? networkAt(pool, status.self.address), status.self.address);
  const listed = await agent.hosts();
  // Who has its address is it, or was it: whether it still has that key, the admission tells.
  const same = listed.find((host) => host.address === address);
  const plain = wish.name ?? plainName(newcomer.hostname) ?? `host-${wish.uuid.slice(0, 8)}`;
  const name = same?.name ?? freeName(plain, wish.uuid, new Set(listed.map((host) => host.name)));
  const asked = await callPlugin(xapi, newcomer.ref, "join-request", { name, address });
  const request = admissionRequest.parse(JSON.parse(asked));
  const answer = await agent
    .admit({ ...request, vouchedBy: `XAPI host ${wish.uuid}` })
    .catch((error: unknown) => {
      throw same !== undefined && isWeftError(error, "E-HOST-03") ? listedAlready(same.name, address) : error;
    });
  return JSON.stringify(admissionAnswer.encode(answer));
}

/** It was installed anew, or its state directory was lost: what it was it can't prove any more. */
function listedAlready(name: string, address: string): WeftError {
  return new WeftError({
    code: "E-SETUP-15",
    message: `${name} (${address}) is a host of weft already, and the one that asks has not its key: it was installed anew, or lost its state directory.`,
    facts: { name, address },
    safe: "Nothing was changed. Other hosts' copies are as they were.",
    do: [
      { why: "Take the old one out, on another host", command: `weft host remove ${name}` },
      { why: "Then let the new one in", command: "xe pbd-plug uuid=PBD" },
    ],
  });
}

/** The network on which a host of the pool has this address. */
function networkAt(pool: XapiPool, address: string): string | null {
  const networks = pool.hosts.flatMap((host) => host.networks);
  return networks.find((network) => network.address === address)?.id ?? null;
}

function addressFor(host: PoolHost, network: string | null, own: string): string {
  const named = host.networks.find(({ id }) => id === network);
  const found =
    named ?? (network === null ? host.networks.find(({ isManagement }) => isManagement) : undefined);
  if (found !== undefined && found.address !== null) return found.address;
  throw new WeftError({
    code: "E-SETUP-03",
    message: `${host.hostname} has no address on the network "${named?.name ?? network ?? "of the members"}", where weft's hosts are (${own}).`,
    facts: { host: host.uuid, network },
    safe: "Nothing was changed.",
    do: [
      { why: "Give it one", command: "xe pif-reconfigure-ip uuid=PIF mode=static IP=ADDRESS netmask=MASK" },
    ],
  });
}
