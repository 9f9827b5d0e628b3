/**
 * Plot: a guest's upgrade went wrong. Its volume is taken back to the snapshot of before, in place; what a snapshot held is
 * given up, and backups still learn from it what has changed.
 */
import t from "tap";
import { z } from "zod";

import type { Host } from "../../scripts/cluster/host.ts";
import { within } from "../../scripts/lib/until.ts";
import { attachAnswer, snapshotAttached } from "../../src/core/wire/agent-api.ts";
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

async function write(host: Host, socket: string, offset: number): Promise<void> {
  const load = {
    offset,
    size: 4 * MIB,
    rate: null,
    socket,
    kind: "write-and-verify",
    name: "guest",
  } as const;
  const { end } = await startLoad(host, load);
  const { exitCode, stderr } = await within(end, { what: "the guest", deadlineMs: 60_000 });
  if (exitCode !== 0) throw new Error(stderr);
}

const attach = async (host: Host): Promise<string> =>
  attachAnswer.parse(await host.json(["weft", "attach", "v", "--json"])).path;

const changed = z.object({ exact: z.boolean(), changedBytes: z.string() });

await t.test(
  "volume: revert: it is as it was, and younger snapshots stay (R30)",
  { skip: isRoot ? false : "only root can mount file systems for pools" },
  async (t) => {
    await onStage(
      async ({ h1, h2, h3, socket }) => {
        await write(h3, socket, 0);
        t.match(await said(h1, "snapshot", "create", "v@before"), /^0 /);
        const before = await sumOf(h3, socket);
        await write(h3, socket, 2 * MIB);
        t.match(await said(h3, "snapshot", "create", "v@after"), /^0 /);
        const after = await sumOf(h3, socket);
        t.not(after, before, "the upgrade has written");

        t.match(await said(h1, "snapshot", "revert", "v@before", "--yes"), /^2 E-VOL-12 .*attached on h3/);
        await h3.output(["weft", "detach", "v"]);
        t.match(await said(h1, "snapshot", "revert", "v@before"), /^1 E-ARG-04 .*Nobody could be asked/);
        t.match(await said(h1, "snapshot", "revert", "v@before", "--yes"), /^0 Volume "v" is as it was at /);
        const back = await attach(h3);
        t.equal(await sumOf(h3, back), before);
        const { path } = snapshotAttached.parse(
          await h1.json(["weft", "snapshot", "attach", "v@after", "--json"]),
        );
        t.equal(await sumOf(h1, path), after, "younger snapshots stay");
        t.match(await said(h1, "snapshot", "detach", "v@after"), /^0 /);

        // A backup is made of one and its data given up: the next one is told what has changed since.
        t.match(
          await said(h2, "snapshot", "destroy-data", "v@before", "--yes"),
          /^0 The data of v@before is/,
        );
        t.match(await said(h2, "snapshot", "attach", "v@before"), /^1 E-SNAP-18 /);
        await write(h3, back, 8 * MIB);
        t.match(await said(h3, "snapshot", "create", "v@next"), /^0 /);
        const since = ["weft", "snapshot", "changed", "v@next", "--since", "v@before", "--json"];
        t.strictSame(changed.parse(await h1.json(since)), { exact: true, changedBytes: String(4 * MIB) });
      },
      { xfsBytes: 2048 * MIB },
    );
  },
);
