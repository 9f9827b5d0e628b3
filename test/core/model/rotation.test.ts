/**
 * Plot: the authority is changed on a cluster of hosts that crash, lag behind, join and renew in any order. Each host is
 * two processes with lists of their own (agent and daemon), each member has an etcd that reads its bundle only when it
 * starts. Nobody who lives may be refused, and nothing may be dropped that somebody still shows.
 */
import { equal, fail, ok as holds } from "node:assert/strict";

import * as fc from "fast-check";
import t from "tap";

import type { HostId } from "../../../src/core/model/ids.ts";
import {
  dutiesOf,
  EMERGENCY_DROP_MS,
  leaveBehind,
  startRotation,
  stepRotation,
  storeBundle,
} from "../../../src/core/model/rotation.ts";
import type { RotationAck, RotationStep } from "../../../src/core/model/rotation.ts";
import { acceptTrust, holdsAuthority, revokeHost, withKey } from "../../../src/core/model/trust.ts";
import type { SignedTrust, Trust } from "../../../src/core/model/trust.ts";
import { authority, kid, signedBy, trustHost, trustOf } from "./trust-world.ts";

type Process = { known: SignedTrust; shows: string };

type Host = {
  readonly id: HostId;
  alive: boolean;
  readonly agent: Process;
  readonly daemon: Process;
  /** On disk: survive a crash. The list is the daemon's. */
  certBy: string;
  list: SignedTrust;
  /** Generation in which it was listed. */
  readonly listedAt: bigint;
  member: { storeBy: string; bundle: readonly string[]; holds: string[] } | null;
};

class World {
  /** The store's list. */
  newest: SignedTrust;
  readonly history: SignedTrust[] = [];
  readonly hosts: Host[] = [];
  readonly acks = new Map<HostId, RotationAck>();
  #nonces = 0;
  #rotations = 0;

  constructor(hosts: number, members: number) {
    this.newest = signedBy(trustOf(hosts, members), "A1");
    this.history.push(this.newest);
    for (let number = 1; number <= hosts; number += 1) this.#add(number, 1n, number <= members);
  }

