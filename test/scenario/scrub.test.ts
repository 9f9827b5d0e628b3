/**
 * Plot: a disk loses what it holds, in silence and below weftd, under a guest that writes and on a volume that nobody
 * uses. Comparing the copies finds each block, repairs it from the other copy, counts it where it was and says so once;
 * a guest never reads what rotted (D7, I23).
 */
import { readdirSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";

import t from "tap";

import type { Host } from "../../scripts/cluster/host.ts";
import { until, within } from "../../scripts/lib/until.ts";
import { attachAnswer } from "../../src/core/wire/agent-api.ts";
import { MIB, onStage, startLoad } from "./stage.ts";

const BLOCK = 4096;

/** Turns a bit in each of these blocks of the volume's first segment on this host. */
async function rot(host: Host, blocks: readonly number[]): Promise<void> {
  const replicas = join(host.poolDir, "replicas");
  const [replica = ""] = readdirSync(replicas);
  const file = await open(join(replicas, replica, "seg-000000"), "r+");
  try {
    for (const block of blocks) {
      const byte = Buffer.alloc(1);
      await file.read(byte, 0, 1, block * BLOCK + 100);
      await file.write(Buffer.of((byte[0] ?? 0) ^ 0x10), 0, 1, block * BLOCK + 100);
    }
    await file.sync();
  } finally {
    await file.close();
  }
}

async function scrubbed(host: Host): Promise<string> {
  const { result } = await host.exec(["weft", "scrub", "v", "--rate", "1GiB/s", "--wait"]);
  const { exitCode, stdout, stderr } = await within(result, { what: "the scrub", deadlineMs: 120_000 });
  return `${exitCode} ${stdout}${exitCode === 0 ? "" : stderr}`;
}

await t.test(
  "volume: scrub: what rotted is found, repaired and counted, with a guest or without",
  async (t) => {
    await onStage(async ({ h1, h2, h3, socket }) => {
      const half = { offset: 0, size: 16 * MIB, rate: null, socket, kind: "write-and-verify" } as const;
      const load = await startLoad(h3, { ...half, name: "load" });
      t.equal((await within(load.end, { what: "the load", deadlineMs: 60_000 })).exitCode, 0);
      const sum = `nbdcopy 'nbd+unix:///?socket=${socket}' - | head -c ${half.size} | sha256sum`;
      const before = await h3.output(["sh", "-c", sum]);
      await h3.output(["weft", "detach", "v"]);

      await rot(h2, [0, 7, 4000]);
      const first = await scrubbed(h1);
      t.match(
        first,
        /^0 "v": \d+ MiB compared on h1 h2, 3 blocks rotten on h2 \(pool [0-9a-f]{8}\), all repaired\. 0 differ\.$/,
      );
      t.match(await scrubbed(h3), /^0 "v": \d+ MiB compared on h1 h2, none rotten\. 0 differ\.$/);
      t.match(await h1.output(["weft", "volume", "show", "v"]), /^Scrub: .*none rotten/m);
      await until(
        async () =>
          (await h3.output(["weft", "pool", "list"])).match(/ 3 {2}serving +(yes|no)/) ? true : null,
        {
          what: "the blocks counted at their pool",
          deadlineMs: 30_000,
        },
      );
      t.match(
        await h1.output(["weft", "status"]),
        /E-DISK-11 {2}3 blocks of the pool .* on h2 had rotted, all repaired\./,
      );

      const again = attachAnswer.parse(await h3.json(["weft", "attach", "v", "--json"]));
      const rest = { ...half, offset: 32 * MIB, size: 32 * MIB, socket: again.path } as const;
      await rot(h1, [100, 101]);
      const busy = await startLoad(h3, { ...rest, rate: 4 * MIB, name: "busy" });
      t.match(await scrubbed(h2), /2 blocks rotten on h1 \(pool [0-9a-f]{8}\), all repaired\. 0 differ\.$/);
      t.equal((await within(busy.end, { what: "the guest", deadlineMs: 120_000 })).exitCode, 0);
      t.equal(await h3.output(["sh", "-c", sum.replace(socket, again.path)]), before);
    });
  },
);
