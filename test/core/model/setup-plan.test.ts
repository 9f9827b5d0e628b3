/**
 * Plot: three hypervisors of a pool, some with blank disks, some with other people's data; somebody asks for a shared storage
 * of them. A planner that takes a disk with data on it destroys that; one that is cut short and begins anew makes two clusters.
 */
import * as fc from "fast-check";
import t from "tap";

import type { JudgedDisk } from "../../../src/core/model/disk.ts";
import {
  parseCopiesWish,
  parseDisksWish,
  parseNetworkWish,
  readWishes,
  type SetupHost,
  type SetupWishes,
  type SetupWords,
} from "../../../src/core/model/setup-facts.ts";
import { plainName, planSetup, type SetupPlan, type SetupStep } from "../../../src/core/model/setup-plan.ts";
import { findingsText, setupText } from "../../../src/core/model/setup-text.ts";
import { placeableBytes } from "../../../src/core/model/setup-usable.ts";

const GIB = 1n << 30n;
const LAN = "00000000-0000-4000-8000-0000000000aa";
const SAN = "00000000-0000-4000-8000-0000000000bb";
const CLUSTER = "00000000-0000-4000-8000-00000000c1c1";

function disk(name: string, more: Partial<JudgedDisk> = {}): JudgedDisk {
  return {
    path: `/dev/${name}`,
    kind: "disk",
    sizeBytes: 894n * GIB,
    verdict: { kind: "blank" },
    content: { kind: "device", name },
    pool: null,
    ...more,
  };
}

const root = disk("sda", { verdict: { kind: "in-use", what: "mounted at /" } });
const oldData = disk("sdc", {
  verdict: { kind: "data", what: 'LVM VG "old_data" (412 GiB used)' },
  content: { kind: "VG", name: "old_data" },
});

function id(n: number): string {
  return `${n}0000000-0000-4000-8000-000000000000`;
}

function host(n: number, more: Partial<SetupHost> = {}): SetupHost {
  return {
    id: id(n),
    name: `h${n}`,
    isUp: true,
    weft: { kind: "none", sealedFor: null },
    disks: [root, disk("nvme0n1")],
    networks: [
      { id: LAN, name: "lan", address: `192.168.0.${n}`, linkMbps: 1000, isManagement: true },
      { id: SAN, name: "storage", address: `10.0.9.1${n}`, linkMbps: 25_000, isManagement: false },
    ],
    freeBytes: 4n * GIB,
    clockOffMs: 3,
    ...more,
  };
}

const diskless = host(3, { disks: [root] });
const nothing: SetupWishes = { disks: null, copies: null, network: null, unread: [] };

function planned(hosts: readonly SetupHost[], wishes: Partial<SetupWishes> = {}): SetupPlan {
  const decision = planSetup({ hosts, wishes: { ...nothing, ...wishes }, first: id(1) });
  if (decision.kind === "ok") return decision.plan;
  throw new Error(findingsText(decision.findings));
}

function refusal(hosts: readonly SetupHost[], wishes: Partial<SetupWishes> = {}): string {
  const decision = planSetup({ hosts, wishes: { ...nothing, ...wishes }, first: id(1) });
  return decision.kind === "refused" ? findingsText(decision.findings) : "a plan";
}

void t.test(
  "setup: two hosts with blank disks and one without become a cluster that one may leave",
  async (t) => {
    const hosts = [host(1), host(2), diskless];
    const plan = planned(hosts);
    t.strictSame(plan.steps, [
      { kind: "init", host: id(1), name: "h1", address: "10.0.9.11" },
      { kind: "join", host: id(2), name: "h2", address: "10.0.9.12" },
      { kind: "join", host: id(3), name: "h3", address: "10.0.9.13" },
      { kind: "pool", host: id(1), device: "/dev/nvme0n1" },
      { kind: "pool", host: id(2), device: "/dev/nvme0n1" },
    ] satisfies SetupStep[]);
    t.equal(
      setupText({ kind: "ok", plan }, { pool: "lab", sr: "replicated" }),
      [
        'Pool "lab" (3 hosts)',
        "  h1  nvme0n1 894 GiB blank             10.0.9.11  25 Gb/s  clock ok",
        "  h2  nvme0n1 894 GiB blank             10.0.9.12  25 Gb/s  clock ok",
        "  h3  — no free disk (diskless, votes)  10.0.9.13  25 Gb/s  clock ok",
        "Plan",
        "  2 copies of every volume, 3 votes on h1 h2 h3",
        "  survives: any one host or disk",
        "  usable 886 GiB of 1.74 TiB raw",
        "  memory 384 MiB per host; TCP 7400-7403 between them",
        '  SR "replicated" (shared)',
        "Nothing is erased: both disks are blank.",
      ].join("\n"),
    );
  },
);

