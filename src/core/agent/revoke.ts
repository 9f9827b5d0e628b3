/**
 * `weft host revoke`: from one swap of the trust list on nothing of a host is listened to.
 *
 *     sessions that the host has are fenced, if that goes at once ──▶ decide (one transaction: list, and the host's keys
 *     go) ──▶ every host refuses and cuts, members restart their etcd, each says so ──▶ sessions are fenced again ──▶ report
 *
 * Must always hold:
 * - a host that held the authority's key goes together with that authority; the new one's keys are at every other member
 *   before the list names it;
 * - it is called complete only when every host that is alive said that it refuses the host, and every member of the store
 *   that it has no connection of it, each by its own signature: from then on the host can change no record;
 * - a session counts as fenced only after that holds for every member whose etcd answers: before, the host could take the
 *   volume back (docs/model.md). It is fenced before as well, so that what it has open takes no copy out of sync when the
 *   copies cut it, to acknowledge alone until the second fence;
 * - who is meant says the signed list: names and addresses in the store are every host's to write;
 * - repeating it goes on where it stopped.
 */
import { randomUUID } from "node:crypto";

import type { Decision } from "../model/finding.ts";
import { byText, type HostId, parseHostId } from "../model/ids.ts";
import { majority } from "../model/membership.ts";
import type { Authority, Replacement, Trust } from "../model/trust.ts";
import { holdsAuthority, membersOf, revokeHost as revokeInList, withHeld } from "../model/trust.ts";
import type { HostRevokeAnswer } from "../wire/agent-api.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import { pause } from "../wire/store-call.ts";
import type { Op } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { Member } from "../wire/store-members.ts";
import type { AuthorityKeys } from "../wire/x509-make.ts";
import { askHost, giveAuthorities } from "./ask-members.ts";
import type { MemberContext } from "./context.ts";
import { peerUrl } from "./etcd-process.ts";
import { aliveOf, poolsOf, type VolumeFacts, volumesOf } from "./facts.ts";
import { findListed } from "./find.ts";
import { hostOfMember } from "./members.ts";
import { syncIfPossible } from "./mirror.ts";
import type { Mirror } from "./mirror.ts";
import { clientUrlOf } from "./store-keeper.ts";
import { changeTrust } from "./trust-change.ts";
import { readAck } from "./revocation-acks.ts";

/** Hosts are waited for this long; those that have the store need less than a quarter of it. */
const CUT_MS = 20_000;
/** The revocation waits no longer for the first fence, whose outcome decides nothing. */
const FENCE_FIRST_MS = 2000;
/** One that seems away is asked whether it is, for so long. */
const ASK_MS = 1000;

type NewAuthority = Pick<HostRevokeAnswer, "authority" | "keyOn" | "keyMissing">;
/** The host held no key of one. */
const NO_NEW_AUTHORITY: NewAuthority = { authority: null, keyOn: [], keyMissing: [] };
/** `isNew`: the host owned it until then. */
type Fenced = HostRevokeAnswer["fenced"][number] & { readonly isNew: boolean };

type Decided =
  /** `fenced`: before the list was changed. */
  | ({ readonly kind: "done"; readonly fenced: readonly Fenced[] } & NewAuthority)
  /** Since we looked, the host was given the authority's key and needs another one, or was revoked by somebody else. */
  | { readonly kind: "again" };

type Target = { readonly id: HostId; readonly name: string; readonly address: string | null };

/** `by` is who asked, for people. */
export async function revokeHost(context: MemberContext, ref: string, by: string): Promise<HostRevokeAnswer> {
  const { mirror, identity, authority, storeKeeper, self, log } = context;
  await mirror.sync();
  const target = targetOf(identity.trust(), ref);
  if (target.id === self.host) throw revokesItself(target.name);
  if (!authority.holds(identity.trust())) authority.give(identity.trust());
  const members = await storeKeeper.members.list();
  const member = target.address === null ? undefined : memberAt(members, target.address);
  if (member !== undefined) await refuseLoss(context, members, member, target);
  const begun = performance.now();
  let decided = await decide(context, target, by, members);
  while (decided.kind === "again") decided = await decide(context, target, by, members);
  log.warn({ host: target.id, name: target.name, by }, "a host was revoked");
  const { authority: kid, keyOn, keyMissing } = decided;
  const { hosts, complete } = await untilCut(context, target, begun);
  const isOff = await isCutOff(context, hosts);
  const [fenced, unheard] = await Promise.all([
    isOff ? fence(context, target.id) : [],
    answersUnheard(context, hosts),
  ]);
  const open = sessionsOf(context, target.id)
    .filter(({ id }) => !fenced.some(({ volume }) => volume === id))
    .map(({ id, want }) => ({ volume: id, name: want?.name ?? id }));
  return {
    host: target.id,
    name: target.name,
    generation: identity.trust().generation,
    authority: kid,
    keyOn: [...keyOn],
    keyMissing: [...keyMissing],
    hosts,
    complete: complete && !unheard && isOff && open.length === 0,
    fenced: allFenced([...decided.fenced, ...fenced]).filter(
      ({ volume }) => !open.some((still) => still.volume === volume),
    ),
    open,
  };
}

