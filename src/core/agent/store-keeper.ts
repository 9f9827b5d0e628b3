/**
 * Care of this host's member of the store, and (on the first living host that holds the authority's key) of the whole
 * membership.
 *
 *     not a member ──named in the signed list──▶ added to etcd ──▶ starting ──caught up──▶ learner or voter
 *                                       ──named no more──▶ removed from etcd ──▶ data set aside
 *
 * Must always hold:
 * - etcd's list of members follows the signed list, never the other way: etcd lets every host add and remove members. One
 *   is added only after the signed list names its host, at the address that the list has; one that is not named is removed;
 * - a host has the authorities' keys exactly while it is a member: they are fetched before its etcd starts, and destroyed
 *   when it was removed;
 * - each step looks at what is there first: a crash between two steps is continued by the next look;
 * - a member that lost its data never starts empty under its old identity: it is removed and added anew;
 * - an agent's restart never touches a running etcd;
 * - nothing is done before it is known which store is the cluster's: an etcd that came up beside a member that was revoked would
 *   take what that one writes for the store's.
 */
import type { HostId } from "../model/ids.ts";
import type { LivenessState } from "../model/liveness.ts";
import { decideMembership, type StoreMember } from "../model/membership.ts";
import { ok } from "../model/finding.ts";
import { membersOf, signerOf, type Trust, withMember } from "../model/trust.ts";
import { isWeftError } from "../wire/errors.ts";
import type { IdentityFiles } from "../wire/identity-files.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { type Member, StoreMembers } from "../wire/store-members.ts";
import type { AuthorityKeeper } from "./authority.ts";
import { clientUrl, type EtcdProcess, peerUrl } from "./etcd-process.ts";
import { aliveOf } from "./facts.ts";
import type { HostFile } from "./host-file.ts";
import type { IdentityKeeper } from "./identity.ts";
import type { Log } from "./log.ts";
import { hostOfMember, type MemberCredentials, receivedAuthorities, sayHeld } from "./members.ts";
import type { Mirror } from "./mirror.ts";
import { Overdue, TAKE_OVER_MS } from "./overdue.ts";
import { inTurn } from "./member-turn.ts";
import { listIssued } from "./renew.ts";
import type { StoreIdentity } from "./store-identity.ts";
import { Upkeep } from "./store-upkeep.ts";
import { changeTrust } from "./trust-change.ts";
import { Wake } from "./wake.ts";

/** Between looks when nothing tells of a change: a member's etcd that died is started again after this. */
const LOOK_MS = 3000;
/** A member whose turn it isn't asks again after this. */
const TURN_MS = 100;
/**
 * The turn is a key that every host can write, so also the one that is to be cut off: it is worth this wait. A store that
 * pauses for a second costs less than a stolen host that stays in.
 */
const CUT_PATIENCE_MS = 2000;
const BUNDLE_PATIENCE_MS = 15_000;
/**
 * A list without us, or with another member here, must be seen this often before it is believed: a member of etcd 3.4
 * answers as it knows it.
 */
const ABSENT_LOOKS = 3;

/** An etcd that ended so often, and is not in the list by its name, was not started for the member that is. */
const ENDINGS = 3;

export type StoreKeeperOptions = {
  readonly self: HostFile;
  readonly store: StoreClient;
  readonly mirror: Mirror;
  readonly etcd: EtcdProcess;
  readonly log: Log;
  readonly liveness: () => LivenessState;
  readonly isPlacer: () => boolean;
  readonly authority: AuthorityKeeper;
  readonly identity: IdentityKeeper;
  readonly identityFiles: IdentityFiles;
  readonly storeIdentity: StoreIdentity;
  /** Asks the members for the authorities' keys. */
  readonly credentials: () => Promise<MemberCredentials>;
  /** Whether the store is known to be the cluster's (confirmation.ts): before, this host's etcd joins nobody. */
  readonly isConfirmed?: () => boolean;
  readonly onEndpoints: (endpoints: readonly string[]) => Promise<void>;
  /** This host's etcd was started again, with the files of now. */
  readonly onRestarted: () => void;
  /** How long a change may wait for the host whose turn it is; shorter in tests. */
  readonly takeOverMs?: number;
};

export class StoreKeeper {
  readonly members: StoreMembers;
  readonly #options: StoreKeeperOptions;
  readonly #upkeep: Upkeep;
  readonly #stop = new AbortController();
  readonly #wake = new Wake();
  readonly #overdue: Overdue;
  /** When the membership was looked at last. */
  #lookedMs = -Infinity;
  #absent = 0;
  /** Id of the member whose data is here; null: not known yet. */
  #dataOf: string | null = null;
  /** How often the list had another member here than that one. */
  #others = 0;
  /** How often the etcd of a member that never started was another process than before. */
  #endings: { readonly pid: number; readonly count: number } | null = null;
  #running: Promise<void> | null = null;
  #said = "";
  /** Why nobody gave this member the authorities' keys, as a code. */
  #refused = "";
  /** Since when this host's etcd ought to be started again. */
  #dueSince: number | null = null;

