/** Plot: XAPI plugs an SR while the store has no majority; which host XAPI means is noted once the store can be written again. */
import t from "tap";

import { HostNote } from "../../src/sm-driver/host-note.ts";

const quiet = { info: () => {}, warn: () => {}, error: () => {}, debug: () => {} };

await t.test("host note: tried until it is there, and never an older word after a newer one", async (t) => {
  const asked: string[] = [];
  const noted = Promise.withResolvers<void>();
  const firstFails = Promise.withResolvers<void>();
  const setXapiHost = async (uuid: string): Promise<void> => {
    asked.push(uuid);
    if (uuid === "old") return firstFails.promise;
    if (asked.filter((each) => each === "new").length < 3) throw new Error("no majority");
    noted.resolve();
  };
  const note = new HostNote({ setXapiHost }, quiet, 1);
  // A timer that keeps nobody alive needs somebody who lives.
  const alive = setInterval(() => undefined, 1000);
  note.learn("old");
  note.learn("new");
  await noted.promise;
  firstFails.reject(new Error("no majority"));
  await firstFails.promise.catch(() => undefined);
  await new Promise((resolve) => setTimeout(resolve, 20));
  clearInterval(alive);
  t.strictSame(asked, ["old", "new", "new", "new"]);
});
