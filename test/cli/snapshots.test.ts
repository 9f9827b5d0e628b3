/** Plot: a volume is kept as it is before it is changed, looked at, read, and given up again. */
import t from "tap";

import { ids, progress, replica, snapshot, volume } from "./answers.ts";
import { answer, FakeAgent, refusal } from "./fake-agent.ts";

const ID = ids.session;

void t.test("weft snapshot create: when, where, and how long the guest waited for it", async (t) => {
  const alone = { copies: 1, missedBy: ["h2"], members: [] };
  await using agent = await FakeAgent.start({
    "POST /v1/volumes/db/snapshots": snapshot({ heldMs: "11" }),
    "POST /v1/volumes/web/snapshots": snapshot({ volumeName: "web", heldMs: "0", ...alone }),
    "POST /v1/volumes/ext/snapshots": refusal("E-SNAP-01", "its copy on h2", 409),
  });
  const create = (...words: string[]): ReturnType<FakeAgent["weft"]> =>
    agent.weft(["snapshot", "create", ...words]);
  const taken = await create("db@before-upgrade");
  t.equal(
    taken.out,
    "Snapshot db@before-upgrade taken at 14:02:07.311 UTC on h1 h2, the guest's writes waited 11 ms.\n",
  );
  t.equal(taken.code, 0);
  t.equal(agent.asked.at(-1), 'POST /v1/volumes/db/snapshots {"name":"before-upgrade"}');
  t.equal((await create("db", "-q")).out, `${ID}\n`);
  t.equal(agent.asked.at(-1), 'POST /v1/volumes/db/snapshots {"name":null}');
  t.match((await create("web@x")).out, /^Snapshot web@.*\.\n {2}In 1 of 2 copies, h2 missed it\.\n$/);
  t.match(await create("ext"), { code: 1, err: /^E-SNAP-01 / });
  const before = agent.asked.length;
  for (const wrong of ["db@", "@x", "db@a@b", "db@Big", `db@${ID}`])
    t.match(await create(wrong), { code: 1, err: /^E-ARG-02 / }, wrong);
  t.equal(agent.asked.length, before, "nothing was asked");
});

