/** Plot: an operator's day, command by command: what is asked of the agent, what is printed, how the command ends. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { host, ids, pool, progress, replica, scrubbed, stats, status, token, volume } from "./answers.ts";
import { answer, FakeAgent, refusal } from "./fake-agent.ts";

void t.test("weft volume list: a table for people, ids with -q, JSON with --json", async (t) => {
  const volumes = [
    volume(),
    volume({
      name: "web",
      size: "4096",
      used: null,
      inSync: 1,
      health: "degraded",
      owner: { host: ids.h1, hostName: "h1", session: ids.session, caretaker: false },
      replicas: [replica(0, "h1"), replica(1, "h2", "STALE")],
    }),
  ];
  await using agent = await FakeAgent.start({ "GET /v1/volumes": volumes });
  const people = await agent.weft(["volume", "list"]);
  t.equal(
    people.out,
    [
      "VOLUME   SIZE     USED  COPIES  WHERE    OPEN ON  HEALTH    ID",
      "db      3 TiB  400 GiB  2/2     h1 h2    —        healthy   d0000000",
      "web     4 KiB        —  1/2     h1 (h2)  h1       degraded  d0000000",
      "",
    ].join("\n"),
  );
  t.equal(people.code, 0);
  t.equal((await agent.weft(["volume", "list", "-q"])).out, `${ids.db}\n${ids.db}\n`);
  t.strictSame(
    JSON.parse((await agent.weft(["--json", "volume", "list"])).out),
    volumes,
    "sizes stay decimal strings",
  );
});

void t.test("weft volume list: an empty cluster says what to do next", async (t) => {
  await using agent = await FakeAgent.start({ "GET /v1/volumes": [] });
  t.equal(
    (await agent.weft(["volume", "list"])).out,
    "No volumes yet.  Next:  weft volume create NAME SIZE\n",
  );
  t.equal((await agent.weft(["volume", "list", "-q"])).out, "");
  t.equal((await agent.weft(["volume", "list", "--json"])).out, "[]\n");
});

void t.test(
  "weft volume create: size and policy reach the agent as numbers of bytes and copies",
  async (t) => {
    await using agent = await FakeAgent.start({ "POST /v1/volumes": volume() });
    const made = await agent.weft([
      "volume",
      "create",
      "db",
      "3TiB",
      "--host",
      "h1",
      "--host",
      "h2",
      "--min-isr",
      "1",
      "--ack",
      "durable",
    ]);
    t.equal(made.err, "");
    t.equal(made.out, 'Volume "db" made, 3 TiB, 2 copies on h1 h2.\nNext:  weft attach db\n');
    t.strictSame(agent.asked, [
      'POST /v1/volumes {"name":"db","size":"3298534883328","copies":2,"minIsr":1,"hosts":["h1","h2"]}',
    ]);
    t.equal((await agent.weft(["-q", "volume", "create", "db", "3TiB"])).out, `${ids.db}\n`);
  },
);

void t.test("weft volume show: the volume, its copies, and exit code 3 when it is degraded", async (t) => {
  const degraded = volume({
    inSync: 1,
    health: "degraded",
    reason: "copy 1 on h2 is behind",
    replicas: [replica(0, "h1"), replica(1, "h2", "STALE", { reason: "silent for 1.5 s", alive: false })],
  });
  await using agent = await FakeAgent.start({ "GET /v1/volumes/db": degraded });
  const shown = await agent.weft(["volume", "show", "db"]);
  t.equal(shown.code, 3);
  t.equal(
    shown.out,
    [
      "Volume:  db",
      `Id:      ${ids.db}`,
      "Size:    3 TiB",
      "Used:    400 GiB",
      "Health:  degraded: copy 1 on h2 is behind",
      "Copies:  1 of 2 in sync, at least 1 for writes",
      "Open on: —",
      "Epoch:   7",
      "",
      "COPY  HOST                STATE       USED  REASON            POOL",
      "   0  h1                  in-sync  400 GiB  —                 b0000000",
      "   1  h2 (not answering)  stale    400 GiB  silent for 1.5 s  b0000000",
      "",
    ].join("\n"),
  );
});

void t.test("weft volume show: a caretaker is no guest", async (t) => {
  const owner = { host: ids.h1, hostName: "h1", session: ids.session, caretaker: true };
  await using agent = await FakeAgent.start({ "GET /v1/volumes/db": volume({ owner }) });
  const { out } = await agent.weft(["volume", "show", "db"]);
  t.match(out, "\nOpen on: —\nWork:    h1 makes the copies level\n");
});

void t.test(
  "weft volume, trash: a disk of XAPI's is told by its label, whatever that contains",
  async (t) => {
    const disk = { label: "Debian:\n\u001b[2Jroot", sr: ids.session, srLabel: "replicated" };
    const item = { volume: ids.db, name: "db", size: "4096", deletedAt: "2026-11-21T14:00:00.000Z" };
    const trashed = { ...item, keptUntil: item.deletedAt, diskLabel: "root" };
    await using agent = await FakeAgent.start({
      "GET /v1/volumes/db": volume({ disk }),
      "GET /v1/volumes": [volume(), volume({ name: "vdi-1", disk })],
      "GET /v1/trash": [trashed],
    });
    const { out } = await agent.weft(["volume", "show", "db"]);
    t.match(out, /^Disk: {4}Debian: \[2Jroot, in the repository replicated$/m);
    const lines = (await agent.weft(["volume", "list"])).out.split("\n");
    t.match(lines[0], /ID +DISK$/);
    t.match(lines[1], /—$/);
    t.match(lines[2], /Debian: \[2Jroot$/);
    t.match((await agent.weft(["trash", "list"])).out, /DISK\n.*root\n/);
  },
);

void t.test("weft sr: what XAPI's repositories take, and one that was lost or left", async (t) => {
  const sr = {
    uuid: ids.db,
    label: "replicated\u0007",
    description: "",
    copies: 2,
    createdAt: "2026-11-22T21:00:00.000Z",
    physicalSize: "1099511627776",
    physicalUtilisation: "1073741824",
    virtualAllocation: "10737418240",
  };
  await using agent = await FakeAgent.start({
    "GET /v1/srs": [sr, { ...sr, label: "any", copies: null }],
    "POST /v1/srs": sr,
    [`GET /v1/srs/${ids.db}`]: sr,
    [`DELETE /v1/srs/${ids.db}`]: {},
  });
  const { out } = await agent.weft(["sr", "list"]);
  t.match(out, /^REPOSITORY +COPIES +SIZE +USED +DISKS +UUID\nreplicated +2 +1 TiB +1 GiB +10 GiB +d/);
  t.match(out, /any +—/);
  const made = await agent.weft(["sr", "create", ids.db.toUpperCase(), "--copies", "2"]);
  t.equal(made.out, `Repository ${ids.db} is known.  Next:  xe sr-scan uuid=${ids.db}\n`);
  t.ok(agent.asked.includes(`POST /v1/srs {"uuid":"${ids.db}","label":"","copies":2}`));
  t.match((await agent.weft(["sr", "delete", ids.db])).out, /^Repository "replicated " .* is deleted/);
  t.equal((await agent.weft(["sr", "delete", "replicated"])).code, 1);
});

void t.test("weft attach: prints the NBD address that libnbd and qemu understand", async (t) => {
  const path = "/run/weft/nbd/db.sock";
  await using agent = await FakeAgent.start({
    "POST /v1/volumes/db/attach": { volume: ids.db, session: ids.session, epoch: "8", path },
    "POST /v1/volumes/db/steal": { volume: ids.db, session: ids.session, epoch: "9", path },
    "POST /v1/volumes/db/detach": { volume: ids.db, lostWrites: 0 },
  });
  const attached = await agent.weft(["attach", "db"]);
  t.equal(
    attached.out,
    '"db" attached, epoch 8.\n  nbd+unix:///?socket=/run/weft/nbd/db.sock\n  socket /run/weft/nbd/db.sock\n',
  );
  t.equal((await agent.weft(["attach", "db", "-q"])).out, "nbd+unix:///?socket=/run/weft/nbd/db.sock\n");
  t.match(JSON.parse((await agent.weft(["attach", "db", "--json"])).out), { epoch: "8", path });
  t.equal((await agent.weft(["steal", "db", "--yes"])).code, 0);
  t.equal((await agent.weft(["detach", "db"])).out, '"db" detached.\n');
});

void t.test("weft detach --abandon: names the writes that were dropped and ends with 3", async (t) => {
  await using agent = await FakeAgent.start({
    "POST /v1/volumes/db/detach": { volume: ids.db, lostWrites: 3 },
  });
  const detached = await agent.weft(["detach", "db", "--abandon"]);
  t.equal(detached.out, '"db" detached. 3 unfinished writes were dropped.\n');
  t.equal(detached.code, 3);
  t.strictSame(agent.asked, ['POST /v1/volumes/db/detach {"abandon":true}']);
});

void t.test("weft init, weft join: what to do next depends on how many hosts there are", async (t) => {
  const cluster = {
    id: ids.cluster,
    name: "lab",
    createdAt: "2026-11-21T14:00:00.000Z",
    host: ids.h1,
    endpoints: [],
    authority: `3f9c21aa77d04be1${"0".repeat(48)}`,
    certificateUntil: "2026-12-21T14:00:00.000Z",
  };
  await using agent = await FakeAgent.start({
    "POST /v1/init": cluster,
    "POST /v1/join": cluster,
    "POST /v1/tokens": token(),
    "GET /v1/hosts": [host("h1"), host("h2")],
  });
  t.equal(
    (await agent.weft(["init", "--name", "h1", "--address", "10.0.9.11"])).out,
    [
      'Cluster "lab" created, 1 host. Volumes have 1 copy until a second host has a pool.',
      "Authority 3f9c 21aa 77d0 4be1",
      "Next:  weft pool add DIRECTORY",
      "Join another host: there type",
      "    weft join 10.0.9.11",
      "and paste this token where it asks (valid 60 min, for one host; for the next one: weft token create):",
      "    04F6-0000",
      "",
    ].join("\n"),
  );
  const words = ["join", "10.0.9.11", "--address", "10.0.9.12", "--token", "04F6-0000"];
  const joined = await agent.weft(words);
  t.equal(joined.code, 0, joined.err);
  t.equal(
    joined.out.split("\n").slice(0, 2).join("\n"),
    [
      "10.0.9.11 shows authority 3f9c 21aa 77d0 4be1, as the token says.",
      'Joined "lab" as host 2 of 2. Certificate valid until 21 Dec, renewed by itself.',
    ].join("\n"),
  );
  t.match(joined.out, /\nThe store has 1 vote:/);
  t.equal(
    agent.asked[2],
    'POST /v1/join {"from":"10.0.9.11","token":"04F6-0000","name":null,"address":"10.0.9.12"}',
  );
  // A program asks for a token when it needs one: none is left lying about.
  t.equal((await agent.weft(["init", "--address", "10.0.9.11", "-q"])).out, `${ids.cluster}\n`);
  t.notMatch((await agent.weft(["init", "--address", "10.0.9.11", "--json"])).out, /04F6/);
  t.equal(agent.asked.filter((asked) => asked.startsWith("POST /v1/tokens")).length, 1);
});

void t.test(
  "weft join: the token comes from a file or standard input as well, or is asked for",
  async (t) => {
    await using agent = await FakeAgent.start({
      "POST /v1/join": refusal("E-TOKEN-02", "Not this one.", 403),
    });
    const directory = await mkdtemp(join(tmpdir(), "weft-token-"));
    t.teardown(() => rm(directory, { recursive: true }));
    const file = join(directory, "token");
    await writeFile(file, "04F6-FILE\n", { mode: 0o600 });
    const words = ["join", "10.0.9.11", "--address", "10.0.9.12"];
    const refused = await agent.weft([...words, "--token-file", file]);
    t.equal(refused.code, 1);
    t.match(agent.asked.at(-1), /"token":"04F6-FILE"/, "without its line end");
    t.notMatch(refused.out + refused.err, /04F6/, "no message shows it");
    await agent.weft([...words, "--token", "-"], undefined, " 04f6-stdin \n");
    t.match(agent.asked.at(-1), /"token":"04f6-stdin"/);
    const asked = agent.asked.length;
    for (const [more, code] of [
      [[], "E-ARG-03"],
      [["--token", ""], "E-ARG-03"],
      [["--token", "04F6", "--token-file", file], "E-ARG-03"],
      [["--token-file", join(directory, "none")], "E-ARG-02"],
      [["--token", "X".repeat(5000)], "E-TOKEN-01"],
    ] as const)
      t.match((await agent.weft([...words, ...more])).err, new RegExp(`^${code} `), more.join(" "));
    t.equal(agent.asked.length, asked, "nothing was asked of anybody");
  },
);

void t.test("weft token: made, listed and taken back", async (t) => {
  const at = "2020-01-02T03:04:00.000Z";
  const list = [
    { id: "a81c04fe", name: "h2", by: "root@h1", createdAt: at, expiresAt: at, used: { host: "h2", at } },
    {
      id: "b81c04fe",
      name: null,
      by: "root@h1",
      createdAt: at,
      expiresAt: "2999-01-02T12:00:00.000Z",
      used: null,
    },
  ];
  await using agent = await FakeAgent.start({
    "POST /v1/tokens": token({ name: "h2" }),
    "GET /v1/tokens": list,
    "DELETE /v1/tokens/a81c04fe": {},
  });
  const made = await agent.weft(["token", "create", "--for", "24h", "--name", "h2"]);
  t.match(made.out, /^04F6-0000\nValid until .+, for the host "h2"\. Shown once: only its hash is kept\.\n$/);
  t.equal(agent.asked[0], 'POST /v1/tokens {"forMs":86400000,"name":"h2"}');
  t.equal((await agent.weft(["token", "create", "-q"])).out, "04F6-0000\n");
  const shown = (await agent.weft(["token", "list"])).out.split("\n");
  t.match(shown[0], /^ID +FOR +MADE BY +EXPIRES +USED$/);
  t.match(shown[1], /^a81c04fe +h2 +root@h1 +past +by h2, 2 Jan /);
  t.match(shown[2], /^b81c04fe +any host +root@h1 +2 Jan .* –$/);
  t.equal(
    (await agent.weft(["token", "revoke", "a81c04fe"])).out,
    "Token a81c04fe can't be used any more.\n",
  );
  for (const wrong of ["soon", "0m", "-5m", "5", "8y"])
    t.match((await agent.weft(["token", "create", "--for", wrong])).err, /^E-ARG-02 /, wrong);
});

void t.test("weft pool add, list, remove: a pool is found by path, HOST:PATH or id", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/pools": [
      pool("h2", { id: ids.db }),
      pool("h1", { bitRot: { found: "3", left: "1" }, noSnapshots: "the pool lies on tmpfs" }),
      pool("h2", {
        id: ids.session,
        path: "/mnt",
        state: "quarantined",
        reason: "swapped",
        free: null,
        bitRot: null,
      }),
    ],
    "GET /v1/hosts": [host("h1"), host("h2")],
    "POST /v1/pools": pool("h1"),
    [`DELETE /v1/pools/${ids.pool}`]: {},
    [`DELETE /v1/pools/${ids.db}`]: {},
  });
  t.equal((await agent.weft(["pool", "add", "/srv/weft"])).out, `Pool ${ids.pool} added: /srv/weft on h1.\n`);
  t.equal(
    (await agent.weft(["pool", "list"])).out,
    [
      "POOL      HOST  PATH          FREE     SIZE     ROTTEN  STATE                 SNAPSHOTS",
      "d0000000  h2    /srv/weft  100 GiB  200 GiB          0  serving               yes",
      "b0000000  h1    /srv/weft  100 GiB  200 GiB  3, 1 left  serving               no: the pool lies on tmpfs",
      "50000000  h2    /mnt             —  200 GiB          —  quarantined: swapped  —",
      "",
    ].join("\n"),
  );
  t.equal(
    (await agent.weft(["pool", "remove", "/srv/weft"])).out,
    "Pool /srv/weft on h1 removed. Its directory is left there.\n",
    "of two hosts' pools with this path the own one is meant",
  );
  t.match((await agent.weft(["pool", "remove", "h2:/srv/weft"])).out, /on h2 removed/);
  const wrong = await agent.weft(["pool", "remove", "/srv/wetf"]);
  t.equal(
    wrong.err,
    'E-ARG-01   No pool "/srv/wetf". Did you mean "/srv/weft"?\n           See all pools:  weft pool list\n',
  );
  t.equal(wrong.code, 1);
});

const disk = {
  hostName: "h1",
  device: "/dev/sdb",
  kind: "disk",
  size: String(894n << 30n),
  model: "SAMSUNG MZQL2",
  serial: "S64GNE0R1",
  blank: false,
  state: "data",
  what: 'LVM VG "old_data" (412 GiB used)',
  name: "old_data",
  nameKind: "VG",
  pool: null,
};

void t.test("weft disk list: what is on each, and whether it is blank", async (t) => {
  const blank = {
    ...disk,
    device: "/dev/sdc",
    blank: true,
    state: "blank",
    what: null,
    name: "sdc",
    nameKind: "device",
  };
  const used = {
    ...disk,
    device: "/dev/sda",
    state: "in-use",
    what: "mounted at /",
    serial: null,
    model: null,
  };
  await using agent = await FakeAgent.start({ "GET /v1/disks": [used, disk, blank] });
  t.equal(
    (await agent.weft(["disk", "list"])).out,
    [
      "DEVICE       SIZE  MODEL          SERIAL     STATE",
      "/dev/sda  894 GiB  disk           —          in use: mounted at /",
      '/dev/sdb  894 GiB  SAMSUNG MZQL2  S64GNE0R1  not blank: LVM VG "old_data" (412 GiB used)',
      "/dev/sdc  894 GiB  SAMSUNG MZQL2  S64GNE0R1  blank",
      "",
    ].join("\n"),
  );
});

void t.test(
  "weft disk wipe: takes the name of what is there, typed or given, and --yes is none",
  async (t) => {
    const shown = "GET /v1/disks?device=%2Fdev%2Fsdb";
    await using agent = await FakeAgent.start({
      [shown]: [disk],
      "POST /v1/disks/wipe": { disk: { ...disk, blank: true, state: "blank", what: null }, held: disk.what },
    });
    for (const yes of [[], ["--yes"]]) {
      const asked = await agent.weft(["disk", "wipe", "h1:/dev/sdb", ...yes]);
      t.match(asked, {
        code: 1,
        err: /^E-ARG-04 {3}\/dev\/sdb on h1 holds LVM VG "old_data" .*VG's name is wanted/,
      });
      t.strictSame(agent.asked.splice(0), [shown], "nothing was sent");
    }
    const done = await agent.weft(["disk", "wipe", "h1:/dev/sdb", "--name", "old_data"]);
    t.equal(done.out, '/dev/sdb on h1 is erased; it held LVM VG "old_data" (412 GiB used).\n');
    t.equal(agent.asked[1], 'POST /v1/disks/wipe {"device":"/dev/sdb","host":"h1","name":"old_data"}');
    await agent.weft(["disk", "wipe", "/dev/sdb", "--name", ""]);
    t.equal(
      agent.asked[3],
      'POST /v1/disks/wipe {"device":"/dev/sdb","host":null,"name":""}',
      "the agent refuses it",
    );
    for (const wrong of ["sdb", "h1:", "h1:sdb", ""])
      t.match(await agent.weft(["disk", "wipe", wrong]), { code: 1, err: /^E-ARG-02/ }, wrong);
  },
);

void t.test("weft pool add: a whole disk, ZFS, and a kind that nobody knows", async (t) => {
  const made = pool("h1", { path: "/var/lib/weft/pools/x", device: "/dev/sdb", kind: "xfs" });
  await using agent = await FakeAgent.start({
    "POST /v1/pools": [answer(made), refusal("E-POOL-08", "Pools on ZFS are not offered.", 409)],
    "GET /v1/pools": [made],
    "GET /v1/hosts": [host("h1")],
    [`DELETE /v1/pools/${ids.pool}`]: {},
  });
  t.equal(
    (await agent.weft(["pool", "add", "/dev/sdb"])).out,
    `Pool ${ids.pool} added: /dev/sdb on h1, with XFS, mounted at /var/lib/weft/pools/x.\n`,
  );
  t.match(await agent.weft(["pool", "add", "tank", "--kind", "zfs"]), { code: 1, err: /^E-POOL-08/ });
  t.match(agent.asked[1] ?? "", /^POST \/v1\/pools .*"kind":"zfs"/);
  t.match(await agent.weft(["pool", "add", "/dev/sdb", "--kind", "raid"]), { code: 1, err: /^E-ARG-02/ });
  t.match((await agent.weft(["pool", "list"])).out, /\/dev\/sdb/);
  t.equal(
    (await agent.weft(["pool", "remove", "h1:/dev/sdb"])).out,
    "Pool /dev/sdb on h1 removed. What it held is still there:  weft disk wipe h1:/dev/sdb\n",
  );
});

void t.test("weft replica add, remove: a copy is named by its number or its host", async (t) => {
  const added = volume({ copies: 3, replicas: [replica(0, "h1"), replica(1, "h2", "WANTED")] });
  await using agent = await FakeAgent.start({
    "POST /v1/volumes/db/replicas": added,
    "GET /v1/volumes/db": volume(),
    "DELETE /v1/volumes/db/replicas/1": volume(),
  });
  t.equal(
    (await agent.weft(["replica", "add", "db", "--host", "h2"])).out,
    'A copy of "db" is being made: h1 (h2).  Watch:  weft volume show db --watch\n',
  );
  t.equal(agent.asked[0], 'POST /v1/volumes/db/replicas {"host":"h2"}');
  const removed = await agent.weft(["replica", "remove", "db", "h2"]);
  t.equal(removed.out, 'Copy 1 of "db" on h2 goes; its data rests in the trash for 24 h.\n');
  t.match(
    (await agent.weft(["replica", "remove", "db", "h9"])).err,
    /^E-ARG-01   "db" has no copy "h9"\. Its copies: 0 \(h1\), 1 \(h2\)\.\n$/,
  );
});

/** As the agent says it: a copy is moved from h1 to h2. */
const planOfMove = {
  volume: ids.db,
  name: "db",
  steps: [
    { kind: "policy", copies: 2, minIsr: 1, spread: "rack" },
    {
      kind: "add",
      rid: 2,
      host: ids.h2,
      hostName: "h2",
      pool: ids.pool,
      poolPath: "/srv/weft",
      bytes: "3298534883328",
    },
    { kind: "keep", rid: 1, host: ids.h1, hostName: "h1", pool: ids.pool, poolPath: "" },
    { kind: "wait", rids: [1, 2] },
    { kind: "remove", rid: 0, host: ids.h1, hostName: "h1", pool: ids.pool, poolPath: "/srv/weft" },
  ],
  bytes: "3298534883328",
  seconds: 12_583,
  inSync: { now: 2, least: 1, after: 2 },
  risks: ['Until a new copy is in sync, h1 has the only one: if it fails, "db" waits.'],
};
const planTextOfMove = `Plan for "db"
  1. 2 copies wanted, apart by rack, at least 1 in sync for writes
  2. add a copy on h2 (pool /srv/weft): at most 3 TiB
  3. keep the copy on h1 (pool b0000000), which was to go
  4. wait until copy 1 and copy 2 on h2 are in sync
  5. remove copy 0 on h1 (pool /srv/weft); its data rests in the trash for 24 h
At most 3 TiB are copied, about 3 h 29 min at 250 MiB/s; what was never written is not.
In sync: 2 now, never fewer than 1, 2 in the end.
Risk: Until a new copy is in sync, h1 has the only one: if it fails, "db" waits.
`;

