/**
 * Plot: a guest's volume is kept as it is while the guest writes, read as it was on hosts with and without a copy, and given
 * up again; a copy that was away, a volume that nobody uses and a pool that can't have snapshots all say what they are.
 */
import { readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";

import t, { type Test } from "tap";
import { z } from "zod";

import type { Host } from "../../scripts/cluster/host.ts";
import { until, within } from "../../scripts/lib/until.ts";
import { snapshotCreated, snapshotAttached, volumeAnswer } from "../../src/core/wire/agent-api.ts";
import { MIB, onStage, startLoad, writesUnderWay } from "./stage.ts";

const isRoot = process.getuid?.() === 0;

async function said(host: Host, ...words: readonly string[]): Promise<string> {
  const { result } = await host.exec(["weft", ...words]);
  const { exitCode, stdout, stderr } = await within(result, { what: words.join(" "), deadlineMs: 60_000 });
  return `${exitCode} ${stdout}${stderr}`;
}

/** Of all that can be read there. */
async function sumOf(host: Host, socket: string): Promise<string> {
  return host.output(["sh", "-c", `nbdcopy 'nbd+unix:///?socket=${socket}' - | sha256sum`]);
}

async function taken(host: Host, ref: string): Promise<ReturnType<typeof snapshotCreated.parse>> {
  return snapshotCreated.parse(await host.json(["weft", "snapshot", "create", ref, "--json"]));
}

async function readOn(host: Host, ref: string): Promise<string> {
  const { path } = snapshotAttached.parse(await host.json(["weft", "snapshot", "attach", ref, "--json"]));
  return sumOf(host, path);
}

const GRAIN = 65_536;

/** The blocks in which `v@one` and `v@two` differ, as reading them tells; both are attached there. */
async function changedBetween(host: Host): Promise<readonly number[]> {
  const read = async (ref: string): Promise<Buffer> => {
    const { path } = snapshotAttached.parse(await host.json(["weft", "snapshot", "attach", ref, "--json"]));
    const file = join(host.layout.dir, "copy.img");
    await host.output(["nbdcopy", `nbd+unix:///?socket=${path}`, file]);
    return readFileSync(file);
  };
  const [one, two] = [await read("v@one"), await read("v@two")];
  const blocks = Array.from({ length: two.length / GRAIN }, (_, i) => i);
  return blocks.filter((i) => {
    const at = i * GRAIN;
    return !one.subarray(at, at + GRAIN).equals(two.subarray(at, at + GRAIN));
  });
}

const extents = z.array(z.object({ offset: z.int(), length: z.int(), type: z.int() }));

/** Every host and a backup tool at the export are told of these blocks, and of no others. */
async function sameChanges(
  t: Test,
  hosts: Readonly<Record<"h1" | "h2" | "h3", Host>>,
  path: string,
  blocks: readonly number[],
): Promise<void> {
  t.ok(blocks.length > 0, "the guest has written between them");
  const inBlocks = (
    ranges: readonly { readonly offset: bigint; readonly len: bigint }[],
  ): readonly number[] =>
    ranges.flatMap(({ offset, len }) =>
      Array.from({ length: Number(len) / GRAIN }, (_, i) => Number(offset) / GRAIN + i),
    );
  for (const host of Object.values(hosts)) {
    const since = ["--since", "v@one"];
    const found = changedJson.parse(
      await host.json(["weft", "snapshot", "changed", "v@two", ...since, "--json"]),
    );
    t.equal(found.exact, true, host.name);
    t.strictSame(inBlocks(found.ranges), blocks, host.name);
  }
  const { id } = await hosts.h3.agent().snapshot("v@one");
  for (const context of [`weft:changed-since:${id}`, `qemu:dirty-bitmap:weft-since-${id}`]) {
    const mapped = extents.parse(
      await hosts.h3.json(["nbdinfo", `--map=${context}`, "--json", `nbd+unix:///?socket=${path}`]),
    );
    const dirty = mapped
      .filter(({ type }) => (type & 1) === 1)
      .map(({ offset, length }) => ({ offset: BigInt(offset), len: BigInt(length) }));
    t.strictSame(inBlocks(dirty), blocks, context);
  }
  t.equal(
    await hosts.h2.output(["weft", "snapshot", "changed", "v@two", "--since", "v@two"]),
    "Nothing changed from v@two to v@two.",
  );
}

const bytes = z.string().transform(BigInt);
const changedJson = z.object({
  exact: z.boolean(),
  ranges: z.array(z.object({ offset: bytes, len: bytes })),
});

/** Pools that can't have snapshots, on a file system of memory. */
const plain = "/dev/shm/weft-scenario-plain";

await t.test(
  "volume: snapshot: the guest writes on, and what was there then is read anywhere (D10, R27)",
  { skip: isRoot ? false : "only root can mount file systems for pools" },
  async (t) => {
    t.teardown(() => rmSync(plain, { recursive: true, force: true }));
    await onStage(
      async (stage) => {
        const { h1, h2, h3, socket } = stage;
        const half = { offset: 0, size: 16 * MIB, rate: null, socket, kind: "write-and-verify" } as const;
        const first = await startLoad(h3, { ...half, name: "first" });
        t.equal((await within(first.end, { what: "the load", deadlineMs: 60_000 })).exitCode, 0);
        const before = await sumOf(h3, socket);

        // Asked of a host that has not the volume: its owner does it.
        t.match(
          await said(h1, "snapshot", "create", "v@one"),
          /^0 Snapshot v@one taken at \d\d:\d\d:\d\d\.\d{3} UTC on h1 h2(, the guest's writes waited \d+ ms)?\.$/,
        );
        const busy = await startLoad(h3, { ...half, rate: 8 * MIB, name: "busy" });
        await writesUnderWay(stage, 50);
        const two = await taken(h2, "v@two");
        t.match(two, { copies: 2, missedBy: [], state: "ready" });
        t.equal((await within(busy.end, { what: "the guest", deadlineMs: 60_000 })).exitCode, 0);
        t.not(await sumOf(h3, socket), before, "the volume has gone on");

        for (const host of [h1, h2, h3]) t.equal(await readOn(host, "v@one"), before, host.name);
        const sums = await Promise.all([h1, h2, h3].map(async (host) => readOn(host, "v@two")));
        t.equal(new Set(sums).size, 1, "all copies have the same moment");
        const { path } = snapshotAttached.parse(
          await h3.json(["weft", "snapshot", "attach", "v@two", "--json"]),
        );
        await sameChanges(t, { h1, h2, h3 }, path, await changedBetween(h1));
        t.match(
          await h3.output(["nbdinfo", "--is", "read-only", `nbd+unix:///?socket=${path}`]).catch(String),
          /^$/,
          "nobody can write into it",
        );
        t.match(await said(h1, "snapshot", "delete", "v@one"), /^2 E-SNAP-04 .*attached on h/);
        for (const host of [h1, h2, h3])
          for (const ref of ["v@one", "v@two"]) await host.output(["weft", "snapshot", "detach", ref]);
        t.match(await said(h2, "snapshot", "delete", "v@one"), /^0 Snapshot v@one is deleted/);
        t.equal(await readOn(h1, "v@two"), sums[0], "others stay as they are");
        await h1.output(["weft", "snapshot", "detach", "v@two"]);

        // A copy that is away has none of those that are taken meanwhile; when it is back it is given them.
        await h2.kill();
        await until(async () => ((await taken(h3, "v").catch(() => null)) === null ? null : true), {
          what: "a snapshot of what is left",
          deadlineMs: 60_000,
        });
        await h2.start();
        await until(
          async () =>
            volumeAnswer.parse(await h1.json(["weft", "volume", "show", "v", "--json"])).inSync === 2 || null,
          { what: "the copy to be back", deadlineMs: 60_000 },
        );
        await until(
          async () => (await h1.agent().snapshots("v")).every(({ copies }) => copies === 2) || null,
          { what: "the snapshot that it missed to be brought to it", deadlineMs: 60_000 },
        );
        t.match(await h1.output(["weft", "volume", "show", "v"]), /^Snapshots: 2 {2}\(weft/m);
        t.notMatch(await h1.output(["weft", "status"]), /E-SNAP-11/);

        // Nobody uses it: a caretaker does all of it.
        await h3.output(["weft", "detach", "v"]);
        t.match(await taken(h2, "v@three"), { copies: 2, heldMs: 0n });
        t.equal(await readOn(h3, "v@two"), sums[0]);
        await h3.output(["weft", "snapshot", "detach", "v@two"]);
        t.match(await said(h1, "volume", "delete", "v"), /^2 E-SNAP-10 /);
        const refs = await h1.output(["weft", "snapshot", "list", "v", "-q"]);

        // Its head goes before them: a caretaker gives back what only that has, and they are what they were.
        const show = async (ref: string): Promise<z.output<typeof volumeAnswer>> =>
          volumeAnswer.parse(await h2.json(["weft", "volume", "show", ref, "--json"]));
        const { id: volume } = await show("v");
        t.match(
          await said(h1, "volume", "delete", "v", "--keep-snapshots", "--now", "-y"),
          /^0 The head of "v" is deleted/,
        );
        await until(async () => ((await show(volume)).head?.data === "released" ? true : null), {
          what: "the head to be given back",
          deadlineMs: 60_000,
        });
        t.match(await said(h2, "attach", volume), /^1 E-VOL-19 /);
        t.equal(await readOn(h3, `${volume}@two`), sums[0]);
        await h3.output(["weft", "snapshot", "detach", `${volume}@two`]);
        for (const id of refs.split("\n")) t.match(await said(h1, "snapshot", "delete", id), /^0 /);
        await until(
          async () => ((await h3.output(["weft", "snapshot", "list", "-q"])) === "" ? true : null),
          {
            what: "the last of them to be gone",
            deadlineMs: 60_000,
          },
        );
        await until(async () => ((await h3.output(["weft", "volume", "list", "-q"])) === "" ? true : null), {
          what: "the volume to go with them",
          deadlineMs: 60_000,
        });

        // On any other file system there are volumes, and no snapshots.
        await h3.output(["weft", "pool", "add", plain]);
        await h3.output(["weft", "volume", "create", "plain", "64MiB", "--host", "h3"]);
        t.match(
          await said(h1, "snapshot", "create", "plain@x"),
          /^1 E-SNAP-01 .*its copy on h3 \(\/dev\/shm\/\S+\): the pool lies on tmpfs/,
        );
        t.equal(await h1.output(["weft", "snapshot", "list", "plain", "-q"]), "");
      },
      { xfsBytes: 2048 * MIB },
    );
  },
);

await t.test(
  "volume: snapshot: a store that was lost knows again which there are, and which went (N20, R27)",
  { skip: isRoot ? false : "only root can mount file systems for pools" },
  async (t) => {
    await onStage(
      async ({ cluster, h1, h2, h3, socket }) => {
        const load = { offset: 0, size: 8 * MIB, rate: null, socket, kind: "write-and-verify" } as const;
        const first = await startLoad(h3, { ...load, name: "first" });
        t.equal((await within(first.end, { what: "the load", deadlineMs: 60_000 })).exitCode, 0);
        await taken(h3, "v@old");
        const backup = join(h1.layout.dir, "store.backup");
        await h1.agent().backupStore(backup);
        const late = await taken(h3, "v@late");
        const sum = await readOn(h2, "v@late");
        await h2.output(["weft", "snapshot", "detach", "v@late"]);
        await h1.output(["weft", "snapshot", "delete", "v@old"]);
        const left = async (): Promise<string> => h1.output(["weft", "snapshot", "list", "-q"]);
        const isGone = { what: "the deletion's end", deadlineMs: 60_000 };
        await until(async () => ((await left()) === late.id ? true : null), isGone);

        // All members at once: an agent replaces one that is lost, while there is a majority.
        for (const host of cluster.hosts) await host.signal("etcd", "SIGSTOP");
        for (const { stateDir } of cluster.hosts)
          renameSync(join(stateDir, "etcd"), join(stateDir, "etcd.lost"));
        await Promise.all(cluster.hosts.map((host) => host.killProgram("etcd")));
        await until(
          async () =>
            h1
              .agent()
              .restoreStore(backup)
              .then(() => true as const),
          {
            what: "the store to be restored",
            deadlineMs: 60_000,
          },
        );
        const repaired = await until(async () => h1.agent().repairStore(), {
          what: "the repair",
          deadlineMs: 120_000,
        });
        t.equal(repaired.snapshots, 1);
        await until(async () => ((await left()) === late.id ? true : null), isGone);
        // The store was lost with the word that hosts are there: each says so again.
        const shown = async (): Promise<string> => h3.output(["weft", "snapshot", "show", "v@late"]);
        const areThere = { what: "both copies to answer", deadlineMs: 60_000 };
        await until(async () => (/^Copies: {3}2\/2 h1 h2$/m.test(await shown()) ? true : null), areThere);
        t.equal(await readOn(h3, "v@late"), sum);
        t.match(await taken(h2, "v@after"), { copies: 2 });
      },
      { xfsBytes: 2048 * MIB },
    );
  },
);
