/** Volumes that begin as a snapshot of another one: where their copies are made, and what they say when they can't be. */
import t from "tap";

import { keys } from "../../../src/core/wire/store-keys.ts";
import { eventually, type TestHost, three } from "./test-host.ts";

const GIB = 1n << 30n;

/** What the copies of a volume on this host began as. */
const origins = ({ weftd }: TestHost, id: string): readonly (string | null)[] =>
  Array.from(weftd.replicas.values())
    .filter(({ volume }) => volume === id)
    .map(({ from }) => from?.snap ?? null);

void t.test("agent: a clone is made where the snapshot is, and is a volume as any other", async (t) => {
  const [h1, h2, h3] = await three(t, 151);
  const db = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"], minIsr: 2 });
  const one = await h1.client.createSnapshot("db", { name: "one" });
  const store = await h1.store();
  const json = async (key: string): Promise<Record<string, unknown>> =>
    JSON.parse((await store.get(key))?.value ?? "{}") as Record<string, unknown>;

  // Asked of a host that has neither; what isn't said is as the volume has it.
  const web = await h3.client.createVolume({ name: "web", from: "db@one" });
  t.match(web, { size: GIB, copies: 2, minIsr: 2, spread: "host", inSync: 2, health: "healthy" });
  t.match(web.createdFrom, {
    volume: db.id,
    volumeName: "db",
    snapshot: one.id,
    snapshotName: "one",
    takenAt: one.takenAt,
  });
  for (const host of [h1, h2]) t.same(origins(host, web.id), [one.id], host.name);
  t.same(origins(h3, web.id), []);
  const key = await json(keys.snapshot(db.id, one.id));
  t.match(await json(keys.state(web.id)), {
    epoch: String(BigInt(String(key["epoch"])) + 1n),
    closed_gen: key["gen"],
    region_shift: key["region_shift"],
    size: key["size"],
    clean: true,
    next_rid: 2,
  });
  t.equal((await json(keys.state(db.id)))["closed_gen"], "0", "an empty one has no beginning");

  // More copies than have the snapshot: the others join, and what writes need is raised with them.
  const wide = await h1.client.createVolume({ name: "wide", from: one.id, copies: 3, minIsr: 3, size: GIB });
  t.equal(wide.copies, 3);
  const joined = await eventually(
    "three copies",
    () => h2.client.volume("wide"),
    ({ inSync, owner }) => inSync === 3 && owner === null,
    60_000,
  );
  t.equal(joined.minIsr, 3);
  t.match(await json(keys.state(wide.id)), { policy: { min_isr: 3 }, next_rid: 3 });
  t.same(
    [h1, h2, h3].map((host) => origins(host, wide.id)),
    [[one.id], [one.id], [null]],
  );

  // Of the hosts named one has it.
  const named = await h1.client.createVolume({ name: "named", from: "db@one", hosts: ["h3", "h2"] });
  t.same(origins(h2, named.id), [one.id]);
  t.same(origins(h1, named.id), []);

  // They go on without what they began as.
  await h2.client.deleteSnapshot("db@one");
  t.match((await h2.client.volume("web")).createdFrom, { volumeName: "db", snapshotName: "one" });
  await h2.client.deleteVolume("web");
  t.match(await h2.client.restoreFromTrash("web"), { createdFrom: { snapshotName: "one" } });

  const { lines } = await h3.client.audit({
    since: null,
    volume: null,
    host: "h3",
    who: null,
    refused: null,
    limit: null,
  });
  t.match(
    lines.find(({ event, target }) => event === "begin" && target["name"] === "web"),
    { what: "POST /v1/volumes", target: { from: "db@one" } },
  );
});