void t.test("weft volume copies, spread, replica move: what is wanted reaches the agent", async (t) => {
  const moving = volume({
    replicas: [replica(0, "h1", "INSYNC", { leaving: true }), replica(1, "h2", "WANTED")],
  });
  await using agent = await FakeAgent.start({
    "PATCH /v1/volumes/db": moving,
    "GET /v1/volumes/db": [answer(moving), answer(moving), answer(volume())],
    "GET /v1/volumes/db/progress": progress({ health: "healthy" }),
  });
  const first = await agent.weft(["volume", "copies", "db", "3", "--min-isr", "2"]);
  t.equal(first.out, 'The copies of "db" change: h1 (h2).  Watch:  weft volume show db --watch\n');
  t.equal(
    (await agent.weft(["volume", "spread", "db", "rack", "--wait"])).out,
    '"db" has 2 copies on h1 h2.\n',
  );
  for (const to of ["h3", "h3:/srv/b", `h3:${ids.pool}`])
    t.equal((await agent.weft(["replica", "move", "db", "--from", "h1", "--to", to])).code, 0);
  t.strictSame(
    agent.asked
      .filter((line) => line.startsWith("PATCH"))
      .map((line) => line.slice("PATCH /v1/volumes/db ".length)),
    [
      '{"copies":3,"minIsr":2}',
      '{"spread":"rack"}',
      '{"move":{"from":"h1","to":"h3","pool":null}}',
      '{"move":{"from":"h1","to":"h3","pool":"/srv/b"}}',
      `{"move":{"from":"h1","to":"h3","pool":"${ids.pool}"}}`,
    ],
  );
  const asked = agent.asked.length;
  for (const bad of [
    ["volume", "copies", "db", "x"],
    ["volume", "copies", "db", "0"],
    ["volume", "spread", "db", "row"],
    ["replica", "move", "db", "--from", "h1"],
    ["replica", "move", "db", "--from", "h1", "--to", ":/srv"],
  ]) {
    const { code, err } = await agent.weft(bad);
    t.equal(code, 1, bad.join(" "));
    t.match(err, /^E-(ARG|VOL)-0\d/, bad.join(" "));
  }
  t.equal(agent.asked.length, asked, "refused before anything is sent");
});

