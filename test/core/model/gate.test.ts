/** A door's places and rates, with time as a number: nobody takes what is kept for others. */
import * as fc from "fast-check";
import t from "tap";

import { Allowances, Gate, type GateLimits, networkOf, type Place } from "../../../src/core/model/gate.ts";
import { Tries } from "../../../src/core/model/tries.ts";

const limits: GateLimits = {
  connections: 12,
  strangers: 8,
  perStranger: 3,
  perHost: 5,
  unproven: 4,
  handshakesPerAddress: 5,
  handshakesOfStrangers: 20,
};

type Step =
  | { readonly kind: "come"; readonly address: string; readonly isHost: boolean; readonly afterMs: number }
  | { readonly kind: "prove" | "leave"; readonly which: number };

const hosts = ["10.0.0.1", "10.0.0.2"];
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc
      .record({
        address: fc.constantFrom(
          ...hosts,
          "192.0.2.1",
          "192.0.2.2",
          "192.0.2.3",
          "2001:db8::1",
          "2001:db8::2",
        ),
        afterMs: fc.constantFrom(0, 1, 50, 1000),
      })
      .map(({ address, afterMs }) => ({
        kind: "come" as const,
        address,
        isHost: hosts.includes(address),
        afterMs,
      })),
  },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constantFrom("prove" as const, "leave" as const), which: fc.nat(50) }),
  },
);

void t.test("gate: whatever comes, no bound is passed and what is kept for hosts is theirs", async () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const gate = new Gate(limits);
      const inside: Place[] = [];
      const taken: { readonly address: string; readonly atMs: number }[] = [];
      let now = 0;
      for (const event of steps) {
        if (event.kind === "come") {
          now += event.afterMs;
          const place = gate.admit(event, now);
          if (place !== null) {
            inside.push(place);
            taken.push({ address: networkOf(event.address), atMs: now });
          }
        } else {
          const [place] = inside.splice(event.which % Math.max(1, inside.length), 1);
          if (place === undefined) continue;
          if (event.kind === "leave") gate.leave(place);
          else {
            gate.prove(place);
            inside.push(place);
          }
        }
        const count = (matches: (place: Place) => boolean): number => inside.filter(matches).length;
        if (gate.size !== inside.length) throw new Error("a place was lost");
        if (inside.length > limits.connections) throw new Error("too many connections");
        if (count(({ isHost }) => !isHost) > limits.strangers) throw new Error("too many strangers");
        for (const isHost of [true, false])
          if (count((place) => !place.proven && place.isHost === isHost) > limits.unproven)
            throw new Error("too many that have proven nothing");
        for (const { address, isHost } of inside) {
          const own = count((place) => networkOf(place.address) === networkOf(address));
          if (own > (isHost ? limits.perHost : limits.perStranger)) throw new Error(`too many of ${address}`);
        }
        for (const { address } of taken) {
          const lately = taken.filter((one) => one.address === address && one.atMs > now - 1000).length;
          // What was left from before, and what a second gives.
          if (lately > 2 * limits.handshakesPerAddress) throw new Error(`too many handshakes of ${address}`);
        }
      }
    }),
  );
});

void t.test("gate: a host gets in while strangers fill all that is theirs", async (t) => {
  const gate = new Gate(limits);
  let now = 0;
  for (let n = 0; n < 100; n += 1) {
    const place = gate.admit({ address: `192.0.2.${n}`, isHost: false }, (now += 100));
    if (place !== null) gate.prove(place);
  }
  t.equal(gate.size, limits.strangers);
  t.ok(gate.admit({ address: "10.0.0.1", isHost: true }, now));
});

void t.test(
  "gate: handshakes that never end keep no host out, and one's own flood takes no other's share",
  async (t) => {
    const gate = new Gate(limits);
    for (let n = 0; n < 100; n += 1) gate.admit({ address: `192.0.2.${n}`, isHost: false }, n);
    t.equal(gate.size, limits.unproven);
    t.ok(gate.admit({ address: "10.0.0.1", isHost: true }, 100));
    const other = new Gate({
      ...limits,
      perStranger: 1000,
      strangers: 1000,
      connections: 1000,
      unproven: 1000,
    });
    let taken = 0;
    for (let n = 0; n < 1000; n += 1)
      if (other.admit({ address: "192.0.2.1", isHost: false }, 0) !== null) taken += 1;
    t.equal(taken, limits.handshakesPerAddress);
    t.ok(
      other.admit({ address: "192.0.2.2", isHost: false }, 0),
      "the flood was refused before it cost the others",
    );
  },
);

void t.test("allowances: what is remembered goes when it is whole again", async (t) => {
  const allowances = new Allowances({ perSecond: 1, burst: 2 });
  for (let n = 0; n < 10_000; n += 1) allowances.take(String(n), n * 10);
  t.ok(allowances.size <= 1024, `${allowances.size} keys`);
  t.equal(allowances.take("a", 0), true);
  t.equal(allowances.take("a", 0), true);
  t.equal(allowances.take("a", 999), false);
  t.equal(allowances.take("a", 1000), true);
  t.equal(allowances.take("a", 500), false, "a clock that went back gives nothing");
});

void t.test("addresses: one machine's are one network, however they are written", async (t) => {
  t.equal(networkOf("192.0.2.1"), "192.0.2.1");
  t.equal(networkOf("::ffff:192.0.2.1"), "192.0.2.1");
  for (const same of [
    "2001:db8:0:1::1",
    "2001:0db8::1:2:3:4:5",
    "2001:DB8:0:1:ffff::",
    "2001:db8:0:1::%eth0",
  ])
    t.equal(networkOf(same), "2001:db8:0:1::/64", same);
  t.equal(networkOf("::1"), "0:0:0:0::/64");
  t.not(networkOf("2001:db8:0:2::1"), networkOf("2001:db8:0:1::1"));
});

void t.test(
  "tries: as many wrong ones as are allowed in any window, and right ones count nothing",
  async (t) => {
    fc.assert(
      fc.property(
        fc.array(
          fc.record({ afterMs: fc.nat(400), right: fc.boolean(), address: fc.constantFrom("a", "b") }),
        ),
        (asked) => {
          const tries = new Tries({ tries: 3, windowMs: 1000 });
          const wrong: { readonly address: string; readonly atMs: number }[] = [];
          let now = 0;
          for (const { afterMs, right, address } of asked) {
            now += afterMs;
            const lately = wrong.filter((one) => one.address === address && one.atMs > now - 1000).length;
            if (tries.begin(address, now) !== lately < 3)
              throw new Error(`${lately} wrong ones, and judged else`);
            if (lately >= 3) continue;
            if (right) tries.right(address, now);
            else wrong.push({ address, atMs: now });
          }
          tries.begin("c", now + 10_000);
          if (tries.size !== 1) throw new Error("what is past is remembered");
        },
      ),
    );
    t.pass();
  },
);
