/**
 * The end of a storage migration: what a guest wrote meanwhile (the leaf) is laid over what was copied (the parent), and the
 * leaf's disk is both. What is written where is weftd's; here it is which volume is whose, whoever asks, opens or deletes
 * something in between.
 */
import { randomUUID } from "node:crypto";

import t from "tap";

import { activateVdi } from "../../../src/core/agent/activation.ts";
import type { MemberContext } from "../../../src/core/agent/context.ts";
import { vdiActivateRequest } from "../../../src/core/wire/sr-api.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { refuse } from "../wire/fake-daemon.ts";
import { eventually, startCluster, type TestHost } from "./test-host.ts";

const MIB = 1n << 20n;
const WRITABLE = { writable: true, waitMs: 0 };

type Pair = { readonly sr: string; readonly leaf: string; readonly parent: string; readonly dummy: string };

/** As XAPI makes them: the leaf, its dummy snapshot, the parent. */
async function pair({ client }: TestHost, sr: string, size = 4n * MIB): Promise<Pair> {
  const [leaf, parent, dummy] = [randomUUID(), randomUUID(), randomUUID()];
  await client.createVdi(sr, { uuid: leaf, size: 4n * MIB, label: "root" });
  await client.layerVdi(leaf);
  await client.snapshotVdi(leaf, { uuid: dummy });
  await client.createVdi(sr, { uuid: parent, size, label: "root" });
  return { sr, leaf, parent, dummy };
}

/** The mirror writes to it, and is done. */
async function mirrored({ client }: TestHost, { leaf }: Pair): Promise<void> {
  await client.activateVdi(leaf, WRITABLE);
  await client.deactivateVdi(leaf);
}