void t.test(
  "weft volume copies --plan: bytes and risk first, and nothing is done but by a person's word",
  async (t) => {
    await using agent = await FakeAgent.start({
      "POST /v1/volumes/db/plan": planOfMove,
      "PATCH /v1/volumes/db": volume(),
      "GET /v1/volumes/db": volume(),
    });
    const changes = (): number => agent.asked.filter((line) => line.startsWith("PATCH")).length;
    const shown = await agent.weft(["volume", "copies", "db", "2", "--plan"]);
    t.equal(shown.out, planTextOfMove);
    t.equal(shown.code, 0);
    t.equal(agent.asked.at(-1), 'POST /v1/volumes/db/plan {"copies":2}');
    t.strictSame(
      JSON.parse((await agent.weft(["--json", "volume", "copies", "db", "2", "--plan"])).out),
      planOfMove,
    );
    await agent.weft(["-y", "volume", "copies", "db", "2", "--plan"]);
    t.equal(changes(), 0, "nobody was asked");
  },
);

void t.test("weft volume copies --plan: what is so already has no plan", async (t) => {
  const steps = { steps: [], bytes: "0", seconds: 0, inSync: { now: 2, least: 2, after: 2 }, risks: [] };
  await using agent = await FakeAgent.start({ "POST /v1/volumes/db/plan": { ...planOfMove, ...steps } });
  t.equal(
    (await agent.weft(["volume", "copies", "db", "2", "--plan"])).out,
    '"db" is so already: nothing is to be done.\n',
  );
});

