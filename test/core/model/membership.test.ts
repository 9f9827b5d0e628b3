/**
 * Plot: hosts join, die and leave, and the store's members follow one change at a time. A wrong change costs the
 * majority, and with it every attach and every failover.
 */
import * as fc from "fast-check";
import t from "tap";

import { checkMemberRemoval, decideMembership, membershipLine } from "../../../src/core/model/membership.ts";
import type { MembershipAction, MembershipInput, StoreMember } from "../../../src/core/model/membership.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { REBUILD_AFTER_MS } from "../../../src/core/model/limits.ts";
import type { Host } from "../../../src/core/model/cluster.ts";
import { alive, away, host, hostId } from "./world.ts";

function voter(number: number, healthy: boolean = true): StoreMember {
  return { host: hostId(number), role: "voter", healthy };
}

function learner(number: number, healthy: boolean = true): StoreMember {
  return { host: hostId(number), role: "learner", healthy };
}

/** The list names those that etcd has; and `named`, but not `planted`. */
function line(
  hosts: readonly Host[],
  members: readonly StoreMember[],
  now = 0,
  {
    votersWanted = 3,
    named = [],
    planted = [],
  }: { votersWanted?: 3 | 5; named?: readonly number[]; planted?: readonly number[] } = {},
): string {
  const isMember = (id: HostId): boolean =>
    named.some((number) => hostId(number) === id) ||
    (members.some((member) => member.host === id) && !planted.some((number) => hostId(number) === id));
  const marked = hosts.map((host) => ({ ...host, member: isMember(host.id) }));
  const input: MembershipInput = { hosts: marked, members, votersWanted };
  return membershipLine(input, decideMembership(input, now));
}

void t.test(
  "store: one host has one voter, the second becomes a learner, the third makes three voters",
  async (t) => {
    t.equal(line([host(1)], [voter(1)]), "voters 10000000: nothing to do");
    t.equal(line([host(1), host(2)], [voter(1)]), "voters 10000000: add-learner 20000000");
    t.equal(
      line([host(1), host(2)], [voter(1), learner(2)]),
      "voters 10000000 learner 20000000: nothing to do",
    );
    const three = [host(1), host(2), host(3)];
    t.equal(line(three, [voter(1), learner(2)]), "voters 10000000 learner 20000000: promote 20000000");
    t.equal(line(three, [voter(1), voter(2)]), "voters 10000000 20000000: add-voter 30000000");
    t.equal(line(three, [voter(1), voter(2), voter(3)]), "voters 10000000 20000000 30000000: nothing to do");
  },
);

void t.test(
  "store: the step to three voters waits for the learner to catch up and for the third host to answer",
  async (t) => {
    const three = [host(1), host(2), host(3)];
    t.match(line(three, [voter(1), learner(2, false)]), /blocked, the learner has not caught up/);
    t.match(
      line([host(1), host(2), host(3, away(0))], [voter(1), learner(2)]),
      /blocked, the third host does not answer/,
    );
  },
);

void t.test(
  "store: a dead member is replaced after 30 min when a spare host answers, else it may come back",
  async (t) => {
    const members = [voter(1), voter(2, false), voter(3)];
    const four = [host(1), host(2, away(0)), host(3), host(4)];
    t.match(line(four, members, REBUILD_AFTER_MS - 1), /nothing to do/);
    t.match(line(four, members, REBUILD_AFTER_MS), /remove 20000000/);
    t.match(line(four, [voter(1), voter(3)], REBUILD_AFTER_MS), /add-voter 40000000/);
    t.match(line(four.slice(0, 3), members, 10 * REBUILD_AFTER_MS), /nothing to do/);
  },
);

void t.test(
  "store: a removed host's member goes, and two hosts fall back to voter and learner",
  async (t) => {
    const two = [host(1), host(2)];
    t.match(line(two, [voter(1), voter(2), voter(3, false)]), /: remove 30000000/);
    t.match(line(two, [voter(1), voter(2)]), /: remove 20000000/);
    t.match(line(two, [voter(1)]), /: add-learner 20000000/);
  },
);

void t.test("store: five voters when asked and there", async (t) => {
  const five = [1, 2, 3, 4, 5].map((number) => host(number));
  const members = [voter(1), voter(2), voter(3)];
  t.match(line(five, members), /nothing to do/);
  t.match(line(five, members, 0, { votersWanted: 5 }), /add-voter 40000000/);
});

void t.test(
  "store: a member that the list does not name goes, whoever's it is, and its host is no spare by that",
  async (t) => {
    const four = [host(1), host(2), host(3), host(4)];
    const three = [voter(1), voter(2), voter(3)];
    t.match(line(four, [...three, learner(4, false)], 0, { planted: [4] }), /: remove 40000000/);
    t.match(line(four, [...three, voter(4, false)], 0, { planted: [4] }), /: remove 40000000/);
    const two = [host(1), host(2)];
    t.match(line(two, [voter(1), learner(2, false)], 0, { planted: [2] }), /: remove 20000000/);
  },
);

