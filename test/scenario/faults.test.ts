/**
 * Plot: what fails is not a copy of the volume but what stands around it: the store, the links, the owner's view of both.
 * The rules at stake: I/O needs no store while nobody fails (protocol.md S1), trouble pauses and doesn't fail (S2),
 * and an owner that is cut off can neither complete a write nor come back after a take-over (F4).
 */
import t from "tap";

import { fioFigures } from "../../scripts/demo/fio.ts";
import { within } from "../../scripts/lib/until.ts";
import { attachAnswer } from "../../src/core/wire/agent-api.ts";
import { MIB, onStage, startLoad, writesUnderWay } from "./stage.ts";

const isRoot = process.getuid?.() === 0;
const whole = { name: "load", offset: 0, size: 32 * MIB, rate: null } as const;

await t.test(
  "volume: write: goes on while the store has no majority (S1), and a detach follows its return",
  async (t) => {
    await onStage(async ({ h1, h2, h3, socket }) => {
      await h1.signal("etcd", "SIGSTOP");
      await h2.signal("etcd", "SIGSTOP");
      const { end } = await startLoad(h3, { ...whole, socket, kind: "write-and-verify" });
      const { exitCode, stdout } = await within(end, { what: "the load to end", deadlineMs: 40_000 });
      t.equal(exitCode, 0);
      t.equal(fioFigures(stdout).readBytes, whole.size);
      await h1.signal("etcd", "SIGCONT");
      await h2.signal("etcd", "SIGCONT");
      await h3.output(["weft", "detach", "v"]);
    });
  },
);

await t.test(
  "volume: write: waits while a copy and the store are away, and completes when the store is back (S2)",
  async (t) => {
    await onStage(async (stage) => {
      const { h1, h2, h3, socket } = stage;
      const load = { ...whole, rate: 4 * MIB, socket, kind: "write-and-verify" } as const;
      const { end } = await startLoad(h3, load);
      await writesUnderWay(stage, 50);
      await h2.signal("etcd", "SIGSTOP");
      await h1.kill();
      await t.rejects(within(end, { what: "a load that must wait", deadlineMs: 12_000 }), /waited 12 s/);
      await h2.signal("etcd", "SIGCONT");
      const { exitCode, stdout } = await within(end, { what: "the load to end", deadlineMs: 40_000 });
      t.equal(exitCode, 0);
      t.equal(fioFigures(stdout).readBytes, whole.size);
    });
  },
);

if (isRoot) {
  await t.test(
    "volume: steal: an owner that was cut off finds itself refused when the links are back (F4)",
    async (t) => {
      await onStage(async (stage) => {
        const { cluster, h2, h3, socket, session } = stage;
        const { end } = await startLoad(h3, { ...whole, socket, kind: "write-until-refused" });
        await writesUnderWay(stage, 50);
        await cluster.cut("h3", "h1");
        await cluster.cut("h3", "h2");
        const { path } = attachAnswer.parse(await h2.json(["weft", "steal", "v", "--yes", "--json"]));
        const mine = await startLoad(h2, { ...whole, socket: path, kind: "write-and-verify" });
        t.equal((await mine.end).exitCode, 0);
        const before = await h2.output(["sh", "-c", `nbdcopy 'nbd+unix:///?socket=${path}' - | sha256sum`]);

        await cluster.heal("h3", "h1");
        await cluster.heal("h3", "h2");
        const { exitCode } = await within(end, { what: "h3's load to be refused", deadlineMs: 20_000 });
        t.not(exitCode, 0);
        t.ok(
          Number((await session()).figures.fenced_writes) > 0,
          "its writes were refused, not lost in silence",
        );
        t.equal(await h2.output(["sh", "-c", `nbdcopy 'nbd+unix:///?socket=${path}' - | sha256sum`]), before);
      });
    },
  );
}