void t.test("weft volume create --spread: what copies must not share, only where it is said", async (t) => {
  await using agent = await FakeAgent.start({ "POST /v1/volumes": volume({ spread: "rack" }) });
  await agent.weft(["volume", "create", "db", "3TiB", "--spread", "rack"]);
  t.match(agent.asked[0], /"hosts":null,"spread":"rack"\}$/);
  await agent.weft(["volume", "create", "db", "3TiB"]);
  t.match(agent.asked[1], /"hosts":null\}$/, "an older agent takes it");
  t.match((await agent.weft(["volume", "create", "db", "3TiB", "--spread", "row"])).err, /^E-ARG-02 /);
});

void t.test("weft host label: where a host stands", async (t) => {
  const labels = { rack: "a", site: "x" };
  await using agent = await FakeAgent.start({
    "PATCH /v1/hosts/h1": host("h1", { labels }),
    "GET /v1/hosts": [host("h1", { labels }), host("h2")],
  });
  t.equal(
    (await agent.weft(["host", "label", "h1", "rack=a", "site=x"])).out,
    "h1 stands in: rack a, site x.\n",
  );
  t.equal(agent.asked[0], 'PATCH /v1/hosts/h1 {"labels":{"rack":"a","site":"x"}}');
  await agent.weft(["host", "label", "h1", "rack="]);
  t.equal(agent.asked[1], 'PATCH /v1/hosts/h1 {"labels":{"rack":null}}');
  t.match((await agent.weft(["host", "label", "h1", "rak=a"])).err, /^E-ARG-02 {3}"rak=a" is no label/);
  t.match(
    (await agent.weft(["host", "list"])).out,
    /^HOST .*STORE +STANDS IN +ID\nh1 \(here\).*rack a, site x.*\nh2 .* — /,
  );
});

