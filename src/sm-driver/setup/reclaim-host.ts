/**
 * A host of XAPI's pool that was installed anew gets back who it was in its cluster, and its pools with it: both sides, over XAPI.
 *
 *     newcomer, with sealed bundles on its disks ──unseal──▶ member ──join-request──▶ newcomer
 *              ◀──────── the bundle's key, for the newcomer's key alone ────────
 *
 * Must always hold:
 * - a member gives the key of a bundle only to the host that XAPI gives the address of the bundle's host, and asks that host
 *   itself for the public key to give it to;
 * - what goes through XAPI helps nobody else: the key is sealed for one that never leaves the newcomer.
 */
import { admissionRequest } from "../../core/wire/admission-api.ts";
import type { AgentClient } from "../../core/wire/agent-client.ts";
import { type BundleOf, parseBundle, wrappedKey } from "../../core/wire/bundle.ts";
import { isWeftError, reasonOf, WeftError } from "../../core/wire/errors.ts";
import type { Log } from "../call.ts";
import { isXapiError, type XenApi } from "../xen-api.ts";
import { joinThroughPool, type Newcomer } from "./join-pool.ts";
import { callPlugin, hostOfUuid, isAbsent, readPool } from "./pool-records.ts";

type Sides = { readonly agent: AgentClient; readonly xapi: XenApi };

/** Comes back as who it was, where its disks and a member say so; else it joins as a new host. */
export async function enterThroughPool(
  sides: Sides & { readonly log: Log },
  wish: Newcomer,
  via: string | null = null,
): Promise<void> {
  if (!(await reclaimThroughPool(sides, wish.uuid))) await joinThroughPool(sides, wish, via);
}

/** True: it is the host again that it was. False: nothing of that is here, or nobody gives a key. */
async function reclaimThroughPool(
  { agent, xapi, log }: Sides & { readonly log: Log },
  uuid: string,
): Promise<boolean> {
  const { bundles } = await agent.bundles();
  if (bundles.length === 0) return false;
  const { hosts } = await readPool(xapi);
  const others = hosts.filter((host) => host.uuid !== uuid && host.isUp);
  for (const text of bundles) {
    const bundle = parseBundle(text);
    if (bundle === null) continue;
    for (const other of others) {
      try {
        const { cluster, host, kid } = bundle;
        const answer = await callPlugin(xapi, other.ref, "unseal", {
          host: uuid,
          cluster,
          bundle: host,
          kid,
        });
        await agent.reclaim({ bundle: text, key: wrappedKey.parse(JSON.parse(answer)) });
        log.info({ host, by: other.hostname }, "this host is again who it was, by the bundle on its disk");
        return true;
      } catch (error) {
        // Another member may say otherwise; where none does it comes as a new host.
        if (!isXapiError(error) && !isAbsent(error) && !isWeftError(error)) throw error;
        if ((await agent.status()).kind === "cluster") {
          // Only its place in the store takes longer, and that goes on by itself.
          log.warn({ reason: reasonOf(error) }, "this host is again who it was, and not all of it works yet");
          return true;
        }
        log.info(
          { by: other.hostname, reason: reasonOf(error) },
          "no key for the bundle on this host's disk",
        );
      }
    }
  }
  return false;
}

/** The member's side: the key for the newcomer, as text. */
export async function unsealForPool(
  { agent, xapi }: Sides,
  { uuid, bundle }: { readonly uuid: string; readonly bundle: BundleOf },
): Promise<string> {
  const newcomer = hostOfUuid(await readPool(xapi), uuid);
  const listed = (await agent.hosts()).find(({ id }) => id === bundle.host);
  if (listed === undefined) {
    throw new WeftError({
      code: "E-SETUP-17",
      message:
        "The identity on this host's disk can't be taken up again: its host was taken out of the cluster.",
      safe: "Nothing was changed.",
    });
  }
  const addresses = newcomer.networks.flatMap(({ address }) => address ?? []);
  const wish = { name: listed.name, address: listed.address };
  const request = admissionRequest.parse(
    JSON.parse(await callPlugin(xapi, newcomer.ref, "join-request", wish)),
  );
  const order = { bundle, request, addresses, vouchedBy: `XAPI host ${uuid}` };
  return JSON.stringify(await agent.unseal(order));
}
