/**
 * The life of a package on a host: installed with its scriptlets, used, updated under a running volume, gone back by one,
 * removed. The host is a root that has busybox alone, so that a program which needs anything of its host's fails here.
 *
 * Root only: chroot, a network namespace, a database of packages.
 */
import { createHash } from "node:crypto";
import {
  appendFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import t from "tap";

import { packDeb } from "../../../scripts/package/deb.ts";
import { isElf, readElf } from "../../../scripts/package/elf.ts";
import type { EtcdChoice } from "../../../scripts/package/etcd.ts";
import { packRpm, signRpm } from "../../../scripts/package/rpm.ts";
import { entriesOf, layHostFiles, layTree, settle } from "../../../scripts/package/tree.ts";
import { until } from "../../../scripts/lib/until.ts";
import { BusyboxRoot } from "./root.ts";
import type { Outcome } from "./root.ts";

const isRoot = process.getuid?.() === 0;
const EPOCH = 1_700_000_000;
/** EL7's C library. */
const GLIBC_NEWEST = 17;

const scratch = mkdtempSync(join(tmpdir(), "weft-package-"));
t.teardown(() => rmSync(scratch, { recursive: true, force: true }));

const THIS = "0.1.0";
const NEXT = "0.2.0";

async function base(
  name: string,
  version: string = THIS,
  choice: EtcdChoice = "auto",
): Promise<{ tree: string; etcd: string; version: string }> {
  const directory = join(scratch, name);
  const etcd = await layTree({ directory, version, etcd: choice, say: (line) => t.comment(line) });
  return { tree: directory, etcd, version };
}

/** As if the sources were of that version: what they say of themselves, a file that came, one that went, a configuration that changed. */
function age(tree: string, version: string): void {
  const scripts = readdirSync(join(tree, "opt/weft/src"), { recursive: true, encoding: "utf8" });
  const saying = scripts.filter((path) => path.endsWith(".js")).map((path) => `opt/weft/src/${path}`);
  for (const path of [...saying, "opt/xensource/sm/WeftSR", "usr/libexec/sm/WeftSR"]) {
    const text = readFileSync(join(tree, path), "utf8");
    if (text.includes(`"${THIS}"`))
      writeFileSync(join(tree, path), text.replaceAll(`"${THIS}"`, `"${version}"`));
  }
  writeFileSync(join(tree, "opt/weft/share/NEWS"), "");
  rmSync(join(tree, "usr/lib/sysctl.d/60-weft.conf"));
  appendFileSync(join(tree, "etc/logrotate.d/weft"), "# of another version\n");
}

function finish(directory: string, kind: "xcp-ng" | "kvm"): string {
  layHostFiles(directory, kind);
  settle(directory, EPOCH);
  return directory;
}

const quick = { epoch: EPOCH, compression: 1 };
const laid = await base("rpm");
// With the other kind of etcd, which a machine without Go makes.
const following = await base("next", NEXT, "debian");
const forKvm = join(scratch, "deb");
cpSync(laid.tree, forKvm, { recursive: true, verbatimSymlinks: true });
finish(laid.tree, "xcp-ng");
layHostFiles(following.tree, "xcp-ng");
age(following.tree, NEXT);
settle(following.tree, EPOCH);
const first = await packRpm({ ...laid, ...quick, release: "1", out: scratch });
const second = await packRpm({ ...following, ...quick, release: "1", out: scratch });

const LINSTOR = "etc/xapi.conf.d/99-enable-sm-driver-linstor.conf";
/** What XAPI's host has before weft comes. */
const dom0 = {
  "etc/xapi.conf": "log=x\nsm-plugins=ext nfs\n",
  [LINSTOR]: "sm-plugins=ext nfs linstor",
  "etc/xapi.d/plugins/.keep": "",
  "etc/lvm/lvm.conf": 'devices {\n\tdir = "/dev"\n}\n',
  "run/systemd/system/.keep": "",
};
const UNITS = "weft.service weft-holder.service weft-agent.service weft-guard.service";

type Scope = { readonly equal: (found: unknown, wanted: unknown, message: string) => unknown };

function fine(t: Scope, { exitCode, stdout, stderr }: Outcome, what: string): string {
  t.equal(exitCode, 0, `${what}: ${stdout.slice(-2000)} ${stderr.slice(-2000)}`);
  return stdout;
}

for (const { tree, etcd, version } of [laid, following]) {
  await t.test(
    `package: every bundled program brings its own loader and libraries (${version}: ${etcd})`,
    async (t) => {
      const prefix = join(tree, "opt/weft");
      const libraries = new Set(readdirSync(join(prefix, "lib")));
      const files = readdirSync(tree, { recursive: true, encoding: "utf8" }).filter((path) =>
        lstatSync(join(tree, path)).isFile(),
      );
      const elves = files.filter((path) => isElf(join(tree, path)));
      t.ok(elves.length >= 10, "programs were found");
      for (const path of elves) {
        const elf = await readElf(join(tree, path));
        if (!path.startsWith("opt/weft/")) {
          const newest = Math.max(0, ...elf.symbolVersions.map((text) => Number(text.split(".")[1])));
          t.ok(newest <= GLIBC_NEWEST, `${path} runs on glibc 2.${GLIBC_NEWEST}`);
          continue;
        }
        if (path.endsWith("/ld-linux-x86-64.so.2")) continue;
        t.same(
          elf.needed.filter((name) => !libraries.has(name)),
          [],
          `${path} finds all that it needs`,
        );
        t.equal(elf.runpath, null, `${path} leaves its program's path in force`);
        if (path.startsWith("opt/weft/lib/")) continue;
        // A static program has neither.
        const bound =
          elf.needed.length === 0 ? [null, null] : ["/opt/weft/lib/ld-linux-x86-64.so.2", "/opt/weft/lib"];
        t.same([elf.interpreter, elf.rpath], bound, `${path} is bound to what came with it`);
      }
      const dangling = entriesOf(tree).filter(({ path }) => !existsSync(join(tree, path)));
      t.same(dangling, [], "every link leads to a file of the package");
      const said = readFileSync(join(prefix, "share/BUILD"), "utf8");
      t.match(said, etcd, "the package says which etcd it has");
      const bill = JSON.parse(readFileSync(join(prefix, "share/sbom.cdx.json"), "utf8")) as {
        readonly components: readonly {
          readonly name: string;
          readonly version: string;
          readonly licenses?: unknown;
        }[];
      };
      const names = new Set(bill.components.map(({ name }) => name));
      for (const name of ["fastify", "node", "rustls", "libc6", "xfsprogs", "node-openssl"])
        t.ok(names.has(name), `the bill names ${name}`);
      const texts = new Set(
        readdirSync(join(prefix, "share/licenses")).map((name) => name.replace(/@[^@]*$/, "")),
      );
      for (const name of ["weft", "fastify", "node", "rustls", "libc6", "xfsprogs"])
        t.ok(texts.has(name), `the licence of ${name} came along`);
      t.same(
        bill.components.filter(({ licenses }) => licenses === undefined).map(({ name }) => name),
        [],
        "every component has a licence",
      );
    },
  );
}

await t.test("package: the same sources give the same bytes", async (t) => {
  const again = await base("again");
  finish(again.tree, "xcp-ng");
  const sums = (directory: string): readonly string[] =>
    entriesOf(directory).map(({ path, kind, executable }) => {
      const bytes = kind === "file" ? readFileSync(join(directory, path)) : "";
      const { mtimeMs } = lstatSync(join(directory, path));
      return `${path} ${kind} ${executable} ${mtimeMs} ${createHash("sha256").update(bytes).digest("hex")}`;
    });
  t.same(sums(again.tree), sums(laid.tree));
});

await t.test(
  "package: installed, used, updated under an attached volume, gone back, removed without a trace",
  { skip: isRoot ? false : "root only", timeout: 240_000 },
  async (t) => {
    const root = new BusyboxRoot(dom0);
    const running: ReturnType<BusyboxRoot["start"]>[] = [];
    t.teardown(async () => {
      for (const child of running) child.kill();
      if (root.has("run/weft/etcd.pid")) process.kill(Number(root.read("run/weft/etcd.pid")));
      root.remove();
    });
    root.write("etc/xapi.d/plugins/firewall-port", '#!/bin/sh\necho "firewall-port $*" >>/recorded\n', 0o755);
    const before = root.listing();

    fine(t, await root.rpm("--install", first), "install");
    t.same(root.recorded(), [
      "systemd-tmpfiles --create /usr/lib/tmpfiles.d/weft.conf",
      `systemctl --quiet enable ${UNITS}`,
      "systemctl daemon-reload",
      "systemctl --quiet is-active multipathd.service",
      "multipathd reconfigure",
      "systemctl --quiet try-restart rsyslog.service",
      `systemctl start ${UNITS}`,
    ]);
    for (const drivers of ["opt/xensource/sm", "usr/libexec/sm"]) {
      t.same(
        readdirSync(join(root.path, drivers)),
        ["WeftSR"],
        "XAPI takes each file that ends in SR for a driver",
      );
      t.equal(lstatSync(join(root.path, drivers, "WeftSR")).mode & 0o777, 0o755);
    }
    const plugins = readdirSync(join(root.path, "etc/xapi.d"), { recursive: true, encoding: "utf8" });
    for (const hook of ["pool-join", "pool-eject", "host-post-declare-dead", "xapi-pre-shutdown"])
      t.ok(plugins.includes(`${hook}/50-weft`), `XAPI's hook ${hook}`);
    t.ok(plugins.includes("plugins/weft"), "XAPI's plug-in");
    t.match(root.read("etc/xapi.conf.d/zz-weft.conf"), /^sm-plugins=ext nfs linstor weft$/m);
    t.match(root.read("etc/lvm/lvm.conf"), "weft: volumes of guests");
    fine(t, await root.rpm("--verify", "weft"), "verify");

    const versions: readonly (readonly [words: RegExp, ...command: readonly string[]])[] = [
      [/^0\.1\.0$/, "/usr/bin/weft", "--version"],
      [/^weftd 0\.1\.0$/, "/opt/weft/bin/weftd", "--version"],
      [/Usage: weftd/, "/opt/weft/bin/weftd", "--help"],
      [/^v24\./, "/opt/weft/libexec/node", "--version"],
      [/^etcd Version: 3\./, "/opt/weft/libexec/etcd", "--version"],
      [/^etcdctl version: 3\./, "/opt/weft/libexec/etcdctl", "version"],
      [/^mkfs\.xfs version/, "/opt/weft/libexec/mkfs.xfs", "-V"],
      [/^xfs_repair version/, "/opt/weft/libexec/xfs_repair", "-V"],
    ];
    for (const [words, ...command] of versions)
      t.match(fine(t, await root.run(command), command.join(" ")), words);
    fine(t, await root.run(["truncate", "-s", "512M", "/tmp/disk"]), "a disk");
    // As the agent makes it; xfs_repair then has nothing to say.
    const features = "reflink=1,bigtime=0,inobtcount=0,rmapbt=0";
    fine(
      t,
      await root.run(["/opt/weft/libexec/mkfs.xfs", "-q", "-K", "-m", features, "/tmp/disk"]),
      "mkfs.xfs",
    );
    fine(t, await root.run(["/opt/weft/libexec/xfs_repair", "-n", "/tmp/disk"]), "xfs_repair");
    fine(t, await root.run(["rm", "/tmp/disk"]), "no disk");

    const startDaemon = (): ReturnType<BusyboxRoot["start"]> =>
      root.startWithoutIoUring(["/opt/weft/bin/weftd"]);
    const startAgent = (): ReturnType<BusyboxRoot["start"]> =>
      root.startWithoutIoUring(["/opt/weft/bin/weft-agent"]);
    let [daemon, agent] = [startDaemon(), startAgent()];
    running.push(daemon, agent);
    // Where there is one it is started as its unit does.
    if (root.has("opt/weft/bin/weft-holder"))
      running.push(root.start(["/opt/weft/bin/weft-holder", "--run-dir", "/run/weft"]));
    await until(() => (root.has("run/weft/agent.sock") ? true : null), {
      what: "the agent",
      deadlineMs: 30_000,
    });
    const weft = async (...words: readonly string[]): Promise<string> =>
      fine(t, await root.run(["/usr/bin/weft", ...words]), `weft ${words.join(" ")}`);
    await weft("init", "--name", "h1", "--address", "10.77.0.1", "--pool", "/pool");
    const ports = [7400, 7401, 7402, 7403].map((port) => `firewall-port open ${port} tcp`);
    t.same(root.recorded(), ports, "a member's ports are open");
    await weft("volume", "create", "db", "64MiB");
    await weft("attach", "db");
    t.match(await weft("status"), "HEALTHY");
    await weft("store", "backup", "/tmp/backup");
    const restore = root.has("opt/weft/libexec/etcdutl") ? "etcdutl" : "etcdctl";
    const peer = "https://10.77.0.1:7403";
    const members = ["--initial-cluster", `h1=${peer}`, "--initial-advertise-peer-urls", peer];
    const into = ["--name", "h1", "--data-dir", "/tmp/restored", ...members];
    fine(
      t,
      await root.run([`/opt/weft/libexec/${restore}`, "snapshot", "restore", "/tmp/backup", ...into]),
      restore,
    );
    const etcd = Number(root.read("run/weft/etcd.pid"));
    const alive = (): boolean => [...running.map(({ pid }) => pid ?? 0), etcd].every(isAlive);
    t.ok(alive(), "all of its services run");
    const healthy = async (agentVersion: string): Promise<void> => {
      const status = await until(
        async () => {
          const { stdout } = await root.run(["/usr/bin/weft", "status", "--json"]);
          const said = JSON.parse(stdout) as StatusText;
          const db = said.volumes?.find(({ name }) => name === "db");
          return said.health === "healthy" && db?.owner?.caretaker === false ? said : null;
        },
        { what: "a volume that is attached and healthy", deadlineMs: 60_000 },
      );
      t.match(status, { agent: { version: agentVersion }, daemon: { version: THIS } });
    };

    root.recorded();
    for (const [verb, path, version] of [
      ["--upgrade", second, NEXT],
      ["--oldpackage", first, THIS],
    ] as const) {
      const isNext = version === NEXT;
      // Another package came or went meanwhile.
      root.write(LINSTOR, isNext ? "sm-plugins=ext nfs linstor other" : "sm-plugins=ext nfs linstor");
      const how = verb === "--oldpackage" ? ["--upgrade", "--oldpackage"] : ["--upgrade"];
      fine(t, await root.rpm(...how, path), verb);
      t.same(
        root.recorded(),
        [
          "systemd-tmpfiles --create /usr/lib/tmpfiles.d/weft.conf",
          "systemctl daemon-reload",
          "systemctl try-restart weft-agent.service",
          "systemctl --quiet is-active weft.service",
        ],
        `${verb}: the agent, and nothing else`,
      );
      t.ok(alive(), `${verb}: all of them go on`);
      fine(t, await root.rpm("--verify", "weft"), "verify");
      t.match(await weft("--version"), version);
      t.match(root.read("opt/xensource/sm/WeftSR"), `("driver_version", "${version}")`);
      t.equal(root.has("opt/weft/share/NEWS"), isNext, "a file of one of them");
      t.equal(root.has("usr/lib/sysctl.d/60-weft.conf"), !isNext, "a file of the other one");
      t.equal(root.read("etc/logrotate.d/weft").endsWith("# of another version\n"), isNext);
      t.match(
        root.read("etc/xapi.conf.d/zz-weft.conf"),
        isNext ? /^sm-plugins=ext nfs linstor other weft$/m : /^sm-plugins=ext nfs linstor weft$/m,
      );
      t.match(root.read("opt/weft/share/BUILD"), isNext ? following.etcd : laid.etcd);
      await healthy(isNext ? THIS : NEXT);
      // As systemctl does it, the agent alone: the store and the data path are the ones of before.
      agent.kill();
      await agent;
      agent = startAgent();
      running[1] = agent;
      await healthy(version);
      t.ok(alive(), `${version}: the agent is new, and nothing else`);
      t.match(
        readlinkSync(`/proc/${daemon.pid}/exe`),
        /\/weftd \(deleted\)$/,
        "weftd is still the first one",
      );
      if (isNext) await etcdServes(t, root);
    }
    // Asked for: weftd as it is installed now. It stops in order, so what was attached is nobody's then.
    daemon.kill();
    t.match((await daemon).stderr, "driver=libaio", "a kernel without io_uring is enough");
    daemon = startDaemon();
    running[0] = daemon;
    await until(
      async () => ((await root.run(["/usr/bin/weft", "attach", "db"])).exitCode === 0 ? true : null),
      {
        what: "an attach by the new weftd",
        deadlineMs: 30_000,
      },
    );
    await healthy(THIS);
    t.notMatch(readlinkSync(`/proc/${daemon.pid}/exe`), "deleted");

    const refused = await root.rpm("--erase", "weft");
    t.not(refused.exitCode, 0, "what guests use is not removed");
    t.match(refused.stderr, "volumes are attached on this host");
    t.match(await weft("status"), "HEALTHY");

    await weft("detach", "db");
    for (const child of running) child.kill();
    await Promise.all([daemon, agent]);
    // What the removal does first, here where the processes of the root are seen: etcd outlives its agent. Twice does no harm.
    fine(t, await root.run(["/opt/weft/libexec/weft-scriptlet", "removing"]), "removing");
    await until(() => (isAlive(etcd) ? null : true), { what: "the end of etcd", deadlineMs: 10_000 });
    root.recorded();
    fine(t, await root.rpm("--erase", "weft"), "erase");
    const asked = root.recorded();
    t.same(asked.slice(0, 2), [
      "systemctl stop weft-agent.service",
      "systemctl stop weft-holder.service weft.service",
    ]);
    t.ok(asked.includes(`systemctl --quiet disable ${UNITS}`));
    t.ok(asked.includes("firewall-port close 7400 tcp"));
    t.ok(root.has("var/lib/weft/host.json"), "what a member has of its cluster stays");
    for (const own of ["var/lib/weft", "pool", "tmp/backup", "tmp/restored"])
      rmSync(join(root.path, own), { recursive: true });
    t.same(
      root.listing().filter((line) => !before.includes(line)),
      [],
      "nothing is left",
    );
    t.same(
      before.filter((line) => !root.listing().includes(line)),
      [],
      "nothing is missing",
    );
  },
);

await t.test(
  "package: the .deb has the same weft, for hosts with libvirt",
  { skip: isRoot ? false : "root only" },
  async (t) => {
    const options = { ...laid, tree: finish(forKvm, "kvm"), release: "1", out: scratch };
    const path = await packDeb({ ...quick, ...options });
    const root = new BusyboxRoot({
      "var/lib/dpkg/status": "",
      "var/lib/dpkg/info/format": "1\n",
      "var/lib/dpkg/updates/.keep": "",
    });
    t.teardown(() => root.remove());
    const before = root.listing();
    fine(t, await root.dpkg("--install", path), "install");
    t.same(root.recorded(), [`systemctl --quiet enable ${UNITS}`]);
    t.match(fine(t, await root.run(["/usr/bin/weft", "--version"]), "weft"), /^0\.1\.0$/);
    t.notOk(root.has("opt/xensource"), "no door of XAPI's");
    fine(t, await root.dpkg("--purge", "weft"), "purge");
    t.same(
      root.listing().filter((line) => !before.includes(line)),
      [],
      "nothing is left",
    );
  },
);

await t.test("package: it can be signed", { skip: isRoot ? false : "root only" }, async (t) => {
  const home = join(scratch, "gpg");
  const env = { GNUPGHOME: home };
  await execa("mkdir", ["-m", "700", home]);
  const key = [
    "--batch",
    "--passphrase",
    "",
    "--quick-generate-key",
    "weft-test",
    "rsa2048",
    "sign",
    "never",
  ];
  await execa("gpg", key, { env });
  const before = process.env["GNUPGHOME"];
  process.env["GNUPGHOME"] = home;
  t.teardown(() => {
    if (before === undefined) delete process.env["GNUPGHOME"];
    else process.env["GNUPGHOME"] = before;
  });
  await signRpm(second, "weft-test");
  await execa("gpgconf", ["--kill", "all"], { env });
  const exported = join(scratch, "key.asc");
  await execa("gpg", ["--batch", "--armor", "--output", exported, "--export", "weft-test"], { env });
  const database = ["--dbpath", join(scratch, "keys")];
  const { exitCode, stdout } = await execa("rpmkeys", [...database, "--checksig", second], { reject: false });
  t.not(exitCode, 0, `nobody's key yet: ${stdout}`);
  await execa("rpmkeys", [...database, "--import", exported]);
  t.match((await execa("rpmkeys", [...database, "--checksig", second])).stdout, /digests signatures OK$/);
});

type StatusText = {
  readonly health?: string;
  readonly volumes?: readonly {
    readonly name: string;
    readonly owner: { readonly caretaker: boolean } | null;
  }[];
};

/** The package's etcd by itself: a store of one member, written, read, saved and restored. */
async function etcdServes(
  t: Scope & { match: (found: string, wanted: RegExp, message: string) => unknown },
  root: BusyboxRoot,
): Promise<void> {
  const [client, peer] = ["http://10.77.0.1:7492", "http://10.77.0.1:7493"];
  const urls = [
    ["--listen-client-urls", client, "--advertise-client-urls", client],
    [
      "--listen-peer-urls",
      peer,
      "--initial-advertise-peer-urls",
      peer,
      "--initial-cluster",
      `default=${peer}`,
    ],
  ].flat();
  const store = root.start(["/opt/weft/libexec/etcd", "--data-dir", "/tmp/store", ...urls]);
  const ctl = (...words: readonly string[]): Promise<Outcome> =>
    root.run(["/opt/weft/libexec/etcdctl", "--endpoints", client, ...words]);
  await until(async () => ((await ctl("put", "a", "b")).exitCode === 0 ? true : null), {
    what: "a store that takes a key",
    deadlineMs: 30_000,
  });
  t.match(fine(t, await ctl("get", "a"), "get"), /^a\nb$/, "what was written is read");
  fine(t, await ctl("snapshot", "save", "/tmp/saved"), "save");
  fine(t, await ctl("snapshot", "restore", "/tmp/saved", "--data-dir", "/tmp/again"), "restore");
  store.kill();
  await store;
  for (const own of ["tmp/store", "tmp/saved", "tmp/again"])
    rmSync(join(root.path, own), { recursive: true });
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
