/**
 * Where a host stands, and taking one out of the cluster: it is revoked, its store member goes, copies are placed anew. One that answers sees in
 * the signed list that it is out, and destroys its identity.
 *
 * Must always hold:
 * - refused while the host has the only in-sync copy of a volume, a volume open, or the store's majority;
 * - a host that was removed is out for good, whatever it kept: its certificates are on the list of the revoked, and where
 *   it ever had the authority's key another authority takes over. That it destroys what it has is a courtesy.
 */
import type { StoreMember } from "../model/membership.ts";
import { checkMemberRemoval } from "../model/membership.ts";
import type { HostId } from "../model/ids.ts";
import { checkHostRemoval } from "../model/replica-change.ts";
import { NO_LABELS, withLabels } from "../model/spread.ts";
import type { LabelChange } from "../model/spread.ts";
import { membersOf } from "../model/trust.ts";
import type { HostRemoveAnswer } from "../wire/agent-api.ts";
import { WeftError } from "../wire/errors.ts";
import { objectOf, parseHostLabels } from "../wire/record.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { peerUrl } from "./etcd-process.ts";
import { snapshotsOf, volumesOf } from "./facts.ts";
import { findHost, findListed, hasWant } from "./find.ts";
import { hostOfMember } from "./members.ts";
import { revokeHost } from "./revoke.ts";
import { clientUrlOf } from "./store-keeper.ts";

const REMOVE_MS = 20_000;

/** `by` is who asked, for people. */
export async function removeHost(context: MemberContext, ref: string, by: string): Promise<HostRemoveAnswer> {
  const { mirror, view, self, identity, storeKeeper } = context;
  await mirror.sync();
  const host = findListed(identity.trust(), ref);
  if (host.id === self.host && identity.trust().hosts.size > 1) throw removesItself(host.name);
  const volumes = volumesOf(mirror)
    .filter(hasWant)
    .map(({ id, want, record }) => ({ want, record, snapshots: snapshotsOf(mirror, id).known }));
  const allowed = checkHostRemoval(host.id, volumes, view.cluster());
  if (allowed.kind === "refused") throw WeftError.fromFinding(allowed.finding);
  const members = await storeMembers(context);
  const spared = checkMemberRemoval(members, host.id, host.name);
  if (spared.kind === "refused") throw WeftError.fromFinding(spared.finding);

  const wasMember = members.some((member) => member.host === host.id);
  const { complete, authority, keyOn, keyMissing } = await revokeHost(context, host.id, by);
  if (wasMember) await untilNoMember(context, peerUrl(host.address));
  const left = await storeKeeper.members.list();
  return {
    host: host.id,
    name: host.name,
    storeMemberRemoved: wasMember && !left.some((m) => m.peerUrls.includes(peerUrl(host.address))),
    complete,
    authority,
    keyOn,
    keyMissing,
  };
}

/** A host that has the authority's key does it; each of its changes of the membership shows in the voters' key. */
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

/** Says where a host stands. Copies that are there stay: a rule that they break by it is kept by the next change of places. */
export async function labelHost(
  { mirror, store }: MemberContext,
  ref: string,
  change: LabelChange,
): Promise<HostId> {
  await mirror.sync();
  const { id } = findHost(mirror, ref);
  const key = keys.hostLabels(id);
  for (;;) {
    const entry = await store.get(key);
    const before = entry === null ? NO_LABELS : parseHostLabels(key, entry.value);
    const value = JSON.stringify({
      ...(entry === null ? {} : objectOf(entry.value)),
      ...withLabels(before, change),
    });
    const outcome = await store.cas(key, entry?.modRevision ?? 0n, value);
    if (outcome.kind === "won") break;
  }
  await mirror.sync();
  return id;
}

/** Those that the signed list names. */
async function storeMembers({ identity, storeKeeper }: MemberContext): Promise<readonly StoreMember[]> {
  const trust = identity.trust();
  const members: StoreMember[] = [];
  for (const member of await storeKeeper.members.list()) {
    const host = hostOfMember(trust, member);
    if (host === null || !membersOf(trust).includes(host)) continue;
    const status = member.name === "" ? null : await storeKeeper.members.statusOf(clientUrlOf(member));
    members.push({
      host,
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