void t.test("weft status: the headline, what is wrong, who is there; 0 only when all is well", async (t) => {
  const degraded = status({
    health: "degraded",
    hosts: [host("h1"), host("h2", { alive: false, aliveSince: "2026-11-21T14:31:07.000Z" })],
    volumes: [
      volume({
        inSync: 1,
        health: "degraded",
        replicas: [replica(0, "h1"), replica(1, "h2", "STALE", { alive: false })],
      }),
    ],
    daemon: { reachable: false, reason: "weftd doesn't answer on weftd.sock.", version: null, driver: null },
    problems: [
      {
        code: "E-STORE-08",
        message: "Space is used up.",
        do: [
          { why: "Look", command: "weft status" },
          { why: "Wait", command: null },
        ],
      },
    ],
  });
  await using agent = await FakeAgent.start({
    "GET /v1/status": [
      { status: 200, body: status() },
      { status: 200, body: degraded },
    ],
  });
  const well = await agent.weft(["status"]);
  t.equal(well.code, 0);
  t.equal(
    well.out,
    [
      "HEALTHY — 1 volume, all copies in sync",
      "",
      'Cluster "lab", this host is h1. Store: 1 of 1 vote answer.',
      "HOST  ADDRESS    ANSWERS  STORE    OPEN  COPIES  POOL",
      "h1    10.0.9.11  yes      voter       0       1  100 GiB of 200 GiB free",
      "h2    10.0.9.12  yes      learner     0       1  100 GiB of 200 GiB free",
      "",
    ].join("\n"),
  );
  const ill = await agent.weft(["status"]);
  t.equal(ill.code, 3);
  t.equal(
    ill.out.split("\nHOST")[0],
    [
      "DEGRADED — data is safe, one more failure of h1 would stop 1 volume",
      "  h2 not answering for 2 min 10 s.",
      "  1 volume with fewer copies than wanted: db.",
      "  weftd doesn't answer on weftd.sock.",
      "  E-STORE-08  Space is used up.",
      "      Look:  weft status",
      "      Wait",
      "",
      'Cluster "lab", this host is h1. Store: 1 of 1 vote answer.',
    ].join("\n"),
  );
});

void t.test(
  "weft status: a daemon that does not answer is not healthy, though all volumes are",
  async (t) => {
    const daemon = { reachable: false, reason: null, version: null, driver: null };
    await using agent = await FakeAgent.start({ "GET /v1/status": status({ daemon }) });
    const { out, code } = await agent.weft(["status"]);
    t.match(
      out,
      "DEGRADED — volumes have their copies, but see below\n  weftd on this host does not answer.\n\nCluster",
    );
    t.equal(code, 3);
  },
);

void t.test("weft status: a host without a cluster is told how to begin", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/status": {
      kind: "no-cluster",
      agent: { version: "0.1.0", pid: 1 },
      daemon: {
        reachable: false,
        reason: "weftd doesn't answer on weftd.sock.",
        version: null,
        driver: null,
      },
    },
  });
  const { out, code } = await agent.weft(["status"]);
  t.equal(
    out,
    "NO CLUSTER — this host belongs to none yet\n  weftd doesn't answer on weftd.sock.\nNext:  weft init, or weft join HOST\n",
  );
  t.equal(code, 3);
});

void t.test("weft why: sentences, then what helps", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/volumes/db/why": {
      volume: ids.db,
      name: "db",
      health: "unavailable",
      because: ["Nothing is lost.", "It waits for h1."],
      do: [
        { why: "Start h1", command: "ssh h1 systemctl start weft" },
        { why: "Or wait", command: null },
      ],
      daemon: null,
    },
  });
  const { out, code } = await agent.weft(["why", "db"]);
  t.equal(
    out,
    '"db" is unavailable.\n  Nothing is lost.\n  It waits for h1.\n  → Start h1:  ssh h1 systemctl start weft\n  → Or wait\n',
  );
  t.equal(code, 3);
});

void t.test("weft volume delete --keep-snapshots: what stays is addressed by the id", async (t) => {
  const keptUntil = "2026-11-23T14:02:07.000Z";
  const head = { deletedAt: "2026-11-22T14:02:07.000Z", data: "kept", keptUntil };
  const headless = volume({ head });
  const releasing = volume({ head: { ...head, data: "releasing", keptUntil: null } });
  const path = `/v1/volumes/${ids.db}`;
  const trashed = { volume: ids.db, name: "db", size: "4096", deletedAt: head.deletedAt, keptUntil };
  await using agent = await FakeAgent.start({
    "GET /v1/volumes/db": volume(),
    [`GET ${path}`]: [answer(headless), answer(headless), answer(headless), answer(releasing)],
    [`DELETE ${path}`]: {},
    [`DELETE /v1/trash/${ids.db}`]: {},
    "GET /v1/volumes": [headless],
    "GET /v1/trash": [{ ...trashed, snapshots: 2 }],
  });
  t.equal(
    (await agent.weft(["volume", "delete", "db", "--keep-snapshots"])).out,
    [
      'The head of "db" is deleted. Its snapshots are kept, by the volume\'s id:',
      `  weft snapshot list ${ids.db}`,
      "Bring it back within 24 h:  weft trash restore db",
      "",
    ].join("\n"),
  );
  t.ok(agent.asked.includes(`DELETE ${path} {"keepSnapshots":true}`));
  t.match(
    (await agent.weft(["volume", "show", ids.db])).out,
    /^Head: {4}deleted 2026-11-22 14:02:07 UTC, can be/m,
  );
  t.match((await agent.weft(["volume", "list"])).out, /healthy, no head/);
  t.match((await agent.weft(["trash", "list"])).out, /db {6}head, of 2 snapshots {2}4 KiB/);
  t.equal((await agent.weft(["volume", "delete", "db", "--now"])).code, 1, "a word for what it would erase");
  const now = await agent.weft(["volume", "delete", "db", "--keep-snapshots", "--now", "-y"]);
  t.equal(now.out.split("\n").length, 3, "it can't be brought back");
  t.match((await agent.weft(["volume", "show", ids.db])).out, /^Head: .* UTC, and being given back/m);
});

void t.test("weft host, trash, store: lists, and what they did", async (t) => {
  const keptUntil = new Date(Date.now() + 3 * 3_600_000).toISOString();
  await using agent = await FakeAgent.start({
    "GET /v1/hosts": [host("h1"), host("h2", { alive: false, store: "none" })],
    "DELETE /v1/hosts/h2": { host: ids.h2, name: "h2", storeMemberRemoved: true },
    "GET /v1/trash": [
      { volume: ids.db, name: "db", size: "4096", deletedAt: "2026-11-21T14:00:00.000Z", keptUntil },
    ],
    "POST /v1/trash/db/restore": volume(),
    "DELETE /v1/trash": {},
    "DELETE /v1/trash/db": {},
    "DELETE /v1/volumes/db": {},
    "POST /v1/store/backup": { path: "/b", bytes: "4096", revision: "7", sha256: "ab" },
    "POST /v1/store/restore": {},
    "POST /v1/store/repair": {
      incarnation: "2",
      answered: ["h1"],
      missing: ["h2"],
      volumes: [],
      snapshots: 2,
    },
  });
  t.equal(
    (await agent.weft(["host", "list"])).out,
    [
      "HOST       ADDRESS    ANSWERS  STORE  ID",
      `h1 (here)  10.0.9.11  yes      voter  ${ids.h1}`,
      `h2         10.0.9.12  no       —      ${ids.h2}`,
      "",
    ].join("\n"),
  );
  t.equal(
    (await agent.weft(["host", "remove", "h2", "-y"])).out,
    "Host h2 removed. Its vote in the store is gone too.\n",
  );
  t.match(
    (await agent.weft(["trash", "list"])).out,
    /db {6}volume {2}4 KiB {2}2026-11-21T14:00:00.000Z {2}3 h/,
  );
  t.equal((await agent.weft(["trash", "restore", "db"])).out, 'Volume "db" is back.\n');
  t.equal((await agent.weft(["trash", "empty", "-y"])).out, "The trash is empty.\n");
  t.equal((await agent.weft(["trash", "empty", "db", "-y"])).out, '"db" is erased.\n');
  t.equal(
    (await agent.weft(["volume", "delete", "db"])).out,
    'Volume "db" is in the trash for 24 h.  Bring it back:  weft trash restore db\n',
  );
  t.equal(
    (await agent.weft(["store", "backup", "/b"])).out,
    "Store written to /b: 4 KiB, revision 7, sha256 ab.\n",
  );
  t.equal(
    (await agent.weft(["store", "restore", "/b", "-y"])).out,
    "Store restored. Volumes open after:  weft store repair\n",
  );
  const repaired = await agent.weft(["store", "repair"]);
  t.equal(
    repaired.out,
    "Store repaired, incarnation 2: 0 records and 2 snapshots rebuilt.\n  answered: h1\n  missing:  h2\n",
  );
  t.equal(repaired.code, 3);
});

