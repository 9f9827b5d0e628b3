/**
 * Who is a member of the store: one change at a time, chosen from what is there.
 *
 *     1 host: 1 voter      2 hosts: voter + learner      3 hosts and more: 3 voters (5 when asked and there are 5)
 *
 * Must always hold:
 * - never two voters for longer than the step from one to three takes: with two, either one's loss stops all changes,
 *   so that step begins only when the third host answers (protocol.md 4.16);
 * - no change that leaves the healthy voters short of the majority of the new configuration;
 * - a dead member is replaced after 30 min only when a spare host answers; without one it may come back as it is;
 * - who is (to be) a member says the signed list. A member that it doesn't name goes first, whatever its state, unless nobody
 *   else votes yet: its host was removed, or put it there itself. One that it names and etcd has not comes back before
 *   another host takes its place: any host can tell etcd to forget one.
 */
import type { Decision } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import { byText } from "./ids.ts";
import type { HostId } from "./ids.ts";
import { REBUILD_AFTER_MS } from "./limits.ts";
import type { Liveness } from "./cluster.ts";

export type StoreMember = {
  readonly host: HostId;
  readonly role: "voter" | "learner";
  /** Answers, and a learner has caught up. */
  readonly healthy: boolean;
};

export type StoreHost = {
  readonly id: HostId;
  readonly joinedAtMs: number;
  readonly liveness: Liveness;
  /** The trust list names it as a member. */
  readonly member: boolean;
};

export type MembershipAction =
  | { readonly kind: "none" }
  /** The list names it first, if it doesn't yet. */
  | { readonly kind: "add-learner"; readonly host: HostId }
  | { readonly kind: "add-voter"; readonly host: HostId }
  | { readonly kind: "promote"; readonly host: HostId }
  /** The list names it no more, then etcd forgets it, if it knows it. */
  | { readonly kind: "remove"; readonly host: HostId }
  /** A change is due, but must wait for a member or a host. */
  | { readonly kind: "blocked"; readonly because: string };

export type MembershipInput = {
  readonly hosts: readonly StoreHost[];
  readonly members: readonly StoreMember[];
  /** 5 when the operator asked for it. */
  readonly votersWanted: 3 | 5;
};

export function decideMembership(input: MembershipInput, now: number): MembershipAction {
  const { hosts, members } = input;
  const removed = members.find((member) => !hosts.some((host) => host.id === member.host && host.member));
  const going = removed === undefined ? null : removal(members, removed.host);
  if (going !== null && going.kind !== "blocked") return going;

  // The last voter can't go before another one votes: then the store grows first, by hosts that stay.
  const voters = members.filter((member) => member.role === "voter" && member.host !== removed?.host);
  const learner = members.find((member) => member.role === "learner") ?? null;
  const target = hosts.length < 3 ? 1 : hosts.length >= 5 && input.votersWanted === 5 ? 5 : 3;

  // Named by the list, and not in etcd: before etcd was told of it, or after somebody took it out.
  const absent = hosts.filter((host) => host.member && !members.some((member) => member.host === host.id));
  const lost = absent.filter((host) => isLongAway(hosts, host.id, now));
  const [first] = lost;
  const others = hosts.filter((host) => !lost.includes(host));
  if (first !== undefined && spareHost(others, members) !== null) return { kind: "remove", host: first.id };

  const spare = spareHost(hosts, members);
  const dead = voters.find((member) => !member.healthy && isLongAway(hosts, member.host, now));
  if (dead !== undefined && spare !== null && hosts.length >= 3) return removal(members, dead.host);

  if (voters.length < target) return grow(members, learner, spare, hosts);
  if (going !== null) return going;
  if (voters.length > target) return shrink(voters, hosts, members);
  if (hosts.length === 2 && learner === null && spare !== null) return { kind: "add-learner", host: spare };
  if (hosts.length > 2 && learner !== null) return removal(members, learner.host);
  const [surplus] = hosts.length > 2 ? absent : [];
  return surplus === undefined ? { kind: "none" } : { kind: "remove", host: surplus.id };
}

/** Whether the operator may take this host out of the store now. */
export function checkMemberRemoval(
  members: readonly StoreMember[],
  host: HostId,
  name: string,
): Decision<null> {
  const action = removal(members, host);
  if (action.kind !== "blocked") return ok(null);
  return refused(
    finding("E-STORE-05", `The store can't lose its member on ${name} now: ${action.because}.`, {
      facts: { host },
      safe: "Nothing was changed.",
    }),
  );
}