void t.test("weft snapshot list, show: which copies have which", async (t) => {
  const one = { rid: 0, host: ids.h1, hostName: "h1", pool: ids.pool, alive: true, left: false };
  const list = [
    snapshot({ protected: true, openOn: ["h1"], ownBytes: "1288490189" }),
    snapshot({
      name: "nightly-21",
      id: ids.db,
      takenAt: "2026-11-21T03:00:00.000Z",
      copies: 1,
      missedBy: ["h2"],
      members: [{ ...one, alive: false, damagedRegions: "3" }],
      copying: [{ hostName: "h2", doneBytes: "1319413953333", totalBytes: "3298534883328" }],
    }),
    snapshot({ name: "old", id: ids.pool, state: "deleting", copies: 0, members: [] }),
    snapshot({ name: "base", id: ids.h1, dataDestroyed: true, copies: 1, members: [one] }),
  ];
  await using agent = await FakeAgent.start({
    "GET /v1/snapshots": list,
    "GET /v1/volumes/db/snapshots": [],
    "GET /v1/snapshots/db%40nightly-21": list[1],
    [`GET /v1/snapshots/${ID}`]: list[0],
    "GET /v1/snapshots/db%40base": list[3],
    "GET /v1/snapshots/db%40nightly": refusal("E-SNAP-09", "Did you mean", 404),
  });
  t.equal(
    (await agent.weft(["snapshot", "list"])).out,
    [
      "SNAPSHOT           TAKEN (UTC)           SIZE      OWN  COPIES                                 STATE                             ID",
      "db@before-upgrade  2026-11-22 14:02:07  3 TiB  1.2 GiB  2/2 h1 h2                              ready, protected, attached on h1  50000000",
      "db@nightly-21      2026-11-21 03:00:00  3 TiB        —  1/2 h1 (not answering) (h2 missed it)  ready, damaged                    d0000000",
      "db@old             2026-11-22 14:02:07  3 TiB        —  0/2                                    being deleted                     b0000000",
      "db@base            2026-11-22 14:02:07  3 TiB        —  1/2 h1                                 data destroyed                    10000000",
      "",
    ].join("\n"),
  );
  t.equal(
    (await agent.weft(["snapshot", "list", "db"])).out,
    'No snapshots of "db" yet.  Next:  weft snapshot create db@NAME\n',
  );
  const shown = await agent.weft(["snapshot", "show", "db@nightly-21"]);
  t.equal(shown.code, 3, "it has fewer copies than the volume");
  t.equal(
    shown.out,
    [
      "Snapshot: db@nightly-21",
      `Id:       ${ids.db}`,
      "Taken:    2026-11-21 03:00:00 UTC, by root@h1",
      "Size:     3 TiB",
      "Own:      —",
      "Copies:   1/2 h1 (not answering) (h2 missed it)",
      "State:    ready, damaged",
      "Damaged:  on h1: 3 parts can't be read there any more",
      "Coming:   to h2, 40 % of 3 TiB",
      "",
    ].join("\n"),
  );
  const whole = await agent.weft(["snapshot", "show", ID]);
  t.match(whole, { code: 0, out: /^Own: {6}1\.2 GiB of a copy's pool$/m });
  t.equal((await agent.weft(["snapshot", "show", "db@base"])).code, 0, "it needs no other copy");
  t.match(await agent.weft(["snapshot", "show", "db@nightly"]), { code: 1, err: /^E-SNAP-09 / });
  t.match(await agent.weft(["snapshot", "show", "db"]), { code: 1, err: /Write VOLUME@NAME/ });
});

void t.test("weft snapshot rename, protect, attach, detach, delete: one word each", async (t) => {
  const path = "/run/weft/nbd/s.sock";
  await using agent = await FakeAgent.start({
    "PATCH /v1/snapshots/db%40a": snapshot({ name: "b" }),
    "POST /v1/snapshots/db%40a/attach": { snapshot: ID, volume: ids.db, path },
    "POST /v1/snapshots/db%40a/detach": {},
    "DELETE /v1/snapshots/db%40a": {},
  });
  const run = async (...words: string[]): Promise<string> => (await agent.weft(["snapshot", ...words])).out;
  const last = (): string | undefined => agent.asked.at(-1);
  t.equal(await run("rename", "db@a", "b"), "Snapshot db@a is db@b now.\n");
  t.equal(last(), 'PATCH /v1/snapshots/db%40a {"name":"b"}');
  t.equal(await run("protect", "db@a"), "Snapshot db@b is protected.\n");
  t.equal(last(), 'PATCH /v1/snapshots/db%40a {"protected":true}');
  t.equal(await run("unprotect", "db@a"), "Snapshot db@b is not protected any more.\n");
  t.equal(last(), 'PATCH /v1/snapshots/db%40a {"protected":false}');
  const uri = `nbd+unix:///?socket=${path}`;
  t.equal(await run("attach", "db@a"), `db@a attached, read-only.\n  ${uri}\n  socket ${path}\n`);
  t.equal(await run("attach", "db@a", "-q"), `${uri}\n`);
  t.equal(await run("detach", "db@a"), "db@a detached.\n");
  t.equal(await run("delete", "db@a"), "Snapshot db@a is deleted; its space comes back by and by.\n");
});

void t.test("weft snapshot revert: the volume's name first, then until it is done", async (t) => {
  const reverting = { snapshot: ID, name: "before-upgrade", since: null, progress: null };
  const brought = { hostName: "h1", doneBytes: "1073741824", totalBytes: "4294967296", waitsFor: null };
  const half = { ...reverting, progress: brought };
  const waiting = { ...reverting, progress: { ...brought, totalBytes: null, waitsFor: "the store" } };
  await using agent = await FakeAgent.start({
    "GET /v1/snapshots/db%40before-upgrade": snapshot(),
    "GET /v1/snapshots/web%40a": snapshot({ id: ids.pool, name: "a", volumeName: "web", volume: ids.h1 }),
    [`POST /v1/snapshots/${ID}/revert`]: volume(),
    [`POST /v1/snapshots/${ids.pool}/revert`]: refusal("E-AGENT-04", "It goes on.", 503),
    [`GET /v1/volumes/${ids.h1}/progress`]: [
      answer(progress({ health: "healthy", reverting })),
      answer(progress({ health: "healthy", reverting: half })),
      answer(progress({ health: "healthy" })),
    ],
    [`GET /v1/volumes/${ids.h1}`]: volume({ name: "web", inSync: 1 }),
    "GET /v1/volumes/begun": volume({ reverting }),
    "GET /v1/volumes/half": volume({ reverting: half, owner: null }),
    "GET /v1/volumes/waiting": volume({ reverting: waiting }),
  });
  const refused = await agent.weft(["snapshot", "revert", "db@before-upgrade"]);
  t.match(refused, {
    code: 1,
    err: /^E-ARG-04 .*since 2026-11-22 14:02:07 UTC is lost.*Nobody could be asked/,
  });
  t.notOk(
    agent.asked.some((line) => line.startsWith("POST")),
    "nothing was asked",
  );
  t.equal(
    (await agent.weft(["snapshot", "revert", "db@before-upgrade", "--yes"])).out,
    'Volume "db" is as it was at 2026-11-22 14:02:07 UTC (db@before-upgrade).\n',
  );
  const long = await agent.weft(["snapshot", "revert", "web@a", "-y"]);
  t.equal(
    long.err,
    "taken back to before-upgrade: waiting: somebody to go on with it\ntaken back to before-upgrade: 25 % of 4 GiB\n",
  );
  t.equal(
    long.out,
    'Volume "web" is as it was at 2026-11-22 14:02:07 UTC (web@a).\n  1 of 2 copies in sync; the others are made level meanwhile.\n',
  );
  const line = async (name: string): Promise<string | null> =>
    /^Revert: +(.*)$/m.exec((await agent.weft(["volume", "show", name])).out)?.[1] ?? null;
  t.equal(await line("begun"), "to db@before-upgrade, begun; whoever opens the volume next goes on with it");
  t.equal(await line("half"), "to db@before-upgrade, 1 GiB of 4 GiB brought back by h1");
  t.equal(await line("waiting"), "to db@before-upgrade, h1 looks up what has changed; waits for the store");
});

void t.test("weft snapshot destroy-data: asked for once more, then for good", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/snapshots/db%40a": snapshot({ name: "a" }),
    [`POST /v1/snapshots/${ID}/destroy-data`]: snapshot({ name: "a", dataDestroyed: true }),
  });
  const destroy = ["snapshot", "destroy-data", "db@a"];
  t.match(await agent.weft(destroy), { code: 1, err: /^E-ARG-04 +Destroy what db@a holds, for good\?/ });
  t.equal(agent.asked.length, 1);
  t.equal(
    (await agent.weft([...destroy, "--yes"])).out,
    "The data of db@a is destroyed; its space comes back by and by.\n",
  );
});

