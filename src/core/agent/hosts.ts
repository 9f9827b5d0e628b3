/**
 * Taking a host out of the cluster: its keys go, the placer takes its store member out and places copies anew. One that
 * answers destroys its identity; one that does not is revoked.
 *
 * Must always hold: refused while the host has the only in-sync copy of a volume, a volume open, or the store's majority.
 */
import { ok } from "../model/finding.ts";
import type { StoreMember } from "../model/membership.ts";
import { checkMemberRemoval } from "../model/membership.ts";
import { checkHostRemoval } from "../model/replica-change.ts";
import { withoutHost } from "../model/trust.ts";
import type { HostRemoveAnswer } from "../wire/agent-api.ts";
import { WeftError } from "../wire/errors.ts";
import type { HostJson } from "../wire/record.ts";
import type { Op } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { peerUrl } from "./etcd-process.ts";
import { aliveOf, hostsOf, poolsOf, volumesOf } from "./facts.ts";
import { findHost, hasWant } from "./find.ts";
import { revokeHost } from "./revoke.ts";
import { clientUrlOf } from "./store-keeper.ts";
import { changeTrust } from "./trust-change.ts";

const REMOVE_MS = 20_000;

/** `by` is who asked, for people. */
export async function removeHost(context: MemberContext, ref: string, by: string): Promise<HostRemoveAnswer> {
  const { mirror, view, self, storeKeeper } = context;
  await mirror.sync();
  const host = findHost(mirror, ref);
  if (host.id === self.host && hostsOf(mirror).length > 1) throw removesItself(host.name);
  const volumes = volumesOf(mirror).filter(hasWant);
  const allowed = checkHostRemoval(host.id, volumes, view.cluster());
  if (allowed.kind === "refused") throw WeftError.fromFinding(allowed.finding);
  const members = await storeMembers(context);
  const spared = checkMemberRemoval(members, host.id, host.name);
  if (spared.kind === "refused") throw WeftError.fromFinding(spared.finding);

  const wasMember = members.some((member) => member.host === host.id);
  if (aliveOf(mirror).has(host.id)) await leave(context, host);
  // It can't destroy its identity itself, and may come back with it.
  else await revokeHost(context, host.id, by);
  if (wasMember) await untilNoMember(context, peerUrl(host.address));
  const left = await storeKeeper.members.list();
  return {
    host: host.id,
    name: host.name,
    storeMemberRemoved: wasMember && !left.some((m) => m.peerUrls.includes(peerUrl(host.address))),
  };
}

/**
 * A host that answers: it sees that it is listed no more, and destroys its identity. Only the list tells it so: a key of
 * the store is every host's to delete.
 */
async function leave(context: MemberContext, host: HostJson): Promise<void> {
  const { mirror } = context;
  const pools = poolsOf(mirror).filter(({ node }) => node === host.id);
  const entry = mirror.get(keys.host(host.id));
  const ops: Op[] = [
    keys.host(host.id),
    keys.hostName(host.name),
    keys.hostAddress(host.address),
    keys.alive(host.id),
    keys.repair(host.id),
    ...pools.flatMap(({ id }) => [keys.pool(id), keys.poolUsage(id)]),
  ].map((key) => ({ kind: "delete", key }));
  const compares = [{ key: keys.host(host.id), modRevision: entry?.modRevision ?? 0n }];
  const change = await changeTrust(context, (trust) => ok(withoutHost(trust, { host: host.id, nonce: "" })), {
    compares,
    ops,
  });
  if (change.kind === "changed") return;
  throw new WeftError({
    code: "E-STORE-06",
    message: `Whether ${host.name} was removed is not known: its entry in the store was changed meanwhile.`,
    facts: { host: host.id },
  });
}

/** The placer does it; each of its changes of the membership shows in the voters' key. */
async function untilNoMember({ mirror, storeKeeper }: MemberContext, url: string): Promise<void> {
  const end = performance.now() + REMOVE_MS;
  for (;;) {
    const seen = mirror.get(keys.voters)?.modRevision ?? 0n;
    if (!(await storeKeeper.members.list()).some((m) => m.peerUrls.includes(url))) return;
    const left = end - performance.now();
    if (left <= 0) return;
    storeKeeper.nudge();
    const slice = Math.min(left, 1000);
    await mirror
      .until("The removal from the store", slice, () =>
        (mirror.get(keys.voters)?.modRevision ?? 0n) > seen ? true : null,
      )
      .catch((error: unknown) => {
        if (!(error instanceof WeftError && error.code === "E-AGENT-04")) throw error;
      });
  }
}

async function storeMembers({ mirror, storeKeeper }: MemberContext): Promise<readonly StoreMember[]> {
  const hosts = hostsOf(mirror);
  const members: StoreMember[] = [];
  for (const member of await storeKeeper.members.list()) {
    const host = hosts.find(({ address }) => member.peerUrls.includes(peerUrl(address)));
    if (host === undefined) continue;
    const status = member.name === "" ? null : await storeKeeper.members.statusOf(clientUrlOf(member));
    members.push({
      host: host.id,
      role: member.learner ? "learner" : "voter",
      healthy: status !== null && status.leader !== "0",
    });
  }
  return members;
}

function removesItself(name: string): WeftError {
  return new WeftError({
    code: "E-HOST-10",
    message: `${name} can't remove itself.`,
    facts: { name },
    safe: "Nothing was changed.",
    do: [{ why: "On another host", command: `weft host remove ${name}` }],
  });
}
