/**
 * The hosts that demo, tests and benchmarks run on: real namespaces with a small service in place of weft.
 *
 * Needs root, as everything that makes namespaces does; without it the same plots run on loopback addresses, links aside.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import t from "tap";

import { Cluster } from "../../scripts/cluster/cluster.ts";
import type { Host, Services } from "../../scripts/cluster/host.ts";
import { Network } from "../../scripts/cluster/network.ts";
import { identify, isAlive, statOf } from "../../scripts/cluster/processes.ts";
import { until, within } from "../../scripts/lib/until.ts";

const isRoot = process.getuid?.() === 0;
const socketOf = (host: Host): string => join(host.layout.runDir, "sock");

/** Answers every TCP connection with its host's name, and leaves a detached grandchild as the agent leaves etcd. */
const greeter = `
  import { spawn } from "node:child_process";
  import { writeFileSync } from "node:fs";
  import { createServer } from "node:net";
  const [name, address, ready, state] = process.argv.slice(1);
  const child = ["-e", "setInterval(() => {}, 1e6)", "--", "--data-dir=" + state + "/etcd"];
  spawn(process.execPath, child, { detached: true, stdio: "ignore", env: {} }).unref();
  createServer((socket) => socket.on("error", () => {}).end(name)).listen(7400, address, () => writeFileSync(ready, ""));
`;

const services: Services = {
  commands: (host) => ({
    greeter: [
      process.execPath,
      "--input-type=module",
      "-e",
      greeter,
      host.name,
      host.layout.address,
      socketOf(host),
      host.stateDir,
    ],
  }),
  ready: async (host) => Promise.resolve(existsSync(socketOf(host))),
};

const caller = `
  import { connect } from "node:net";
  const [address, ms] = process.argv.slice(1);
  setTimeout(() => { console.log("silence"); process.exit(); }, Number(ms));
  connect(7400, address).on("data", (name) => { console.log(String(name)); process.exit(); })
    .on("error", (error) => { console.log(error.code); process.exit(); });
`;

async function call(from: Host, to: Host, ms: number): Promise<string> {
  const command = [process.execPath, "--input-type=module", "-e", caller, to.layout.address, String(ms)];
  return (await from.output(command)).trim();
}

async function withCluster(plot: (cluster: Cluster) => Promise<void>): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), "weft-cluster-"));
  try {
    const cluster = await Cluster.create({ dir, hosts: 2, pools: ["h1"], services });
    await Promise.all(cluster.hosts.map((host) => host.start()));
    await plot(cluster);
  } finally {
    await Cluster.down(dir);
    t.notOk(existsSync(dir), "down leaves nothing, not even the directory");
  }
}

await t.test("cluster: hosts reach each other by their own addresses", async (t) => {
  await withCluster(async (cluster) => {
    const [h1, h2] = [cluster.host("h1"), cluster.host("h2")];
    t.equal(await call(h2, h1, 5000), "h1");
    t.equal(await call(h1, h2, 5000), "h2");
    if (isRoot) t.equal(await h2.output(["hostname"]), "h2");
    t.match(await h2.output(["sh", "-c", "echo $WEFT_RUN_DIR"]), h2.layout.runDir);
  });
});

await t.test(
  "cluster: a killed host leaves no process behind, and boots again with another boot id",
  async (t) => {
    await withCluster(async (cluster) => {
      const h2 = cluster.host("h2");
      const before = (await h2.pids()).map((pid) => identify(pid)).filter((id) => id !== null);
      t.ok(before.length >= 4, "init, greeter, its detached child and the waiting child");
      await h2.kill();
      t.strictSame(before.filter(isAlive), []);
      t.equal(await call(cluster.host("h1"), h2, 5000), "ECONNREFUSED");
      await h2.start();
      t.equal(await call(cluster.host("h1"), h2, 5000), "h2");
    });
  },
);

await t.test("cluster: a stopped host is silent, and goes on afterwards", async (t) => {
  await withCluster(async (cluster) => {
    const [h1, h2] = [cluster.host("h1"), cluster.host("h2")];
    await h2.stop();
    t.ok((await h2.pids()).every((pid) => statOf(pid)?.state === "T"));
    t.equal(await call(h1, h2, 300), "silence");
    await h2.cont();
    t.equal(await call(h1, h2, 5000), "h2");
  });
});

await t.test(
  "cluster: a command that is halted halts nobody else, who would then miss its end",
  async (t) => {
    await withCluster(async (cluster) => {
      const h2 = cluster.host("h2");
      const pipe = join(h2.layout.dir, "pipe");
      await h2.output(["mkfifo", pipe]);
      const { result } = await h2.exec(["cat", pipe]);
      await until(() => h2.running("cat"), { what: "the command", deadlineMs: 10_000 });
      await h2.signal("cat", "SIGSTOP");
      t.equal(await call(cluster.host("h1"), h2, 5000), "h2", "its host goes on");
      await h2.signal("cat", "SIGCONT");
      await h2.output(["sh", "-c", `echo told >"${pipe}"`]);
      const end = await within(result, { what: "the command's end", deadlineMs: 20_000 });
      t.match(end, { exitCode: 0, stdout: "told" });
    });
  },
);

