/**
 * Plot: an administrator gives a volume another size: under a guest's writes, while a copy is away, and smaller with the
 * volume's name. The rules at stake: what lies beyond the old end is empty on every copy, whatever lay there before
 * (protocol.md R18), and what completed there stays, whoever fails next (D13, D14, N18).
 */
import t from "tap";

import type { Host } from "../../scripts/cluster/host.ts";
import { until, within } from "../../scripts/lib/until.ts";
import { attachAnswer } from "../../src/core/wire/agent-api.ts";
import { MIB, onStage, startLoad, type Stage, writesUnderWay } from "./stage.ts";

const uri = (socket: string): string => `nbd+unix:///?socket=${socket}`;

async function sizeOf(host: Host, socket: string): Promise<number> {
  return Number((await host.output(["nbdinfo", "--size", uri(socket)])).trim());
}

/** How many bytes that are not zero a guest reads from there on. */
async function bytesAfter(host: Host, socket: string, offset: number): Promise<number> {
  const tail = `nbdcopy '${uri(socket)}' - | tail -c +${offset + 1} | tr -d '\\000' | wc -c`;
  return Number((await host.output(["sh", "-c", tail])).trim());
}

async function refusal(host: Host, ...words: readonly string[]): Promise<string> {
  const { result } = await host.exec(["weft", "volume", "resize", ...words]);
  const { exitCode, stderr } = await result;
  return `${exitCode} ${stderr.split(" ")[0]}`;
}

async function attachedOn(host: Host): Promise<string> {
  return attachAnswer.parse(await host.json(["weft", "attach", "v", "--json"])).path;
}

async function inSync({ h3 }: Stage, copies: number): Promise<void> {
  const look = async (): Promise<number> => (await h3.agent().volume("v")).inSync;
  await until(async () => ((await look()) === copies ? true : null), {
    what: `${copies} copies in sync`,
    deadlineMs: 60_000,
  });
}

await t.test(
  "volume: resize: grows under a guest's writes, and what it wrote beyond the old end stays",
  async (t) => {
    await onStage(async (stage) => {
      const { h1, h2, h3, socket } = stage;
      const half = { name: "load", offset: 0, size: 32 * MIB, rate: 8 * MIB, socket } as const;
      const { end } = await startLoad(h3, { ...half, kind: "write-and-verify" });
      await writesUnderWay(stage, 50);
      t.match(
        await h1.output(["weft", "volume", "resize", "v", "96MiB"]),
        /^Volume "v" has 96 MiB now \(was 64 MiB\)/,
      );
      t.equal(await sizeOf(h3, socket), 96 * MIB);
      t.equal(await bytesAfter(h3, socket, 64 * MIB), 0);
      const beyond = { ...half, name: "beyond", offset: 64 * MIB, size: 16 * MIB } as const;
      const written = await startLoad(h3, { ...beyond, kind: "write-and-verify" });
      t.equal(
        (await within(written.end, { what: "the load beyond the old end", deadlineMs: 60_000 })).exitCode,
        0,
      );
      t.equal((await within(end, { what: "the load", deadlineMs: 60_000 })).exitCode, 0);

      // A copy that was away while it grew once more is as large before it is one again.
      await h2.kill();
      await h3.output(["weft", "volume", "resize", "v", "128MiB"]);
      const last = { ...half, name: "last", offset: 112 * MIB, size: 16 * MIB } as const;
      const more = await startLoad(h3, { ...last, kind: "write-and-verify" });
      t.equal((await within(more.end, { what: "the last load", deadlineMs: 60_000 })).exitCode, 0);
      const whole = `nbdcopy '${uri(socket)}' - | sha256sum`;
      const sum = await h3.output(["sh", "-c", whole]);
      await h2.start();
      await inSync(stage, 2);
      await h1.kill();
      t.equal(await h3.output(["sh", "-c", whole]), sum, "read from the copy that was away");
      await h1.start();
      await inSync(stage, 2);
    });
  },
);

await t.test(
  "volume: resize: shrinks only closed and by its name, and old data never come back (N18)",
  async (t) => {
    await onStage(async (stage) => {
      const { h1, h3, socket } = stage;
      const whole = { name: "load", offset: 0, size: 64 * MIB, rate: null, socket } as const;
      const { end } = await startLoad(h3, { ...whole, kind: "write-and-verify" });
      t.equal((await within(end, { what: "the load", deadlineMs: 60_000 })).exitCode, 0);
      t.equal(await refusal(h3, "v", "48MiB", "--lose-data", "v"), "2 E-VOL-12");
      t.equal(await refusal(h1, "v", "65TiB"), "1 E-VOL-02");
      t.equal(await refusal(h1, "v", "4097"), "1 E-ARG-02");
      await h3.output(["weft", "detach", "v"]);
      t.equal(await refusal(h1, "v", "48MiB"), "2 E-VOL-15");
      t.equal(await refusal(h1, "v", "48MiB", "--lose-data", "w"), "1 E-ARG-04");
      t.equal((await h1.agent().volume("v")).size, BigInt(64 * MIB), "nothing was changed");

      t.match(
        await h3.output(["weft", "volume", "resize", "v", "48MiB", "--lose-data", "v"]),
        /^Volume "v" has 48 MiB now/,
      );
      // Detached: by a caretaker that goes.
      await h1.output(["weft", "volume", "resize", "v", "64MiB"]);
      const again = await attachedOn(h3);
      t.equal(await sizeOf(h3, again), 64 * MIB);
      t.equal(await bytesAfter(h3, again, 48 * MIB), 0);
      t.ok((await bytesAfter(h3, again, 0)) > 32 * MIB, "the rest is there");
    });
  },
);
