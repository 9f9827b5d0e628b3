/**
 * A mirror is brought to the present: what it costs, and that nothing which was there when it was asked is missed.
 */
import t from "tap";

import { Mirror } from "../../../src/core/agent/mirror.ts";
import { type Listing, StoreClient } from "../../../src/core/wire/store-client.ts";
import { ROOT } from "../../../src/core/wire/store-keys.ts";
import { CLIENT_PORT, loopback, startStore } from "../wire/etcd-for-tests.ts";
import { eventually } from "./test-host.ts";

/** Counts what is read. */
class CountedStore extends StoreClient {
  lists = 0;
  revisions = 0;

  override async list(prefix: string): Promise<Listing> {
    this.lists += 1;
    return super.list(prefix);
  }

  override async revision(): Promise<bigint> {
    this.revisions += 1;
    return super.revision();
  }
}

await t.test("mirror: who asks at once shares a look, and what was there is always seen", async (t) => {
  const { endpoints, members } = await startStore(t, 1, 5);
  const store = new CountedStore({ endpoints });
  const writer = new StoreClient({ endpoints });
  const mirror = new Mirror(store);
  const key = `${ROOT}thing`;
  const value = (): string | undefined => mirror.get(key)?.value;

  // Without a watch everything is read each time.
  await writer.put(key, "1");
  await mirror.sync();
  await mirror.sync();
  t.strictSame([value(), store.lists, store.revisions], ["1", 2, 0]);

  mirror.start();
  t.teardown(() => mirror.stop());
  await eventually(
    "a watch",
    () => writer.put(key, "watched").then(value),
    (seen) => seen === "watched",
  );
  await mirror.sync();
  store.lists = 0;

  // With one a look costs next to nothing, however many ask.
  await Promise.all(Array.from({ length: 100 }, () => mirror.sync()));
  t.equal(store.lists, 0);
  t.ok(store.revisions <= 3, `${store.revisions} looks for 100 who ask`);

  // Each sees its own write, whoever else is writing.
  const seen = await Promise.all(
    Array.from({ length: 30 }, async (_, n) => {
      await writer.put(`${ROOT}of/${n}`, String(n));
      await mirror.sync();
      return mirror.get(`${ROOT}of/${n}`)?.value;
    }),
  );
  t.strictSame(
    seen,
    Array.from({ length: 30 }, (_, n) => String(n)),
  );

  // What others write beside it has no event here: then all is read, once.
  store.lists = 0;
  await writer.put("/elsewhere", "1");
  for (const _ of ["first", "again"]) await mirror.sync();
  t.equal(store.lists, 1);

  // While the store is away each of those who ask is told within its own patience.
  const nobody = [`http://${loopback(99)}:${CLIENT_PORT}`];
  const away = new Mirror(new StoreClient({ endpoints: nobody, patienceMs: 500 }));
  const begun = performance.now();
  const outcomes = await Promise.allSettled([away.sync(), away.sync()].concat(away.sync()));
  t.ok(outcomes.every(({ status }) => status === "rejected"));
  t.ok(performance.now() - begun < 3000);

  // The watch has broken: everything is read once more.
  store.lists = 0;
  await members[0]?.stop();
  await members[0]?.start();
  await writer.put(key, "after");
  await eventually(
    "the store again",
    () => mirror.sync().then(value),
    (now) => now === "after",
  );
  t.ok(store.lists > 0);
});
