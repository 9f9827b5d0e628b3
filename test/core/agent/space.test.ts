/**
 * Pools that fill up: everybody hears it in time, and what was deleted goes before a write has to wait for room. What copies
 * take is known everywhere.
 */
import t from "tap";

import { keys } from "../../../src/core/wire/store-keys.ts";
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

void t.test(
  "agent: what each copy takes of its pool is known on every host, and what a trim gives back",
  async (t) => {
    const [h1, h2, h3] = await three(t, 111);
    const { id, replicas } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
    const told = (): Promise<readonly (bigint | null)[]> =>
      h3.client.volume("db").then((volume) => [volume.used, ...volume.replicas.map(({ used }) => used)]);
    const takes = (host: TestHost, used: bigint): void => {
      const rid = replicas.find(({ hostName }) => hostName === host.name)?.rid ?? -1;
      host.weftd.used.set(`${id}.${rid}`, String(used));
      // As it looks at its pools.
      host.weftd.leave(90n);
    };
    const shown = (...figures: readonly bigint[]): Promise<unknown> =>
      eventually(`${figures.join(", ")} bytes`, told, (found) =>
        figures.every((figure, i) => figure === found[i]),
      );
    takes(h1, 0n);
    takes(h2, 0n);
    await shown(0n, 0n, 0n);
    takes(h1, 700n << 20n);
    takes(h2, 698n << 20n);
    await shown(700n << 20n, 700n << 20n, 698n << 20n);
    takes(h1, 300n << 20n);
    await shown(698n << 20n, 300n << 20n, 698n << 20n);
    // Half a percent more is told when there is more to tell, or in a minute.
    takes(h2, 700n << 20n);
    takes(h1, 250n << 20n);
    await shown(698n << 20n, 250n << 20n, 698n << 20n);
    t.match(await h3.client.volumes(), [{ name: "db", used: 698n << 20n }], "in the list, too");
  },
);

void t.test(
  "agent: a thick volume has thick copies only, also those that come later, or isn't made",
  async (t) => {
    const [h1, h2, h3] = await three(t, 121);
    const size = 40n * GIB;
    await t.rejects(h1.client.createVolume({ name: "big", size: 200n * GIB, thick: true, hosts: ["h1"] }), {
      code: "E-POOL-06",
      message: /h1: no room for 200 GiB, 100 GiB of 100 GiB free/,
    });
    t.match(await h1.client.createVolume({ name: "thin", size: 200n * GIB, hosts: ["h1"] }), {
      thick: false,
    });
    const made = await h2.client.createVolume({ name: "db", size, thick: true, hosts: ["h1", "h2"] });
    t.match(made, { thick: true, size });
    await h1.client.changeVolume("db", { copies: 3 });
    await eventually(
      "three copies",
      () => h2.client.volume("db"),
      ({ inSync }) => inSync === 3,
    );
    for (const host of [h1, h2, h3])
      t.same(
        [...host.weftd.replicas.values()]
          .filter(({ volume }) => volume === made.id)
          .map(({ thick }) => thick),
        [true],
        host.name,
      );
    t.match(await h3.client.volume("db"), { thick: true, copies: 3 });
    t.match(h1.weftd.replicas.size, 2, "and the thin one");

    // As its host would say of a pool that it made of a whole device.
    const store = await h1.store();
    const [pool] = (await h1.client.pools()).filter(({ hostName }) => hostName === "h1");
    const usage = await store.get(keys.poolUsage(pool?.id ?? ""));
    const lvm = {
      ...(JSON.parse(usage?.value ?? "{}") as object),
      device: "/dev/vdb",
      deviceKind: "lvm-thin",
    };
    await store.put(usage?.key ?? "", JSON.stringify(lvm));
    await t.rejects(h1.client.createVolume({ name: "log", size: GIB, thick: true, hosts: ["h1"] }), {
      code: "E-POOL-12",
      message: /h1: its pool is on LVM's thin volumes, where no room can be reserved/,
    });
    t.match(await h1.client.createVolume({ name: "log", size: GIB, hosts: ["h1"] }), { thick: false });
  },
);

