/**
 * Plot: a guest writes all the time, and an operator gives its volume a second copy, moves one to a third host, adds
 * another, and goes back to a single one, which is not the one that it began with (D20). The guest never waits for long,
 * and what it was told is written is there in the end.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import t from "tap";

import { Cluster } from "../../scripts/cluster/cluster.ts";
import type { Host } from "../../scripts/cluster/host.ts";
import { Guest } from "../../scripts/faults/guest.ts";
import { nativeBin } from "../../scripts/lib/repository.ts";
import { until } from "../../scripts/lib/until.ts";
import type { VolumeAnswer } from "../../src/core/wire/agent-api.ts";

const DEADLINE_MS = 60_000;

const dir = mkdtempSync(join(tmpdir(), "weft-copies-"));
const scratch = mkdtempSync(join(tmpdir(), "weft-guest-"));
t.teardown(async () => {
  await Cluster.down(dir);
  for (const path of [dir, scratch]) rmSync(path, { recursive: true, force: true });
});

const cluster = await Cluster.up({ dir, pools: ["h1", "h2", "h3"] });
const [h1, h2, h3] = [cluster.host("h1"), cluster.host("h2"), cluster.host("h3")];
await h1.output(["weft", "volume", "create", "v", "64MiB", "--host", "h1"]);
const { path: socket } = await h3.agent().attach("v");
const guest = await Guest.start({ dir, socket, history: join(scratch, "history"), seed: 20 });
t.teardown(() => guest.kill());

/** It has so many copies, all in sync and none about to leave. */
async function inPlace(count: number): Promise<VolumeAnswer> {
  return until(
    async () => {
      const volume = await h1.agent().volume("v");
      const there = volume.replicas.filter(({ state, leaving }) => state === "INSYNC" && !leaving);
      return there.length === count && volume.replicas.length === count ? volume : null;
    },
    { what: `${count} copies`, deadlineMs: DEADLINE_MS },
  );
}

async function hosts(count: number): Promise<string> {
  const { replicas } = await inPlace(count);
  return replicas
    .map(({ hostName }) => hostName)
    .toSorted()
    .join();
}

async function places(): Promise<readonly unknown[]> {
  const { copies, minIsr, replicas } = await h1.agent().volume("v");
  return [copies, minIsr, ...replicas.map(({ rid, state, leaving }) => [rid, state, leaving])];
}

/** Nothing but a plan, and then the same in earnest; the guest writes before, meanwhile and after. */
async function change(host: Host, ...command: readonly string[]): Promise<string> {
  await guest.acknowledges(200);
  const before = await places();
  const plan = await host.output(["weft", ...command, "--plan"]);
  t.same(await places(), before, "a plan changes nothing");
  await host.output(["weft", ...command, "--wait"]);
  await guest.acknowledges(200);
  return plan;
}

await t.test(
  "volume: copies: one becomes two, and one of them moves, while a guest writes (D20)",
  async (t) => {
    const more = await change(h2, "volume", "copies", "v", "2");
    t.match(more, /add a copy on h[23] .*: at most 64 MiB/);
    t.match(more, /Risk: Until a new copy is in sync, h1 has the only one/);
    const { replicas } = await inPlace(2);
    const free = replicas.some(({ hostName }) => hostName === "h2") ? "h3" : "h2";
    const moved = await change(h1, "replica", "move", "v", "--from", "h1", "--to", free);
    t.match(moved, /1\. add a copy on h[23] .*\n {2}2\. wait until .* in sync\n {2}3\. remove copy 0 on h1 /);
    t.match(moved, /In sync: 2 now, never fewer than 2, 2 in the end\./);
    t.equal(await hosts(2), "h2,h3");
  },
);

await t.test("volume: copies: three, two of them needed for a write, and one again (D20)", async (t) => {
  await change(h3, "volume", "copies", "v", "3", "--min-isr", "2");
  t.equal(await hosts(3), "h1,h2,h3");
  await until(
    async () =>
      (await h1.agent().planVolume("v", { copies: 3, minIsr: 2 })).steps.length === 0 ? true : null,
    { what: "the record to say so", deadlineMs: DEADLINE_MS },
  );
  await t.rejects(h1.output(["weft", "volume", "copies", "v", "1"]), /status 1\nE-VOL-06 .*--min-isr 1/s);
  const fewer = await change(h2, "volume", "copies", "v", "1", "--min-isr", "1");
  t.match(fewer, /Nothing is copied\./);
  t.match(fewer, /Risk: With one copy a failure of h3 stops "v"/);
  t.equal(await hosts(1), "h3", "the guest's own stays");
});

await t.test("volume: a copy moves to another pool of its host while a guest writes", async () => {
  const { id } = await h3.agent().createPool({ path: join(h3.layout.dir, "pool-b") });
  await until(
    async () =>
      (await h1.agent().pools()).some((pool) => pool.id === id && pool.state === "serving") ? true : null,
    { what: "the second pool on h3 to serve", deadlineMs: DEADLINE_MS },
  );
  await change(h1, "replica", "move", "v", "--from", "h3", "--to", `h3:${id}`);
  const [copy] = (await inPlace(1)).replicas;
  t.equal(copy?.pool, id);
});

await t.test("volume: what the guest was told is written is there after all that (D20)", async (t) => {
  const { errors, lost_connections: lost, stall_ms: stall } = await guest.stop();
  t.same([errors, lost], [0, 0]);
  t.comment(`the longest wait of a request: ${stall} ms`);
  const verify = ["verify", "--history", guest.history, "--final", "--socket", socket];
  const { stdout, exitCode } = await execa(join(nativeBin(), "weft-checker"), verify, { reject: false });
  t.equal(exitCode, 0, stdout);
});
