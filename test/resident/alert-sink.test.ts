/** Plot: the store has lost its majority, all hosts of the pool notice, and tell XAPI; one of them ends while it does. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { STORE_BACK_MESSAGE, storeAwayMessage } from "../../src/core/model/alerts.ts";
import { openLog } from "../../src/core/agent/log.ts";
import { alertSink } from "../../src/resident/alert-sink.ts";
import { poolOf } from "../sm-driver/lib/pool-for-tests.ts";
import { startXapi } from "../sm-driver/lib/xapi-server.ts";

const log = openLog("silent");
const KEY = "weft-store-away";

void t.test(
  "alerts: XAPI is told once that the store is away, whoever tells it, and that it is back",
  async (t) => {
    const directory = await mkdtemp(join(tmpdir(), "weft-sink-"));
    const xapi = await startXapi(join(directory, "xapi"), 2);
    t.teardown(async () => {
      await xapi.close();
      await rm(directory, { recursive: true });
    });
    const own = xapi.hosts[0];
    if (own === undefined) throw new Error("a host");
    const pool = await poolOf(xapi);
    xapi.set(pool, "other_config", { else: "kept" });
    const names = (): readonly string[] => xapi.messages.map(({ name }) => name);
    const sink = (): ReturnType<typeof alertSink> => alertSink({ xapiSocket: xapi.socketPath }, log);
    const away = storeAwayMessage("h1");

    t.equal(await sink().away(), null);
    const answers = await Promise.all([sink().sayAway(away), sink().sayAway(away), sink().sayAway(away)]);
    t.ok(answers.includes(true), "who came first has told it");
    t.equal(await sink().sayAway(away), true, "and nobody does after that");
    t.strictSame(names(), ["WEFT_STORE_AWAY"]);
    t.strictSame(await sink().away(), { host: own.uuid, isUp: true });
    own.live = false;
    t.strictSame(await sink().away(), { host: own.uuid, isUp: false });
    own.live = true;
    await sink().sayBack(STORE_BACK_MESSAGE);
    t.strictSame(names(), ["WEFT_STORE_AWAY", "WEFT_STORE_AWAY_OVER"]);
    t.equal(await sink().away(), null);

    // XAPI takes no message: nothing is noted, and it is tried again.
    xapi.intercept = async ({ method }) => {
      if (method === "message.create") throw new Error("cut");
    };
    await t.rejects(sink().sayAway(away));
    xapi.intercept = null;
    t.strictSame(xapi.record(pool).get("other_config"), { else: "kept" });
    // Somebody is at it; somebody was, and ended; somebody wrote nonsense.
    const telling = (ms: number): object => ({
      [KEY]: `telling ${new Date(Date.now() - ms).toISOString()} h9`,
    });
    xapi.set(pool, "other_config", telling(1000));
    t.equal(await sink().sayAway(away), false);
    t.equal(await sink().away(), null, "nothing was told yet");
    for (const left of [telling(61_000), { [KEY]: "nonsense" }, { [KEY]: "" }]) {
      xapi.messages.splice(0);
      xapi.set(pool, "other_config", left);
      t.equal(await sink().sayAway(away), true);
      t.strictSame(names(), ["WEFT_STORE_AWAY"]);
    }
    t.strictSame(xapi.violations, []);
    // A host without XAPI tells nobody, and is not kept waiting by that.
    const none = alertSink({ xapiSocket: "/nowhere" }, log);
    t.strictSame([await none.sayAway(away), await none.away(), await none.hosts()], [true, null, null]);
  },
);
