/** Plot: a database and its log are kept as they are at one moment, asked of any host, and never one without the other. */
import t from "tap";

import { Secret } from "../../../src/core/model/secret.ts";
import { AgentClient } from "../../../src/core/wire/agent-client.ts";
import { eventually, startCluster, type TestHost, three } from "./test-host.ts";

const GIB = 1n << 30n;

const calls = ({ weftd }: TestHost, method: string): number =>
  weftd.daemon.calls.filter((call) => call.method === method).length;

async function boundTo(host: TestHost, role: "operator" | "viewer", volumes: string[]): Promise<AgentClient> {
  const { token, authority } = await host.client.createApiToken({ name: role, role, volumes });
  return new AgentClient({
    remote: { address: host.address, port: 7400, fingerprint: authority, token: new Secret(token) },
  });
}

void t.test(
  "agent: a group is taken where its guests are, whoever is asked, and by its id once",
  async (t) => {
    const [h1, h2, h3] = await three(t, 151);
    const made = new Map<string, string>();
    for (const name of ["db", "log", "web"])
      made.set(name, (await h1.client.createVolume({ name, size: GIB, hosts: ["h1", "h2"] })).id);
    const db = made.get("db") ?? "";
    const log = made.get("log") ?? "";

    // Nobody uses them: the asked host does, for this alone.
    const first = await h3.client.createGroup({ volumes: ["db", "log"], name: "first" });
    t.match(first, { name: "first", heldMs: 0n });
    t.match(first.snapshots, [
      { name: "first", volumeName: "db", copies: 2, createdBy: "root@h3", group: { id: first.id } },
      { name: "first", volumeName: "log", copies: 2 },
    ]);
    t.strictSame(first.snapshots[1]?.group?.volumes, [
      { id: db, name: "db" },
      { id: log, name: "log" },
    ]);
    t.equal(calls(h3, "snapshot.create_group"), 1);
    await eventually(
      "the caretakers gone",
      () => h1.client.volumes(),
      (volumes) => volumes.every(({ owner }) => owner === null),
    );

    // A guest has one of them on h2: all is done there.
    await h2.client.attach("db");
    const second = await h1.client.createGroup({ volumes: [db, "log"] });
    t.match(second.name, /^snap-20\d{6}-\d{6}$/);
    t.equal(second.heldMs, 11n);
    t.equal(calls(h2, "snapshot.create_group"), 1);
    const again = await h3.client.createGroup({ volumes: ["db", "log"], name: second.name, id: second.id });
    t.strictSame(
      again.snapshots.map(({ id }) => id),
      second.snapshots.map(({ id }) => id),
      "the same again",
    );
    await eventually(
      "the guest's session alone",
      () => h1.client.volumes(),
      (volumes) => volumes.filter(({ owner }) => owner !== null).length === 1,
    );

    const one = { volumes: ["db", "log"], name: "x" };
    const refusals: readonly (readonly [string, object, string])[] = [
      ["twice", { ...one, volumes: ["db", db] }, "E-ARG-02"],
      ["none", { ...one, volumes: [] }, "E-ARG-02"],
      ["unknown", { ...one, volumes: ["db", "lgo"] }, "E-ARG-01"],
      ["a name that one has", { ...one, name: "first" }, "E-SNAP-02"],
      ["no name", { ...one, name: "No" }, "E-ARG-02"],
    ];
    for (const [what, body, code] of refusals)
      await t.rejects(h1.client.createGroup(body as typeof one), { code }, what);
    for (const [code, facts, message] of [
      [
        "E-SNAP-03",
        { volume: log, for: "the store" },
        /^"log" gets no snapshot now: it waits for the store.*None of the/,
      ],
      ["E-SNAP-02", { volume: db }, /^"db" has a snapshot "x" already\. None of the group was taken\.$/],
    ] as const) {
      h2.weftd.refusesSnapshots = { code, facts };
      await t.rejects(h3.client.createGroup(one), { code, message }, code);
    }

    // Guests on two hosts are not held at one moment.
    await h1.client.attach("web");
    await t.rejects(h3.client.createGroup({ volumes: ["db", "log", "web"], name: "x" }), {
      code: "E-SNAP-14",
      message: `Guests of several hosts can't be held at one moment: "db" on h2; "web" on h1. No snapshot was taken.`,
      exitCode: 1,
    });
    t.notOk((await h1.client.snapshots()).some(({ name }) => name === "x"));

    // Each is one as every other.
    await h1.client.deleteSnapshot("db@first");
    t.equal((await h1.client.changeSnapshot("log@first", { name: "alone" })).group?.id, first.id);
    t.equal((await h1.client.createSnapshot("web", { name: "single" })).group, null);

    const query = { since: null, host: null, who: null, refused: null, limit: null };
    const { lines } = await h3.client.audit({ ...query, volume: "log" });
    t.match(
      lines.find(
        ({ event, what, outcome }) => event === "end" && what === "POST /v1/snapshots" && outcome === "ok",
      ),
      { target: { volumes: [db, log], name: "first", made: first.id } },
    );
    t.match(
      lines.find(({ event, what }) => event === "begin" && what === "POST /v1/internal/group-work"),
      { target: { group: second.id, volumes: [db, log] } },
    );
  },
);

void t.test("agent: a token that is bound to volumes takes groups of those alone", async (t) => {
  const [h1] = await startCluster(t, 1, 161);
  if (h1 === undefined) throw new Error("a host");
  for (const name of ["db", "log", "web"]) await h1.client.createVolume({ name, size: GIB, hosts: ["h1"] });
  const bound = await boundTo(h1, "operator", ["db", "log"]);
  const taken = await bound.createGroup({ volumes: ["db", "log"], name: "mine" });
  t.equal(taken.snapshots.length, 2);
  const refused = { code: "E-AUTH-02", message: /bound to other volumes/ };
  for (const volumes of [["db", "web"], ["nothing"], ["db", "nothing"]])
    await t.rejects(bound.createGroup({ volumes, name: "x" }), refused, volumes.join(" "));
  t.equal((await h1.client.snapshots()).length, 2);
  const viewer = await boundTo(h1, "viewer", ["db"]);
  await t.rejects(viewer.createGroup({ volumes: ["db"], name: "x" }), { code: "E-AUTH-02" });
  await t.rejects(viewer.changedBlocks("db@mine", { since: "db@mine" }), { code: "E-AUTH-02" });
});
