/** The list of faults: what is documented is what is played, and what is asked for is understood or refused with the list. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import t from "tap";

import { parseArguments } from "../../../scripts/faults/arguments.ts";
import { catalogue, faultNames } from "../../../scripts/faults/catalogue.ts";
import type { Fault } from "../../../scripts/faults/catalogue.ts";
import { plays } from "../../../scripts/faults/plays.ts";
import { castingOf } from "../../../scripts/faults/run.ts";
import { repository } from "../../../scripts/lib/repository.ts";

await t.test("faults: docs/faults.md has a row for each, in the words of the list", async (t) => {
  const rows = readFileSync(join(repository, "docs/faults.md"), "utf8")
    .split("\n")
    .filter((line) => line.startsWith("| `"));
  const wanted = Object.entries<Fault>(catalogue).map(
    ([name, { does, healed, holds }]) => `| \`${name}\` | ${does} | ${healed} | ${holds} |`,
  );
  t.strictSame(rows, wanted);
});

await t.test("faults: each has a play, and those with bars are the four that the bars are for", async (t) => {
  t.strictSame(Object.keys(plays).toSorted(), faultNames.toSorted());
  t.strictSame(
    faultNames.filter((name) => catalogue[name].barred),
    ["kill", "stop", "drop", "power-off"],
  );
});

await t.test("faults: in four runs the leader and the guest have been in each place", async (t) => {
  const seen = [0, 1, 2, 3].map((turn) => {
    const { leader, local } = castingOf("kill", turn);
    return `${leader} ${local}`;
  });
  t.equal(new Set(seen).size, 4);
  t.ok(
    [0, 1].every((turn) => castingOf("power-off-all", turn).leader),
    "all hosts are faulty",
  );
});

await t.test("faults: without arguments all are run, five times each", async (t) => {
  const all = { kind: "run", runs: 5, faults: faultNames, json: null, dir: "d" };
  t.strictSame(parseArguments([], "d"), all);
  const some = parseArguments(["--fault", "kill", "stop", "--runs", "100", "--fault", "kill"], "d");
  t.strictSame(some, { ...all, runs: 100, faults: ["kill", "stop"] });
});

await t.test(
  "faults: wrong arguments are refused by name, an unknown fault with those that exist",
  async (t) => {
    const refused = (...words: readonly string[]): string => {
      const told = parseArguments(words, "d");
      if (told.kind !== "told") throw new Error("it was understood");
      t.equal(told.status, 1);
      return told.say;
    };
    t.match(refused("--fault", "kil"), /no fault "kil"; there are kill, stop, .*steal-cut/);
    t.match(refused("--fault"), /argument missing/);
    for (const count of ["0", "-1", "1.5", "many", ""])
      t.match(refused("--runs", count), /whole number above 0/);
    t.match(refused("--rums", "3"), /unknown option '--rums'.*\n.*--runs/);
    t.match(refused("kill"), /too many arguments/);
    t.match(parseArguments(["--help"], "d"), { kind: "told", status: 0, say: /disk-stall +a member's pool/ });
  },
);