/** The list without it, and with it whatever the store knows of the host: one transaction. */
async function decide(
  context: MemberContext,
  target: Target,
  by: string,
  members: readonly Member[],
): Promise<Decided> {
  const { identity, authority, mirror, self } = context;
  await mirror.sync();
  if (identity.trust().revoked.has(target.id)) return { kind: "done", fenced: [], ...NO_NEW_AUTHORITY };
  let next: Awaited<ReturnType<typeof authority.makeNext>> | null = null;
  // This host makes it, so it has it.
  const staying = Array.from(new Set([...membersOf(identity.trust()), context.host])).filter(
    (id) => id !== target.id,
  );
  let missing: readonly HostId[] = [];
  if (holdsAuthority(identity.trust(), target.id)) {
    next = await authority.makeNext(self.cluster);
    const others = staying.filter((id) => id !== self.host);
    // One that is away is given them when it is back, by the others: there must be a store without it.
    missing = await giveAuthorities(context, { host: [next.host], store: [next.store] }, others);
    const having = staying.filter((id) => !missing.includes(id));
    refuseSplit(identity.trust(), { members, having, missing, target });
  }
  const before = await fenceFirst(context, target.id);
  const replacement = next === null ? null : replacementOf(next);
  const change = await changeTrust(
    context,
    (trust) => {
      // What others say of a revocation that is under way is not deleted.
      const isOver = trust.revoked.has(target.id);
      if (isOver || (replacement === null && holdsAuthority(trust, target.id))) throw new OtherMeanwhile();
      return withRevoked(trust, { target, by, replacement, staying });
    },
    { compares: [], ops: removalOps(context, target) },
  ).catch((error: unknown) => {
    if (error instanceof OtherMeanwhile) return null;
    throw error;
  });
  if (change === null) return { kind: "again" };
  if (change.kind !== "changed") throw new Error("a revocation compares the list alone");
  const { authorities } = change.signed.trust;
  if (next === null || !authorities.some(({ kid }) => kid === next?.host.kid))
    return { kind: "done", fenced: before, ...NO_NEW_AUTHORITY };
  const namesOf = (hosts: readonly HostId[]): string[] =>
    hosts.map((host) => identity.trust().hosts.get(host)?.name ?? host).toSorted(byText);
  return {
    kind: "done",
    fenced: before,
    authority: next.host.kid,
    keyOn: namesOf(staying.filter((host) => !missing.includes(host))),
    keyMissing: namesOf(missing),
  };
}

/** Seen in the list that is to be changed. */
class OtherMeanwhile extends Error {}

function withRevoked(
  trust: Trust,
  {
    target,
    by,
    replacement,
    staying,
  }: {
    readonly target: Target;
    readonly by: string;
    readonly replacement: Replacement | null;
    readonly staying: readonly HostId[];
  },
): Decision<Trust> {
  const nowMs = Date.now();
  const needed = holdsAuthority(trust, target.id) ? replacement : null;
  const revoked = revokeInList(trust, { host: target.id, by, nowMs, nonce: "", replacement: needed });
  if (needed === null) return revoked;
  const kids = [needed.authority.kid, needed.storeAuthority.kid];
  const there = staying.filter((host) => trust.hosts.has(host));
  return there.reduce<Decision<Trust>>(
    (so, host) => (so.kind === "refused" ? so : withHeld(so.value, { host, kids, nonce: "" })),
    revoked,
  );
}

function replacementOf(next: { readonly host: AuthorityKeys; readonly store: AuthorityKeys }): Replacement {
  const sinceMs = Date.now();
  const named = ({ kid, pem }: AuthorityKeys): Authority => ({ kid, pem, state: "active", sinceMs });
  return { id: randomUUID(), authority: named(next.host), storeAuthority: named(next.store) };
}

function removalOps({ mirror }: MemberContext, { id, name, address }: Target): readonly Op[] {
  const pools = poolsOf(mirror).filter(({ node }) => node === id);
  const gone = [
    keys.host(id),
    keys.hostName(name),
    ...(address === null ? [] : [keys.hostAddress(address)]),
    keys.hostLabels(id),
    keys.alive(id),
    keys.repair(id),
    keys.xapiHost(id),
    keys.xapiDead(id),
    ...placerKeys(mirror, id),
    ...pools.flatMap((pool) => [keys.pool(pool.id), keys.poolUsage(pool.id)]),
  ];
  // Whatever stands there was said before there was anything to say.
  const said: Op = { kind: "delete-prefix", prefix: keys.revocation(id) };
  return [said, ...gone.map((key): Op => ({ kind: "delete", key }))];
}

