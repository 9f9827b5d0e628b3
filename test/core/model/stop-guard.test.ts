/**
 * Plot: a rolling update reboots three hosts, one after the other. The second one is told to stop when the first is up, and
 * what was written meanwhile is not there yet: if it stops now, its guests' volumes stop, though nothing is broken.
 */
import t from "tap";

import { type GuardVolume, heldBack, heldText, isHeld } from "../../../src/core/model/stop-guard.ts";

const voters = ["h1", "h2", "h3"].map((host) => ({ host, answers: true }));
const db: GuardVolume = {
  id: "1",
  name: "db",
  copies: 2,
  minIsr: 1,
  openElsewhere: true,
  inSync: [{ host: "h2", alive: true }],
};

void t.test(
  "stop: a host with the only copy in sync waits until another one is, and is told which volume",
  async (t) => {
    const held = heldBack({ self: "h2", volumes: [db], voters });
    t.ok(isHeld(held));
    t.equal(heldText(held), "it has the only copy in sync of 1 volume (db)");
    const back = { ...db, inSync: [...db.inSync, { host: "h1", alive: true }] };
    t.notOk(isHeld(heldBack({ self: "h2", volumes: [back], voters })));
    t.notOk(
      isHeld(heldBack({ self: "h1", volumes: [db], voters })),
      "whoever has no copy in sync takes none away",
    );
  },
);

void t.test("stop: a copy on a host that does not answer is none", async (t) => {
  const volume = { ...db, inSync: [...db.inSync, { host: "h1", alive: false }] };
  t.ok(isHeld(heldBack({ self: "h2", volumes: [volume], voters })));
});

void t.test("stop: where waiting brings nothing nobody waits", async (t) => {
  t.notOk(isHeld(heldBack({ self: "h2", volumes: [{ ...db, copies: 1 }], voters })), "a volume of one copy");
  const both = { ...db, minIsr: 2, inSync: [...db.inSync, { host: "h1", alive: true }] };
  t.notOk(isHeld(heldBack({ self: "h2", volumes: [both], voters })), "writes that need all copies");
  const three = { ...both, copies: 3 };
  t.ok(isHeld(heldBack({ self: "h2", volumes: [three], voters })), "the third copy is worth waiting for");
});

void t.test("stop: the store's majority is waited for, where another vote can come back", async (t) => {
  const away = voters.map((voter) => ({ ...voter, answers: voter.host !== "h1" }));
  const held = heldBack({ self: "h2", volumes: [], voters: away });
  t.strictSame(held, { volumes: [], store: true, urgent: false });
  t.ok(heldBack({ self: "h2", volumes: [{ ...db, openElsewhere: true, inSync: [] }], voters: away }).urgent);
  const gone = voters.map((voter) => ({ ...voter, answers: voter.host === "h2" }));
  t.notOk(
    heldBack({ self: "h2", volumes: [], voters: gone }).store,
    "what is lost already is not lost again",
  );
  t.equal(heldText(held), "the store would lose its majority");
  t.notOk(heldBack({ self: "h4", volumes: [], voters: away }).store, "who has no vote takes none away");
  t.notOk(heldBack({ self: "h2", volumes: [], voters: [{ host: "h2", answers: true }] }).store);
});

void t.test("stop: the last host of a pool that is switched off has no guest to wait for", async (t) => {
  t.ok(heldBack({ self: "h2", volumes: [db], voters }).urgent);
  const idle = heldBack({ self: "h2", volumes: [{ ...db, openElsewhere: false }], voters });
  t.ok(isHeld(idle));
  t.notOk(idle.urgent);
});