if (isRoot) {
  await t.test("cluster: a cut link drops packets both ways until it is healed", async (t) => {
    await withCluster(async (cluster) => {
      const [h1, h2] = [cluster.host("h1"), cluster.host("h2")];
      await cluster.cut("h1", "h2");
      t.equal(await call(h1, h2, 300), "silence");
      t.equal(await call(h2, h1, 300), "silence");
      await cluster.heal("h2", "h1");
      t.equal(await call(h1, h2, 5000), "h2");
    });
  });
}

if (isRoot) {
  await t.test(
    "cluster: a host that is deaf, slow, lossy or unplugged is as before when it is cleared",
    async (t) => {
      await withCluster(async (cluster) => {
        const [h1, h2] = [cluster.host("h1"), cluster.host("h2")];
        await cluster.deafen("h2", "h1");
        t.equal(await call(h1, h2, 300), "silence");
        await cluster.clear("h2");
        await cluster.slow("h2", "1mbit");
        t.match(await h2.output(["tc", "qdisc", "show", "dev", "eth0"]), /tbf .*rate 1Mbit/);
        t.equal(await call(h1, h2, 5000), "h2", "it is slow, no more");
        await cluster.lose("h2", 1);
        t.equal(await call(h2, h1, 300), "silence");
        await cluster.clear("h2");
        t.notMatch(await h2.output(["tc", "qdisc", "show", "dev", "eth0"]), /tbf/);
        t.notMatch(await h2.output(["iptables", "-S"]), /DROP/);
        t.equal(await call(h2, h1, 5000), "h1");
        await cluster.unplug("h2");
        t.equal(await call(h1, h2, 300), "silence");
        await cluster.clear("h2");
        t.equal(await call(h1, h2, 5000), "h2");
      });
    },
  );
}

await t.test("cluster: a service that died is started again in its host, which does not boot", async (t) => {
  const waiter: Services = {
    commands: () => ({ waiter: ["tail", "-f", "/dev/null"] }),
    ready: async (host) => (await host.running("tail")) !== null,
  };
  const dir = mkdtempSync(join(tmpdir(), "weft-cluster-"));
  try {
    const cluster = await Cluster.create({ dir, hosts: 1, pools: [], services: waiter });
    const h1 = cluster.host("h1");
    await h1.start();
    const boot = readFileSync(h1.bootIdFile, "utf8");
    const first = await h1.running("tail");
    await h1.signal("tail", "SIGKILL");
    const gone = { what: "the end of the service", deadlineMs: 10_000 };
    await until(async () => ((await h1.running("tail")) === null ? true : null), gone);
    await h1.restart("waiter");
    const second = await until(() => h1.running("tail"), { what: "the service", deadlineMs: 10_000 });
    t.not(second, first);
    t.equal(readFileSync(h1.bootIdFile, "utf8"), boot);
    await t.rejects(h1.restart("no-such"), /has no service "no-such"/);
  } finally {
    await Cluster.down(dir);
  }
});

await t.test("cluster: down ends a cluster of which only the directory's name is known", async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "weft-cluster-"));
  const cluster = await Cluster.create({ dir, hosts: 2, pools: [], services });
  await cluster.host("h1").start();
  const pids = (await cluster.host("h1").pids()).map((pid) => identify(pid)).filter((id) => id !== null);
  if (isRoot) rmSync(join(dir, "cluster.json"));
  await Cluster.down(dir);
  t.strictSame(pids.filter(isAlive), []);
  if (isRoot) t.strictSame(new Network(cluster.key).members(), []);
  rmSync(dir, { recursive: true, force: true });
});

await t.test("until: a deadline names what was waited for and the last reason", async (t) => {
  const question = (): never => {
    throw new Error("refused");
  };
  await t.rejects(until(question, { what: "h2", deadlineMs: 20, everyMs: 5 }), {
    message: "waited 0.02 s for h2: refused",
  });
});

await t.test("cluster: a pool is an XFS of its own, as long as its host", { skip: !isRoot }, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "weft-xfs-"));
  const mounted = (): boolean => readFileSync("/proc/self/mounts", "utf8").includes(dir);
  const loops = async (): Promise<string> =>
    (await execa("losetup", ["--list", "--output", "BACK-FILE"])).stdout;
  try {
    const cluster = await Cluster.create({ dir, hosts: 2, pools: ["h1"], xfsBytes: 400 << 20, services });
    const [h1, h2] = [cluster.host("h1"), cluster.host("h2")];
    await Promise.all([h1.start(), h2.start()]);
    const inPool = (command: string): Promise<string> =>
      h1.output(["sh", "-c", `cd ${h1.poolDir} && ${command}`]);
    t.match(await inPool("stat -f -c %T ."), "xfs");
    await inPool("echo data >a && cp --reflink=always a b");
    t.notOk(mounted(), "it is the host's alone");
    await h1.kill();
    await h1.start();
    t.equal(await inPool("cat b"), "data");
    t.notMatch(await h2.output(["cat", "/proc/mounts"]), h1.poolDir);
    await cluster.down();
    t.equal(
      await until(async () => ((await loops()).includes(dir) ? null : "none"), {
        what: "the devices gone",
        deadlineMs: 20_000,
      }),
      "none",
    );
  } finally {
    await Cluster.down(dir);
    rmSync(dir, { recursive: true, force: true });
  }
});