/** Nobody places for the seconds until its lease would have ended: another one may at once. */
function placerKeys(mirror: Mirror, host: HostId): readonly string[] {
  const placer = mirror.get(keys.placer);
  return placer !== null && placer.value.includes(host) ? [keys.placer] : [];
}

/** A name, an identifier; also of a host that was revoked before, to finish that: the last one of its name. */
function targetOf(trust: Trust, ref: string): Target {
  const id = parseHostId(ref);
  const isListed = Array.from(trust.hosts).some(([host, { name }]) => host === id || name === ref);
  const gone = Array.from(trust.revoked, ([host, { name, atMs }]) => ({
    id: host,
    name,
    atMs,
    address: null,
  }));
  const byName = gone.filter(({ name }) => name === ref).toSorted((a, b) => b.atMs - a.atMs);
  const found = gone.find((host) => host.id === id) ?? (isListed ? undefined : byName[0]);
  return found ?? findListed(trust, ref);
}

function memberAt(members: readonly Member[], address: string): Member | undefined {
  return members.find(({ peerUrls }) => peerUrls.includes(peerUrl(address)));
}

/** What is left of the store must be a majority of what there is now: it restarts without the host. */
async function refuseLoss(
  { storeKeeper }: MemberContext,
  members: readonly Member[],
  member: Member,
  { name }: Target,
): Promise<void> {
  if (member.learner) return;
  const voters = members.filter(({ learner }) => !learner);
  const staying = voters.filter(({ id }) => id !== member.id);
  if (staying.length === 0) throw onlyVote(name);
  const answering = await Promise.all(
    staying.map(({ clientUrls: [url = ""] }) => storeKeeper.members.statusOf(url)),
  );
  const healthy = answering.filter((status) => status !== null && status.leader !== "0").length;
  const needed = majority(voters.length);
  if (healthy >= needed) return;
  throw new WeftError({
    code: "E-STORE-05",
    message: `The store can't lose its member on ${name} now: ${healthy} others answer, ${needed} are needed.`,
    facts: { name, healthy, needed },
    safe: "Nothing was changed.",
    do: [{ why: "Which members answer", command: "weft status" }],
  });
}

/**
 * From the new list on, members believe the new authority alone: those that have its keys (`having`) must be a majority by
 * themselves. Else the others, with the host that is out, would be the store, and nobody could bring them the keys.
 */
function refuseSplit(
  trust: Trust,
  {
    members,
    having,
    missing,
    target: { name },
  }: {
    readonly members: readonly Member[];
    readonly having: readonly HostId[];
    readonly missing: readonly HostId[];
    readonly target: Target;
  },
): void {
  const voters = members.filter(({ learner }) => !learner);
  const count = voters.filter((member) => having.some((id) => id === hostOfMember(trust, member))).length;
  const needed = majority(voters.length);
  if (count >= needed) return;
  const away = missing.map((id) => trust.hosts.get(id)?.name ?? id).toSorted(byText);
  throw new WeftError({
    code: "E-STORE-05",
    message: `The store can't lose ${name} now: ${count} of those that stay would have the new authority's keys, ${needed} are needed. Not taken by: ${away.join(", ")}.`,
    facts: { name, having: count, needed, missing: away },
    safe: "Nothing was changed.",
    do: [
      { why: "Which members answer", command: "weft status" },
      { why: "When their agents run", command: `weft host revoke ${name}` },
    ],
  });
}

/** What each host of the list said, and after how many milliseconds; null: it did not say so in time. */
async function untilCut(
  { mirror, identity }: MemberContext,
  target: Target,
  begun: number,
): Promise<Pick<HostRevokeAnswer, "hosts" | "complete">> {
  const said = new Map<HostId, { refusedMs: number | null; storeMs: number | null; member: boolean }>();
  // Keys of hosts are every host's to delete: also of the one that is to be cut off.
  const others = (): readonly HostId[] => Array.from(identity.trust().hosts.keys());
  const look = (): true | null => {
    const ms = Math.round(performance.now() - begun);
    for (const id of others()) {
      const entry = mirror.get(keys.revocationBy(target.id, id));
      const ack = entry === null ? null : readAck(identity.trust(), entry.value, target.id, id);
      const before = said.get(id) ?? { refusedMs: null, storeMs: null, member: false };
      if (ack === null) {
        said.set(id, before);
        continue;
      }
      const refused = ack.agent && ack.weftd;
      said.set(id, {
        refusedMs: before.refusedMs ?? (refused ? ms : null),
        storeMs: before.storeMs ?? (ack.member === true ? ms : null),
        member: ack.member !== null,
      });
    }
    const alive = aliveOf(mirror);
    const isDone = others()
      .filter((id) => alive.has(id))
      .every((id) => {
        const ack = said.get(id);
        return ack !== undefined && ack.refusedMs !== null && (!ack.member || ack.storeMs !== null);
      });
    return isDone ? true : null;
  };
  const left = Math.max(0, CUT_MS - (performance.now() - begun));
  await mirror.until("The revocation", left, look).catch((error: unknown) => {
    if (!(error instanceof WeftError && error.code === "E-AGENT-04")) throw error;
  });
  const complete = look() === true;
  const shown = Array.from(said, ([id, { refusedMs, storeMs, member }]) => ({
    host: id,
    name: identity.trust().hosts.get(id)?.name ?? id.slice(0, 8),
    refusedMs,
    member,
    storeMs,
  }));
  return { hosts: shown, complete };
}