void t.test("weft volume create --from, weft snapshot clone: what it is made of, and where", async (t) => {
  const createdFrom = {
    volume: ids.db,
    volumeName: "db",
    snapshot: ID,
    snapshotName: "before-upgrade",
    takenAt: "2026-11-22T14:02:07.311Z",
  };
  const filled = { inSync: 1, replicas: [replica(0, "h1"), replica(1, "h2", "STALE")] };
  await using agent = await FakeAgent.start({
    "POST /v1/volumes": volume({ name: "web", createdFrom }),
    "GET /v1/volumes/web": volume({ name: "web", createdFrom }),
  });
  const text =
    'Volume "web" made from db@before-upgrade, 3 TiB, 2 copies on h1 h2.\nNext:  weft attach web\n';
  const last = (): string | undefined => agent.asked.at(-1);
  const create = ["volume", "create", "web"];
  t.equal((await agent.weft([...create, "--from", "db@before-upgrade"])).out, text);
  t.equal(
    last(),
    'POST /v1/volumes {"name":"web","from":"db@before-upgrade","copies":null,"minIsr":null,"hosts":null}',
  );
  await agent.weft([...create, "3TiB", "--from", ID]);
  t.match(last(), `{"name":"web","size":"3298534883328","from":"${ID}",`);
  const clone = ["snapshot", "clone", "db@before-upgrade", "web"];
  t.equal((await agent.weft(clone)).out, text);
  t.equal((await agent.weft([...clone, "-q"])).out, `${ids.db}\n`);
  t.match(JSON.parse((await agent.weft([...clone, "--json"])).out), { createdFrom });
  await agent.weft([...clone, "--copies", "3", "--min-isr", "2", "--spread", "rack"]);
  t.equal(
    last(),
    'POST /v1/volumes {"name":"web","from":"db@before-upgrade","copies":3,"minIsr":2,"hosts":null,"spread":"rack"}',
  );
  t.match(
    (await agent.weft(["volume", "show", "web"])).out,
    /^Made from: db@before-upgrade \(2026-11-22 14:02:07 UTC\)$/m,
  );

  await using other = await FakeAgent.start({
    "POST /v1/volumes": volume({ name: "web", createdFrom, ...filled }),
  });
  t.match(
    (await other.weft(clone)).out,
    /1 of 2 copies on h1 \(h2\)\.\nThe copies in brackets are filled from the others meanwhile\.\nNext/,
  );
});

