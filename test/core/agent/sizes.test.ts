/** Guests' devices learn the sizes of their disks from their own host's agent, whoever lets a disk grow. */
import { randomUUID } from "node:crypto";

import t from "tap";

import type { DeviceSizes } from "../../../src/core/agent/size-keeper.ts";
import { eventually, startCluster } from "./test-host.ts";

const MIB = 1n << 20n;

/** Devices that know what they were told; `answers`: what they say to the next sizes, else that they take them. */
class Devices implements DeviceSizes {
  readonly known = new Map<string, bigint | null>();
  readonly told: (readonly [vdi: string, size: bigint])[] = [];
  readonly answers: ("refuse" | "fail")[] = [];

  list: DeviceSizes["list"] = async () => [...this.known].map(([vdi, size]) => ({ vdi, size }));

  grow: DeviceSizes["grow"] = async ({ vdi }, size) => {
    this.told.push([vdi, size]);
    const answer = this.answers.shift();
    if (answer === "fail") throw new Error("weftd is away");
    if (answer === undefined) this.known.set(vdi, size);
    return answer === undefined;
  };
}

void t.test(
  "agent: a guest's device is told what its disk has grown to, by whichever door it grew",
  async (t) => {
    const [h1, h2] = await startCluster(t, 2, 191);
    if (h1 === undefined || h2 === undefined) throw new Error("hosts");
    const devices = new Devices();
    await h1.stopAgent();
    h1.sizes = devices;
    await h1.startAgent();
    const { client } = h2;
    const sr = (await client.createSr({ uuid: randomUUID(), copies: 2 })).uuid;
    const make = async (): Promise<string> => {
      const { uuid } = await client.createVdi(sr, { uuid: randomUUID(), size: 64n * MIB });
      return uuid;
    };
    const [uuid, other] = [await make(), await make()];
    await h1.client.activateVdi(uuid, { writable: true });
    const snapshot = randomUUID();
    await client.snapshotVdi(uuid, { uuid: snapshot });
    devices.known.set(uuid, 64n * MIB);
    // Of one that is read, and of one whose device doesn't say what it knows, nothing is told.
    devices.known.set(snapshot, 1n);
    devices.known.set(other, null);
    const knows = (size: bigint): Promise<unknown> =>
      eventually(
        `${size} bytes`,
        async () => devices.known.get(uuid),
        (known) => known === size,
      );

    // Asked on the other host: by XAPI's door and by weft's own.
    await client.changeVdi(uuid, { size: 65n * MIB });
    await knows(65n * MIB);
    await client.resizeVolume(uuid, 66n * MIB);
    await knows(66n * MIB);
    await client.resizeVolume(other, 66n * MIB);
    t.strictSame(devices.told, [
      [uuid, 65n * MIB],
      [uuid, 66n * MIB],
    ]);

    // What can't be told now is told later. What isn't taken is not asked for again, unless it grows once more.
    devices.answers.push("fail", "fail");
    await client.resizeVolume(uuid, 67n * MIB);
    await knows(67n * MIB);
    t.equal(devices.told.length, 5);
    devices.answers.push("refuse");
    await client.resizeVolume(uuid, 68n * MIB);
    await eventually(
      "asked once",
      async () => devices.told.length,
      (count) => count === 6,
    );
    await client.resizeVolume(other, 67n * MIB);
    await client.resizeVolume(uuid, 69n * MIB);
    await knows(69n * MIB);
    t.strictSame(devices.told.slice(5), [
      [uuid, 68n * MIB],
      [uuid, 69n * MIB],
    ]);

    // It has grown while its host's agent was away.
    await h1.stopAgent();
    devices.known.set(uuid, 68n * MIB);
    await h1.startAgent();
    await knows(69n * MIB);
  },
);
