/** Pools that fill up: everybody hears it in time, and what was deleted goes before a write has to wait for room. */
import t from "tap";

import { eventually, type TestHost, three } from "./test-host.ts";

const GIB = 1n << 30n;

void t.test("agent: a pool that fills up is a problem at 95 %, another one at 98 %", async (t) => {
  const [h1, h2] = await three(t, 91);
  await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1"] });
  const codes = async (): Promise<readonly string[]> => {
    const status = await h2.client.status();
    return status.kind === "cluster" ? status.problems.map(({ code, message }) => `${code} ${message}`) : [];
  };
  const pools = async (): Promise<readonly string[]> =>
    (await h2.client.metrics()).split("\n").filter((line) => line.startsWith("weft_pools_room{"));
  const problem = (at: bigint, said: RegExp): Promise<unknown> => {
    h1.weftd.leave(at);
    return eventually(String(said), codes, (found) => found.some((line) => said.test(line)));
  };
  t.same(await pools(), ['weft_pools_room{room="plenty"} 3']);
  await problem(5n, /^E-POOL-09 The pool \/\S+ on h1 is filling up \(5 GiB of 100 GiB free\)\..* of "db"\.$/);
  t.strictSame(
    new Set(await pools()),
    new Set(['weft_pools_room{room="low"} 1', 'weft_pools_room{room="plenty"} 2']),
  );
  await problem(2n, /^E-POOL-10 The pool \/\S+ on h1 is full \(2 GiB of 100 GiB free\): .* "db"; /);
  const full = (await h2.client.pools()).filter(({ room }) => room === "full");
  t.match(full, [{ hostName: "h1" }], "and in the list of pools");
  h1.weftd.leave(40n);
  await eventually("no problem any more", codes, (found) => found.length === 0);
});

void t.test(
  "agent: a nearly full pool gives up what was deleted first, and no more than it needs",
  async (t) => {
    const [h1, h2] = await three(t, 101);
    for (const [name, host] of [
      ["old", "h1"],
      ["elsewhere", "h2"],
      ["young", "h1"],
    ] as const) {
      await h1.client.createVolume({ name, size: GIB, hosts: [host] });
      await h1.client.deleteVolume(name);
    }
    const inTrash = async (host: TestHost): Promise<readonly string[]> =>
      (await host.client.trash()).map(({ name }) => name).toSorted();
    await eventually(
      "copies in the trash",
      async () => h1.weftd.trash.size + h2.weftd.trash.size,
      (n) => n === 3,
    );

    h1.weftd.leave(4n);
    await eventually(
      "nearly full",
      () => h2.client.pools(),
      (pools) => pools.some(({ room }) => room === "low"),
    );
    t.same(await inTrash(h2), ["elsewhere", "old", "young"], "the 24 h are kept while there is room");
    h1.weftd.freeWhenEmptied = 10n;
    h1.weftd.leave(3n);
    await eventually(
      "the first is gone",
      () => inTrash(h2),
      (names) => !names.includes("old"),
    );
    t.same(await inTrash(h2), ["elsewhere", "young"]);
    t.equal(
      await h1.client.restoreFromTrash("young").then(({ name }) => name),
      "young",
      "what stays can be restored",
    );
  },
);