void t.test("agent: a disk is laid over its parent, and is that volume from then on", async (t) => {
  const [h1, h2] = await startCluster(t, 2, 1);
  if (h1 === undefined || h2 === undefined) throw new Error("hosts");
  const { client } = h1;
  const sr = (await client.createSr({ uuid: randomUUID(), copies: 2 })).uuid;
  const made = await pair(h1, sr, MIB);
  const { leaf, parent, dummy } = made;
  t.match(await client.vdi(leaf), { layer: true, volume: leaf, composedFrom: null });
  t.match(await client.layerVdi(leaf), { layer: true }, "asked again");
  t.match(await client.vdi(parent), { layer: false });
  await client.changeVdi(leaf, { cbt: true });

  // It is opened for the mirror, once: on its own it is half of a disk.
  const opened = await client.activateVdi(leaf, WRITABLE);
  t.equal((await client.activateVdi(leaf, WRITABLE)).session, opened.session, "asked again while it is open");
  await t.rejects(client.composeVdi(leaf, parent), { code: "E-VDI-04", facts: { vdi: leaf } });
  await client.deactivateVdi(leaf);
  for (const { client: any } of [h1, h2])
    for (const writable of [true, false])
      await t.rejects(
        any.activateVdi(leaf, { writable, waitMs: 0 }),
        { code: "E-VDI-08", message: /was not composed/ },
        writable ? "written" : "read",
      );

  // Asked of the other host. The parent grows to it, and is a disk no more.
  const composed = await h2.client.composeVdi(leaf, parent);
  t.match(composed, { uuid: leaf, volume: parent, composedFrom: parent, layer: false, size: 4n * MIB });
  t.match(composed, { label: "root", cbt: true, untouched: false, resets: false, openOn: null });
  t.same(h2.weftd.laid, [{ from: leaf, onto: parent }]);
  t.same(await client.composeVdi(leaf, parent), composed, "asked again");
  t.equal(h1.weftd.laid.length, 0);
  await t.rejects(client.vdi(parent), { code: "E-VDI-01" });
  t.match(await client.volume(`vdi-${leaf}`), { id: parent, disk: { label: "root", sr } });
  const named = new Map((await client.vdis(sr)).vdis.map(({ uuid, volume }) => [uuid, volume]));
  t.same(
    named,
    new Map([
      [leaf, parent],
      [dummy, leaf],
    ]),
  );

  // It is opened, grows, is snapshotted and cloned as that volume.
  const again = await client.activateVdi(leaf, WRITABLE);
  t.match(again, { volume: parent, size: 4n * MIB });
  t.match((await client.vdiUsers(leaf)).users, [{ host: { name: "h1" } }]);
  await client.deactivateVdi(leaf);
  t.match(await client.changeVdi(leaf, { size: 8n * MIB }), { size: 8n * MIB, volume: parent });
  const snapshot = await client.snapshotVdi(leaf, { uuid: randomUUID() });
  t.match(snapshot, { volume: parent, snapshotOf: leaf });
  t.match(await client.cloneVdi(snapshot.uuid, { uuid: randomUUID() }), { size: 8n * MIB });
  await client.deleteVdi(snapshot.uuid);

  // What the dummy says is of another volume: nothing is compared with it, and nobody goes back to it.
  await t.rejects(client.changedVdiBlocks(leaf, dummy), { code: "E-VDI-03" });
  await t.rejects(client.revertVdi(leaf, dummy), { code: "E-VDI-03" });
  // The parent's volume comes in under no other name.
  await t.rejects(client.introduceVdi(sr, { uuid: parent }), { code: "E-VDI-01" });
  await t.rejects(client.createVdi(sr, { uuid: parent, size: MIB }), {
    code: "E-VDI-02",
    message: /composed/,
  });
  t.equal((await client.vdis(sr)).vdis.filter(({ volume }) => volume === parent).length, 1);

  // The leaf's old volume lives on in the dummy, then goes for good; the disk stays what it is.
  t.match(await client.trash(), [{ volume: leaf, name: `vdi-${parent}` }]);
  await t.rejects(client.cloneVdi(dummy, { uuid: randomUUID() }), { code: "E-VOL-23" });
  await client.deleteVdi(dummy);
  const store = await h1.store();
  await client.emptyTrash(null);
  await eventually(
    "the old volume gone",
    async () => store.get(keys.want(leaf)),
    (want) => want === null,
  );
  t.match(await h2.client.vdi(leaf), { volume: parent, whole: true });
  t.equal((await client.volume(leaf)).id, parent, "who looks for the volume by the disk's UUID finds it");
  t.match((await client.vdis(sr)).vdis.find(({ uuid }) => uuid === leaf)?.volume, parent);

  // A guest that ends is not kept by a damaged key.
  await client.activateVdi(leaf, WRITABLE);
  const kept = (await store.get(keys.vdi(leaf)))?.value ?? "";
  await store.put(keys.vdi(leaf), "{}");
  await client.deactivateVdi(leaf);
  t.notOk(h1.weftd.sessions.has(parent));
  await store.put(keys.vdi(leaf), kept);

  // It goes to the trash and comes back as the disk that it is; and its key goes with it at last.
  await client.deleteVdi(leaf);
  await t.rejects(client.vdi(leaf), { code: "E-VDI-01" });
  await client.restoreFromTrash(`vdi-${leaf}`);
  t.match(await client.vdi(leaf), { volume: parent, label: "root" });
  await client.deleteVdi(leaf);
  await client.emptyTrash(null);
  await eventually(
    "its key gone",
    async () => store.get(keys.vdi(leaf)),
    (key) => key === null,
  );
});