void t.test("weft ca: who signs, until when, and what a change of the authority waits for", async (t) => {
  const kid = (word: string): string => word.repeat(16);
  const since = new Date(Date.now() - 60_000).toISOString();
  const idle = {
    generation: "17",
    transport: "tls",
    authorities: [
      { kind: "host", kid: kid("3f9c"), state: "active", since, signed: 3 },
      { kind: "store", kid: kid("21aa"), state: "active", since, signed: 0 },
    ],
    rotation: null,
    hosts: [
      { host: ids.h1, name: "h1", keys: [kid("5b02")], notAfter: "2026-12-21T10:00:00Z", generation: null },
    ],
    revoked: [],
  };
  const rotation = {
    phase: "bundle",
    why: "asked",
    since,
    without: ["h4"],
    awaited: [{ host: "h2", what: "bundle" }],
  };
  await using agent = await FakeAgent.start({
    "GET /v1/ca": idle,
    "POST /v1/ca/rotate": { ...idle, rotation },
  });
  const shown = (await agent.weft(["ca", "show"])).out;
  t.match(shown, /^authority {2}3f9c 3f9c 3f9c 3f9c {2}active {2}since .* {2}3 hosts$/m);
  t.match(shown, /^h1 {2}until 21 Dec {2}key 5b02 5b02 5b02 5b02$/m);
  const rotated = await agent.weft(["ca", "rotate", "--without", "h4", "--yes"]);
  t.equal(
    rotated.out,
    "Phase 2/4 bundle: waits for h2 (bundle)\nWithout h4.\nIt goes on by itself:   weft ca show\n",
  );
  t.equal(agent.asked.at(-1), 'POST /v1/ca/rotate {"without":["h4"]}');
});

void t.test("weft settings: what hosts prove and hide from each other, with what it means", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/settings": { transport: "tls", scrub: { everyDays: 30, rate: "33554432" } },
    "PUT /v1/settings": {
      transport: "auth",
      scrub: { everyDays: 0, rate: "67108864" },
      pools: { overcommit: 10 },
      snapshots: { copy: false },
    },
  });
  t.match(
    (await agent.weft(["settings", "show"])).out,
    /^transport\.encryption {2}tls {2}hosts prove themselves, and all between them is encrypted$/m,
  );
  const set = await agent.weft(["settings", "set", "transport.encryption", "auth", "-y"]);
  t.equal(set.code, 0, set.err);
  t.match(set.out, /guests' data can be read and altered/);
  t.strictSame(agent.asked.at(-1), 'PUT /v1/settings {"transport":"auth"}');
  t.match(
    (await agent.weft(["settings", "show"])).out,
    "\nscrub.everyDays  30  copies of a volume are compared so often\nscrub.rate  32MiB/s  of each volume, at most\npools.overcommit  4  times a pool's size",
  );
  t.match(
    (await agent.weft(["settings", "show"])).out,
    /^snapshots\.copy {2}on {2}copies that were away .* are given/m,
  );
  t.match(
    (await agent.weft(["settings", "set", "snapshots.copy", "off"])).out,
    /^snapshots\.copy {2}off {2}copies stay/,
  );
  t.equal(agent.asked.at(-1), 'PUT /v1/settings {"snapshots":{"copy":false}}');
  const never = await agent.weft(["settings", "set", "scrub.everyDays", "0"]);
  t.equal(never.out, "scrub.everyDays  0  copies are compared only when somebody asks for it\n");
  t.equal(agent.asked.at(-1), 'PUT /v1/settings {"scrub":{"everyDays":0}}');
  t.match(
    (await agent.weft(["settings", "set", "pools.overcommit", "10"])).out,
    /^pools\.overcommit {2}10 {2}times/,
  );
  t.equal(agent.asked.at(-1), 'PUT /v1/settings {"pools":{"overcommit":10}}');
  await agent.weft(["settings", "set", "scrub.rate", "64MiB/s"]);
  t.equal(agent.asked.at(-1), 'PUT /v1/settings {"scrub":{"rate":"67108864"}}');
  for (const [name, value] of [
    ["scrub.everyDays", "-1"],
    ["scrub.everyDays", "often"],
    ["scrub.everyDays", "3651"],
    ["scrub.rate", "0"],
    ["scrub.rate", "fast"],
    ["pools.overcommit", "0"],
    ["pools.overcommit", "a lot"],
    ["snapshots.copy", "maybe"],
  ] as const) {
    t.equal((await agent.weft(["settings", "set", name, value])).code, 1, `${name} ${value}`);
  }
  t.equal(agent.asked.at(-1), 'PUT /v1/settings {"scrub":{"rate":"67108864"}}', "nothing more was asked");
  const wrong = await agent.weft(["settings", "set", "transport.encryption", "ssl"]);
  t.equal(wrong.code, 1);
  t.match(wrong.err, /tls, auth, clear/);
  t.equal((await agent.weft(["settings", "set", "colour", "red"])).code, 1);
});

void t.test("weft host revoke: who refuses it after what time, and what is not certain yet", async (t) => {
  const said = { host: ids.h1, name: "h1", refusedMs: 40, member: true, storeMs: 610 };
  const answer = {
    host: ids.h1,
    name: "h3",
    generation: "18",
    authority: "91e0".repeat(16),
    keyOn: ["h1"],
    keyMissing: ["h2"],
    hosts: [said, { ...said, name: "h2", refusedMs: null, member: false, storeMs: null }],
    complete: false,
    fenced: [{ volume: ids.db, name: "web", epoch: "7" }],
    open: [{ volume: ids.db, name: "db" }],
  };
  await using agent = await FakeAgent.start({ "POST /v1/hosts/h3/revoke": answer });
  const { out } = await agent.weft(["host", "revoke", "h3", "--yes"]);
  t.match(out, /^h3 is revoked at generation 18\.$/m);
  t.match(out, /^ {2}refused by {3}h1 0\.04 s {3}h2 not yet$/m);
  t.match(out, /^ {2}store {8}h1 0\.61 s {3}\(its connections were cut\)$/m);
  t.match(out, /^ {2}fenced {7}web at epoch 7$/m);
  t.match(out, /^ {2}still its {4}db$/m);
  t.match(out, /a new authority was made \(91e0 …\)/);
  t.match(out, /^ {2}its key is on h1$/m);
  t.match(out, /^ {2}not yet on {4}h2: given when it is back/m);
  t.match(out, /^Keep a copy elsewhere now: {3}weft ca backup FILE$/m);
  t.match(out, new RegExp(`^Ask again: {3}weft host revoke ${ids.h1}$`, "m"));
});

