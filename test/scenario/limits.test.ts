/**
 * Plot: a guest writes as fast as it can and is limited while it does; the volume moves, a daemon dies, agents come back.
 * A limit that is forgotten lets one guest starve the others; one that hangs is an outage.
 */
import t from "tap";

import { until, within } from "../../scripts/lib/until.ts";
import type { StatsAnswer } from "../../src/core/wire/agent-api.ts";
import type { Host } from "../../scripts/cluster/host.ts";
import { MIB, onStage, startLoad, writesUnderWay } from "./stage.ts";

/** What is in force on the volume's host, by another host's agent. */
async function limitOn(host: Host): Promise<number | null> {
  const { open } = await host.agent().stats("v");
  return open === null ? null : (open.limits?.iops ?? null);
}

async function untilIs100(host: Host): Promise<void> {
  await until(async () => ((await limitOn(host)) === 100 ? true : null), {
    what: "the limit to be in force",
    deadlineMs: 20_000,
  });
}

/** Writes a second between two looks, by the count and the clock of the volume's host. */
function rate({ open: before }: StatsAnswer, { open: after }: StatsAnswer): number {
  if (before === null || after === null) throw new Error("a guest has the volume");
  const seconds = (Date.parse(after.at) - Date.parse(before.at)) / 1000;
  return Number(after.writes - before.writes) / seconds;
}

/** How many requests waited for a limit. */
function waitsOf({ open }: StatsAnswer): bigint {
  return open?.waits.limited.count ?? 0n;
}

function writesBetween({ open: before }: StatsAnswer, { open: after }: StatsAnswer): bigint {
  return (after?.writes ?? 0n) - (before?.writes ?? 0n);
}

await t.test(
  "volume: limit: holds a guest to it within a tenth, live, and goes with the volume",
  async (t) => {
    await onStage(async (stage) => {
      const { h1, h2, h3, socket } = stage;
      const load = { name: "load", offset: 0, size: 64 * MIB, rate: null, socket } as const;
      const { end } = await startLoad(h3, { ...load, kind: "write-until-refused" });
      await writesUnderWay(stage, 10);
      t.match(
        await h1.output(["weft", "volume", "limit", "v", "--iops", "100", "--burst", "0s"]),
        'Limits of "v": 100 IO/s, burst 0 s.',
      );
      await untilIs100(h2);
      const before = await h2.agent().stats("v");
      const more = async (): Promise<StatsAnswer | null> => {
        const now = await h2.agent().stats("v");
        return writesBetween(before, now) >= 400n ? now : null;
      };
      const after = await until(more, { what: "400 writes more", deadlineMs: 120_000 });
      // Never above it; how far below depends on the machine.
      t.ok(rate(before, after) <= 110, `${rate(before, after).toFixed(1)} writes a second`);
      t.ok(waitsOf(after) > 0n, "requests waited for it");
      await h1.output(["weft", "volume", "limit", "v", "--none"]);
      const inForce = async (): Promise<true | null> => ((await limitOn(h2)) === null ? true : null);
      await until(inForce, { what: "the limit's end", deadlineMs: 20_000 });
      await writesUnderWay(stage, 100);
      const free = await h2.agent().stats("v");
      await writesUnderWay(stage, 100);
      t.equal(waitsOf(await h2.agent().stats("v")), waitsOf(free), "no request waits any more");

      // Attached elsewhere; weftd and the agent start anew; wished for while nobody could tell it.
      await h1.output(["weft", "volume", "limit", "v", "--iops", "100"]);
      await h3.output(["weft", "detach", "v"]);
      t.not((await within(end, { what: "the guest's end", deadlineMs: 60_000 })).exitCode, 0);
      await h2.output(["weft", "attach", "v"]);
      t.equal(await limitOn(h1), 100);
      await h2.killProgram("weftd");
      await h2.restartDaemon();
      await h2.output(["weft", "attach", "v"]);
      t.equal(await limitOn(h1), 100);
      await h2.output(["weft", "detach", "v"]);
      t.equal((await h1.agent().volume("v")).limits?.iops, 100);
      const { result } = await h1.exec(["weft", "volume", "limit", "v", "--iops", "0"]);
      t.match((await result).stderr, /^E-VOL-17/);
      t.match(await h1.output(["weft", "volume", "stats", "v"]), /^"v" is not attached/);
    });
  },
);
