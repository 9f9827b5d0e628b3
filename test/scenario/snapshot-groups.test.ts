/**
 * Plot: a database writes into its log what it is about to do, then does it. Snapshots of both are of one moment: the log is never
 * behind, however often they are taken, and guests of two hosts are not held.
 */
import t from "tap";

import type { Host } from "../../scripts/cluster/host.ts";
import { within } from "../../scripts/lib/until.ts";
import { Disk } from "./nbd.ts";
import { MIB, onStage } from "./stage.ts";

const isRoot = process.getuid?.() === 0;
const BLOCK = 4096;

async function said(host: Host, ...words: readonly string[]): Promise<string> {
  const { result } = await host.exec(["weft", ...words]);
  const { exitCode, stdout, stderr } = await within(result, { what: words.join(" "), deadlineMs: 60_000 });
  return `${exitCode} ${stdout}${stderr}`;
}

async function attached(host: Host, volume: string): Promise<Disk> {
  const { path } = await host.agent().attach(volume);
  return Disk.open(path);
}

/** The number that the first block has, as the snapshot has it. */
async function numberIn(host: Host, snapshot: string): Promise<number> {
  const { path } = await host.agent().attachSnapshot(snapshot);
  using disk = await Disk.open(path);
  const number = (await disk.read(0, BLOCK)).readUInt32BE(0);
  await host.agent().detachSnapshot(snapshot);
  return number;
}

await t.test(
  "volume: snapshots of several are of one moment, all or none (D19)",
  { skip: isRoot ? false : "only root can mount file systems for pools" },
  async (t) => {
    await onStage(
      async ({ h1, h2, h3, socket }) => {
        for (const name of ["db", "unused", "elsewhere"])
          await h1.agent().createVolume({ name, size: 64n << 20n, copies: 2 });
        using log = await Disk.open(socket);
        using db = await attached(h3, "db");
        let last = 0;
        const stopped = new AbortController();
        const work = (async () => {
          const block = Buffer.alloc(BLOCK);
          while (!stopped.signal.aborted) {
            last += 1;
            block.writeUInt32BE(last, 0);
            await log.write(0, block);
            await db.write(0, block);
          }
        })();
        try {
          // Asked of any host: the one that has the guests does it.
          for (const [i, host] of [h1, h2, h3].entries()) {
            const before = last;
            const taken = await host.agent().createGroup({ volumes: ["v", "db"], name: `n${i}` });
            t.match(taken.snapshots, [
              { volumeName: "v", copies: 2 },
              { volumeName: "db", copies: 2 },
            ]);
            const [inLog, inDb] = [await numberIn(h2, `v@n${i}`), await numberIn(h2, `db@n${i}`)];
            t.ok(
              inLog === inDb || inLog === inDb + 1,
              `of one moment: ${inLog} is in the log, ${inDb} in the database`,
            );
            t.ok(inDb + 1 >= before, "and of a later one than the question");
          }
        } finally {
          stopped.abort();
          await within(work, { what: "the database", deadlineMs: 30_000 });
        }
        t.ok(last > 2, `${last} times`);

        // One that nobody uses is taken with them, and nobody uses it then.
        t.match(
          await said(h2, "snapshot", "create", "--group", "v,unused", "with"),
          /^0 Snapshots "with" of v unused taken at \S+ UTC, at one moment.*\.\n {2}v@with {2}2\/2 h1 h2\n {2}unused@with {2}2\/2/,
        );
        t.match(
          await h1.output(["weft", "snapshot", "show", "unused@with"]),
          /^Group: +v unused, at one moment/m,
        );
        await h1.agent().attach("unused");

        using elsewhere = await attached(h1, "elsewhere");
        await elsewhere.write(0, Buffer.alloc(BLOCK, 1));
        t.match(
          await said(h2, "snapshot", "create", "--group", "v,db,elsewhere", "no"),
          /^1 E-SNAP-14 .*"v", "db" on h3; "elsewhere" on h1/,
        );
        await t.rejects(h2.agent().createGroup({ volumes: ["v", "db"], name: "n0" }), { code: "E-SNAP-02" });
        const names = (await h1.agent().snapshots()).map(({ name }) => name);
        t.notOk(names.includes("no"), "none of them was taken");

        // Each goes by itself.
        await h1.agent().deleteSnapshot("db@n0");
        t.ok((await numberIn(h1, "v@n0")) > 0);
      },
      { xfsBytes: 2048 * MIB },
    );
  },
);
