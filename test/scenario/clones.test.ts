/**
 * Plot: a guest's volume has a snapshot, and goes on. A volume is made of the snapshot, used beside it, has a snapshot and a
 * clone of its own, and is still whole when all that it came from is gone.
 */
import { rmSync } from "node:fs";

import t from "tap";

import type { Host } from "../../scripts/cluster/host.ts";
import { until, within } from "../../scripts/lib/until.ts";
import { attachAnswer, volumeAnswer } from "../../src/core/wire/agent-api.ts";
import { MIB, onStage, startLoad } from "./stage.ts";

const isRoot = process.getuid?.() === 0;

async function said(host: Host, ...words: readonly string[]): Promise<string> {
  const { result } = await host.exec(["weft", ...words]);
  const { exitCode, stdout, stderr } = await within(result, { what: words.join(" "), deadlineMs: 90_000 });
  return `${exitCode} ${stdout}${stderr}`;
}

/** Of all that can be read there. */
async function sumOf(host: Host, socket: string): Promise<string> {
  return host.output(["sh", "-c", `nbdcopy 'nbd+unix:///?socket=${socket}' - | sha256sum`]);
}

async function attached(host: Host, ref: string): Promise<string> {
  return attachAnswer.parse(await host.json(["weft", "attach", ref, "--json"])).path;
}

async function write(host: Host, socket: string, offset: number): Promise<void> {
  const load = {
    offset,
    size: 8 * MIB,
    rate: null,
    socket,
    kind: "write-and-verify",
    name: "guest",
  } as const;
  const { end } = await startLoad(host, load);
  const { exitCode, stderr } = await within(end, { what: "the guest", deadlineMs: 60_000 });
  if (exitCode !== 0) throw new Error(stderr);
}

/** A pool that can't have snapshots, on a file system of memory. */
const plain = "/dev/shm/weft-scenario-clones";

async function inSync(host: Host, ref: string, copies: number): Promise<void> {
  await until(
    async () =>
      volumeAnswer.parse(await host.json(["weft", "volume", "show", ref, "--json"])).inSync === copies ||
      null,
    { what: `${copies} copies of ${ref}`, deadlineMs: 60_000 },
  );
}

await t.test(
  "volume: clone: it begins as the snapshot, and both go on without each other",
  { skip: isRoot ? false : "only root can mount file systems for pools" },
  async (t) => {
    const clear = (): void => rmSync(plain, { recursive: true, force: true });
    clear();
    t.teardown(clear);
    await onStage(
      async ({ h1, h2, h3, socket }) => {
        await write(h3, socket, 0);
        const before = await sumOf(h3, socket);
        await h1.output(["weft", "snapshot", "create", "v@one"]);
        await write(h3, socket, 4 * MIB);
        const after = await sumOf(h3, socket);
        t.not(after, before);

        // Asked of a host that has no copy; used there.
        t.match(
          await said(h3, "snapshot", "clone", "v@one", "web"),
          /^0 Volume "web" made from v@one, 64 MiB, 2 copies on h[12] h[12]\.\nNext: {2}weft attach web$/,
        );
        const web = await attached(h3, "web");
        t.equal(await sumOf(h3, web), before, "it is what the snapshot is");
        await write(h3, web, 32 * MIB);
        const webAfter = await sumOf(h3, web);
        t.equal(await sumOf(h3, socket), after, "nothing of it is seen in the volume");
        await write(h3, socket, 48 * MIB);
        t.equal(await sumOf(h3, web), webAfter, "nor the other way");
        t.match(await h1.output(["weft", "volume", "show", "web"]), /^Made from: v@one \(20\d\d-/m);

        // A clone of the clone, with a copy more than the snapshot has, in a pool that could have none.
        await h3.output(["weft", "pool", "add", plain]);
        await h2.output(["weft", "snapshot", "create", "web@two"]);
        t.match(
          await said(h2, "volume", "create", "wide", "--from", "web@two", "--copies", "3"),
          /^0 Volume "wide" made from web@two, 64 MiB, /,
        );
        await inSync(h1, "wide", 3);

        // All that they came from goes.
        for (const ref of ["v@one", "web@two"]) await h1.output(["weft", "snapshot", "delete", ref]);
        await h3.output(["weft", "detach", "v"]);
        const isGone = { what: "v to be gone", deadlineMs: 60_000 };
        await until(
          async () => ((await said(h1, "volume", "delete", "v")).startsWith("0 ") ? true : null),
          isGone,
        );
        await h1.output(["weft", "trash", "empty", "v", "--yes"]);
        t.equal(await sumOf(h3, web), webAfter);
        await h3.output(["weft", "detach", "web"]);
        const wide = await attached(h1, "wide");
        t.equal(await sumOf(h1, wide), webAfter);

        t.match(await said(h1, "volume", "create", "web", "--from", "web@two"), /^1 E-SNAP-09 /);
        await h1.output(["weft", "snapshot", "create", "web@three"]);
        t.match(await said(h1, "snapshot", "clone", "web@three", "web"), /^1 E-VOL-01 /);
        t.match(await said(h1, "volume", "create", "big", "1GiB", "--from", "web@three"), /^1 E-SNAP-17 /);
        t.match(
          await said(h1, "snapshot", "clone", "web@three", "alone", "--host", "h3"),
          /^1 E-SNAP-12 .*\(h[12]: has it, and is not among the hosts named; h[12]: has it/,
        );
      },
      { xfsBytes: 2048 * MIB },
    );
  },
);