function grow(
  members: readonly StoreMember[],
  learner: StoreMember | null,
  spare: HostId | null,
  hosts: readonly StoreHost[],
): MembershipAction {
  const voters = members.filter((member) => member.role === "voter");
  const sick = voters.filter((member) => !member.healthy);
  if (sick.length > 0) return { kind: "blocked", because: `${sick.length} voter does not answer` };
  if (learner !== null) {
    const third = voters.length > 1 || spare !== null || hosts.length < 3;
    if (!third) return { kind: "blocked", because: "the third host does not answer" };
    return learner.healthy
      ? { kind: "promote", host: learner.host }
      : { kind: "blocked", because: "the learner has not caught up" };
  }
  if (spare === null) return { kind: "blocked", because: "no further host answers" };
  // From one voter a learner goes first: it catches up before it counts. From two, the third voter restores the
  // tolerance of one loss, so it counts at once.
  return voters.length === 1 ? { kind: "add-learner", host: spare } : { kind: "add-voter", host: spare };
}

function shrink(
  voters: readonly StoreMember[],
  hosts: readonly StoreHost[],
  members: readonly StoreMember[],
): MembershipAction {
  const age = (member: StoreMember): number =>
    hosts.find((host) => host.id === member.host)?.joinedAtMs ?? Number.MAX_SAFE_INTEGER;
  const [youngest] = voters.toSorted(
    (a, b) => Number(a.healthy) - Number(b.healthy) || age(b) - age(a) || byText(b.host, a.host),
  );
  return youngest === undefined ? { kind: "none" } : removal(members, youngest.host);
}

/** The healthy voters that stay must be a majority of the voters that stay, and of those that vote on the change. */
function removal(members: readonly StoreMember[], host: HostId): MembershipAction {
  const gone = members.find((member) => member.host === host);
  if (gone === undefined) return { kind: "none" };
  if (gone.role === "learner") return { kind: "remove", host };
  const voters = members.filter((member) => member.role === "voter");
  const staying = voters.filter((member) => member.host !== host);
  if (staying.length === 0) return { kind: "blocked", because: "it is the only voter" };
  const healthyNow = voters.filter((member) => member.healthy).length;
  const healthyAfter = staying.filter((member) => member.healthy).length;
  if (healthyNow < majority(voters.length) || healthyAfter < majority(staying.length)) {
    return {
      kind: "blocked",
      because: `${healthyAfter} of the ${staying.length} other voters answer, ${majority(staying.length)} are needed`,
    };
  }
  return { kind: "remove", host };
}

/** So many of the voters must answer. */
export function majority(voters: number): number {
  return Math.floor(voters / 2) + 1;
}

/** Whom the list names already, if there is one: then nobody else, also while that one doesn't answer. */
function spareHost(hosts: readonly StoreHost[], members: readonly StoreMember[]): HostId | null {
  const free = hosts.filter((host) => !members.some((member) => member.host === host.id));
  const named = free.filter((host) => host.member);
  const [first] = (named.length > 0 ? named : free)
    .filter((host) => host.liveness.kind === "alive")
    .toSorted((a, b) => a.joinedAtMs - b.joinedAtMs || byText(a.id, b.id));
  return first?.id ?? null;
}

function isLongAway(hosts: readonly StoreHost[], host: HostId, now: number): boolean {
  const liveness = hosts.find((candidate) => candidate.id === host)?.liveness;
  return liveness?.kind === "away" && now - liveness.sinceMs >= REBUILD_AFTER_MS;
}

/** `voters 1a2b3c4d 5e6f7a8b(silent) learner 9c0d1e2f: promote 9c0d1e2f` */
export function membershipLine({ members }: MembershipInput, action: MembershipAction): string {
  const list = (role: StoreMember["role"]): string =>
    members
      .filter((member) => member.role === role)
      .map((member) => ` ${member.host.slice(0, 8)}${member.healthy ? "" : "(silent)"}`)
      .join("");
  const learners = list("learner");
  return `voters${list("voter")}${learners === "" ? "" : ` learner${learners}`}: ${actionPart(action)}`;
}

function actionPart(action: MembershipAction): string {
  switch (action.kind) {
    case "none":
      return "nothing to do";
    case "blocked":
      return `blocked, ${action.because}`;
    case "add-learner":
    case "add-voter":
    case "promote":
    case "remove":
      return `${action.kind} ${action.host.slice(0, 8)}`;
  }
}
