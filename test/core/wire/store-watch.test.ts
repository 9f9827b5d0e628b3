/** A watch sees every change once and in order, whatever happens to the member it hangs on. */
import { createHash } from "node:crypto";

import t from "tap";

import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { StoreMembers } from "../../../src/core/wire/store-members.ts";
import { watchPrefix, type WatchUpdate } from "../../../src/core/wire/store-watch.ts";
import { HOST_NAMES, makePki, startStore, type TestStore } from "./etcd-for-tests.ts";

/** Collects updates and resolves when one satisfies a condition. */
class Collector {
  readonly updates: WatchUpdate[] = [];
  #waiting: { readonly test: () => boolean; readonly resolve: () => void }[] = [];

  take = (update: WatchUpdate): void => {
    this.updates.push(update);
    for (const { test, resolve } of this.#waiting) if (test()) resolve();
  };

  until(test: () => boolean): Promise<void> {
    if (test()) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push({ test, resolve }));
  }

  /** All values put under the prefix, listings included, in the order in which they were given. */
  values(): string[] {
    return this.updates.flatMap((u) => {
      if (u.kind === "listing") return u.listing.entries.map((e) => e.value);
      if (u.kind === "interrupted") return [];
      return u.events.map((e) => (e.kind === "put" ? e.entry.value : "deleted"));
    });
  }
}

/**
 * What was put, without what was put again: a put whose outcome was unknown is repeated, and its value then stands in the
 * store at two revisions. That no revision is told twice, and none after a later one, is looked at here.
 */
function putsOf(collector: Collector): string[] {
  const told = collector.updates.flatMap((u) => {
    if (u.kind === "listing") return u.listing.entries;
    if (u.kind === "interrupted") return [];
    return u.events.flatMap((e) => (e.kind === "put" ? [e.entry] : []));
  });
  let last = 0n;
  return told.flatMap(({ value, modRevision }, i) => {
    if (modRevision <= last) throw new Error(`revision ${modRevision} was told after ${last}`);
    last = modRevision;
    return told[i - 1]?.value === value ? [] : [value];
  });
}

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

function watch(t: Scope, store: StoreClient, prefix: string, from: bigint | null = null): Collector {
  const collector = new Collector();
  const stop = new AbortController();
  const done = watchPrefix({ store, prefix, from, signal: stop.signal, onUpdate: collector.take });
  t.teardown(async () => {
    stop.abort();
    await done;
  });
  return collector;
}

async function survives(
  t: Scope & { readonly same: (found: unknown, wanted: unknown) => boolean },
  cluster: TestStore,
  hurt: (cluster: TestStore) => void,
): Promise<void> {
  const { endpoints, tls } = cluster;
  const store = new StoreClient({ endpoints, tls });
  const seen = watch(t, new StoreClient({ endpoints, tls }), "/w/");
  await seen.until(() => seen.updates.length > 0);
  const wanted: string[] = [];
  for (let i = 0; i < 60; i += 1) {
    if (i === 20) hurt(cluster);
    await store.put("/w/k", String(i));
    wanted.push(String(i));
  }
  await seen.until(() => seen.values().includes("59"));
  t.same(putsOf(seen), wanted);
}

void t.test("store: watch: every change once and in order (the member was killed)", async (t) => {
  await survives(t, await startStore(t, 3), ({ members }) => members[0]?.kill("SIGKILL"));
});

void t.test("store: watch: every change once and in order (the member hangs)", async (t) => {
  // Its connection stays open and silent: only the pulse tells.
  await survives(t, await startStore(t, 3, 11), ({ members }) => members[0]?.kill("SIGSTOP"));
});

void t.test("store: watch: with TLS too (the member was killed, another hangs)", async (t) => {
  const pki = await makePki(t);
  await survives(t, await startStore(t, 3, 51, [], pki), ({ members }) => members[0]?.kill("SIGKILL"));
  await survives(t, await startStore(t, 3, 61, [], pki), ({ members }) => members[0]?.kill("SIGSTOP"));
});

