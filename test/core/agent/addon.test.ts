/** Plot: the addon does what Node can't, and the unix socket believes the kernel alone about who is at its other end. */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import t from "tap";

import { nativeBin } from "../../../scripts/lib/repository.ts";
import { defaultAddon, descriptorOf, loadAddon } from "../../../src/core/wire/addon.ts";
import { boundConnections, listenLocal } from "../../../src/core/agent/local-socket.ts";
import { openLog } from "../../../src/core/agent/log.ts";
import { principalKey } from "../../../src/core/model/roles.ts";
import { UnixPrincipals } from "../../../src/core/agent/principal.ts";
import { createApp } from "../../../src/core/agent/rest.ts";

const path = join(nativeBin(), "libweft_node.so");
const addon = loadAddon(path);
const own = process.getuid?.() ?? 0;

type Scope = { readonly teardown: (fn: () => void) => void };

function scratch(t: Scope): string {
  const directory = mkdtempSync(join(tmpdir(), "weft-addon-"));
  t.teardown(() => rmSync(directory, { recursive: true }));
  return directory;
}

/** Both ends of one connection. */
async function pair(t: Scope): Promise<readonly [near: Socket, far: Socket]> {
  const server = createServer();
  const at = join(scratch(t), "socket");
  await new Promise<void>((resolve) => server.listen(at, resolve));
  const near = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const far = connect(at);
  t.teardown(() => {
    far.destroy();
    server.close();
  });
  return [await near, far];
}

void t.test("addon: names the process at the other end of a unix socket", async (t) => {
  const [near] = await pair(t);
  const fd = descriptorOf(near);
  if (fd === null) throw new Error("Node shows no descriptor of a connected socket");
  t.strictSame({ ...addon.peerCredentials(fd) }, { pid: process.pid, uid: own, gid: process.getgid?.() });
  const closed = new Promise((resolve) => near.once("close", resolve));
  near.destroy();
  await closed;
  t.equal(descriptorOf(near), null);
  t.throws(() => addon.peerCredentials(-1), /peer credentials/);
  t.throws(() => addon.peerCredentials(1_000_000), /peer credentials/);
});

void t.test("addon: a process of another PID namespace has no number, and its user is known", async (t) => {
  const at = join(scratch(t), "socket");
  const program = `
    const { exports } = (process.dlopen(globalThis.it = { exports: {} }, ${JSON.stringify(path)}), globalThis.it);
    require("node:net").createServer((socket) => {
      console.log(JSON.stringify(exports.peerCredentials(socket._handle.fd)));
      process.exit(0);
    }).listen(${JSON.stringify(at)}, () => console.log("listening"));`;
  const mapped = own === 0 ? [] : ["--user", "--map-root-user"];
  const words = [...mapped, "--pid", "--fork", "--kill-child", process.execPath, "-e", program];
  const child = spawn("unshare", words, { stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said += text;
    if (said === "listening\n") connect(at).on("error", () => undefined);
  });
  await new Promise((resolve) => child.once("close", resolve));
  const uid = own === 0 ? own : 0;
  t.match(JSON.parse(said.split("\n")[1] ?? "null"), { pid: 0, uid });
});

void t.test("addon: a datagram arrives, or is an error at once", async (t) => {
  const at = join(scratch(t), "log");
  t.throws(() => addon.sendDatagram(at, Buffer.from("x")), /datagram/, "nobody listens");
  t.throws(() => addon.sendDatagram("/".repeat(200), Buffer.from("x")), /datagram/, "no path of a socket");
  // Node can't listen for them; Perl is a part of every Debian.
  const script = `
    use Socket; socket(my $s, PF_UNIX, SOCK_DGRAM, 0); bind($s, sockaddr_un($ARGV[0])) or die;
    $| = 1; print "ready\\n"; recv($s, my $b, 4096, 0); print $b`;
  const listener = spawn("perl", ["-e", script, at]);
  t.teardown(() => listener.kill());
  const said: string[] = [];
  listener.stdout.setEncoding("utf8");
  await new Promise<void>((resolve) => listener.stdout.once("data", () => resolve()));
  listener.stdout.on("data", (text: string) => said.push(text));
  const ended = new Promise((resolve) => listener.once("close", resolve));
  addon.sendDatagram(at, Buffer.from("<85>weft: line"));
  await ended;
  t.equal(said.join(""), "<85>weft: line");
});

void t.test(
  "addon: after protect() the kernel writes no core dump of the process or its children",
  async (t) => {
    const script = `
    const loaded = { exports: {} };
    process.dlopen(loaded, ${JSON.stringify(path)});
    const before = loaded.exports.isDumpable();
    loaded.exports.protect();
    const limit = (pid) => /Max core file size *(\\S+) *(\\S+)/
      .exec(require("node:fs").readFileSync("/proc/" + pid + "/limits", "utf8")).slice(1).join();
    const child = require("node:child_process").execFileSync("cat", ["/proc/self/limits"], { encoding: "utf8" });
    console.log(JSON.stringify({ before, after: loaded.exports.isDumpable(), own: limit("self"),
      child: /Max core file size *(\\S+) *(\\S+)/.exec(child).slice(1).join() }));`;
    const shown = execFileSync(process.execPath, ["-e", script], { encoding: "utf8" });
    t.strictSame(JSON.parse(shown), { before: true, after: false, own: "0,0", child: "0,0" });
  },
);

