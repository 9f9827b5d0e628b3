/**
 * The loop over volumes on a real store: whose session the record names decides what an agent asks its weftd for.
 * Plot: h1 and h2 have a copy each, h2's is behind; h3 owns the volume and went away. Without a guest on h3, h1 takes care of
 * the copies; with one, nobody may.
 */
import t from "tap";

import { openLog } from "../../../src/core/agent/log.ts";
import { Keeper } from "../../../src/core/agent/keeper.ts";
import { Mirror } from "../../../src/core/agent/mirror.ts";
import type { VolumeEffect } from "../../../src/core/model/volume.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { within } from "../../../scripts/lib/until.ts";
import { cluster, hostId, poolId } from "../model/world.ts";
import { startStore } from "../wire/etcd-for-tests.ts";

const VOLUME = "d0000000-0000-4000-a000-000000000000";
const SESSION = "50000000-0000-4000-b000-000000000000";

function stateWith(owner: object): string {
  const replica = (rid: number, state: string): object => ({
    rid,
    node: hostId(rid + 1),
    pool: poolId(rid + 1),
    pool_inc: "1",
    state,
    base: "0",
    reason: "",
    since: "0",
  });
  return JSON.stringify({
    fmt: 1,
    min_reader: 1,
    vol: VOLUME,
    size: "4194304",
    region_shift: 20,
    mode: "excl",
    policy: { copies: 2, min_isr: 1, ack: "durable", on_loss: "pause", spread: "host" },
    epoch: "3",
    rev: "1",
    next_rid: 2,
    deleted: null,
    created_by: "t",
    nonce: SESSION,
    owner,
    next: null,
    clean: false,
    closed_gen: "0",
    replicas: [replica(0, "INSYNC"), replica(1, "STALE")],
    snaps: { count: 0, newest: null },
    parent: null,
    lineage: [],
    wait: false,
  });
}

function wantText(): string {
  const placement = (rid: number): object => ({ rid, host: hostId(rid + 1), pool: poolId(rid + 1) });
  return JSON.stringify({
    id: VOLUME,
    name: "db",
    size: "4194304",
    copies: 2,
    minIsr: 1,
    placements: [placement(0), placement(1)],
    createdBy: "t",
  });
}

await t.test(
  "keeper: the copies of a caretaker that went away are cared for, a guest's are not",
  async (t) => {
    const { endpoints } = await startStore(t, 1);
    const store = new StoreClient({ endpoints });
    await store.put(keys.want(VOLUME), wantText());
    for (const rid of [0, 1]) {
      const made = { rid, host: hostId(rid + 1), pool: poolId(rid + 1), made: true };
      await store.put(keys.made(VOLUME, rid), JSON.stringify(made));
    }
    const guest = { node: hostId(3), session: SESSION };
    await store.put(keys.state(VOLUME), stateWith(guest));

    const mirror = new Mirror(store);
    await mirror.sync();
    let tell: (effect: VolumeEffect) => void = () => {};
    const first = new Promise<VolumeEffect>((resolve) => {
      tell = resolve;
    });
    const effects: VolumeEffect[] = [];
    const keeper = new Keeper({
      self: hostId(1),
      mirror,
      log: openLog("silent"),
      cluster: () => cluster([1, 2, 3], [3]),
      isPlacer: () => false,
      perform: async (_volume, effect) => {
        effects.push(effect);
        tell(effect);
      },
    });
    keeper.start();
    t.teardown(() => keeper.stop());
    t.same(effects, [], "a guest's volume is left alone");

    await store.put(keys.state(VOLUME), stateWith({ ...guest, caretaker: true }));
    await mirror.sync();
    const effect = await within(first, { what: "h1 to take care", deadlineMs: 10_000 });
    t.match(effect, { kind: "open-caretaker", host: hostId(1) });
  },
);

await t.test("keeper: a replica that weftd keeps for now (R15) is no news", async (t) => {
  const { endpoints } = await startStore(t, 1, 2);
  const store = new StoreClient({ endpoints });
  await store.put(keys.want(VOLUME), wantText());
  const made = { rid: 0, host: hostId(1), pool: poolId(1), made: true };
  await store.put(keys.made(VOLUME, 0), JSON.stringify(made));
  const mirror = new Mirror(store);
  await mirror.sync();

  const levels: string[] = [];
  const log = openLog("silent");
  const failed = (code: string): Promise<void> =>
    new Promise((resolve) => {
      const keeper = new Keeper({
        self: hostId(2),
        mirror,
        log: Object.assign(Object.create(log), {
          debug: () => levels.push("debug"),
          warn: () => levels.push("warn"),
        }),
        cluster: () => cluster([1, 2]),
        isPlacer: () => false,
        perform: async () => {
          setImmediate(() => {
            keeper.stop();
            resolve();
          });
          throw new WeftError({ code, message: "kept" });
        },
      });
      keeper.start();
    });
  // Each is told first what is asked for, at the lowest level, then how it failed.
  await failed("E-REPL-05");
  t.same(levels.splice(0), ["debug", "debug"]);
  await failed("E-POOL-07");
  t.same(levels, ["debug", "warn"]);
});

await t.test("keeper: what fails after its stop is not asked for again", async (t) => {
  const { endpoints } = await startStore(t, 1, 3);
  const store = new StoreClient({ endpoints });
  await store.put(keys.want(VOLUME), wantText());
  const mirror = new Mirror(store);
  await mirror.sync();
  const timers = (): number => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
  const before = timers();
  let fail: () => void = () => {};
  const failing = new Promise<never>((_resolve, reject) => {
    fail = () => reject(new WeftError({ code: "E-AGENT-01", message: "gone" }));
  });
  const keeper = new Keeper({
    self: hostId(1),
    mirror,
    log: openLog("silent"),
    cluster: () => cluster([1, 2]),
    isPlacer: () => false,
    perform: async () => failing,
  });
  keeper.start();
  keeper.stop();
  fail();
  await new Promise(setImmediate);
  t.equal(timers(), before, "no timer is left");
});
