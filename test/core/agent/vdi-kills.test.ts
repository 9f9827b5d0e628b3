/**
 * Plot: whoever serves a request about a disk dies at one of its steps, before or after it is done, and XAPI's door asks again
 * by the same UUID. Whatever the step, the second answer is the one that was wanted, and nothing is there twice or half.
 */
import { randomUUID } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";

import t from "tap";

import type { MemberContext } from "../../../src/core/agent/context.ts";
import { dropLeft } from "../../../src/core/agent/vdi-keeper.ts";
import { composeVdi, layerVdi } from "../../../src/core/agent/vdi-compose.ts";
import { cloneVdi, snapshotVdi } from "../../../src/core/agent/vdi-copies.ts";
import { resetVdi } from "../../../src/core/agent/vdi-reset.ts";
import { createVdi, deleteVdi, introduceVdi } from "../../../src/core/agent/vdis.ts";
import { HELPER_MS } from "../../../src/core/model/vdi.ts";
import { vdiCreateRequest } from "../../../src/core/wire/sr-api.ts";
import { eventually, startCluster } from "./test-host.ts";

const MIB = 1n << 20n;

class Killed extends Error {}

/** The context of a request that dies at its `step`th word to the store or to weftd: nothing comes from it any more. */
function dying(context: MemberContext, step: number, when: "before" | "after"): MemberContext {
  let words = 0;
  const word = async <T>(say: () => Promise<T>): Promise<T> => {
    words += 1;
    if (words > step || (words === step && when === "before")) throw new Killed();
    const answer = await say();
    if (words === step) throw new Killed();
    return answer;
  };
  const through = <T extends object>(target: T, names: readonly (keyof T & string)[]): T =>
    new Proxy(target, {
      get: (of, name) => {
        const found: unknown = Reflect.get(of, name, of);
        if (typeof found !== "function") return found;
        const say = (...given: readonly unknown[]): unknown => Reflect.apply(found, of, given);
        return names.some((one) => one === name)
          ? (...given: readonly unknown[]) => word(async () => say(...given))
          : say;
      },
    });
  const daemon = Object.create(context.daemon, {
    client: { value: through(context.daemon.client, ["call"]) },
  }) as MemberContext["daemon"];
  return { ...context, store: through(context.store, ["txn", "cas", "put"]), daemon };
}

void t.test("agent: a request about a disk may be cut short anywhere, and is asked again", async (t) => {
  const [h1] = await startCluster(t, 1, 1);
  if (h1 === undefined) throw new Error("host");
  const { client } = h1;
  const context = h1.member();
  const sr = (await client.createSr({ uuid: randomUUID(), copies: 1 })).uuid;
  const created = (): ReturnType<typeof vdiCreateRequest.parse> =>
    vdiCreateRequest.parse({ uuid: randomUUID(), size: String(MIB), label: "d" });
  const root = (await createVdi(context, sr, created())).uuid;

  /** Each time with a request of its own; ends with the one that no step was left to kill. */
  const killed = async (what: string, begin: () => Promise<(of: MemberContext) => Promise<unknown>>) => {
    for (let step = 1; ; step += 1)
      for (const when of ["before", "after"] as const) {
        const ask = await begin();
        const first = await ask(dying(context, step, when)).then(
          () => "whole",
          (error: unknown) => error,
        );
        if (first === "whole") {
          t.ok(step > 1, `${what}: ${step - 1} steps`);
          return;
        }
        if (!(first instanceof Killed)) throw first;
        await ask(context);
      }
  };
  const disks = async (): Promise<number> => (await client.vdis(sr)).vdis.length;
  const helpers = async (): Promise<readonly string[]> =>
    (await client.snapshots()).flatMap(({ name, state }) =>
      state === "ready" && !name.startsWith("vdi-") ? [name] : [],
    );

  let wanted = 1;
  await killed("create", async () => {
    const request = created();
    wanted += 1;
    return (of) => createVdi(of, sr, request);
  });
  t.equal(await disks(), wanted);
  await killed("snapshot", async () => {
    const request = { uuid: randomUUID() };
    wanted += 1;
    return (of) => snapshotVdi(of, root, request, "root@h1");
  });
  t.equal(await disks(), wanted);
  await killed("clone of a disk", async () => {
    const request = { uuid: randomUUID() };
    wanted += 1;
    return (of) => cloneVdi(of, root, request);
  });
  t.equal(await disks(), wanted);
  t.ok((await client.vdis(sr)).vdis.every(({ whole }) => whole));
  await killed("introduce", async () => {
    const { id } = await client.createVolume({ name: `made-${randomUUID().slice(0, 8)}`, size: MIB });
    wanted += 1;
    return (of) => introduceVdi(of, sr, { uuid: id, label: null });
  });
  t.equal(await disks(), wanted);
  await killed("mark", async () => {
    const { uuid } = await createVdi(context, sr, created());
    wanted += 1;
    return (of) => resetVdi(of, uuid, true);
  });
  await killed("delete", async () => {
    const { uuid } = await createVdi(context, sr, created());
    return (of) => deleteVdi(of, uuid);
  });
  await killed("delete of a snapshot", async () => {
    const { uuid } = await snapshotVdi(context, root, { uuid: randomUUID() }, "root@h1");
    return (of) => deleteVdi(of, uuid);
  });
  t.equal(await disks(), wanted);

  // Laid over its parent: at each moment the disk is the one or the other, and at last it is both.
  let composed: readonly string[] = [];
  await killed("compose", async () => {
    const [leaf, parent] = [await createVdi(context, sr, created()), await createVdi(context, sr, created())];
    await layerVdi(context, leaf.uuid);
    await snapshotVdi(context, leaf.uuid, { uuid: randomUUID() }, "root@h1");
    wanted += 2;
    composed = [leaf.uuid, parent.uuid];
    return async (of) => {
      const { volume } = await composeVdi(of, leaf.uuid, parent.uuid);
      t.equal(volume, parent.uuid);
    };
  });
  t.equal(await disks(), wanted);
  const volumes = (await client.vdis(sr)).vdis.filter(({ snapshot }) => snapshot === null);
  t.equal(new Set(volumes.map(({ volume }) => volume)).size, volumes.length, "no volume is two disks'");
  t.ok(volumes.every(({ whole }) => whole));
  t.equal(volumes.find(({ uuid }) => uuid === composed[0])?.volume, composed[1]);

  // What was taken for a moment, and is named by no disk, goes by itself; the others are as many as there are marks.
  await dropLeft(context, Date.now() + HELPER_MS + 1000);
  const marked = (await client.vdis(sr)).vdis.filter(({ resets }) => resets).length;
  t.ok(marked > 0);
  t.equal((await helpers()).length, marked);

  // A list that nobody can be sure of is an error, whatever is known: who misses a disk in it would forget it.
  const pid = (await h1.etcd.runningPid()) ?? 0;
  t.teardown(() => process.kill(pid, "SIGCONT"));
  process.kill(pid, "SIGSTOP");
  await eventually(
    "the store stands still",
    () =>
      readdir(`/proc/${pid}/task`).then((ids) =>
        Promise.all(ids.map((id) => readFile(`/proc/${pid}/task/${id}/stat`, "utf8"))),
      ),
    (threads) => threads.every((stat) => stat.slice(stat.lastIndexOf(")")).startsWith(") T")),
  );
  const away = { code: "E-STORE-01", isRetryable: true };
  await Promise.all([
    t.rejects(client.vdis(sr), away),
    t.rejects(client.srs(), away),
    t.rejects(client.vdi(root), away),
  ]);
});
