/** Every other host is asked in turn, and one that is gone is forgotten. */
import t from "tap";

import { ClockWatch } from "../../../src/core/agent/clock-watch.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { newHostId, silent } from "./identity-for-tests.ts";

void t.test("clocks: asked one after the other; a certificate of tomorrow counts too", async (t) => {
  const [h2, h3] = [
    { id: newHostId(), name: "h2", address: "10.0.0.2" },
    { id: newHostId(), name: "h3", address: "10.0.0.3" },
  ];
  let others = [h2, h3];
  let answer = async (): Promise<number> => Date.now();
  const asked: string[] = [];
  const watch = new ClockWatch({
    others: () => others,
    ask: (address) => {
      asked.push(address);
      return answer();
    },
    log: silent,
    everyMs: 3_600_000,
  });
  t.teardown(() => watch.stop());
  await watch.look();
  await watch.look();
  t.same(asked, ["10.0.0.2", "10.0.0.3"]);
  t.equal(watch.finding, null);
  answer = async () => Date.now() + 3_600_000;
  await watch.look();
  t.match(watch.finding, { code: "E-NET-05", message: /h2 by 60 min ahead/ });
  answer = () => Promise.reject(new WeftError({ code: "E-HOST-09", message: "It does not answer." }));
  await watch.look();
  await watch.look();
  t.equal(watch.finding, null, "nothing is known of either");
  const facts = { limit: "2026-11-23T12:00:00Z", now: "2026-11-22T10:00:00Z" };
  answer = () => Promise.reject(new WeftError({ code: "E-NET-05", message: "Not valid yet.", facts }));
  await watch.look();
  t.match(watch.finding, { message: /26 h ahead/ });
  others = [];
  await watch.look();
  t.equal(watch.finding, null);
});