  #add(number: number, listedAt: bigint, isMember: boolean): Host {
    const { trust } = this.newest;
    const certBy = active(trust.authorities);
    const host: Host = {
      id: trustHost(number),
      alive: true,
      agent: { known: this.newest, shows: certBy },
      daemon: { known: this.newest, shows: certBy },
      certBy,
      list: this.newest,
      listedAt,
      member: isMember
        ? {
            storeBy: active(trust.storeAuthorities),
            bundle: storeBundle(trust),
            holds: [...trust.authorities, ...trust.storeAuthorities].map(({ kid }) => kid),
          }
        : null,
    };
    this.hosts.push(host);
    return host;
  }

  nonce(): string {
    return `n${(this.#nonces += 1)}`;
  }

  /** Signed by who is active in the list that it follows, as members do. */
  write(trust: Trust): void {
    const by = active(this.newest.trust.authorities);
    this.newest = { ...signedBy(trust, ""), by };
    this.history.push(this.newest);
  }

  start(): void {
    // Refused while one is under way; a later one has names of its own.
    const next = `${this.#rotations + 2}`;
    const started = startRotation(this.newest.trust, {
      id: "r",
      authority: authority(`A${next}`),
      storeAuthority: authority(`B${next}`),
      members: this.members(),
      nonce: this.nonce(),
      nowMs: 0,
    });
    if (started.kind === "refused") return;
    this.#rotations += 1;
    this.write(started.value);
  }

  members(): readonly HostId[] {
    return this.hosts.filter(({ member }) => member !== null).map(({ id }) => id);
  }

  step(nowMs: number = 1): RotationStep {
    const step = stepRotation(
      { trust: this.newest.trust, acks: this.acks, members: this.members(), nonce: this.nonce() },
      nowMs,
    );
    if (step.kind !== "write") return step;
    equal(step.signer, active(this.newest.trust.authorities));
    const { rotation } = step.trust;
    if (rotation?.phase === "drop" && rotation.why === "asked") this.assertNobodyNeedsTheOld(step.trust);
    this.write(step.trust);
    return step;
  }

  join(): void {
    if (this.hosts.length >= 7) return;
    const number = this.hosts.length + 1;
    const listed = withKey(this.newest.trust, {
      host: trustHost(number),
      name: `h${number}`,
      address: `10.0.0.${number}`,
      kid: kid(`k${number}`),
      nowMs: 1,
      nonce: this.nonce(),
    });
    if (listed.kind === "refused") return fail("a new host is listed");
    this.write(listed.value);
    this.#add(number, listed.value.generation, false);
  }

  /** Another member hands over the keys that this one lacks. */
  takeKeys({ member }: Host): void {
    const { trust } = this.newest;
    if (member !== null)
      member.holds = [...trust.authorities, ...trust.storeAuthorities].map(({ kid }) => kid);
  }

  /** With the keys of all that the newest list trusts, given by another member; etcd is started with what it says. */
  becomeMember(host: Host): void {
    if (host.member !== null || this.members().length >= 3) return;
    this.learn(host, "agent");
    const { trust } = this.newest;
    host.member = {
      storeBy: active(trust.storeAuthorities),
      bundle: storeBundle(trust),
      holds: [...trust.authorities, ...trust.storeAuthorities].map(({ kid }) => kid),
    };
  }

  learn(host: Host, which: "agent" | "daemon"): void {
    const process = host[which];
    const accepted = acceptTrust(process.known, this.newest);
    if (accepted.kind === "refused") return fail(`${which} of ${host.id}: ${accepted.finding.message}`);
    process.known = accepted.value;
    if (which === "daemon") host.list = accepted.value;
  }

  /** One thing that the host has to do, if there is one. */
  act(host: Host): void {
    const { member } = host;
    const { trust } = host.agent.known;
    const truth = this.truthOf(host);
    const own: RotationAck = { ...truth, certBy: host.certBy };
    const [duty] = dutiesOf(trust, own);
    // A crash may come between the file and each process that reads it.
    if (duty === "renew") host.certBy = active(trust.authorities);
    else if (duty === "reissue-store" && member !== null) {
      holds(member.holds.includes(active(trust.storeAuthorities)), "a member issues by a key that it has");
      member.storeBy = active(trust.storeAuthorities);
    } else if (duty === "restart-store" && member !== null) member.bundle = storeBundle(trust);
  }

  reload(host: Host, which: "agent" | "daemon"): void {
    host[which].shows = host.certBy;
  }

  crash(host: Host): void {
    for (const process of [host.agent, host.daemon]) {
      process.known = host.list;
      process.shows = host.certBy;
    }
  }

  truthOf(host: Host): RotationAck {
    const [a, d] = [host.agent.known.trust.generation, host.daemon.known.trust.generation];
    const same = host.agent.shows === host.daemon.shows && host.agent.shows === host.certBy;
    return {
      generation: a < d ? a : d,
      certBy: same ? host.certBy : "mixed",
      member: host.member === null ? null : { ...host.member, holds: [...host.member.holds] },
    };
  }

  ack(host: Host): void {
    this.acks.set(host.id, this.truthOf(host));
  }

  assertNobodyNeedsTheOld(next: Trust): void {
    const kept = active(next.authorities);
    for (const host of this.hosts) {
      if (next.rotation?.without.includes(host.id)) continue;
      for (const process of [host.agent, host.daemon])
        equal(process.shows, kept, `${host.id} still shows what is dropped`);
      if (host.member !== null) equal(host.member.storeBy, active(next.storeAuthorities));
    }
  }

  /** Every living process against every other, and against every living etcd. */
  assertNobodyIsRefused(): void {
    const living = this.hosts.filter(({ alive }) => alive);
    for (const one of living) {
      for (const mine of [one.agent, one.daemon]) {
        for (const two of living) {
          for (const theirs of [two.agent, two.daemon]) {
            // A list from before the host was there is behind, not wrong.
            if (mine.known.trust.generation < two.listedAt) continue;
            const known = mine.known.trust.authorities.map(({ kid }) => kid);
            holds(known.includes(theirs.shows), `${two.id} is refused by ${one.id}`);
          }
          if (two.member === null) continue;
          holds(two.member.bundle.includes(mine.shows), `${one.id} is refused by the store of ${two.id}`);
          const stores = mine.known.trust.storeAuthorities.map(({ kid }) => kid);
          holds(stores.includes(two.member.storeBy), `the store of ${two.id} is refused by ${one.id}`);
        }
      }
      if (one.member === null) continue;
      for (const two of living) {
        if (two.member !== null)
          holds(two.member.bundle.includes(one.member.storeBy), `member ${one.id} is refused by ${two.id}`);
      }
    }
  }

  /** Everybody does what is due until nothing changes. */
  settle(nowMs: number = 1): void {
    for (let round = 0; round < 60; round += 1) {
      for (const host of this.hosts) {
        if (!host.alive) continue;
        for (const which of ["agent", "daemon"] as const) this.learn(host, which);
        this.takeKeys(host);
        this.act(host);
        this.assertNobodyIsRefused();
        for (const which of ["agent", "daemon"] as const) this.reload(host, which);
        this.ack(host);
        this.assertNobodyIsRefused();
      }
      this.step(nowMs);
    }
  }
}

