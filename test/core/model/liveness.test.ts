/** Plot: leases come and go, and so does the store. A store outage must not make every host look dead. */
import t from "tap";

import { initialLiveness, livenessLine, stepLiveness } from "../../../src/core/model/liveness.ts";
import type { LivenessEvent, LivenessState } from "../../../src/core/model/liveness.ts";
import { hostId } from "./world.ts";

function play(events: readonly (readonly [number, LivenessEvent])[]): [LivenessState, string[]] {
  let state = initialLiveness(0);
  const log: string[] = [];
  for (const [now, event] of events) {
    const [next, effects] = stepLiveness(state, event, now);
    log.push(...effects.map(({ host, from, to }) => `${now} ${host.slice(0, 1)} ${from}→${to}`));
    state = next;
  }
  return [state, log];
}

const joined: readonly (readonly [number, LivenessEvent])[] = [
  [0, { kind: "store-back", leases: [] }],
  [0, { kind: "host-joined", host: hostId(1) }],
  [0, { kind: "host-joined", host: hostId(2) }],
  [1, { kind: "lease-seen", host: hostId(1) }],
  [1, { kind: "lease-seen", host: hostId(2) }],
];

void t.test("liveness: a lease that ends makes a host away since then, and its return alive", async (t) => {
  const [state, log] = play([...joined, [5000, { kind: "lease-gone", host: hostId(2) }]]);
  t.equal(livenessLine(state, 15_000), "store up 15 s; 10000000 alive, 20000000 away 10 s");
  t.strictSame(log.slice(-1), ["5000 2 alive→away"]);
  const [again] = stepLiveness(state, { kind: "lease-gone", host: hostId(2) }, 9000);
  t.equal(
    livenessLine(again, 15_000),
    "store up 15 s; 10000000 alive, 20000000 away 10 s",
    "since the first",
  );
});

void t.test(
  "liveness: during a store outage nothing is known, and who is missing after it is away from its end",
  async (t) => {
    const [state, log] = play([
      ...joined,
      [10_000, { kind: "store-lost" }],
      [11_000, { kind: "store-lost" }],
      [12_000, { kind: "lease-gone", host: hostId(2) }],
      [70_000, { kind: "store-back", leases: [hostId(1)] }],
    ]);
    t.equal(livenessLine(state, 71_000), "store up 1 s; 10000000 alive, 20000000 away 1 s");
    t.strictSame(log.slice(-4), [
      "10000 1 alive→unknown",
      "10000 2 alive→unknown",
      "70000 1 unknown→alive",
      "70000 2 unknown→away",
    ]);
  },
);

void t.test("liveness: a lease of a host that is no member counts for nothing", async (t) => {
  const [state] = play([
    ...joined,
    [2, { kind: "host-removed", host: hostId(2) }],
    [3, { kind: "lease-seen", host: hostId(2) }],
  ]);
  t.equal(livenessLine(state, 1000), "store up 1 s; 10000000 alive");
});