void t.test("addon: one that is missing or none is said so", async (t) => {
  t.throws(() => loadAddon("/nowhere/libweft_node.so"), { code: "E-AGENT-07", message: /nowhere/ });
  t.throws(() => loadAddon(process.execPath), { code: "E-AGENT-07" });
  t.equal(defaultAddon({ WEFT_NODE: "/a.so" }), "/a.so");
  t.match(defaultAddon({}), /libweft_node\.so$/);
  const main = join(import.meta.dirname, "../../../src/resident/main.ts");
  const { status, stderr } = spawnSync(process.execPath, [main, "--addon", "/nowhere/x.so"], {
    encoding: "utf8",
  });
  t.equal(status, 1);
  t.match(stderr, /^E-AGENT-07 .*\/nowhere\/x\.so/);
});

void t.test(
  "unix socket: root and the agent's own user are root, a named group reads, others are nobody",
  async (t) => {
    const [near] = await pair(t);
    const asked = (uid: number, viewers: boolean) =>
      new UnixPrincipals({ peerCredentials: () => ({ pid: 7, uid, gid: 50 }) }, 1000, viewers).of(near);
    t.strictSame(asked(0, false), { kind: "root", uid: 0, pid: 7 });
    t.strictSame(asked(1000, false), { kind: "root", uid: 1000, pid: 7 });
    t.strictSame(asked(1001, true), { kind: "group", uid: 1001, pid: 7 });
    t.strictSame(asked(1001, false), { kind: "nobody", address: "unix uid 1001" });
    const silent = new UnixPrincipals(
      {
        peerCredentials: () => {
          throw new Error("peer credentials: not a socket");
        },
      },
      0,
      true,
    );
    t.strictSame(silent.of(near), { kind: "nobody", address: "unix" });
    const [gone] = await pair(t);
    gone.destroy();
    t.strictSame(new UnixPrincipals(addon, 0, true).of(gone), { kind: "nobody", address: "unix" });
  },
);

void t.test("unix socket: its file is its owner's, and a group's that was named", async (t) => {
  const open = async (group: string | null): Promise<string> => {
    const app = createApp({
      agent: {} as never,
      log: openLog("silent"),
      names: [],
      principalOf: () => ({ kind: "root", uid: 0, pid: 1 }),
    });
    t.teardown(() => app.close());
    const directory = scratch(t);
    await listenLocal(app, directory, group);
    return join(directory, "agent.sock");
  };
  t.equal(statSync(await open(null)).mode & 0o777, 0o600);
  const gid = process.getgid?.() ?? 0;
  const named = statSync(await open(String(gid)));
  t.equal(named.mode & 0o777, 0o660);
  t.equal(named.gid, gid);
  await t.rejects(open("no-such-group"), { code: "E-ARG-02", message: /"no-such-group" is not a group/ });
});

void t.test(
  "unix socket: users who aren't root have a share of its places, and leave some for root",
  async (t) => {
    const server = createServer();
    let uid = 2000;
    const principals = new UnixPrincipals({ peerCredentials: () => ({ pid: 7, uid, gid: 50 }) }, 0, true);
    const refused: string[] = [];
    boundConnections(server, principals, (principal) => refused.push(principalKey(principal)));
    const at = join(scratch(t), "socket");
    await new Promise<void>((resolve) => server.listen(at, resolve));
    const open: Socket[] = [];
    t.teardown(() => {
      for (const socket of open) socket.destroy();
      server.close();
    });
    /** Whether the next one is still there after the server has seen it. */
    const admitted = async (as: number): Promise<boolean> => {
      uid = as;
      const seen = new Promise<Socket>((resolve) => server.once("connection", resolve));
      const socket = connect(at);
      open.push(socket);
      return !(await seen).destroyed;
    };
    for (let n = 0; n < 32; n += 1) t.ok(await admitted(2000));
    t.notOk(await admitted(2000), "one user's share");
    for (let n = 0; n < 64; n += 1) t.ok(await admitted(2001 + (n % 2)));
    t.notOk(await admitted(2003), "all users' share");
    t.same(
      refused,
      [2000, 2003].map((uid) => principalKey({ kind: "group", uid, pid: 7 })),
      "for the audit",
    );
    t.ok(await admitted(0), "root has places left");
    const [first] = open;
    const closed = new Promise((resolve) => server.getConnections((_, before) => resolve(before)));
    t.equal(await closed, 97);
    const gone = new Promise<void>((resolve) => {
      const look = (): void => {
        server.getConnections((_, count) => {
          if (count < 97) resolve();
          else setImmediate(look);
        });
      };
      look();
    });
    first?.destroy();
    await gone;
    t.ok(await admitted(2000), "a place that was given back");
  },
);