/**
 * Whether a host that has not said all of it answers, so that it is not away: who is alive is told by keys that every host
 * can delete. For one that is away nothing is waited.
 */
async function answersUnheard(
  { self, identity }: MemberContext,
  hosts: HostRevokeAnswer["hosts"],
): Promise<boolean> {
  const unheard = hosts.filter(
    ({ refusedMs, member, storeMs }) => refusedMs === null || (member && storeMs === null),
  );
  const answers = await Promise.all(
    unheard.map(async ({ host }) => {
      const id = parseHostId(host);
      const address = id === null ? undefined : identity.trust().hosts.get(id)?.address;
      if (address === undefined) return false;
      const asked = askHost({ self, identity }, address).then(
        () => true,
        (error: unknown) => {
          if (isWeftError(error)) return false;
          throw error;
        },
      );
      return Promise.race([asked, pause(ASK_MS).then(() => false)]);
    }),
  );
  return answers.some((answered) => answered);
}

/** No etcd that answers has a connection of the host: each member that has one said so. */
async function isCutOff(
  { storeKeeper, identity }: MemberContext,
  hosts: HostRevokeAnswer["hosts"],
): Promise<boolean> {
  const trust = identity.trust();
  const answers = await Promise.all(
    (await storeKeeper.members.list()).map(async (member) => {
      const id = hostOfMember(trust, member);
      if (hosts.some(({ host, storeMs }) => host === id && storeMs !== null)) return true;
      return (await storeKeeper.members.statusOf(clientUrlOf(member))) === null;
    }),
  );
  return answers.every((isCut) => isCut);
}

/** Those of which it is known. A daemon that doesn't answer leaves the others as they are: asked again, it goes on there. */
async function fence(context: MemberContext, host: HostId): Promise<readonly Fenced[]> {
  const { mirror, daemon, log } = context;
  // Without the store nothing is fenced; what the revocation did so far is told all the same.
  if (!(await syncIfPossible(mirror))) return [];
  const fenced = await Promise.all(
    sessionsOf(context, host).map(async ({ id, want }) => {
      try {
        const { epoch, fenced } = await daemon.client.call("volume.fence", { volume: id, host });
        return [{ volume: id, name: want?.name ?? id, epoch: BigInt(epoch), isNew: fenced }];
      } catch (error) {
        if (!isWeftError(error)) throw error;
        log.warn({ volume: id, code: error.code }, `fence: ${error.message}`);
        return [];
      }
    }),
  );
  return fenced.flat();
}

/** Best effort: what fails here is done after the cut, or told. */
async function fenceFirst(context: MemberContext, host: HostId): Promise<readonly Fenced[]> {
  const fenced = fence(context, host).catch((error: unknown) => {
    if (!isWeftError(error)) throw error;
    return [];
  });
  return Promise.race([fenced, pause(FENCE_FIRST_MS).then(() => [])]);
}

/** Each volume once, at its last epoch. */
function allFenced(fenced: readonly Fenced[]): HostRevokeAnswer["fenced"] {
  const last = new Map(
    fenced.filter(({ isNew }) => isNew).map(({ volume, name, epoch }) => [volume, { volume, name, epoch }]),
  );
  return Array.from(last.values());
}

function sessionsOf({ mirror }: MemberContext, host: HostId): readonly VolumeFacts[] {
  return volumesOf(mirror).filter(({ record }) => record?.owner?.host === host);
}

function revokesItself(name: string): WeftError {
  return new WeftError({
    code: "E-HOST-12",
    message: `${name} can't revoke itself.`,
    facts: { name },
    safe: "Nothing was changed.",
    do: [{ why: "On another host", command: `weft host revoke ${name}` }],
  });
}

function onlyVote(name: string): WeftError {
  return new WeftError({
    code: "E-HOST-13",
    message: `${name} has the store's only vote: without it nobody would learn of the revocation.`,
    facts: { name },
    safe: "Nothing was changed.",
    do: [{ why: "A third host brings two more votes", command: "weft join HOST" }],
  });
}
