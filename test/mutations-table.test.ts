/**
 * docs/mutations.md can't lie: each rule stands there, the broken ones by the names that the gate takes and by what shows
 * them, the others with a test that exists.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import t from "tap";

import { repository, repositoryFiles } from "../scripts/lib/repository.ts";

const read = (path: string): string => readFileSync(join(repository, path), "utf8");

const rules = Array.from({ length: 24 }, (_, i) => `R${i + 1}`);

/** Pairs of a variant of `Mutation` and a text, as Rust's tables have them. */
function pairs(path: string, table: RegExp): readonly (readonly [variant: string, text: string])[] {
  const text = table.exec(read(path))?.[0] ?? "";
  return [...text.matchAll(/\(\s*Mutation::(\w+),\s*"([^"]+)",?\s*\)/g)].map(
    ([, variant = "", name = ""]) => [variant, name] as const,
  );
}

const gate = pairs("native/weft-proto/src/mutants.rs", /pub const ALL[^]*?\n {4}\];/);
const ofPools = pairs("native/weft-proto/src/mutants.rs", /pub const OF_POOLS[^]*?\n {4}\];/);
const races = read("native/weft-crash/src/races.rs");
const shownBy = pairs("native/weft-sim/src/gate/plots.rs", /SHOWN_BY[^]*?\n\];/);

const rows = read("docs/mutations.md")
  .split("\n")
  .filter((line) => /^\| [RIMD]\d/.test(line))
  .map((line) =>
    line
      .slice(1, -1)
      .split("|")
      .map((cell) => cell.trim()),
  );
const isBroken = (row: readonly string[]): boolean => /^`[a-z]\d+-[a-z0-9-]+`$/.test(row[1] ?? "");
const isOfPools = (row: readonly string[]): boolean => /^(?:power cuts|race )/.test(row[3] ?? "");
const broken = rows.filter((row) => isBroken(row) && !isOfPools(row));
const brokenInPools = rows.filter((row) => isBroken(row) && isOfPools(row));
const others = rows.filter((row) => !isBroken(row));

await t.test("mutations: each rule of the protocol is broken, or it is said why not", async (t) => {
  const named = new Set(rows.flatMap(([rule = ""]) => rule.split(", ")));
  t.strictSame(
    rules.filter((rule) => !named.has(rule)),
    [],
  );
});

await t.test("mutations: the table has what weft-crash breaks, in its order", async (t) => {
  t.strictSame(
    brokenInPools.map((row) => row[1]),
    ofPools.map(([, name]) => `\`${name}\``),
  );
  for (const [rule, , , by = ""] of brokenInPools) {
    const race = /`([^`]+)`/.exec(by)?.[1];
    t.ok(race === undefined || races.includes(`"${race}"`), `${rule}: ${by}`);
  }
});

await t.test("mutations: the table has the gate's names, in its order, and what shows each", async (t) => {
  t.ok(gate.length > 60, "the gate's list was found");
  const expected = gate.map(([variant, name]) => {
    const plots = shownBy.filter(([v]) => v === variant).map(([, plot]) => `\`${plot}\``);
    return [`\`${name}\``, plots.length > 0 ? `plot ${plots.join(" ")}` : "seeds"];
  });
  t.strictSame(
    broken.map((row) => [row[1], row[3]]),
    expected,
  );
  for (const [variant] of shownBy)
    t.ok(
      gate.some(([v]) => v === variant),
      `${variant} is in the gate`,
    );
});

await t.test("mutations: a name begins with the rule that it breaks", async (t) => {
  for (const [rule = "", name = ""] of broken)
    t.equal(/^`(\w+)-/.exec(name)?.[1], rule.split(", ")[0]?.toLowerCase(), name);
});

await t.test("mutations: where no rule is broken a test that exists holds it", async (t) => {
  const files = new Set(repositoryFiles());
  for (const [rule, clause = "", why = "", tests = ""] of others) {
    const named = [...tests.matchAll(/`([^`]+?)::(\w+)`/g)];
    t.ok(clause.length > 0 && why.length > 0 && named.length > 0, `${rule}: ${clause}`);
    for (const [, file = "", name = ""] of named) {
      const text = files.has(file) ? read(file) : "";
      t.match(
        text,
        new RegExp(String.raw`\bfn ${name}\b|=> ${name},|\b${name}\b[^)]*\)`),
        `${file}::${name}`,
      );
    }
  }
});