void t.test("agent: why a clone can't be made is said at once, and nothing of it stays", async (t) => {
  const [h1, h2, h3] = await three(t, 161);
  await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1", "h2"] });
  const one = await h1.client.createSnapshot("db", { name: "one" });
  const clone = (rest: object = {}): Promise<unknown> =>
    h3.client.createVolume({ name: "web", from: "db@one", ...rest });

  const refusals: readonly (readonly [object, string, RegExp])[] = [
    [{ name: "db" }, "E-VOL-01", /^A volume "db" exists/],
    [{ from: "db@oen" }, "E-SNAP-09", /Did you mean "db@one"/],
    [{ from: "nothing@one" }, "E-ARG-01", /nothing/],
    [{ from: "one" }, "E-ARG-02", /names no snapshot/],
    [{ size: 2n * GIB }, "E-SNAP-17", /shall have 2 GiB, and db@one has 1 GiB: a clone begins with/],
    [{ size: GIB / 2n }, "E-SNAP-17", /shall have 512 MiB/],
    [{ thick: true }, "E-ARG-02", /thick/],
    [{ from: null }, "E-ARG-02", /size/],
    [{ copies: 1, minIsr: 2 }, "E-VOL-06", /min-isr can't be 2/],
    [{ hosts: ["h3"] }, "E-SNAP-12", /\(h1: has it, and is not among the hosts named; h2: has it/],
    [{ copies: 4 }, "E-REPL-01", /^2 more copies of "web" wanted, 1 host with/],
  ];
  for (const [request, code, message] of refusals) await t.rejects(clone(request), { code, message }, code);
  const larger = await clone({ size: 2n * GIB }).catch((error: unknown) => error);
  t.match(larger, {
    do: [{ command: "weft volume create web --from db@one" }, { command: "weft volume resize web 2GiB" }],
  });

  // Being made: the snapshot stays until it is, or is given up.
  const held = Promise.withResolvers<void>();
  h2.weftd.holdsCopies = held.promise;
  const made = clone();
  await eventually(
    "it is being made",
    () => h1.client.volumes(),
    (all) => all.some(({ name, health }) => name === "web" && health === "creating"),
  );
  await t.rejects(h1.client.deleteSnapshot("db@one"), {
    code: "E-SNAP-13",
    exitCode: 2,
    message: /the volume "web" is made of it/,
  });
  held.resolve();
  t.match(await made, { name: "web", inSync: 2 });

  // What weftd says is the answer.
  h2.weftd.refusesCopies = { code: "E-SNAP-12", message: "the image is damaged." };
  const bad = await clone({ name: "bad" }).catch((error: unknown) => error);
  t.match(bad, {
    code: "E-SNAP-12",
    message: '"bad" could not be made, for its copy on h2: the image is damaged.',
    do: [{ command: "weft snapshot list db" }],
  });
  t.same(
    (await h1.client.volumes()).map(({ name }) => name),
    ["db", "web"],
  );
  t.same(await h1.client.trash(), []);
  await eventually(
    "no copy of it",
    async () => [h1, h2].map(({ weftd }) => weftd.replicas.size + weftd.trash.size).join(),
    (sizes) => sizes === "2,2",
  );
  h2.weftd.refusesCopies = null;

  // No pool that has it can share blocks any more, as far as is known.
  for (const [host, path] of [
    [h1, "/pool-of-h1"],
    [h2, "/pool-of-h2"],
  ] as const) {
    host.weftd.noSnapshots.set(path, "the pool lies on ext4");
    host.weftd.letPoolsServe();
  }
  await eventually(
    "that they can't",
    () => h3.client.pools(),
    (pools) => pools.filter(({ noSnapshots }) => noSnapshots !== null).length === 2,
  );
  await t.rejects(clone({ name: "late" }), { code: "E-SNAP-12", message: /h1: the pool lies on ext4; h2: / });

  // One that is on its way out is none.
  for (const { weftd } of [h1, h2, h3]) weftd.holdsSnapshots = true;
  await h1.client.deleteSnapshot(one.id);
  await t.rejects(clone({ name: "late" }), { code: "E-SNAP-09", message: "db@one is being deleted." });
});
