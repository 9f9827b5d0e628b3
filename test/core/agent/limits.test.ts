/** What a guest may take follows its volume from host to host; what it does is told by the host where it runs. */
import t from "tap";

import { eventually, type TestHost, three } from "./test-host.ts";

const GIB = 1n << 30n;

void t.test("agent: limits go where the volume goes, and outlive weftd, agents and hosts", async (t) => {
  const [h1, h2, h3] = await three(t, 61);
  const { id } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1"] });
  const first = { iops: 2000, bps: 100n << 20n, burstS: 5 };
  const second = { iops: 500, bps: null, burstS: 1 };
  const told = { iops: 2000, bps: String(100n << 20n), burst_s: 5 };

  // Wished for while nobody uses it; in force from the first request on, wherever that is.
  t.strictSame((await h1.client.limitVolume("db", first)).limits, first);
  await h2.client.attach("db");
  t.strictSame(h2.weftd.sessions.get(id)?.limits, told);

  // Changed through the host that has it, and through another one.
  await h2.client.limitVolume("db", second);
  t.strictSame(h2.weftd.sessions.get(id)?.limits, { iops: 500, bps: null, burst_s: 1 }, "when it answers");
  await h3.client.limitVolume("db", first);
  const inForce = (host: TestHost): Promise<unknown> =>
    eventually(
      `the limits on ${host.name}`,
      async () => host.weftd.sessions.get(id)?.limits ?? null,
      (limits) => limits?.iops === 2000,
    );
  await inForce(h2);

  // weftd lost its memory of them; then the agent was away when they were changed.
  const session = h2.weftd.sessions.get(id);
  if (session === undefined) throw new Error("h2 has the volume");
  await h2.weftd.daemon.stop();
  Object.assign(session, { limits: null });
  await h2.weftd.daemon.start();
  await inForce(h2);
  await h2.stopAgent();
  await h3.client.limitVolume("db", null);
  t.equal(session.limits?.iops, 2000);
  await h2.startAgent();
  await eventually(
    "no limits any more",
    async () => session.limits,
    (limits) => limits === null,
  );

  for (const wrong of [{ iops: 0 }, { bps: 1n }, { burstS: 61 }, { iops: null, bps: null }])
    await t.rejects(h1.client.limitVolume("db", { ...first, ...wrong }), { code: "E-VOL-17", exitCode: 1 });
  t.equal((await h1.client.volume("db")).limits, null, "nothing was changed");
});

void t.test("agent: what a guest does is told by its host, through any other", async (t) => {
  const [h1, h2] = await three(t, 71);
  const { id } = await h1.client.createVolume({ name: "db", size: GIB, hosts: ["h1"] });
  t.match(await h1.client.stats("db"), { volume: id, name: "db", host: null, open: null });
  const { session } = await h2.client.attach("db");
  const written = { leUs: [320, 2560], counts: [6n, 1n], count: 7n, sumUs: 4000n };
  for (const host of [h1, h2]) {
    t.match(await host.client.stats("db"), {
      host: { name: "h2" },
      open: { session, writes: 7n, writtenBytes: 28_672n, gapMsMax: 3n, waits: { writes: written } },
    });
  }
  const lines = (await h2.client.metrics()).split("\n");
  for (const line of [
    `weft_volume_write_ops_total{volume="${id}"} 7`,
    `weft_volume_write_bytes_total{volume="${id}"} 28672`,
    `weft_volume_latency_seconds_bucket{volume="${id}",op="write",le="0.000256"} 0`,
    `weft_volume_latency_seconds_bucket{volume="${id}",op="write",le="0.001024"} 6`,
    `weft_volume_latency_seconds_bucket{volume="${id}",op="write",le="67.108864"} 7`,
    `weft_volume_latency_seconds_bucket{volume="${id}",op="write",le="+Inf"} 7`,
    `weft_volume_latency_seconds_sum{volume="${id}",op="write"} 0.004`,
    `weft_volume_stall_seconds_count{volume="${id}"} 0`,
  ]) {
    t.ok(lines.includes(line), line);
  }
  t.notMatch(await h1.client.metrics(), id, "its own sessions only");
});
