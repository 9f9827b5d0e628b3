/** Keys, transactions and leases against real etcd, one member and three, in clear and with mutual TLS. */
import t from "tap";

import { WeftError } from "../../../src/core/wire/errors.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { loopback, makePki, startStore, type TestPki } from "./etcd-for-tests.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

/** The same plot both ways, on addresses of its own. */
const ways: readonly {
  readonly how: string;
  readonly at: number;
  readonly pki: (t: Scope) => Promise<TestPki | null>;
}[] = [
  { how: "in clear", at: 0, pki: () => Promise.resolve(null) },
  { how: "with TLS", at: 100, pki: makePki },
];

for (const { how, at, pki } of ways) {
  void t.test(`store: a key is put, compared and swapped once, listed and deleted (${how})`, async (t) => {
    const { endpoints, tls } = await startStore(t, 1, 1 + at, [], await pki(t));
    const store = new StoreClient({ endpoints, tls });
    t.equal(await store.get("/weft/v1/a"), null);
    const made = await store.cas("/weft/v1/a", 0n, "one");
    t.equal(made.kind, "won");
    t.equal((await store.cas("/weft/v1/a", 0n, "two")).kind, "lost", "the key is there now");
    const entry = await store.get("/weft/v1/a");
    t.equal(entry?.value, "one");
    t.equal((await store.cas("/weft/v1/a", entry?.modRevision ?? 0n, "two")).kind, "won");
    const lost = await store.cas("/weft/v1/a", entry?.modRevision ?? 0n, "three");
    t.match(lost, { kind: "lost", current: { value: "two" } });
    await store.put("/weft/v1/b", "ä\n");
    await store.put("/weft/v10", "elsewhere");
    const { entries } = await store.list("/weft/v1/");
    t.same(
      entries.map((e) => [e.key, e.value]),
      [
        ["/weft/v1/a", "two"],
        ["/weft/v1/b", "ä\n"],
      ],
    );
    const both = await store.txn(
      [{ key: "/weft/v1/a", modRevision: 1n }],
      [{ kind: "delete", key: "/weft/v1/b" }],
    );
    t.equal(both.kind, "compare-failed");
    await store.delete("/weft/v1/a");
    t.equal(await store.get("/weft/v1/a"), null);
  });
}

for (const { how, at, pki } of ways) {
  void t.test(
    `store: calls go on within 2 s when a member hangs, and a swap is made once (${how})`,
    async (t) => {
      // SIGSTOP is the hard case: the member accepts connections and never answers.
      const { endpoints, members, tls } = await startStore(t, 3, 11 + at, [], await pki(t));
      const store = new StoreClient({ endpoints, tls });
      await store.put("/k", "0");
      const first = members[0];
      t.equal(store.call.inOrder()[0], first?.endpoint);
      first?.kill("SIGSTOP");
      const before = performance.now();
      for (let i = 0; i < 20; i += 1) {
        const entry = await store.get("/k");
        const swap = await store.cas("/k", entry?.modRevision ?? 0n, String(Number(entry?.value) + 1));
        t.equal(swap.kind, "won");
      }
      t.ok(performance.now() - before < 5000, "one election at most");
      t.equal((await store.get("/k"))?.value, "20");
      first?.kill("SIGCONT");
    },
  );
}

for (const { how, at, pki } of ways) {
  void t.test(
    `store: a transaction sent to a member that never answers is unknown, not failed (${how})`,
    async (t) => {
      const { endpoints, members, tls } = await startStore(t, 1, 21 + at, [], await pki(t));
      const store = new StoreClient({ endpoints, tls });
      await store.put("/k", "0");
      members[0]?.kill("SIGSTOP");
      const outcome = await store.txn(
        [{ key: "/k", modRevision: 0n }],
        [{ kind: "put", key: "/k", value: "1" }],
      );
      t.equal(outcome.kind, "unknown");
      members[0]?.kill("SIGCONT");
      t.equal((await store.get("/k"))?.value, "0");
    },
  );
}

void t.test("store: without a majority a call fails with E-STORE-01 after its patience", async (t) => {
  const store = new StoreClient({ endpoints: [`http://${loopback(250)}:7402`], patienceMs: 200 });
  await t.rejects(store.get("/k"), { code: "E-STORE-01", exitCode: 4, isRetryable: true });
  await t.rejects(store.cas("/k", 0n, "x"), { code: "E-STORE-01", safe: "Nothing was changed." });
});

void t.test(
  "store: a lease is kept across the death of a member, and ends its keys when it isn't",
  async (t) => {
    const { endpoints, members } = await startStore(t, 3, 31);
    const store = new StoreClient({ endpoints });
    const lease = await store.grantLease(2);
    await store.put("/alive", "h1", lease);
    await members[0]?.stop();
    const end = performance.now() + 3000;
    while (performance.now() < end) {
      t.ok(await store.keepLease(lease));
      t.ok((await store.get("/alive")) !== null);
      await new Promise((resolve) => setTimeout(resolve, 400));
    }
    const gone = performance.now() + 15_000;
    while ((await store.get("/alive")) !== null) {
      if (performance.now() > gone) throw new Error("the key outlived its lease");
    }
    t.equal(await store.keepLease(lease), false);
    await store.revokeLease(lease);
  },
);

void t.test("store: what etcd refuses has a code", async (t) => {
  const { endpoints } = await startStore(t, 1, 41);
  const store = new StoreClient({ endpoints });
  const error: unknown = await store.put("/k", "v", 12345n).catch((e: unknown) => e);
  t.ok(error instanceof WeftError && error.code === "E-STORE-10", String(error));
});
