/**
 * Plot: trouble comes, stays and goes, and three hosts look at it. An administrator who is woken three times, or by a reboot
 * that went well, stops reading alerts; one who is not told that the copies are back reboots the next host too early.
 */
import t from "tap";

import { type KnownAlert, stepAlerts, type Trouble, troublesOf } from "../../../src/core/model/alerts.ts";

const facts = { volumes: [], problems: [], ejected: [], stopping: [] };
const degraded = troublesOf({ ...facts, volumes: [{ name: "db", health: "degraded" }] });

/** Looks each `everyMs`, and keeps as the store does. */
function told(steps: readonly (readonly [atMs: number, troubles: readonly Trouble[]])[]): readonly string[] {
  let known: readonly KnownAlert[] = [];
  return steps.flatMap(([atMs, troubles]) => {
    const { keep, say } = stepAlerts(known, troubles, atMs);
    const changed = new Set(keep.map(({ kind }) => kind));
    known = [...known.filter(({ kind }) => !changed.has(kind)), ...keep.flatMap((one) => one.known ?? [])];
    return say.map(({ name }) => `${atMs} ${name}`);
  });
}

void t.test("alerts: what lasts is said once, and that it is over", async (t) => {
  t.strictSame(
    told([
      [0, degraded],
      [30_000, degraded],
      [60_000, degraded],
      [90_000, degraded],
      [120_000, []],
      [150_000, []],
    ]),
    ["60000 WEFT_DEGRADED", "120000 WEFT_DEGRADED_OVER"],
  );
});

void t.test("alerts: what comes and goes is not said, nor that it is over", async (t) => {
  t.strictSame(
    told([
      [0, degraded],
      [30_000, []],
      [60_000, degraded],
      [90_000, []],
    ]),
    [],
  );
});

void t.test("alerts: a clock that was set back delays an alert by its own time at most", async (t) => {
  t.strictSame(
    told([
      [9e12, degraded],
      [1000, degraded],
      [61_000, degraded],
    ]),
    ["61000 WEFT_DEGRADED"],
  );
});

void t.test("alerts: each kind has its sentence, with what to do", async (t) => {
  const all = troublesOf({
    volumes: ["a", "b", "c", "d", "e", "f"].map((name) => ({ name, health: "unavailable" })),
    problems: [
      { code: "E-POOL-10", message: "The pool on h1 is full." },
      { code: "E-NET-04", message: "no alert of this room" },
    ],
    ejected: ["h3"],
    stopping: [{ host: "h2", why: "it has the only copy in sync of 1 volume (db)" }],
  });
  t.strictSame(
    all.map(({ text }) => text),
    [
      "6 volumes (a, b, c, d, e and 1 more) waiting; nothing is lost by it. Explained by: weft why VOLUME",
      "The pool on h1 is full.",
      "h3 left the pool and is a host of weft still. Take it out: weft host remove h3",
      "h2 waits with its stop: it has the only copy in sync of 1 volume (db).",
    ],
  );
  t.strictSame(
    stepAlerts([], all, 0).say.map(({ name, priority }) => [name, priority]),
    [["WEFT_STOP_WAITS", 2]],
  );
});