void t.test("store: watch: our certificate is renewed in the middle, and no event is lost", async (t) => {
  const pki = await makePki(t);
  const { endpoints } = await startStore(t, 1, 71, [], pki);
  let leaf = pki.host;
  const tls = { current: () => leaf, storeCa: () => pki.store.cert };
  const store = new StoreClient({ endpoints, tls });
  const streams: string[] = [];
  const watching = new StoreClient({ endpoints, tls });
  const open = watching.call.post.bind(watching.call);
  watching.call.post = (endpoint, path, ...rest) => {
    if (path === "/v3/watch") streams.push(endpoint);
    return open(endpoint, path, ...rest);
  };
  const seen = watch(t, watching, "/w/");
  await seen.until(() => seen.updates.length > 0);
  const wanted: string[] = [];
  const put = async (): Promise<void> => {
    await store.put("/w/k", String(wanted.length));
    wanted.push(String(wanted.length));
  };
  for (let i = 0; i < 20; i += 1) await put();
  leaf = await pki.hosts.issue({ names: HOST_NAMES });
  const end = performance.now() + 10_000;
  while (streams.length < 2 && performance.now() < end) await put();
  for (let i = 0; i < 20; i += 1) await put();
  await seen.until(() => seen.values().includes(wanted.at(-1) ?? ""));
  t.same(putsOf(seen), wanted);
  t.equal(streams.length, 2, "a stream with the new certificate, once");
  t.notOk(
    seen.updates.some((u) => u.kind === "interrupted"),
    "a renewal is no interruption",
  );
});

void t.test("store: watch: a fresh listing where the store has forgotten changes", async (t) => {
  const cluster = await startStore(t, 1, 21);
  const store = new StoreClient({ endpoints: cluster.endpoints });
  for (const value of ["1", "2", "3"]) await store.put("/w/a", value);
  const { revision } = await store.list("/w/");
  await new StoreMembers(store).compact(revision);
  await new StoreMembers(store).compact(revision);
  const forgotten = watch(t, store, "/w/", 1n);
  await forgotten.until(() => forgotten.updates.length > 0);
  t.match(forgotten.updates[0], { kind: "listing", listing: { entries: [{ key: "/w/a", value: "3" }] } });
  const kept = watch(t, store, "/w/", revision);
  await kept.until(() => kept.updates.length > 0);
  t.match(kept.updates[0], { kind: "events", events: [{ kind: "put", entry: { value: "3" } }] });
  await store.put("/w/a", "4");
  await Promise.all([forgotten, kept].map((c) => c.until(() => c.values().includes("4"))));
  t.same(forgotten.values(), ["3", "4"]);
});

void t.test("store: members: a learner is added, caught up, promoted and removed; each twice", async (t) => {
  const one = await startStore(t, 1, 31);
  const members = new StoreMembers(new StoreClient({ endpoints: one.endpoints }));
  t.same(
    (await members.list()).map((m) => [m.name, m.learner]),
    [["m31", false]],
  );
  const url = "http://127.0.0.77:7403";
  await members.addLearner(url);
  const list = await members.addLearner(url);
  t.equal(list.length, 2, "the second time it is there already");
  const learner = list.find((m) => m.learner);
  t.equal(await members.promote(learner?.id ?? ""), "not-ready", "it never started");
  await members.remove(learner?.id ?? "");
  t.equal((await members.remove(learner?.id ?? "")).length, 1);
  t.same(await members.alarms(), []);
  const status = await members.statusOf(one.endpoints[0] ?? "");
  t.match(status, { version: /^3\./, leader: /^[1-9]/ });
});

void t.test("store: snapshot: the bytes end with etcd's own SHA-256 of them", async (t) => {
  const one = await startStore(t, 1, 41, [], await makePki(t));
  const store = new StoreClient({ endpoints: one.endpoints, tls: one.tls });
  for (let i = 0; i < 50; i += 1) await store.put(`/k/${i}`, "x".repeat(2000));
  const chunks: Buffer[] = [];
  for await (const chunk of new StoreMembers(store).snapshot(one.endpoints[0] ?? "")) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  t.equal(
    createHash("sha256").update(bytes.subarray(0, -32)).digest("hex"),
    bytes.subarray(-32).toString("hex"),
  );
});