void t.test(
  "agent: a volume one of whose copies can't be made says so at once, and nothing of it stays",
  async (t) => {
    const [h1, h2, h3] = await three(t, 141);
    const request = { name: "db", size: 40n * GIB, thick: true, hosts: ["h1", "h2"], createdBy: "once" };
    h2.weftd.refusesCopies = { code: "E-POOL-06", message: "pool /pool-of-h2 has no room for it." };
    const refusal = {
      code: "E-POOL-06",
      exitCode: 3,
      message: '"db" could not be made, for its copy on h2: pool /pool-of-h2 has no room for it.',
      safe: "Nothing is left of it.",
    };
    await t.rejects(h3.client.createVolume(request), refusal);
    await t.rejects(h1.client.createVolume(request), refusal, "asked again");
    t.strictSame(await h1.client.volumes(), []);
    t.strictSame(await h1.client.trash(), []);
    await t.rejects(h1.client.volume("db"), { code: "E-ARG-01" });
    await eventually(
      "no copy of it",
      async () => h1.weftd.replicas.size + h1.weftd.trash.size,
      (n) => n === 0,
    );
    h2.weftd.refusesCopies = null;
    t.match(await h3.client.createVolume({ ...request, createdBy: "twice" }), { name: "db", inSync: 2 });
  },
);

void t.test("agent: volumes may promise more than a pool has; by far more is a problem", async (t) => {
  const [h1, h2] = await three(t, 131);
  const problems = async (): Promise<readonly string[]> => {
    const status = await h2.client.status();
    return status.kind === "cluster" ? status.problems.map(({ code, message }) => `${code} ${message}`) : [];
  };
  await h1.client.createVolume({ name: "a", size: 400n * GIB, hosts: ["h1"] });
  await h2.client.volume("a");
  t.same(await problems(), [], "four times the pool");
  await h1.client.createVolume({ name: "b", size: GIB, hosts: ["h1"] });
  await h2.client.volume("b");
  t.match(await problems(), [
    /^E-POOL-11 .* on h1 may grow to 401 GiB together, and it has 100 GiB: more than 4 times/,
  ]);
  t.match(await h2.client.settings(), { pools: { overcommit: 4 } });
  t.match(await h1.client.changeSettings({ pools: { overcommit: 5 } }), { pools: { overcommit: 5 } });
  await h2.client.volume("b");
  await eventually("no problem any more", problems, (found) => found.length === 0);
  await h2.client.changeSettings({ scrub: { everyDays: 7 } });
  t.match(await h2.client.changeSettings({ pools: { overcommit: 3 } }), { scrub: { everyDays: 7 } });
  t.match(await problems(), [/^E-POOL-11 .* more than 3 times its size/]);
  for (const overcommit of [0, -1, 1.5, 1001])
    await t.rejects(
      h1.client.changeSettings({ pools: { overcommit } }),
      { code: "E-ARG-02" },
      `${overcommit}`,
    );
});

void t.test(
  "agent: why a volume waits is told on every host, with the names of hosts and pools",
  async (t) => {
    const [h1, h2, h3] = await three(t, 141);
    const { id, replicas } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
    await h1.client.attach("db");
    const copy = replicas.find(({ hostName }) => hostName === "h2");
    const full = `waits for r${copy?.rid}: pool ${copy?.pool} of host ${copy?.host} is full`;
    const said = `waits for copy ${copy?.rid} on h2: the pool /pool-of-h2 on h2 is full`;
    h1.weftd.pause(id, full);
    const shown = await eventually(
      "the reason",
      () => h3.client.volume("db"),
      ({ health }) => health === "paused",
    );
    t.equal(shown.reason, said);
    const why = await h2.client.why("db");
    t.equal(why.health, "paused");
    t.equal(why.because[1], `Writes of the guest on h1 wait and do not fail. Its session ${said}.`);
    t.same((await h2.client.progress("db")).waitingFor, [said]);
    h1.weftd.pause(id, null);
    await eventually(
      "it goes on",
      () => h3.client.volume("db"),
      ({ health }) => health === "healthy",
    );

    // Another session is believed by its own word only.
    h1.weftd.pause(id, full);
    await eventually(
      "it waits again",
      () => h3.client.volume("db"),
      ({ health }) => health === "paused",
    );
    await h2.client.attach("db", { steal: true });
    t.match(await h3.client.volume("db"), { health: "healthy", reason: null });
    const store = await h1.store();
    h1.weftd.sessions.delete(id);
    h1.weftd.leave(100n);
    h2.weftd.pause(id, "waits for 2 members");
    await eventually(
      "the new one's reason",
      () => h3.client.volume("db"),
      ({ reason }) => reason === "waits for 2 members",
    );
    h2.weftd.pause(id, null);
    await eventually(
      "nothing is left",
      () => store.get(keys.pause(id)),
      (entry) => entry === null,
    );
  },
);
