/** A volume is given another size, open and closed, through any host; what is refused leaves nothing behind. */
import t from "tap";

import { eventually, three } from "./test-host.ts";

const GIB = 1n << 30n;

void t.test(
  "agent: a volume grows where it is open and where it isn't, and shrinks only by its name",
  async (t) => {
    const [h1, h2, h3] = await three(t, 51);
    const made = await h1.client.createVolume({ name: "db", size: GIB, copies: 2, hosts: ["h1", "h2"] });
    const sizes = async (): Promise<readonly [bigint, bigint]> => {
      const { size, wantedSize } = await h1.client.volume("db");
      return [size, wantedSize];
    };

    // Closed: a caretaker does it and goes.
    t.match(await h3.client.resizeVolume("db", 2n * GIB), { size: 2n * GIB, wantedSize: 2n * GIB });
    await eventually(
      "the caretaker gone",
      () => h1.client.volume("db"),
      (v) => v.owner === null,
    );
    // Open on h3: asked of another host, and of h3 itself.
    await h3.client.attach("db");
    const before = (await h1.client.volume("db")).epoch ?? 0n;
    const grown = await h1.client.resizeVolume("db", 3n * GIB);
    t.equal(grown.size, 3n * GIB);
    t.ok((grown.epoch ?? 0n) > before);
    t.equal((await h3.client.resizeVolume(made.id, 4n * GIB)).size, 4n * GIB);
    t.equal((await h3.client.resizeVolume("db", 4n * GIB)).size, 4n * GIB, "the same again");

    // What is refused changes nothing, neither what is wanted nor what is.
    for (const [size, loseData, code] of [
      [4n * GIB + 1n, null, "E-ARG-02"],
      [0n, null, "E-VOL-02"],
      [65n << 40n, null, "E-VOL-02"],
      [GIB, null, "E-VOL-12"],
      [GIB, "db", "E-VOL-12"],
    ] as const) {
      await t.rejects(h1.client.resizeVolume("db", size, loseData), { code }, `${size} ${code}`);
    }
    h3.weftd.refusesSizes = true;
    // Through whichever host it is asked.
    for (const asked of [h3, h1])
      await t.rejects(asked.client.resizeVolume("db", 5n * GIB), {
        code: "E-VOL-15",
        message: /can't follow/,
      });
    t.same(await sizes(), [4n * GIB, 4n * GIB]);
    h3.weftd.refusesSizes = false;
    const audited = await h3.client.audit({
      since: null,
      volume: "db",
      host: "h3",
      who: "h1",
      refused: null,
      limit: null,
    });
    t.match(
      audited.lines.filter(({ what }) => what === "POST /v1/internal/volume-work").at(-1),
      { who: { kind: "host", name: "h1" }, target: { volume: made.id, work: "grow" }, outcome: "E-VOL-15" },
      "what a host does for another one stands in its audit",
    );

    // Its owner's agent is away: it grows as soon as that is back.
    await h3.stopAgent();
    const growing = h1.client.resizeVolume("db", 5n * GIB);
    await eventually("the wish", sizes, ([, wanted]) => wanted === 5n * GIB);
    t.same(await sizes(), [4n * GIB, 5n * GIB]);
    await h3.startAgent();
    t.equal((await growing).size, 5n * GIB);

    await h3.client.detach("db");
    await t.rejects(h2.client.resizeVolume("db", GIB), { code: "E-VOL-15", exitCode: 2 });
    await t.rejects(h2.client.resizeVolume("db", GIB, "other"), { code: "E-ARG-04" });
    t.same(await sizes(), [5n * GIB, 5n * GIB]);
    h3.weftd.refusesSizes = true;
    await t.rejects(h3.client.resizeVolume("db", GIB, "db"), { code: "E-VOL-15", message: /can't follow/ });
    await t.rejects(h3.client.resizeVolume("db", 6n * GIB), { code: "E-VOL-15", message: /can't follow/ });
    t.same(await sizes(), [5n * GIB, 5n * GIB]);
    h3.weftd.refusesSizes = false;
    t.match(await h3.client.resizeVolume("db", GIB, "db"), { size: GIB, wantedSize: GIB });
    await eventually(
      "nobody owns it",
      () => h1.client.volume("db"),
      (v) => v.owner === null,
    );
  },
);