void t.test("weft host remove: who has the new key, and that not every host has said so", async (t) => {
  const answer = {
    host: ids.h2,
    name: "h2",
    storeMemberRemoved: true,
    complete: false,
    authority: "91e0".repeat(16),
    keyOn: ["h1", "h3"],
    keyMissing: [],
  };
  await using agent = await FakeAgent.start({ "DELETE /v1/hosts/h2": answer });
  const { out } = await agent.weft(["host", "remove", "h2", "--yes"]);
  t.match(out, /^Host h2 removed\. Its vote in the store is gone too\.$/m);
  t.match(out, /^ {2}its key is on h1, h3$/m);
  t.notMatch(out, /ca backup/);
  t.match(out, new RegExp(`^Ask again: {3}weft host revoke ${ids.h2}$`, "m"));
});

void t.test(
  "weft ca backup, restore: the passphrase comes from a file or is asked for, never shown",
  async (t) => {
    const kid = "3f9c".repeat(16);
    const answer = { path: "/b", kids: [kid] };
    await using agent = await FakeAgent.start({
      "POST /v1/ca/backup": answer,
      "POST /v1/ca/restore": answer,
    });
    const directory = await mkdtemp(join(tmpdir(), "weft-passphrase-"));
    t.teardown(() => rm(directory, { recursive: true, force: true }));
    const file = join(directory, "word");
    await writeFile(file, "not a word in any book\n");
    const made = await agent.weft(["ca", "backup", "/b", "--passphrase-file", file]);
    t.match(made.out, /^Authority 3f9c 3f9c 3f9c 3f9c written to \/b\./);
    t.notMatch(made.out, /book/);
    t.equal(agent.asked.at(-1), 'POST /v1/ca/backup {"path":"/b","passphrase":"not a word in any book"}');
    const restored = await agent.weft(["ca", "restore", "/b", "--passphrase-file", file]);
    t.equal(restored.out, "Restored: 3f9c 3f9c 3f9c 3f9c.\n");
    await writeFile(file, "short\n");
    const refused = await agent.weft(["ca", "backup", "/b", "--passphrase-file", file]);
    t.match(refused.err, /^E-ARG-03/);
    t.notMatch(refused.err, /"short"/);
    t.equal(agent.asked.length, 2);
  },
);

void t.test("weft volume resize: sizes go as bytes, and data is lost only by name", async (t) => {
  const grown = volume({ size: "4398046511104", wantedSize: "4398046511104" });
  const owner = { host: ids.h1, hostName: "h1", session: ids.session, caretaker: false };
  await using agent = await FakeAgent.start({
    "GET /v1/volumes/db": volume(),
    "PATCH /v1/volumes/db": [answer(grown), answer({ ...grown, owner }), answer(volume())],
  });
  t.equal(
    (await agent.weft(["volume", "resize", "db", "4TiB"])).out,
    'Volume "db" has 4 TiB now (was 3 TiB).\n',
  );
  t.match(
    (await agent.weft(["volume", "resize", "db", "4TiB"])).out,
    / An NBD client that asked for the size before sees it when it reconnects\.\n$/,
  );
  const lost = await agent.weft(["volume", "resize", "db", "3TiB", "--lose-data", "db"]);
  t.equal(lost.out, 'Volume "db" has 3 TiB, as before.\n');
  t.strictSame(
    agent.asked.filter((line) => line.startsWith("PATCH")),
    [
      'PATCH /v1/volumes/db {"size":"4398046511104","loseData":null}',
      'PATCH /v1/volumes/db {"size":"4398046511104","loseData":null}',
      'PATCH /v1/volumes/db {"size":"3298534883328","loseData":"db"}',
    ],
  );
  const asked = agent.asked.length;
  for (const [size, code] of [
    ["4097", "E-ARG-02"],
    ["NaN", "E-ARG-02"],
    ["0", "E-VOL-02"],
    ["65TiB", "E-VOL-02"],
    ["-4TiB", "E-ARG-01"],
  ] as const) {
    const bad = await agent.weft(["volume", "resize", "db", size]);
    t.equal(bad.code, 1, size);
    t.match(bad.err, code, size);
  }
  t.equal(agent.asked.length, asked, "nothing was asked of the agent");
});

void t.test("weft volume show: a volume that grows says to what", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/volumes/db": volume({ wantedSize: "4398046511104", thick: true }),
  });
  t.match((await agent.weft(["volume", "show", "db"])).out, "\nSize:    3 TiB, thick, grows to 4 TiB\n");
});

void t.test("weft volume limit: numbers of requests and bytes, or none at all", async (t) => {
  const limited = volume({ limits: { iops: 2000, bps: "104857600", burstS: 5 } });
  await using agent = await FakeAgent.start({
    "PATCH /v1/volumes/db": [answer(limited), answer(volume())],
    "GET /v1/volumes/db": limited,
  });
  const limit = (...words: string[]): ReturnType<FakeAgent["weft"]> =>
    agent.weft(["volume", "limit", "db", ...words]);
  t.equal(
    (await limit("--iops", "2000", "--rate", "100MiB/s", "--burst", "5s")).out,
    'Limits of "db": 2000 IO/s, 100 MiB/s, burst 5 s.\n',
  );
  t.equal((await limit("--none")).out, 'Limits of "db": none.\n');
  t.strictSame(agent.asked, [
    'PATCH /v1/volumes/db {"limits":{"iops":2000,"bps":"104857600","burstS":5}}',
    'PATCH /v1/volumes/db {"limits":null}',
  ]);
  t.match((await agent.weft(["volume", "show", "db"])).out, "\nLimits:  2000 IO/s, 100 MiB/s, burst 5 s\n");
  const asked = agent.asked.length;
  for (const [words, code] of [
    [[], "E-ARG-03"],
    [["--burst", "5s"], "E-ARG-03"],
    [["--none", "--iops", "5"], "E-ARG-03"],
    [["--iops", "0"], "E-VOL-17"],
    [["--iops", "-5"], "E-ARG-0"],
    [["--iops", "1.5"], "E-ARG-02"],
    [["--iops", "1000000001"], "E-VOL-17"],
    [["--rate", "1KiB/s"], "E-VOL-17"],
    [["--rate", "fast"], "E-ARG-02"],
    [["--iops", "5", "--burst", "61s"], "E-VOL-17"],
    [["--iops", "5", "--burst", "long"], "E-ARG-02"],
  ] as const) {
    const bad = await limit(...words);
    t.equal(bad.code, 1, words.join(" "));
    t.match(bad.err, code, words.join(" "));
  }
  t.equal(agent.asked.length, asked, "nothing was asked of the agent");
});