  constructor(options: StoreKeeperOptions) {
    this.#options = options;
    this.members = new StoreMembers(options.store);
    this.#overdue = new Overdue(options.takeOverMs);
    this.#upkeep = new Upkeep(this.members, options.store, options.log);
  }

  start(): void {
    this.#running ??= this.#run();
  }

  nudge(): void {
    this.#wake.nudge();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#wake.nudge();
    await this.#running;
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        if (await this.#look()) continue;
        this.#said = "";
      } catch (error) {
        if (!isWeftError(error)) throw error;
        this.#sayOnce(`${error.code} ${error.message}`);
      }
      await this.#wake.wait(LOOK_MS);
    }
  }

  /** True: something was done, look again at once. */
  async #look(): Promise<boolean> {
    const { etcd, authority, identity, storeIdentity, isConfirmed } = this.#options;
    if (isConfirmed?.() === false) return false;
    // First, and without asking anybody: the store may be away because our own member is.
    if ((await etcd.isConfigured()) && (await etcd.hasData())) {
      if (!authority.holds(identity.trust())) await this.#fetchIfPossible();
      // Without the keys no etcd starts, and everything else goes on.
      await etcd.ensureRunning().catch((error: unknown) => {
        if (!isWeftError(error, "E-CA-01")) throw error;
      });
      if (authority.holds(identity.trust())) {
        await storeIdentity.follow();
        await this.#restartIfDue();
        await storeIdentity.prove();
      }
    }
    const members = await this.members.list();
    await this.#learnEndpoints(members);
    if (await this.#tendOwn(members)) return true;
    await this.#tendTrust();
    if (this.#looksAtMembership() && (await this.#tendMembership(members).catch(notFollowed))) return true;
    if (!this.#options.isPlacer()) return false;
    await this.#upkeep.look(members.flatMap((m) => m.clientUrls));
    return false;
  }

  async #tendOwn(members: readonly Member[]): Promise<boolean> {
    const { self, etcd, log, mirror, authority, identity } = this.#options;
    const own = members.find((m) => m.peerUrls.includes(peerUrl(self.address)));
    if (own === undefined) {
      this.#absent = (await etcd.isConfigured()) ? this.#absent + 1 : 0;
      if (this.#absent < ABSENT_LOOKS) return false;
      log.warn({}, "this host is not a member of the store any more: its data is set aside");
      await etcd.retire();
      await authority.drop();
      return true;
    }
    this.#absent = 0;
    if (own.name !== "") {
      if (await etcd.hasData()) {
        this.#dataOf = own.id;
        return false;
      }
      log.warn(
        { member: own.id },
        "this host's member of the store lost its data: it is removed and added anew",
      );
      await this.members.remove(own.id);
      return true;
    }
    const pid = await etcd.runningPid();
    if (pid !== null) {
      if (!this.#isOfAnother(own.id, pid)) return false;
      log.warn({ member: own.id }, "this host's etcd is of a member that was removed: its data is set aside");
      await etcd.stop();
    }
    await mirror.sync();
    const trust = identity.trust();
    const initial = members.flatMap((m) => {
      const url = m.peerUrls[0] ?? "";
      const name = m.name === "" ? hostOfMember(trust, m) : m.name;
      return name === null ? [] : [`${name}=${url}`];
    });
    if (initial.length < members.length) return false;
    if (!authority.holds(identity.trust())) await this.#fetchAuthorities();
    if (await etcd.hasData()) await etcd.setAside();
    const plan = { host: self.host, address: self.address, cluster: self.cluster };
    await etcd.configure({ identity: plan, initialCluster: initial.join(","), initialState: "existing" });
    this.#dataOf = own.id;
    await etcd.ensureRunning();
    log.info({ learner: own.learner }, "this host's member of the store is started");
    return true;
  }

  /**
   * Whether the etcd that runs here has the data of another member than this one, which never started: one that was taken out
   * and added again has a new id, and an etcd that isn't in the list ends by itself after each start. Where it isn't
   * known whose data it is, since the agent was started meanwhile, that tells.
   */
  #isOfAnother(id: string, pid: number): boolean {
    if (this.#dataOf !== null) {
      this.#others = this.#dataOf === id ? 0 : this.#others + 1;
      return this.#others >= ABSENT_LOOKS;
    }
    const before = this.#endings;
    const isNew = before?.pid !== pid;
    this.#endings = { pid, count: before === null ? 0 : before.count + (isNew ? 1 : 0) };
    return this.#endings.count >= ENDINGS;
  }

  /**
   * One member after the other, for as long as that is worth the wait; but all at once, and without asking the store, when a host is out that held the
   * authority's key: members that still believe the old one are no store for those that don't.
   */
  async #restartIfDue(): Promise<void> {
    const { storeIdentity, etcd, identity, store, self, log } = this.#options;
    const why = await storeIdentity.restartDue();
    if (why === null) {
      this.#dueSince = null;
      return;
    }
    this.#dueSince ??= performance.now();
    const waited = performance.now() - this.#dueSince;
    const isEmergency = identity.trust().rotation?.why === "revoked";
    const restart = async (): Promise<void> => {
      await etcd.restart(why === "cut" || isEmergency ? "at-once" : "in-order");
      await storeIdentity.untilServed();
      log.info({ why }, "this host's etcd was started again");
      this.#options.onRestarted();
    };
    const isLate = waited > (why === "cut" ? CUT_PATIENCE_MS : BUNDLE_PATIENCE_MS);
    if ((why === "bundle" && isEmergency) || isLate) await restart();
    else if (!(await inTurn(store, { host: self.host, why }, restart))) this.#wake.nudgeIn(TURN_MS);
  }

  async #tendTrust(): Promise<void> {
    const { store, authority, identity, identityFiles, etcd } = this.#options;
    const isMember = (await etcd.isConfigured()) && (await etcd.hasData());
    if (isMember && !authority.holdsAll(identity.trust())) await this.#fetchAuthorities();
    if (!authority.holds(identity.trust())) return;
    try {
      await sayHeld({ store, authority, identity });
      await listIssued({ store, authority, identity, files: identityFiles });
    } catch (error) {
      notFollowed(error);
    }
  }

  /** Without asking the store: it may be away because this member hasn't got them. Who is none any more is refused. */
  async #fetchIfPossible(): Promise<void> {
    try {
      await this.#fetchAuthorities();
      this.#refused = "";
    } catch (error) {
      if (!isWeftError(error)) throw error;
      if (error.code !== this.#refused)
        this.#options.log.warn({ code: error.code }, `the authorities' keys: ${error.message}`);
      this.#refused = error.code;
    }
  }

  async #fetchAuthorities(): Promise<void> {
    const { authority, identity, credentials, log } = this.#options;
    const answer = await credentials();
    identity.offer(answer.trust);
    await authority.take(receivedAuthorities(answer));
    log.info({}, "this host holds the authorities' keys, as a member of the store");
  }

  /** Endpoints are the voters: a learner refuses linearizable reads. Our own member first. */
  async #learnEndpoints(members: readonly Member[]): Promise<void> {
    const own = clientUrl(this.#options.self.address);
    const urls = members
      .filter((m) => !m.learner && m.name !== "")
      .map((m) => clientUrlOf(m))
      .toSorted((a, b) => Number(b === own) - Number(a === own) || (a < b ? -1 : 1));
    if (urls.length > 0) await this.#options.onEndpoints(urls);
  }

  /** One of the hosts that have the authority's key, since the list is to be signed; those whose turn it isn't now and then. */
  #looksAtMembership(): boolean {
    const { authority, identity, takeOverMs = TAKE_OVER_MS } = this.#options;
    if (!authority.holds(identity.trust())) return false;
    const nowMs = performance.now();
    if (!this.#isFirst() && nowMs - this.#lookedMs < takeOverMs / 4) return false;
    this.#lookedMs = nowMs;
    return true;
  }

  /**
   * The first of the named ones that lives, or this one where none does. Who lives is told by keys that every host can write:
   * where nothing has been done for a while, the others step in. Two that take themselves for the first decide from one
   * list, and only one of them may change it.
   */
  #isFirst(): boolean {
    const { self, identity, mirror } = this.#options;
    const trust = identity.trust();
    const alive = aliveOf(mirror);
    const signer = signerOf(trust);
    const [first] = membersOf(trust).filter(
      (host) => host === self.host || (alive.has(host) && trust.hosts.get(host)?.held.includes(signer)),
    );
    return first === undefined || first === self.host;
  }

  async #tendMembership(members: readonly Member[]): Promise<boolean> {
    const { liveness, log, store } = this.#options;
    // Read after etcd's list: a host is named before it is added, so that who isn't named here was added by somebody else.
    const trust = await this.#listNow();
    const isFirst = this.#isFirst();
    if (this.#isAllOfTheStore(trust, members)) {
      if (!isFirst && !this.#overdue.is("all of the store")) return false;
      log.warn(
        {},
        "the list names none of the store's members: this host, whose etcd is the store, is named",
      );
      return (await this.#name(trust, this.#options.identity.host, true)) !== null;
    }
    const known: StoreMember[] = [];
    const idOf = new Map<HostId, string>();
    for (const member of members) {
      const host = hostOfMember(trust, member) ?? strangerId(member);
      const status = member.name === "" ? null : await this.members.statusOf(clientUrlOf(member));
      idOf.set(host, member.id);
      known.push({
        host,
        role: member.learner ? "learner" : "voter",
        healthy: status !== null && status.leader !== "0",
      });
    }
    const state = liveness();
    const hosts = Array.from(trust.hosts, ([id, { keys: own, member }]) => ({
      id,
      member,
      joinedAtMs: Math.min(...own.map(({ sinceMs }) => sinceMs)),
      liveness: state.hosts.get(id) ?? ({ kind: "unknown" } as const),
    }));
    const action = decideMembership({ hosts, members: known, votersWanted: 3 }, Date.now());
    if (action.kind === "none" || action.kind === "blocked") {
      this.#overdue.clear();
      if (action.kind === "blocked" && isFirst)
        this.#sayOnce(`the store's membership waits: ${action.because}`);
      return false;
    }
    if (!isFirst && !this.#overdue.is(JSON.stringify(action))) return false;
    switch (action.kind) {
      case "add-learner":
      case "add-voter": {
        const entry = (await this.#name(trust, action.host, true))?.hosts.get(action.host);
        if (entry === undefined) return true;
        log.info({ host: action.host }, `store: ${action.kind}`);
        if (action.kind === "add-learner") await this.members.addLearner(peerUrl(entry.address));
        else await this.members.addVoter(peerUrl(entry.address));
        break;
      }
      case "promote":
        if ((await this.members.promote(idOf.get(action.host) ?? "")) === "not-ready") return false;
        log.info({ host: action.host }, "store: promoted");
        break;
      case "remove": {
        const isListed = trust.hosts.has(action.host);
        if (isListed && (await this.#name(trust, action.host, false)) === null) return true;
        log.info({ host: action.host }, "store: removed");
        const id = idOf.get(action.host);
        if (id !== undefined) await this.members.remove(id);
        break;
      }
    }
    // Tells the agents of all hosts to look: each cares for its own member and its endpoints.
    const after = await this.members.list();
    const voters = after.filter((m) => !m.learner).flatMap((m) => m.peerUrls);
    await store.put(
      keys.voters,
      JSON.stringify({ voters, members: after.length, at: new Date().toISOString() }),
    );
    return true;
  }

  /** A store that was put back here, with the authority's keys, on a host that was no member: no other host could be named. */
  #isAllOfTheStore(trust: Trust, members: readonly Member[]): boolean {
    const hosts = members.map((member) => hostOfMember(trust, member));
    return (
      members.length === 1 && hosts[0] === this.#options.self.host && !membersOf(trust).includes(hosts[0])
    );
  }

  /** The list as the store has it now. E-TRUST-01, E-TRUST-02 where it is none that this host follows. */
  async #listNow(): Promise<Trust> {
    const { store, authority, identity } = this.#options;
    const read = await changeTrust({ store, authority, identity }, (trust) => ok(trust));
    if (read.kind !== "changed") throw new Error("reading the list compares nothing");
    return read.signed.trust;
  }

  /** Names a host in the list as a member, or no more. Null: the members that it names are others than was decided from. */
  async #name(from: Trust, host: HostId, member: boolean): Promise<Trust | null> {
    const { store, authority, identity } = this.#options;
    const before = membersOf(from).join();
    const change = await changeTrust({ store, authority, identity }, (trust) =>
      membersOf(trust).join() === before ? withMember(trust, { host, member, nonce: "" }) : ok(trust),
    );
    if (change.kind !== "changed") throw new Error("a change of the list alone has nothing else to compare");
    const { trust } = change.signed;
    return trust.hosts.get(host)?.member === member ? trust : null;
  }

  #sayOnce(what: string): void {
    if (this.#said === what) return;
    this.#said = what;
    this.#options.log.warn({}, what);
  }
}

/** A list in the store that this host doesn't follow holds up nothing else. The keeper of the identity has said so. */
function notFollowed(error: unknown): false {
  if (isWeftError(error) && error.code.startsWith("E-TRUST-")) return false;
  throw error;
}

/** Where a member's clients go; ports are fixed, so its peer address tells before its first start. */
export function clientUrlOf(member: Member): string {
  return member.clientUrls[0] ?? (member.peerUrls[0] ?? "").replace(/:7403$/, ":7402");
}

/** One whose host was removed, or that somebody added. */
function strangerId(member: Member): HostId {
  return `member-${member.id}` as HostId;
}
