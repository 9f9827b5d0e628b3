/** Copies are compared by whoever owns the volume, by wish or in its turn; agents come and go meanwhile. */
import t from "tap";

import { keys } from "../../../src/core/wire/store-keys.ts";
import { eventually, three } from "./test-host.ts";

const GIB = 1n << 30n;

void t.test(
  "agent: copies are compared by the owner, and what was found is told once, to everybody",
  async (t) => {
    const [h1, h2, h3] = await three(t, 81);
    const { id, replicas } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
    await h3.client.attach("db");
    const asked = await h1.client.scrub("db", 64n << 20n);
    t.match(asked.scrub, { asked: { by: /@h1$/, rate: 64n << 20n }, last: null });
    const begun = (line: string): Promise<unknown> =>
      eventually(
        line,
        async () => h3.weftd.scrubs,
        (lines) => lines.includes(line),
      );
    await begun(`start ${64n << 20n}`);
    await h2.client.scrub("db", 1n << 20n);
    await begun(`start ${1n << 20n}`);
    const members = [{ rid: replicas[0]?.rid ?? 0, rotten: "3", repaired: "3" }];
    h3.weftd.endScrub(id, { compared_bytes: "4096", rotten: "3", repaired: "3", divergent: "1", members });
    const told = await eventually(
      "the result",
      () => h1.client.volume("db"),
      (v) => v.scrub.asked === null && v.scrub.last !== null,
    );
    t.match(told.scrub.last, {
      hostName: "h3",
      whole: true,
      comparedBytes: 4096n,
      rotten: 3n,
      divergent: 1n,
      members: [{ hostName: "h1", rotten: 3n, repaired: 3n }],
    });
    const status = await h2.client.status();
    t.match(status.kind === "cluster" ? status.problems : [], [
      { code: "E-VOL-18", message: /^1 block of "db" differ/ },
    ]);

    // Taken back: it is stopped, also by an agent that was away then.
    await h3.client.scrub("db");
    await begun(`start ${32n << 20n}`);
    t.equal((await h3.client.stopScrub("db")).scrub.asked, null);
    t.equal(h3.weftd.scrubs.at(-1), "stop");
    await h3.client.scrub("db", 2n << 20n);
    await begun(`start ${2n << 20n}`);
    const count = h3.weftd.scrubs.length;
    await h3.stopAgent();
    await h1.client.stopScrub("db");
    t.equal(h3.weftd.scrubs.length, count);
    await h3.startAgent();
    await eventually(
      "the scrub stopped",
      async () => h3.weftd.scrubs.slice(count),
      (lines) => lines.includes("stop"),
    );
    await t.rejects(h1.client.scrub("db", 1n), { code: "E-ARG-02" });
    t.equal((await h1.client.volume("db")).scrub.asked, null, "nothing was changed");
  },
);

void t.test("agent: a volume that nobody uses is compared by a caretaker, and in its turn", async (t) => {
  const [h1, h2] = await three(t, 91);
  const { id } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1"] });
  t.strictSame((await h2.client.settings()).scrub, { everyDays: 30, rate: 32n << 20n });
  await t.rejects(h1.client.changeSettings({ scrub: { everyDays: -1 } }), { code: "E-ARG-02" });
  await t.rejects(h1.client.changeSettings({ scrub: { rate: "1" } }), { code: "E-ARG-02" });

  // As if its copies had been made long ago: its turn has come.
  const store = await h1.store();
  const entry = await store.get(keys.state(id));
  if (entry === null) throw new Error("the volume has a record");
  const json = JSON.parse(entry.value) as { readonly replicas: readonly object[] };
  const replicas = json.replicas.map((replica) => ({ ...replica, since: "1000" }));
  await store.cas(entry.key, entry.modRevision, JSON.stringify({ ...json, replicas }));
  await h2.client.changeSettings({ scrub: { rate: String(1n << 20n) } });
  t.strictSame((await h1.client.settings()).scrub, { everyDays: 30, rate: 1n << 20n });
  await eventually(
    "its turn",
    () => h2.client.volume("db"),
    ({ scrub, owner }) => scrub.asked?.by === "schedule" && owner?.caretaker === true,
  );
  await eventually(
    "the scrub",
    async () => h1.weftd.scrubs,
    (lines) => lines.includes(`start ${1n << 20n}`),
  );
  h1.weftd.endScrub(id, {});
  await eventually(
    "the result, and the caretaker gone",
    () => h2.client.volume("db"),
    ({ scrub, owner }) => scrub.last !== null && scrub.asked === null && owner === null,
  );
});