void t.test("setup: the same facts in another order are the same plan", async (t) => {
  t.strictSame(planned([diskless, host(2), host(1)]), planned([host(1), host(2), diskless]));
});

void t.test(
  "setup: a disk with data that was named is refused by what is on it, and nothing is done",
  async (t) => {
    const hosts = [host(1), host(2, { disks: [root, oldData] })];
    const wish = parseDisksWish("h1:/dev/nvme0n1,h2:/dev/sdc", hosts);
    t.strictSame(wish.findings, []);
    const text = refusal(hosts, { disks: wish.wish });
    t.match(
      text,
      /^E-DISK-07 {2}\/dev\/sdc on h2 is not blank: LVM VG "old_data" \(412 GiB used\)\.\n {4}Nothing was changed on any host\./,
    );
    t.match(text, "weft disk wipe h2:/dev/sdc");
    t.notMatch(text, "E-SETUP-04", "what only follows from it is not told besides");
  },
);

void t.test("setup: without enough blank disks the refusal says what is on the others", async (t) => {
  const hosts = [host(1), host(2, { disks: [root, oldData] }), diskless];
  t.match(
    refusal(hosts),
    /^E-SETUP-04 {2}2 copies of every volume wanted, disks for them on 1 of 3 hosts \(h2: \/dev\/sda mounted at \/, \/dev\/sdc LVM VG "old_data" \(412 GiB used\); h3: \/dev\/sda mounted at \/\)\./,
  );
  t.equal(planned(hosts, { copies: 1 }).survives, "nothing: a volume stops with the host of its only copy");
});

void t.test("setup: all findings are told at once", async (t) => {
  const hosts = [
    host(1, { weft: { kind: "absent", reason: "its XAPI has no plug-in weft" } }),
    host(2, { clockOffMs: 30 * 3600 * 1000, networks: [] }),
  ];
  t.strictSame(
    refusal(hosts)
      .split("\n")
      .flatMap((line) => /^E-\S+/.exec(line)?.[0] ?? []),
    ["E-SETUP-01", "E-SETUP-05", "E-SETUP-03"],
  );
});

void t.test("setup: hosts of two clusters are not made one", async (t) => {
  const member = (n: number, cluster: string): SetupHost =>
    host(n, {
      weft: { kind: "member", cluster, name: `h${n}`, address: `10.0.9.1${n}`, votes: true, pools: [] },
    });
  t.match(
    refusal([member(1, CLUSTER), member(2, SAN)]),
    /^E-SETUP-02 {2}These hosts belong to 2 clusters: h1 in /,
  );
});

void t.test("setup: the network that was said is taken, though a faster one is there", async (t) => {
  t.strictSame(
    planned([host(1), host(2)], { network: LAN }).hosts.map(({ address }) => address),
    ["192.168.0.1", "192.168.0.2"],
  );
  t.match(refusal([host(1), host(2)], { network: CLUSTER }), /^E-SETUP-03 {2}No host has a network/);
});

void t.test("setup: a host that comes to a cluster gets its address where the members are", async (t) => {
  const hosts = [1, 2].map((n) =>
    host(n, {
      weft: {
        kind: "member",
        cluster: CLUSTER,
        name: `h${n}`,
        address: `192.168.0.${n}`,
        votes: n === 1,
        pools: [894n * GIB],
      },
    }),
  );
  t.strictSame(planned([...hosts, diskless]).steps, [
    { kind: "join", host: id(3), name: "h3", address: "192.168.0.3" },
  ] satisfies SetupStep[]);
  t.match(planned(hosts).steps, [], "where all is so already nothing is to be done");
});

void t.test(
  "setup: hosts of one name, or with names that can't be one, have names of their own",
  async (t) => {
    const hosts = ["localhost.lan", "localhost", "Ünï 7", "…"].map((name, n) => host(n + 1, { name }));
    const names = planned(hosts).hosts.map(({ name }) => name);
    t.equal(new Set(names).size, 4);
    for (const name of names) t.match(name, /^(localhost|localhost-[0-9a-f]{4}|n-7|host-40000000)$/);
    t.equal(plainName("xcp-01.example.org"), "xcp-01");
    t.equal(plainName("-"), null);
  },
);

