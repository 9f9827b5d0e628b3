/** Plot: a host has died, and its lease has not ended yet. No copy is placed on it, and what it was to make is made elsewhere. */
import { randomUUID } from "node:crypto";

import t from "tap";

import type { VolumeId } from "../../../src/core/model/ids.ts";
import { parseWant } from "../../../src/core/wire/record.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { eventually, startCluster, type TestHost } from "./test-host.ts";

const GIB = 1n << 30n;

/** Nothing of it answers, and its sign of life stands. */
async function dies(
  host: TestHost,
  { client }: TestHost,
  store: Awaited<ReturnType<TestHost["store"]>>,
): Promise<void> {
  await host.stopAgent();
  await store.put(keys.alive(host.weftd.host), JSON.stringify({ since: new Date().toISOString() }));
  await eventually(
    "it seems alive",
    () => client.hosts(),
    (hosts) => hosts.some(({ name, alive: isAlive }) => name === host.name && isAlive),
  );
}

await t.test("agent: nothing is placed on a host that has died within its lease", async (t) => {
  const [h1, h2, h3] = await startCluster(t, 3, 61);
  if (h1 === undefined || h2 === undefined || h3 === undefined) throw new Error("hosts");
  const store = await h1.store();
  const sr = (await h1.client.createSr({ uuid: randomUUID(), copies: 2 })).uuid;
  const disk = async (): Promise<VolumeId> =>
    (await h1.client.createVdi(sr, { uuid: randomUUID(), size: GIB })).volume as VolumeId;
  const hostsOf = async (volume: VolumeId): Promise<readonly string[]> => {
    const key = keys.want(volume);
    const want = parseWant(key, (await store.get(key))?.value ?? "{}");
    return want.placements.filter(({ remove }) => !remove).map(({ host }) => host);
  };

  // It dies while it makes a copy: another host makes it, under another number.
  let let2go = (): void => {};
  const held = new Promise<void>((resolve) => {
    let2go = resolve;
  });
  for (const { weftd } of [h2, h3]) weftd.holdsCopies = held;
  const uuid = randomUUID();
  const making = h1.client.createVdi(sr, { uuid, size: GIB });
  const places = await eventually(
    "it is wished for",
    async (): Promise<readonly string[]> =>
      (await store.get(keys.want(uuid))) === null ? [] : hostsOf(uuid as VolumeId),
    ({ length }) => length === 2,
  );
  const [dead, other] = places.includes(h2.weftd.host) ? [h2, h3] : [h3, h2];
  await dies(dead, h1, store);
  other.weftd.holdsCopies = Promise.resolve();
  await eventually(
    "another place",
    () => hostsOf(uuid as VolumeId),
    (hosts) => !hosts.includes(dead.weftd.host),
  );
  const pending = new Set(await hostsOf(uuid as VolumeId));
  t.same(pending, new Set([h1.weftd.host, other.weftd.host]));
  let2go();
  t.match(await making, { whole: true });

  // What is made from now on goes to the others at once, and is refused at once where these are too few.
  const next = await disk();
  t.notOk((await hostsOf(next)).includes(dead.weftd.host));
  const three = (await h1.client.createSr({ uuid: randomUUID(), copies: 3 })).uuid;
  await t.rejects(h1.client.createVdi(three, { uuid: randomUUID(), size: GIB }), {
    code: "E-VOL-03",
    message: new RegExp(`${dead.name}: not answering`),
  });
});
