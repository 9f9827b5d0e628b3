/** The door by which the holder is restarted: what it answers, and what the audit has of it. */
import t from "tap";

import { WeftError } from "../../src/core/wire/errors.ts";
import { holderDoor } from "../../src/resident/holder-door.ts";
import type { HolderRestart, HolderRestarted } from "../../src/sm-driver/datapath/holder-restart.ts";

type Restart = Pick<HolderRestart, "run">;

async function ask(run: () => Promise<HolderRestarted>): Promise<readonly [number, unknown, string]> {
  const restart: Restart = { run };
  const { status, body, audit } = await holderDoor(restart).handle("{}", new AbortController().signal);
  return [status ?? 200, JSON.parse(body), audit?.outcome ?? "none"];
}

await t.test("holder: the door tells what was done, or by a code that it was not", async (t) => {
  const done = { version: "0.1.0", paused: 3, pausedMs: 900 };
  t.strictSame(await ask(async () => done), [200, done, "ok"]);
  const left = new WeftError({ code: "E-HOLD-06", message: "One disk stays paused." });
  const [status, body, outcome] = await ask(() => Promise.reject(left));
  t.strictSame([status, outcome], [503, "E-HOLD-06"]);
  t.match(body, { error: { code: "E-HOLD-06", message: "One disk stays paused." } });
  const [other, unknown] = await ask(() => Promise.reject(new Error("no tap-ctl is there")));
  t.equal(other, 409);
  t.match(unknown, {
    error: { code: "E-HOLD-05", message: "The holder was not restarted: no tap-ctl is there" },
  });
});
