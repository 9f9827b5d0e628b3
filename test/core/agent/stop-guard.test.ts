/** Plot: the host with a volume's other copy is away, and this one is asked whether it may stop; then the other one is back. */
import t from "tap";

import { eventually, startCluster } from "./test-host.ts";

void t.test(
  "agent: a host says that it should not stop yet, and that it may as soon as the other copy is there",
  async (t) => {
    const [h1, h2] = await startCluster(t, 2, 151);
    if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
    await h1.client.createVolume({ name: "db", size: 1n << 30n, copies: 2, hosts: ["h1", "h2"] });
    await eventually(
      "both copies",
      () => h1.client.volume("db"),
      ({ inSync }) => inSync === 2,
    );
    t.match(await h1.client.stopCheck(0), { held: false, store: false, volumes: [] });
    await h2.stopAgent();
    await eventually(
      "h2 to be away",
      () => h1.client.stopCheck(0),
      ({ held, volumes }) => held && volumes[0]?.name === "db",
    );
    const waiting = h1.client.stopCheck(30_000);
    await h2.startAgent();
    t.match(await waiting, { held: false });
  },
);