void t.test("agent: a layer's first activation is asked again until somebody heard of it", async (t) => {
  const [h1] = await startCluster(t, 1, 31);
  if (h1 === undefined) throw new Error("host");
  const { client } = h1;
  const sr = (await client.createSr({ uuid: randomUUID(), copies: 1 })).uuid;

  // weftd refuses once, as while a caretaker's session ends.
  const { leaf } = await pair(h1, sr);
  h1.weftd.beforeOpen = async () => refuse("E-SESS-01", "the session ended");
  t.match(await client.activateVdi(leaf, WRITABLE), { volume: leaf });
  await client.deactivateVdi(leaf);
  await t.rejects(client.activateVdi(leaf, WRITABLE), { code: "E-VDI-08" });

  // It is refused for good: nobody has written.
  const { leaf: other } = await pair(h1, sr);
  h1.weftd.beforeOpen = async () => refuse("E-VOL-09", "no copy");
  await t.rejects(client.activateVdi(other, WRITABLE), { code: "E-VOL-09" });
  // Opened, and whoever opened it ended before it was noted.
  await client.attach(`vdi-${other}`);
  t.match(await client.activateVdi(other, WRITABLE), { volume: other });
  await client.deactivateVdi(other);
  await t.rejects(client.activateVdi(other, WRITABLE), { code: "E-VDI-08" });
});

void t.test("agent: what can't be laid over something is refused, and nothing is changed", async (t) => {
  const [h1] = await startCluster(t, 1, 11);
  if (h1 === undefined) throw new Error("host");
  const { client } = h1;
  const sr = (await client.createSr({ uuid: randomUUID(), copies: 1 })).uuid;
  const other = (await client.createSr({ uuid: randomUUID(), copies: 1 })).uuid;
  const { leaf, parent, dummy } = await pair(h1, sr);
  const large = (await client.createVdi(sr, { uuid: randomUUID(), size: 8n * MIB })).uuid;
  const elsewhere = (await client.createVdi(other, { uuid: randomUUID(), size: MIB })).uuid;
  const plain = (await client.createVdi(sr, { uuid: randomUUID(), size: 4n * MIB })).uuid;
  const before = await client.vdis(sr);
  const refused: readonly (readonly [string, string, string])[] = [
    [leaf, leaf, "E-VDI-03"],
    [leaf, dummy, "E-VDI-03"],
    [dummy, parent, "E-VDI-03"],
    [leaf, elsewhere, "E-VDI-03"],
    [leaf, large, "E-VDI-03"],
    [plain, parent, "E-VDI-08"],
    [leaf, randomUUID(), "E-VDI-01"],
    [randomUUID(), parent, "E-VDI-01"],
  ];
  for (const [at, [of, over, code]] of refused.entries())
    await t.rejects(client.composeVdi(of, over), { code }, `${at}`);
  await t.rejects(client.composeVdi(leaf, "X"), { code: "E-ARG-02" });
  // What was written before can't be told by sectors.
  await client.activateVdi(plain, WRITABLE);
  await client.deactivateVdi(plain);
  await t.rejects(client.layerVdi(plain), { code: "E-VDI-08", message: /opened before/ });
  await t.rejects(client.layerVdi(dummy), { code: "E-VDI-03" });
  t.same((await client.vdis(sr)).vdis.length, before.vdis.length);
  t.equal(h1.weftd.laid.length, 0);
});