void t.test("weft volume stats: what happened in a second, or the counters themselves", async (t) => {
  const limits = { iops: 2000, bps: null, burstS: 5 };
  const writes = { leUs: [320, 2560], counts: ["90", "10"], count: "100", sumUs: "40000" };
  const later = { leUs: [320, 2560], counts: ["1990", "110"], count: "2100", sumUs: "900000" };
  const stalls = { leUs: [131072, 2097152], counts: ["4", "2"], count: "7", sumUs: "9" };
  const waits = { reads: { ...writes, count: "0", counts: [], leUs: [] }, writes, stalls, limited: stalls };
  const looks = [
    answer(stats({ limits }, { writes: "100", writtenBytes: "0", waits })),
    answer(
      stats(
        { limits },
        {
          at: "2026-11-21T14:33:18.000Z",
          writes: "2100",
          writtenBytes: "8200000",
          waits: { ...waits, writes: later },
        },
      ),
    ),
  ];
  await using agent = await FakeAgent.start({
    "GET /v1/volumes/db": volume(),
    "GET /v1/volumes/db/stats": looks,
  });
  const shown = await agent.weft(["volume", "stats", "db"]);
  t.equal(
    shown.out,
    [
      "VOLUME  READ/s  WRITE/s  READ MB/s  WRITE MB/s  p50 read  p99 read  p50 write  p99 write  LIMIT                 STALLS >1 s",
      "db           0     2000        0.0         8.2         —         —    0.32 ms     2.6 ms  2000 IO/s, burst 5 s            3",
      "",
    ].join("\n"),
  );
  t.match(JSON.parse((await agent.weft(["volume", "stats", "db", "--json"])).out), {
    open: { writes: "2100" },
  });
});

void t.test("weft volume stats: a volume that nobody uses has none, and --watch ends at ^C", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/volumes/db": volume(),
    "GET /v1/volumes/db/stats": stats({}, null),
  });
  const idle = await agent.weft(["volume", "stats", "db"]);
  t.equal(idle.out, '"db" is not attached: nobody uses it. Limits: none.\n');
  t.equal(idle.code, 0);
  const stop = new AbortController();
  const watched = agent.weft(["volume", "stats", "db", "--watch"], stop.signal);
  // The volume, and two looks: the first line is written.
  while (agent.asked.filter((line) => line.endsWith("/stats")).length < 4)
    await new Promise((resolve) => setImmediate(resolve));
  stop.abort();
  const { out, code } = await watched;
  t.equal(code, 0);
  t.match(out, /^VOLUME .*\ndb /);
});

void t.test("weft scrub: what was compared, what was found, and 3 when something stays amiss", async (t) => {
  const asked = { at: "2026-11-21T14:00:00.000Z", by: "root@h1", rate: "67108864" };
  const progress = { hostName: "h1", doneBytes: "6442450944", totalBytes: "53687091200" };
  const begins = volume({ scrub: { asked, progress: null, last: null } });
  const rotten = scrubbed({
    rotten: "3",
    repaired: "3",
    members: [
      { rid: 0, hostName: "h1", pool: ids.pool, rotten: "0", repaired: "0" },
      { rid: 1, hostName: "h2", pool: ids.pool, rotten: "3", repaired: "3" },
    ],
  });
  const told = (last: object): object => volume({ scrub: { asked: null, progress: null, last } });
  await using agent = await FakeAgent.start({
    "POST /v1/volumes/db/scrub": begins,
    "DELETE /v1/volumes/db/scrub": volume(),
    "GET /v1/volumes": [volume()],
    [`POST /v1/volumes/${ids.db}/scrub`]: begins,
    [`GET /v1/volumes/${ids.db}`]: [
      answer(volume({ scrub: { asked, progress, last: null } })),
      answer(told(rotten)),
      answer(told(scrubbed({ divergent: "1" }))),
      answer(told(scrubbed({ whole: false, lost: "2" }))),
      answer(told(scrubbed())),
    ],
    "GET /v1/volumes/db": told(rotten),
  });
  const scrub = (...words: string[]): ReturnType<FakeAgent["weft"]> => agent.weft(["scrub", ...words]);
  t.equal(
    (await scrub("db", "--rate", "64MiB/s")).out,
    'The copies of "db" are being compared.  Look:  weft volume show db\n',
  );
  t.strictSame(agent.asked, ['POST /v1/volumes/db/scrub {"rate":"67108864"}']);
  const found = await scrub("db", "--wait");
  t.match(found.err, 'comparing "db" on h1: 12 % of 50 GiB');
  t.equal(
    found.out,
    '"db": 50 GiB compared on h1 h2, 3 blocks rotten on h2 (pool b0000000), all repaired. 0 differ.\n',
  );
  t.equal(found.code, 0);
  const differs = await scrub("db", "--wait");
  t.equal(differs.out, '"db": 50 GiB compared on h1 h2, none rotten. 1 differs.\n');
  t.equal(differs.code, 3);
  const lost = await scrub("db", "--wait");
  t.equal(
    lost.out,
    '"db": 50 GiB compared on h1 h2 (stopped before its end), none rotten, 2 in no copy. 0 differ.\n',
  );
  t.equal(lost.code, 3);
  t.equal((await scrub("--wait")).code, 0);
  t.equal((await scrub("db", "--stop")).out, 'The copies of "db" are not compared any further.\n');
  t.match(
    (await agent.weft(["volume", "show", "db"])).out,
    "\nScrub:   2026-11-21: 50 GiB compared on h1 h2, 3 blocks rotten",
  );
  for (const words of [
    ["db", "--rate", "0"],
    ["db", "--rate", "NaN"],
    ["db", "--stop", "--wait"],
  ]) {
    t.equal((await scrub(...words)).code, 1, words.join(" "));
  }
});

void t.test(
  "weft host stop-check: waits while a volume would stop, and ends with 3 when it still would",
  async (t) => {
    const held = {
      held: true,
      because: "it has the only copy in sync of 1 volume (db)",
      volumes: [{ id: ids.db, name: "db" }],
      store: false,
      urgent: true,
    };
    const free = {
      held: false,
      because: "nothing depends on this host alone",
      volumes: [],
      store: false,
      urgent: false,
    };
    await using agent = await FakeAgent.start({
      "POST /v1/stop-check": [answer(held), answer(held), answer(free)],
    });
    const first = await agent.weft(["host", "stop-check"]);
    t.equal(first.code, 3);
    t.equal(first.out, "Better not yet: it has the only copy in sync of 1 volume (db).\n");
    const waited = await agent.weft(["host", "stop-check", "--wait", "15m"]);
    t.equal(waited.code, 0);
    t.match(
      waited.out,
      /^Waiting, 15 min at most: .*\nThis host may stop: nothing depends on this host alone\.\n$/,
    );
  },
);

void t.test("weft host restart-holder: asks first, and says how long disks were paused", async (t) => {
  const refused = refusal(
    "E-HOLD-05",
    "The holder was not restarted: a disk has a client that is no tapdisk.",
    409,
  );
  await using agent = await FakeAgent.start({
    "POST /v1/holder/restart": [answer({ version: "0.2.0", paused: 2, pausedMs: 1400 }), refused],
  });
  const unasked = await agent.weft(["host", "restart-holder"]);
  t.equal(unasked.code, 1);
  t.strictSame(agent.asked, [], "nobody could be asked");
  const done = await agent.weft(["host", "restart-holder", "--yes"]);
  t.equal(done.code, 0);
  t.equal(done.out, "weft-holder 0.2.0 runs. 2 disks were paused, for 1 s at most.\n");
  const not = await agent.weft(["host", "restart-holder", "--yes"]);
  t.equal(not.code, 2);
  t.match(not.err, /E-HOLD-05 .*no tapdisk/);
});
