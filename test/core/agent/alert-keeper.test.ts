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
      isPlacer: () => true,
      facts,
      nowMs: () => nowMs,
      log: silent,
      sink: {
        hosts: async () => null,
        say: async (messages) => {
          if (!isXapiUp) throw new Error("XAPI is away");
          told.push(...messages.map(({ name }) => name));
        },
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