function active(list: Trust["authorities"]): string {
  return list.find(({ state }) => state === "active")?.kid ?? fail("no active authority");
}

const verbs = [
  "learn-agent",
  "learn-daemon",
  "act",
  "reload-agent",
  "reload-daemon",
  "ack",
  "member",
  "keys",
  "crash",
  "away",
  "back",
] as const;
const event = fc.oneof(
  { weight: 6, arbitrary: fc.record({ verb: fc.constantFrom(...verbs), host: fc.nat(6) }) },
  { weight: 1, arbitrary: fc.record({ verb: fc.constantFrom("join", "start"), host: fc.constant(0) }) },
  { weight: 5, arbitrary: fc.record({ verb: fc.constant("step"), host: fc.constant(0) }) },
  // Several things at once: else long ways through all phases are rare.
  {
    weight: 8,
    arbitrary: fc.record({ verb: fc.constantFrom("all", "all", "all", "keys", "list"), host: fc.nat(6) }),
  },
);

function happen(world: World, verb: string, host: Host): void {
  if (verb === "step") world.step();
  else if (verb === "join") world.join();
  else if (verb === "start") world.start();
  else if (verb === "back") {
    // It starts: its processes read what the disk has, and the newest list before they serve.
    if (!host.alive) world.crash(host);
    host.alive = true;
  } else if (!host.alive) return;
  else if (verb === "away") host.alive = false;
  else if (verb === "crash") world.crash(host);
  else if (verb === "ack") world.ack(host);
  else if (verb === "keys") world.takeKeys(host);
  else if (verb === "member") world.becomeMember(host);
  else if (verb === "act") world.act(host);
  else if (verb.startsWith("learn")) world.learn(host, verb === "learn-agent" ? "agent" : "daemon");
  else if (verb.startsWith("reload")) world.reload(host, verb === "reload-agent" ? "agent" : "daemon");
  else {
    for (const which of ["agent", "daemon"] as const) world.learn(host, which);
    if (verb === "all") {
      world.act(host);
      for (const which of ["agent", "daemon"] as const) world.reload(host, which);
    }
    world.ack(host);
  }
}

void t.test(
  "rotation: no living host is refused and nothing is dropped early, at any crash point",
  async (t) => {
    const reached = new Set<string>();
    const plot = fc.record({
      hosts: fc.integer({ min: 1, max: 4 }),
      members: fc.integer({ min: 1, max: 3 }),
      events: fc.array(event, { maxLength: 150, size: "max" }),
    });
    fc.assert(
      fc.property(plot, ({ hosts, members, events }) => {
        const world = new World(hosts, Math.min(hosts, members));
        for (const { verb, host } of [{ verb: "start", host: 0 }, ...events]) {
          const chosen = world.hosts[host % world.hosts.length];
          if (chosen === undefined) return fail("no host");
          happen(world, verb, chosen);
          reached.add(world.newest.trust.rotation?.phase ?? "none");
          world.assertNobodyIsRefused();
        }
        // Whoever is away is waited for; when all are back, it ends.
        for (const host of world.hosts) happen(world, "back", host);
        world.settle();
        equal(world.newest.trust.rotation, null);
        equal(world.newest.trust.authorities.length, 1);
      }),
      { numRuns: 500 },
    );
    t.strictSame(Array.from(reached).toSorted(), ["announce", "bundle", "drop", "issue", "none"]);
  },
);

/** Everybody does all that is due, once; then the machine steps. */
function round(world: World, nowMs?: number): string {
  for (const host of world.hosts) {
    happen(world, "keys", host);
    happen(world, "all", host);
  }
  const step = world.step(nowMs);
  if (step.kind !== "wait") return world.newest.trust.rotation?.phase ?? "none";
  return step.awaited.map(({ host, what }) => `${host.slice(7, 8)} ${what}`).join(", ");
}

