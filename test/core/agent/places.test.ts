/** Plot: an operator asks three agents for more copies and fewer, for racks apart, and for a move, while a guest is there. */
import { join } from "node:path";
import t from "tap";

import type { VolumeAnswer } from "../../../src/core/wire/agent-api.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { eventually, three, type TestHost } from "./test-host.ts";

const GIB = 1n << 30n;

/** Hosts of its copies, when all are in sync and none leaves. */
async function settled(host: TestHost, ...names: readonly string[]): Promise<VolumeAnswer> {
  return eventually(
    `copies on ${names.join(" ")}`,
    () => host.client.volume("db"),
    ({ replicas }) =>
      replicas.every(({ state, leaving }) => state === "INSYNC" && !leaving) &&
      replicas
        .map(({ hostName }) => hostName)
        .toSorted()
        .join() === names.join(),
  );
}

void t.test("agent: copies go from one to three and back, and the record says what is wanted", async (t) => {
  const [h1, h2, h3] = await three(t, 61);
  await h1.client.createVolume({ name: "db", size: GIB, copies: 1, hosts: ["h1"] });
  await h3.client.attach("db");
  const policy = (): unknown => [...h3.weftd.kept.values()][0]?.policy;

  const plan = await h2.client.planVolume("db", { copies: 3, minIsr: 2 });
  t.match(plan, {
    name: "db",
    bytes: 2n * GIB,
    inSync: { now: 1, least: 1, after: 3 },
    risks: [/^Until a new copy is in sync, h1 has the only one/],
  });
  t.same(
    plan.steps.map(({ kind }) => kind),
    ["policy", "add", "add", "wait", "policy"],
  );
  t.equal((await h2.client.volume("db")).copies, 1, "nothing was done");

  t.match(await h2.client.changeVolume("db", { copies: 3, minIsr: 2 }), { copies: 3, minIsr: 2 });
  const epoch = (await settled(h1, "h1", "h2", "h3")).epoch ?? 0n;
  await eventually(
    "the record needs two copies for writes",
    async () => policy(),
    (now) => JSON.stringify(now).includes('"copies":3,"min_isr":2'),
  );
  t.same((await h1.client.planVolume("db", { copies: 3, minIsr: 2 })).steps, [], "it is so");

  await t.rejects(h1.client.changeVolume("db", { copies: 1 }), { code: "E-VOL-06" });
  await t.rejects(h1.client.changeVolume("db", { copies: 4 }), { code: "E-REPL-01" });
  t.equal((await h1.client.volume("db")).copies, 3, "what was refused changed nothing");

  // The guest's own copy stays.
  await h1.client.changeVolume("db", { copies: 1, minIsr: 1 });
  const last = await settled(h1, "h3");
  t.ok((last.epoch ?? 0n) > epoch);
  t.equal(last.owner?.hostName, "h3", "the guest was never disturbed");
  t.match(policy(), { copies: 1, min_isr: 1 });
});

void t.test("agent: a copy moves to another host, and to another pool of its host", async (t) => {
  const [h1, h2, h3] = await three(t, 71);
  await h1.client.createVolume({ name: "db", size: GIB, copies: 2, hosts: ["h1", "h2"] });
  await t.rejects(h1.client.changeVolume("db", { move: { from: "h3", to: "h1" } }), { code: "E-ARG-01" });
  await t.rejects(h1.client.changeVolume("db", { move: { from: "h1", to: "h2" } }), { code: "E-REPL-02" });
  await t.rejects(h1.client.changeVolume("db", { move: { from: "h1", to: "h4" } }), { code: "E-ARG-01" });
  await t.rejects(h1.client.changeVolume("db", { move: { from: "h1", to: "h3", pool: "/nowhere" } }), {
    code: "E-ARG-01",
    message: /^h3 has no pool "\/nowhere"\. Its pools: \//,
  });
  await h3.client.changeVolume("db", { move: { from: "h1", to: "h3" } });
  await settled(h2, "h2", "h3");
  await eventually(
    "the copy on h1 in the trash",
    async () => h1.weftd.trash.size,
    (count) => count === 1,
  );

  const [{ pool: before } = { pool: "" }] = (await h2.client.volume("db")).replicas;
  const other = await h2.client.createPool({ path: join(h2.directory, "pool-b") });
  await eventually(
    "another pool on h2",
    () => h1.client.pools(),
    (pools) => pools.some(({ id, state }) => id === other.id && state === "serving"),
  );
  await h1.client.changeVolume("db", { move: { from: "h2", to: "h2", pool: other.id } });
  const { replicas } = await settled(h1, "h2", "h3");
  t.not(before, other.id);
  t.ok(replicas.some(({ pool, hostName }) => pool === other.id && hostName === "h2"));
});

void t.test(
  "agent: copies that shall not share a rack are placed and moved by the hosts' labels",
  async (t) => {
    const [h1, h2, h3] = await three(t, 81);
    const label = (host: string, rack: string | null) => h1.client.changeHost(host, { labels: { rack } });
    const create = { name: "db", size: GIB, copies: 2, spread: "rack" } as const;
    await t.rejects(h1.client.createVolume(create), { code: "E-VOL-03", message: /h1: no rack label/ });
    t.match(await label("h1", "a"), { name: "h1", labels: { rack: "a", site: null } });
    await label("h2", "a");
    await label("h3", "b");
    t.match(await h3.client.changeHost("h3", { labels: { site: "x" } }), {
      labels: { rack: "b", site: "x" },
    });
    const said = (await h2.client.hosts()).map(({ name, labels }) => `${name} ${labels.rack} ${labels.site}`);
    t.same(said.toSorted(), ["h1 a null", "h2 a null", "h3 b x"]);
    await t.rejects(label("h9", "a"), { code: "E-ARG-01" });
    await t.rejects(label("h1", "A b"), { code: "E-ARG-02" });

    await t.rejects(h1.client.createVolume({ ...create, hosts: ["h1", "h2"] }), {
      code: "E-VOL-03",
      message: /h2: in rack a, as h1/,
    });
    const { id, spread } = await h1.client.createVolume({ ...create, hosts: ["h1", "h3"] });
    t.equal(spread, "rack");
    await settled(h1, "h1", "h3");
    await t.rejects(h1.client.addReplica("db"), { code: "E-REPL-01", message: /h2: in rack a, as h1/ });
    await h1.client.changeVolume("db", { spread: "host" });
    await h1.client.changeVolume("db", { move: { from: "h3", to: "h2" } });
    await settled(h1, "h1", "h2");
    const store = await h1.store();
    const wanted = async (): Promise<string> => (await store.get(keys.want(id)))?.value ?? "";
    await eventually("the place on h3 given up", wanted, (want) => !want.includes("remove"));
    t.match(await h1.client.changeVolume("db", { spread: "rack" }), { spread: "rack" });
    await settled(h1, "h1", "h3");

    const unlabelled = await h1.client.changeHost("h2", { labels: { rack: null } });
    t.equal((await store.get(keys.hostLabels(unlabelled.id)))?.value, '{"rack":null,"site":null}');
  },
);
