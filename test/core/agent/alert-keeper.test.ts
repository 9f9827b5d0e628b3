/**
 * Plot: two agents believe that they place, as they may for a moment, and a volume has lost a copy; XAPI does not answer at
 * first. It is told once, and that it is over once.
 */
import t from "tap";

import { AlertKeeper } from "../../../src/core/agent/alert-keeper.ts";
import type { AlertFacts } from "../../../src/core/model/alerts.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { startStore } from "../wire/etcd-for-tests.ts";
import { silent } from "./identity-for-tests.ts";

void t.test("alerts: trouble is told once, whoever looks, and when XAPI answers again", async (t) => {
  const { endpoints } = await startStore(t, 1, 131);
  const store = new StoreClient({ endpoints });
  t.teardown(() => store.call.close());
  const told: string[] = [];
  let nowMs = 1_000_000;
  let isXapiUp = true;
  let health = "degraded";
  const facts = async (): Promise<AlertFacts> => ({
    volumes: [{ name: "db", health }],
    problems: [],
    ejected: [],
    stopping: [],
  });
  const keeper = (): AlertKeeper =>
    new AlertKeeper({
      store,
      name: "h1",
      isPlacer: () => true,
      isStoreUp: () => true,
      reachesStore: () => true,
      facts,
      nowMs: () => nowMs,
      log: silent,
      sink: {
        hosts: async () => null,
        say: async (messages) => {
          if (!isXapiUp) throw new Error("XAPI is away");
          told.push(...messages.map(({ name }) => name));
        },
        sayAway: async () => true,
        away: async () => null,
        sayBack: async () => undefined,
      },
    });
  const [one, other] = [keeper(), keeper()];
  // What somebody wrote there is nobody's business.
  await store.put(keys.alert("degraded"), "garbage");
  await store.put(keys.alert("nothing"), "{}");
  await one.look();
  nowMs += 61_000;
  isXapiUp = false;
  await t.rejects(other.look(), /XAPI is away/);
  isXapiUp = true;
  await one.look();
  await other.look();
  t.strictSame(told, ["WEFT_DEGRADED"]);
  health = "healthy";
  await other.look();
  await one.look();
  t.strictSame(told, ["WEFT_DEGRADED", "WEFT_DEGRADED_OVER"]);
});

/** What a pool knows of it, as its database has it. */
class Pool {
  readonly told: string[] = [];
  by: { host: string; isUp: boolean } | null = null;
  isUp = true;
}

// Nobody can note it in the store: three agents miss it, and one of them may be the only one who does.
void t.test("alerts: a store without a majority is told once, and that it is back once", async (t) => {
  const { endpoints } = await startStore(t, 1, 132);
  const store = new StoreClient({ endpoints });
  t.teardown(() => store.call.close());
  const pool = new Pool();
  let nowMs = 1_000_000;
  const up = new Set<string>();
  const keeper = (host: string): AlertKeeper =>
    new AlertKeeper({
      store,
      name: host,
      isPlacer: () => host === "h1" && up.has("h1"),
      isStoreUp: () => up.has(host),
      reachesStore: (one) => up.has(one),
      facts: async () => null,
      nowMs: () => nowMs,
      log: silent,
      sink: {
        hosts: async () => null,
        say: async () => undefined,
        sayAway: async ({ name }) => {
          if (!pool.isUp) throw new Error("XAPI is away");
          if (pool.by !== null) return true;
          pool.by = { host, isUp: true };
          pool.told.push(`${name} ${host}`);
          return true;
        },
        away: async () => pool.by,
        sayBack: async ({ name }) => {
          pool.told.push(name);
          pool.by = null;
        },
      },
    });
  const hosts = ["h1", "h2", "h3"].map(keeper);
  const look = async (ms: number): Promise<void> => {
    nowMs += ms;
    for (const one of hosts) await one.lookForStore().catch(() => undefined);
  };
  const all = (): void => ["h1", "h2", "h3"].forEach((host) => up.add(host));

  // A leader's election, a host that reboots: nobody is woken for that.
  await look(0);
  await look(59_000);
  all();
  await look(1000);
  up.clear();
  await look(0);
  await look(59_000);
  t.strictSame(pool.told, []);
  pool.isUp = false;
  await look(2000);
  pool.isUp = true;
  await look(15_000);
  await look(3_600_000);
  t.strictSame(pool.told, ["WEFT_STORE_AWAY h1"], "once, as soon as XAPI hears it");
  all();
  await look(15_000);
  await look(60_000);
  t.strictSame(pool.told.splice(0), ["WEFT_STORE_AWAY h1", "WEFT_STORE_AWAY_OVER"]);

  // h3 alone is cut off: it says so once, and that is over when it is back, or off.
  up.delete("h3");
  await look(0);
  for (let minutes = 0; minutes < 10; minutes++) await look(60_000);
  t.strictSame(pool.told, ["WEFT_STORE_AWAY h3"]);
  if (pool.by !== null) pool.by.isUp = false;
  await look(60_000);
  t.strictSame(pool.told, ["WEFT_STORE_AWAY h3", "WEFT_STORE_AWAY_OVER"]);
});