void t.test("rotation: the way through it, and who is waited for", async (t) => {
  const world = new World(3, 2);
  world.start();
  t.match(world.step(), {
    kind: "wait",
    awaited: [1, 2, 3].map((n) => ({ host: trustHost(n), what: "list" })),
  });
  const [, , third] = world.hosts;
  if (third === undefined) return;
  third.alive = false;
  t.equal(round(world), "3 list", "a host that is away is waited for");
  third.alive = true;
  t.strictSame(
    [round(world), round(world), round(world), round(world)],
    ["bundle", "issue", "1 certificate, 2 certificate", "drop"],
  );
  t.equal(round(world), "none");
  t.strictSame(
    world.history.map(
      ({ trust, by }) => `${trust.rotation?.phase ?? "-"} by ${by === kid("A1") ? "A1" : "A2"}`,
    ),
    ["- by A1", "announce by A1", "bundle by A1", "issue by A1", "drop by A2", "- by A2"],
  );
  t.ok(holdsAuthority(world.newest.trust, trustHost(1)));
  t.equal(world.step().kind, "idle");
});

void t.test("rotation: a second one can't begin, and a host can be left behind, but no member", async (t) => {
  const world = new World(3, 2);
  world.start();
  const again = startRotation(world.newest.trust, {
    id: "s",
    authority: authority("A3"),
    storeAuthority: authority("B3"),
    members: [],
    nonce: "x",
    nowMs: 0,
  });
  t.equal(again.kind === "refused" && again.finding.code, "E-CA-02");
  for (const host of world.hosts.slice(1)) host.alive = false;
  world.write(leaveBehind(world.newest.trust, [trustHost(2), trustHost(3)], "left"));
  t.equal(round(world), "2 list", "member 2 is waited for still");
  const [, second] = world.hosts;
  if (second === undefined) return;
  second.alive = true;
  t.equal(round(world), "bundle");
  t.strictSame(leaveBehind(trustOf(1), [trustHost(1)], "n"), trustOf(1));
});

void t.test("rotation: a host that was away between two lists of issue accepts the later one", async (t) => {
  // The list that hands over is signed by the old authority, the ones after it by the new: a watch may miss the first.
  const world = new World(3, 2);
  world.start();
  t.equal(round(world), "bundle");
  const [one, two, three] = world.hosts;
  if (one === undefined || two === undefined || three === undefined) return;
  for (const host of [one, two]) happen(world, "all", host);
  t.equal(world.step().kind, "write");
  world.join();
  t.equal(three.daemon.known.trust.rotation?.phase, "announce");
  t.equal(world.newest.by, kid("A2"));
  world.learn(three, "daemon");
  t.equal(three.daemon.known.trust.rotation?.phase, "issue");
});

void t.test(
  "rotation: after a revocation the store forgets the old authority at once, the data path in 10 min",
  async (t) => {
    const world = new World(3, 2);
    const gone = revokeHost(world.newest.trust, {
      host: trustHost(2),
      by: "root",
      nowMs: 0,
      nonce: "gone",
      replacement: { id: "r", authority: authority("A2"), storeAuthority: authority("B2") },
    });
    if (gone.kind === "refused") throw new Error(gone.finding.message);
    world.hosts.splice(1, 1);
    world.write(gone.value);
    t.strictSame(storeBundle(gone.value), [kid("A2"), kid("B2")]);
    const [one, three] = world.hosts;
    if (one === undefined || three === undefined || one.member === null) return;
    t.strictSame(dutiesOf(gone.value, world.truthOf(one)), ["renew", "reissue-store", "restart-store"]);
    t.strictSame(dutiesOf(gone.value, world.truthOf(three)), ["renew"]);
    three.alive = false;
    for (const _ of [1, 2]) round(world);
    t.equal(round(world, EMERGENCY_DROP_MS - 1), "3 list, 3 certificate");
    t.equal(round(world, EMERGENCY_DROP_MS), "drop");
    t.strictSame(
      world.newest.trust.authorities.map(({ pem }) => pem),
      ["A2"],
    );
    for (const _ of [1, 2]) round(world);
    t.equal(world.newest.trust.rotation, null);
  },
);