void t.test(
  "store: a named member that somebody took out of etcd comes back before another takes its place",
  async (t) => {
    const four = [host(1), host(2, away(0)), host(3), host(4)];
    const two = [voter(1), voter(3)];
    const named = { named: [2] };
    t.match(line(four, two, REBUILD_AFTER_MS - 1, named), /blocked, no further host answers/);
    t.match(line([host(1), host(2), host(3), host(4)], two, 0, named), /: add-voter 20000000/);
    t.match(line(four, two, REBUILD_AFTER_MS, named), /: remove 20000000/, "given up for a spare");
    t.match(line(four.slice(0, 3), two, REBUILD_AFTER_MS, named), /blocked, no further host answers/);
    t.match(line([host(1), host(2, away(0))], [voter(1)], REBUILD_AFTER_MS, named), /nothing to do/);
    const lost = [host(1), host(2, away(0)), host(3, away(0)), host(4)];
    t.match(
      line(lost, [voter(1)], REBUILD_AFTER_MS, { named: [2, 3] }),
      /: remove 20000000/,
      "of several too",
    );
    const full = [voter(1), voter(3), voter(4)];
    t.match(line(four, full, 0, named), /: remove 20000000/, "nobody waits for it");
  },
);

void t.test("store: a removal that would cost the majority is refused", async (t) => {
  t.match(checkMemberRemoval([voter(1), voter(2, false), voter(3)], hostId(1), "h1"), {
    kind: "refused",
    finding: { code: "E-STORE-05", message: /1 of the 2 other voters answer, 2 are needed/ },
  });
  t.equal(checkMemberRemoval([voter(1), voter(2, false), voter(3)], hostId(2), "h2").kind, "ok");
  t.match(checkMemberRemoval([voter(1)], hostId(1), "h1"), { finding: { message: /it is the only voter/ } });
});

type Store = { readonly members: readonly StoreMember[]; readonly named: ReadonlySet<HostId> };

/** The list first, then etcd. */
function perform(store: Store, action: MembershipAction): Store {
  const { members, named } = store;
  switch (action.kind) {
    case "none":
    case "blocked":
      return store;
    case "add-learner":
    case "add-voter": {
      const role = action.kind === "add-voter" ? ("voter" as const) : ("learner" as const);
      const added: StoreMember = { host: action.host, role, healthy: true };
      return { members: [...members, added], named: new Set([...named, action.host]) };
    }
    case "promote":
      return {
        members: members.map((m) => (m.host === action.host ? { ...m, role: "voter" as const } : m)),
        named,
      };
    case "remove":
      return {
        members: members.filter((m) => m.host !== action.host),
        named: new Set([...named].filter((host) => host !== action.host)),
      };
  }
}

void t.test(
  "store: from any configuration it comes to rest, and no step costs a majority that was there",
  async (t) => {
    const start = fc.record({
      hosts: fc.integer({ min: 1, max: 6 }),
      silent: fc.subarray([1, 2, 3, 4, 5, 6]),
      members: fc.subarray([1, 2, 3, 4, 5, 6, 7], { minLength: 1 }),
      learner: fc.boolean(),
      named: fc.subarray([1, 2, 3, 4, 5, 6]),
      votersWanted: fc.constantFrom(3 as const, 5 as const),
    });
    fc.assert(
      fc.property(start, ({ hosts: count, silent, members: chosen, learner: hasLearner, ...rest }) => {
        const { votersWanted } = rest;
        const hosts = Array.from({ length: count }, (_, index) =>
          host(index + 1, silent.includes(index + 1) ? away(0) : alive),
        );
        const members = chosen.map((number, index) =>
          hasLearner && index > 0 && index === chosen.length - 1
            ? learner(number, !silent.includes(number))
            : voter(number, !silent.includes(number)),
        );
        let store: Store = { members, named: new Set(rest.named.map((number) => hostId(number))) };
        const hasQuorum = (all: readonly StoreMember[]): boolean => {
          const voters = all.filter((m) => m.role === "voter");
          return voters.filter((m) => m.healthy).length * 2 > voters.length;
        };
        let steps = 0;
        for (; steps < 40; steps += 1) {
          const marked = hosts.map((host) => ({ ...host, member: store.named.has(host.id) }));
          const input = { hosts: marked, members: store.members, votersWanted };
          const next = perform(store, decideMembership(input, REBUILD_AFTER_MS));
          if (next === store) break;
          if (hasQuorum(store.members)) t.ok(hasQuorum(next.members));
          store = next;
        }
        t.ok(steps < 40, "it comes to rest");
        if (silent.length === 0) {
          const voters = store.members.filter((m) => m.role === "voter");
          t.equal(voters.length, count < 3 ? 1 : count >= 5 && votersWanted === 5 ? 5 : 3);
          t.ok(
            store.members.length === 1 || store.members.every(({ host }) => store.named.has(host)),
            "they are those that the list names",
          );
        }
      }),
      { numRuns: 500 },
    );
  },
);