void t.test("weft snapshot create --group: all at one moment, a line each", async (t) => {
  const group = {
    id: ids.cluster,
    volumes: [
      { id: ids.db, name: "db" },
      { id: ids.h1, name: null },
    ],
  };
  await using agent = await FakeAgent.start({
    "POST /v1/snapshots": {
      id: ids.cluster,
      name: "nightly",
      takenAt: "2026-11-22T14:02:07.311Z",
      heldMs: "11",
      snapshots: [
        snapshot({ name: "nightly", group }),
        snapshot({ name: "nightly", volumeName: "log", id: ids.pool, copies: 1, missedBy: ["h2"], group }),
      ],
    },
    "GET /v1/snapshots/db%40nightly": snapshot({ name: "nightly", group }),
  });
  const create = (...words: string[]): ReturnType<FakeAgent["weft"]> =>
    agent.weft(["snapshot", "create", ...words]);
  t.equal(
    (await create("--group", "db,log", "nightly")).out,
    [
      `Snapshots "nightly" of db log taken at 14:02:07.311 UTC, at one moment; guests' writes waited 11 ms.`,
      "  db@nightly  2/2 h1 h2",
      "  log@nightly  1/2 h1 h2 (h2 missed it)",
      "",
    ].join("\n"),
  );
  t.equal(agent.asked.at(-1), 'POST /v1/snapshots {"volumes":["db","log"],"name":"nightly"}');
  t.equal((await create("--group=db, log", "-q")).out, `${ID}\n${ids.pool}\n`);
  t.equal(agent.asked.at(-1), 'POST /v1/snapshots {"volumes":["db","log"],"name":null}');
  t.match((await create("nightly", "--group", "db,log", "--json")).out, /"id": "c0000000-/);
  const before = agent.asked.length;
  for (const words of [
    ["--group", "db,,log"],
    ["--group", ""],
    ["--group", "db", "db@nightly"],
  ])
    t.match(await create(...words), { code: 1, err: /^E-ARG-02 / }, words.join(" "));
  t.match(await create(), { code: 1, err: /^E-ARG-03 / });
  t.equal(agent.asked.length, before, "nothing was asked");
  t.match(
    (await agent.weft(["snapshot", "show", "db@nightly"])).out,
    /^Group: {4}db 10000000, at one moment \(c0000000\)$/m,
  );
});

void t.test("weft snapshot changed: ranges over all of it, however many answers that takes", async (t) => {
  const bits = (...bytes: readonly number[]): string => Buffer.from(bytes).toString("base64");
  const page = (rest: object): object => ({
    snapshot: ID,
    since: ids.db,
    volume: ids.db,
    size: String(16 * 65_536),
    grain: 65_536,
    exact: true,
    offset: "0",
    len: String(8 * 65_536),
    ...rest,
  });
  const url = (since: string, offset: number): string =>
    `GET /v1/snapshots/db%40b/changed?since=${encodeURIComponent(since)}&offset=${offset}`;
  await using agent = await FakeAgent.start({
    [url("db@a", 0)]: page({ bitmap: bits(0b0100_0001) }),
    [url("db@a", 8 * 65_536)]: page({ bitmap: bits(0b1000_0000), offset: String(8 * 65_536) }),
    [url("same", 0)]: page({ bitmap: bits(0, 0), len: String(16 * 65_536) }),
    [url("alone", 0)]: page({ bitmap: bits(0xff, 0xff), len: String(16 * 65_536), exact: false }),
    [url("odd", 0)]: page({ bitmap: bits(), len: "0" }),
    [url("away", 0)]: refusal("E-SNAP-16", "can't be said now", 503),
  });
  const changed = (since: string, ...more: string[]): ReturnType<FakeAgent["weft"]> =>
    agent.weft(["snapshot", "changed", "db@b", "--since", since, ...more]);
  t.equal(
    (await changed("db@a")).out,
    [
      "From db@a to db@b 192 KiB of 1 MiB changed, in 2 ranges of blocks of 64KiB.",
      "OFFSET  LENGTH",
      " 65536   65536",
      "458752  131072",
      "",
    ].join("\n"),
  );
  t.equal((await changed("db@a", "-q")).out, "65536 65536\n458752 131072\n");
  t.strictSame(JSON.parse((await changed("db@a", "--json")).out), {
    snapshot: ID,
    since: ids.db,
    volume: ids.db,
    size: "1048576",
    grain: 65_536,
    exact: true,
    changedBytes: "196608",
    ranges: [
      { offset: "65536", len: "65536" },
      { offset: "458752", len: "131072" },
    ],
  });
  t.equal((await changed("same")).out, "Nothing changed from same to db@b.\n");
  t.equal((await changed("same", "-q")).out, "");
  t.match(
    (await changed("alone")).out,
    /^From alone to db@b at most 1 MiB of 1 MiB changed, in one range.*\.\nNo copy/,
  );
  t.match(await changed("odd"), { code: 4, err: /^E-AGENT-02 / });
  t.match(await changed("away"), { code: 3, err: /^E-SNAP-16 / });
  t.match(await agent.weft(["snapshot", "changed", "db@b"]), { code: 1, err: /^E-ARG-03 / });
  t.match(await agent.weft(["snapshot", "changed", "db", "--since", "a"]), { code: 1, err: /^E-ARG-02 / });
});

void t.test("weft volume show: how many snapshots there are, and which have fewer copies", async (t) => {
  const having = (snapshots: object): object =>
    volume({ snapshots: { count: 2, deleting: 0, fewerCount: 0, fewer: [], unable: null, ...snapshots } });
  const fewer = [{ name: "nightly-21", copies: 1, missedBy: ["h2"] }];
  const unable = { hostName: "h2", path: "/srv/weft", why: "the pool lies on ext4" };
  const damaged = [{ name: "nightly-21", hosts: ["h2"], wholeOn: ["h1"] }];
  await using agent = await FakeAgent.start({
    "GET /v1/volumes/plain": volume(),
    "GET /v1/volumes/two": having({}),
    "GET /v1/volumes/fewer": having({ deleting: 1, fewerCount: 12, fewer }),
    "GET /v1/volumes/ext": having({ count: 0, unable }),
    "GET /v1/volumes/mixed": having({ unable }),
    "GET /v1/volumes/damaged": having({ damagedCount: 3, damaged }),
  });
  const line = async (name: string): Promise<string | null> =>
    /^Snapshots: (.*)$/m.exec((await agent.weft(["volume", "show", name])).out)?.[1] ?? null;
  t.equal(await line("plain"), null);
  t.equal(await line("two"), "2  (weft snapshot list db)");
  t.equal(
    await line("fewer"),
    "2, 1 being deleted, 12 with fewer copies than the volume: nightly-21 (1 of 2, h2 missed it), and 11 more  (weft snapshot list db)",
  );
  t.equal(await line("ext"), "it can't have any, for the copy on h2: the pool lies on ext4");
  t.match(await line("mixed"), /^2, no new ones, for the copy on h2: /);
  t.match(await line("damaged"), /^2, 3 damaged: nightly-21 \(on h2\), and 2 more {2}\(weft/);
});