void t.test("setup: a host that is off is left out and told, and its disk can't be named", async (t) => {
  const hosts = [host(1), host(2), host(3, { isUp: false, disks: [], networks: [] })];
  const plan = planned(hosts);
  t.strictSame(plan.leftOut, ["h3"]);
  t.match(plan.risks, [/^h1 has the store's only vote/, "h3 is off: it joins when it is back."]);
  const { wish } = parseDisksWish("h3:/dev/sdb", hosts);
  t.match(refusal(hosts, { disks: wish }), /^E-DISK-02 {2}h3 is off/);
  t.match(refusal([host(3, { isUp: false })]), /E-SETUP-06/);
});

void t.test("setup: what a person wrote of disks is one thing or refused", async (t) => {
  const hosts = [host(1), host(2), host(3, { name: "h2" })];
  for (const [text, code] of [
    ["h1", "E-ARG-02"],
    ["", "E-ARG-02"],
    ["h1:/dev/../etc/passwd", "E-ARG-02"],
    ["h1:/srv/x", "E-ARG-02"],
    ["h1:/dev/sd b", "E-ARG-02"],
    ["h9:/dev/sdb", "E-ARG-01"],
    ["h2:/dev/sdb", "E-ARG-01"],
  ] as const)
    t.match(parseDisksWish(text, hosts).findings, [{ code }], text);
  t.strictSame(parseDisksWish(" auto ", hosts), { wish: { kind: "auto" }, findings: [] });
  t.strictSame(parseDisksWish(`${id(3)}:/dev/sdb, h1:/dev/sdb,h1:/dev/sdb`, hosts), {
    findings: [],
    wish: {
      kind: "named",
      disks: [
        { host: id(3), path: "/dev/sdb" },
        { host: id(1), path: "/dev/sdb" },
      ],
    },
  });
  for (const text of ["0", "9", "two", "-1", "1.5", ""])
    t.match(parseCopiesWish(text), { finding: { code: "E-VOL-08" } });
  t.strictSame(parseCopiesWish("3"), { kind: "ok", value: 3 });
  t.match(parseNetworkWish("lan"), { finding: { code: "E-ARG-02" } });
});

void t.test(
  "setup: a host that was installed anew comes back with its pools, and its disks are not asked for",
  async (t) => {
    const own = disk("nvme0n1", { verdict: { kind: "data", what: "XFS weft-1a2b3c" } });
    const member = {
      kind: "member" as const,
      cluster: CLUSTER,
      name: "h1",
      address: "10.0.9.11",
      votes: true,
      pools: [894n * GIB],
    };
    const hosts = (sealedFor: string | null): readonly SetupHost[] => [
      host(1, { weft: member, disks: [root] }),
      host(2, { weft: { kind: "none", sealedFor }, disks: [root, own] }),
    ];
    const plan = planned(hosts(CLUSTER), { copies: 2 });
    t.match(plan.hosts[1], { name: "h2", isReturning: true, isMember: false, disks: [] });
    t.strictSame(plan.steps, [{ kind: "join", host: id(2), name: "h2", address: "10.0.9.12" }]);
    t.match(
      setupText({ kind: "ok", plan }, { pool: "lab", sr: null }),
      /h2 +comes back with its pools +10\.0\.9\.12/,
    );
    // Of another cluster, or of none: what is on its disk is somebody's data.
    for (const other of ["00000000-0000-4000-8000-00000000c2c2", null])
      t.match(refusal(hosts(other), { copies: 2 }), /E-SETUP-04 .*h2: \/dev\/nvme0n1 XFS weft/);
  },
);

// Who mends one thing, asks again and is told of the next one loses an hour with it.
void t.test("setup: all that is wrong with what a person wrote is told at once", async (t) => {
  const hosts = [
    host(1),
    host(2, { disks: [root, oldData] }),
    host(3, { isUp: false, disks: [], networks: [] }),
  ];
  const codes = (words: Partial<SetupWords>): readonly string[] => {
    const wishes = readWishes({ disks: null, copies: null, network: null, ...words }, hosts);
    const decision = planSetup({ hosts, wishes, first: id(1) });
    return decision.kind === "refused" ? decision.findings.map(({ code }) => code) : [];
  };
  const none = "00000000-0000-4000-8000-0000000000ff";
  t.strictSame(
    codes({ disks: "h9:/dev/sdb,sdb,h2:/dev/sdc,h1:/dev/sdz,h3:/dev/sdb", copies: "two", network: "lan" }),
    ["E-ARG-01", "E-ARG-02", "E-VOL-08", "E-ARG-02", "E-DISK-07", "E-DISK-02", "E-DISK-02"],
  );
  t.strictSame(codes({ copies: "0", network: none }), ["E-VOL-08", "E-SETUP-03"]);
  t.strictSame(codes({ disks: "none", network: "lan" }), ["E-ARG-02", "E-SETUP-04"]);
  t.strictSame(codes({ copies: "4", network: none }), ["E-SETUP-03", "E-SETUP-04"]);
  t.strictSame(codes({ disks: "my host:/dev/sdb" }), ["E-ARG-01"]);
  t.strictSame(codes({ disks: " h1 : /dev/nvme0n1", copies: " 1 " }), ["E-ARG-02"]);
  t.strictSame(codes({ disks: "h1:/dev/nvme0n1", copies: " 1 " }), []);
});

const anyDisk = fc.constantFrom<JudgedDisk>(
  root,
  oldData,
  disk("nvme0n1"),
  disk("sdb", { sizeBytes: 4n * GIB }),
  disk("sdd", { sizeBytes: 1n << 20n, verdict: { kind: "unfit", what: "it is small" } }),
  disk("sde", { verdict: { kind: "unread", what: "it did not answer" } }),
  disk("md0", { kind: "raid1" }),
  disk("sdf", { verdict: { kind: "unfit", what: "it is read-only" } }),
);
const anyHosts = fc
  .array(fc.uniqueArray(anyDisk, { maxLength: 5, selector: ({ path }) => path }), {
    minLength: 1,
    maxLength: 6,
  })
  .map((all) => all.map((disks, n) => host(n + 1, { disks })));
const anyWishes = fc.record({
  disks: fc.constantFrom({ kind: "auto" as const }, { kind: "none" as const }),
  copies: fc.option(fc.integer({ min: 1, max: 3 })),
  network: fc.constantFrom(null, LAN),
  unread: fc.constant([]),
});

void t.test(
  "setup: no plan has a disk that is not blank, and what was begun is continued by the next plan",
  async (t) => {
    fc.assert(
      fc.property(anyHosts, anyWishes, fc.integer({ min: 1, max: 20 }), (hosts, wishes, cut) => {
        const decision = planSetup({ hosts, wishes, first: id(1) });
        if (decision.kind === "refused") return decision.findings.length > 0;
        const { plan } = decision;
        const blank = new Set(["/dev/nvme0n1", "/dev/sdb"]);
        const isFine = plan.steps.every((step) => step.kind !== "pool" || blank.has(step.device));
        const done = plan.steps.slice(0, cut);
        const next = planSetup({ hosts: hosts.map((one) => after(one, done)), wishes, first: id(2) });
        return (
          isFine &&
          next.kind === "ok" &&
          JSON.stringify(sorted(next.plan.steps)) === JSON.stringify(sorted(plan.steps.slice(cut)))
        );
      }),
    );
    t.pass("for all of them");
  },
);

/** As it is when these steps were done. */
function after(one: SetupHost, done: readonly SetupStep[]): SetupHost {
  const mine = done.filter((step) => step.host === one.id);
  const pools = mine.flatMap((step) => (step.kind === "pool" ? [step.device] : []));
  const entered = mine.find((step) => step.kind !== "pool");
  return {
    ...one,
    disks: one.disks.map((each) =>
      pools.includes(each.path) ? { ...each, verdict: { kind: "pool", what: "a pool" }, pool: "p" } : each,
    ),
    weft:
      entered === undefined
        ? one.weft
        : {
            kind: "member",
            cluster: CLUSTER,
            name: entered.name,
            address: entered.address,
            votes: true,
            pools: pools.map(() => 4n * GIB),
          },
  };
}

function sorted(steps: readonly SetupStep[]): readonly string[] {
  return steps.map((step) => JSON.stringify(step)).toSorted();
}

void t.test("setup: so much fits as a dumb search finds", async (t) => {
  const dumb = (copies: number, rooms: readonly bigint[]): bigint => {
    let most = 0n;
    for (let bytes = 0n; bytes <= 60n; bytes += 1n) {
      const held = rooms.reduce((all, room) => all + (room < bytes ? room : bytes), 0n);
      if (held >= BigInt(copies) * bytes) most = bytes;
    }
    return most;
  };
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 4 }),
      fc.array(fc.bigInt({ min: 0n, max: 9n }), { maxLength: 6 }),
      (copies, rooms) => placeableBytes(copies, rooms) === dumb(copies, rooms),
    ),
  );
  t.equal(placeableBytes(2, [100n, 1n]), 1n);
});
