/** The authority is changed while hosts go on: three members, the store under writes, nobody refused. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { eventually, startCluster } from "./test-host.ts";

void t.test("ca rotate: another authority, no write is lost, the old keys are destroyed", async (t) => {
  const hosts = await startCluster(t, 3, 1);
  const [h1] = hosts;
  if (h1 === undefined) throw new Error("hosts");
  await eventually(
    "three voters",
    () => h1.client.hosts(),
    (list) => list.every(({ store }) => store === "voter"),
    60_000,
  );
  const before = await h1.client.authorities();
  t.match(before, { rotation: null, transport: "tls", revoked: [] });
  t.equal(before.authorities.length, 2);
  t.same(before.hosts.map(({ name }) => name).toSorted(), ["h1", "h2", "h3"]);
  const store = await h1.store(20_000);
  const end = new AbortController();
  let [writes, worstMs] = [0, 0];
  const writing = (async () => {
    while (!end.signal.aborted) {
      const begun = performance.now();
      await store.put("/weft/v1/test", String(writes));
      worstMs = Math.max(worstMs, performance.now() - begun);
      writes += 1;
    }
  })();
  const begun = performance.now();
  const started = await h1.client.rotateAuthority();
  t.match(started.rotation, { phase: "announce", why: "asked" });
  await t.rejects(h1.client.rotateAuthority({ without: ["nobody"] }), { code: "E-ARG-01" });
  const seen = new Set<string>();
  const after = await eventually(
    "the end of the rotation",
    () => h1.client.authorities(),
    (answer) => {
      if (answer.rotation !== null) seen.add(answer.rotation.phase);
      return answer.rotation === null && answer.generation > before.generation + 3n;
    },
    60_000,
  );
  t.comment(`${Math.round(performance.now() - begun)} ms, ${[...seen].join(" ")}, ${writes} writes`);
  end.abort();
  await writing;
  t.comment(`worst write ${Math.round(worstMs)} ms`);
  t.equal((await store.get("/weft/v1/test"))?.value, String(writes - 1));
  t.equal(after.authorities.length, 2);
  const old = before.authorities.map(({ kid }) => kid);
  t.notOk(after.authorities.some(({ kid }) => old.includes(kid)));
  for (const host of hosts) {
    const left = await eventually(
      `${host.name} to destroy the old keys`,
      async () => (await readdir(join(host.stateDir, "authority"))).filter((name) => name.endsWith(".key")),
      (names) => names.length === 2,
    );
    t.notOk(left.some((name) => old.some((kid) => name.includes(kid.slice(0, 8)))));
    const status = await host.client.status();
    t.match(status, { kind: "cluster", store: { writable: true } });
  }
  store.call.close();
});
