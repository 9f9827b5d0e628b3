/**
 * Plot: the system of a host is installed anew: its state directory is gone, its pool's disk is not. With the bundle on that
 * disk, and a key that a member gives it, it is the same host, and its copy is in sync again without being made anew.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { Cluster } from "../../scripts/cluster/cluster.ts";
import { until } from "../../scripts/lib/until.ts";
import { attachAnswer, type ReplicaAnswer } from "../../src/core/wire/agent-api.ts";
import { parseBundle } from "../../src/core/wire/bundle.ts";
import { LoopDevice } from "../core/agent/loop-device.ts";

const isRoot = process.getuid?.() === 0;

await t.test(
  "host: installed anew it is again who it was, with the copy on its disk",
  { skip: isRoot ? false : "only root has loop devices" },
  async (t) => {
    const disk = await LoopDevice.make(t, 1 << 30);
    const dir = mkdtempSync(join(tmpdir(), "weft-scenario-"));
    t.teardown(async () => {
      await Cluster.down(dir);
      rmSync(dir, { recursive: true, force: true });
    });
    const { hosts } = await Cluster.up({ dir, hosts: 2, pools: ["h1"] });
    const [h1, h2] = hosts;
    if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
    await h2.output(["weft", "pool", "add", disk.path]);
    const before = await h2.agent().cluster();
    await h1.output(["weft", "volume", "create", "v", "64MiB", "--copies", "2"]);
    const copy = async (): Promise<ReplicaAnswer | undefined> =>
      (await h1.agent().volume("v")).replicas.find(({ hostName }) => hostName === "h2");
    const inSync = (what: string): Promise<ReplicaAnswer> =>
      until(
        async () => {
          const found = await copy();
          return found?.state === "INSYNC" && found.alive ? found : null;
        },
        { what, deadlineMs: 30_000 },
      );
    const was = await inSync("its copy");
    const { path, volume } = attachAnswer.parse(await h1.json(["weft", "attach", "v", "--json"]));
    const io = (command: string): Promise<string> =>
      h1.output(["qemu-io", "-f", "raw", "-c", command, `nbd+unix:///${volume}?socket=${path}`]);
    await io("write -P 0x5a 1M 1M");
    await until(
      async () => {
        const { stdout } = await (
          await h2.exec(["sh", "-c", `cat ${h2.stateDir}/pools/*/identity.sealed || true`])
        ).result;
        return stdout.includes('"format":1') ? stdout : null;
      },
      { what: "the bundle on its disk", deadlineMs: 30_000 },
    );

    await h2.kill();
    rmSync(h2.stateDir, { recursive: true });
    await h2.start();
    t.equal((await h2.agent().status()).kind, "no-cluster");
    const [text = ""] = (await h2.agent().bundles()).bundles;
    const bundle = parseBundle(text);
    if (bundle === null) throw new Error("a bundle");
    t.equal(bundle.host, before.host);
    const { cluster, host, kid } = bundle;
    const request = await h2.agent().requestAdmission({ name: "h2", address: h2.layout.address });
    const order = {
      bundle: { cluster, host, kid },
      request,
      addresses: [h2.layout.address],
      vouchedBy: "a test",
    };
    await t.rejects(h1.agent().unseal({ ...order, addresses: ["10.0.0.1"] }), { code: "E-SETUP-17" });
    const key = await until(
      async () =>
        h1
          .agent()
          .unseal(order)
          .catch(() => null),
      {
        what: "the old one's lease to end",
        deadlineMs: 30_000,
      },
    );
    await h2.agent().reclaim({ bundle: text, key });
    t.equal((await h2.agent().cluster()).host, before.host);
    await io("write -P 0xa5 2M 1M");
    const now = await inSync("its copy again");
    t.equal(now.rid, was.rid, "the same copy, not one that was made anew");
    t.equal(now.pool, was.pool);
    t.match(await io("read -P 0x5a 1M 1M"), /read 1048576/);
    await h1.output(["weft", "detach", "v"]);
    await h2.kill();
    await h1.kill();
  },
);