void t.test("agent: whoever opens a disk while it is laid over another makes nothing half", async (t) => {
  const [h1, h2] = await startCluster(t, 2, 21);
  if (h1 === undefined || h2 === undefined) throw new Error("hosts");
  const { client } = h1;
  const sr = (await client.createSr({ uuid: randomUUID(), copies: 2 })).uuid;

  // Meanwhile nobody opens either; who asks for the same waits for the same.
  const made = await pair(h1, sr);
  await mirrored(h1, made);
  let go = (): void => undefined;
  const hold = (): void => {
    h1.weftd.holdsLays = new Promise((resolve) => {
      go = resolve;
    });
  };
  hold();
  const first = client.composeVdi(made.leaf, made.parent);
  await underWay(h1, made.leaf);
  const second = client.composeVdi(made.leaf, made.parent);
  for (const host of [h1, h2])
    for (const uuid of [made.leaf, made.parent])
      await t.rejects(host.client.activateVdi(uuid, WRITABLE), { code: "E-VDI-04", message: /composed/ });
  // Another host's question waits for it as well; the one that works may have died, and its lease goes.
  const elsewhere = h2.client.composeVdi(made.leaf, made.parent);
  go();
  t.match(await first, { volume: made.parent });
  t.same(await second, await first);
  t.match(await elsewhere, { volume: made.parent });
  t.equal(h1.weftd.laid.length, 1);
  const store = await h1.store();
  t.equal(await store.get(keys.composing(made.leaf)), null, "nothing of the hint is left");
  await client.activateVdi(made.leaf, WRITABLE);
  await client.deactivateVdi(made.leaf);

  // Somebody takes the leaf by hand from a host that does not know of it: what was laid over counts for nothing.
  const taken = await pair(h1, sr);
  await mirrored(h1, taken);
  hold();
  const cut = client.composeVdi(taken.leaf, taken.parent);
  await underWay(h1, taken.leaf);
  await h2.client.attach(`vdi-${taken.leaf}`);
  go();
  await t.rejects(cut, { code: "E-VDI-04", message: /h2 has/ });
  t.match(await client.vdi(taken.leaf), { volume: taken.leaf, composedFrom: null, layer: true });
  t.match(await client.vdi(taken.parent), { volume: taken.parent });
  await h2.client.detach(`vdi-${taken.leaf}`);
  t.match(
    await client.composeVdi(taken.leaf, taken.parent),
    { volume: taken.parent },
    "and it is asked again",
  );

  // A session that ends in the middle is begun anew; not for ever.
  const anew = await pair(h1, sr);
  h1.weftd.cutsLays = ["E-VOL-22", "E-VOL-22"];
  t.match(await client.composeVdi(anew.leaf, anew.parent), { volume: anew.parent });
  // weftd is started anew, the store changes its leader: that is waited for, however often.
  const passing = await pair(h1, sr);
  h1.weftd.cutsLays = ["E-AGENT-05", "E-AGENT-05", "E-STORE-06", "E-STORE-01", "E-SESS-01", "E-VOL-12"];
  t.match(await client.composeVdi(passing.leaf, passing.parent), { volume: passing.parent });
  const never = await pair(h1, sr);
  h1.weftd.cutsLays = Array.from({ length: 5 }, () => "E-VOL-22");
  await t.rejects(client.composeVdi(never.leaf, never.parent), { code: "E-VDI-07", isRetryable: true });
  t.match(await client.vdi(never.leaf), { volume: never.leaf });
  // XAPI gives up and destroys them, in any order.
  for (const uuid of [never.parent, never.leaf, never.dummy]) await client.deleteVdi(uuid);

  // A guest that was about to open it, and had read which volume it is, gets the one that it is by then.
  const late = await pair(h1, sr);
  await client.deleteVdi(late.dummy);
  const context = composesBefore(h2.member(), "session.open", () =>
    client.composeVdi(late.leaf, late.parent),
  );
  const opened = await activateVdi(
    context,
    late.leaf,
    vdiActivateRequest.parse({ writable: true, waitMs: 5000 }),
  );
  t.match(opened, { volume: late.parent });
  t.match([...h2.weftd.sessions.keys()].includes(late.leaf), false, "nothing stays open of the other one");
});

async function underWay(host: TestHost, uuid: string): Promise<void> {
  await eventually(
    "both are open",
    async () => host.weftd.sessions.get(uuid),
    (session) => session?.caretaker === true,
  );
}

/** The context of a request before whose first such word to weftd something else happens. */
function composesBefore(
  context: MemberContext,
  method: string,
  first: () => Promise<unknown>,
): MemberContext {
  let isFirst = true;
  const client = new Proxy(context.daemon.client, {
    get: (of, name) => {
      const found: unknown = Reflect.get(of, name, of);
      if (name !== "call" || typeof found !== "function") return found;
      return async (...given: readonly unknown[]): Promise<unknown> => {
        if (isFirst && given[0] === method) {
          isFirst = false;
          await first();
        }
        return Reflect.apply(found, of, given);
      };
    },
  });
  const daemon = Object.create(context.daemon, { client: { value: client } }) as MemberContext["daemon"];
  return { ...context, daemon };
}
