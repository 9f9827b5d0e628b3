/**
 * docs/scenarios.md can't lie: each of the catalogue's numbers stands there once, each named test exists, and each plot
 * that the stage plays, by its registry, stands in the row of its number.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import t from "tap";

import { repository, repositoryFiles } from "../scripts/lib/repository.ts";

const read = (path: string): string => readFileSync(join(repository, path), "utf8");

/** protocol.md 4.22, 112 in all, D21 (R30) and D22 (R31): letters and their highest numbers. */
const catalogue = { F: 16, M: 30, P: 9, S: 16, D: 22, N: 21 };

type Row = {
  readonly number: string;
  readonly tests: readonly (readonly [file: string, name: string])[];
  readonly status: string;
};

const rows: readonly Row[] = read("docs/scenarios.md")
  .split("\n")
  .filter((line) => /^\| [FMPSDN]\d/.test(line))
  .map((line) => {
    const [, number = "", , tests = "", status = ""] = line.split("|").map((cell) => cell.trim());
    const named = [...tests.matchAll(/`([^`]+?)::([^`]+)`/g)];
    return { number, tests: named.map(([, file = "", name = ""]) => [file, name] as const), status };
  });

/** Is there a test of this name? Rust's are functions, TypeScript's are titles, the simulator's gate has broken rules. */
function isTest(file: string, name: string): boolean {
  const text = read(file);
  if (!file.endsWith(".rs") || file.endsWith("/mutants.rs")) return text.includes(`"${name}"`);
  const asFunction = new RegExp(String.raw`#\[test\]\s+(?:#\[[^\]]*\]\s+)*fn ${name}\b`);
  const asPlot = new RegExp(String.raw`^plots! \{[^}]*=> ${name},`, "m");
  const overBothDrivers = new RegExp(String.raw`both_drivers!\([^)]*\b${name}\b`);
  return [asFunction, asPlot, overBothDrivers].some((shape) => shape.test(text));
}

await t.test("scenarios: each number of the catalogue stands in the table once, in its order", async (t) => {
  const numbers = Object.entries(catalogue).flatMap(([letter, highest]) =>
    Array.from({ length: highest }, (_, i) => `${letter}${i + 1}`),
  );
  t.equal(numbers.length, 114);
  t.strictSame(
    rows.map((row) => row.number),
    numbers,
  );
});

await t.test(
  "scenarios: each named test exists, and a row is called tested if and only if it names one",
  async (t) => {
    const files = new Set(repositoryFiles());
    for (const { number, tests, status } of rows) {
      t.match(status, /^(?:tested\b|comes with \S|not yet$)/, number);
      t.equal(
        tests.length > 0,
        status.startsWith("tested"),
        `${number} is "${status}" with ${tests.length} tests`,
      );
      for (const [file, name] of tests)
        t.ok(files.has(file) && isTest(file, name), `${number}: ${file}::${name}`);
    }
  },
);

await t.test(
  "scenarios: each plot on the stage stands in the row of its number, and only there",
  async (t) => {
    const letters = repositoryFiles().filter((path) =>
      /^native\/weft-sim\/src\/scenarios\/.\.rs$/.test(path),
    );
    const plots = letters.flatMap((file) => {
      const text = read(file);
      const registry = /^plots! \{([^}]*)\}/m.exec(text)?.[1] ?? "";
      return Array.from(registry.matchAll(/(\w+) => (\w+),/g), ([, number = "", name = ""]) => {
        return { file, name, number, text };
      });
    });
    t.ok(plots.length > 50, "the plots were found");
    for (const { file, name, number, text } of plots) {
      const plot = `${file}::${name}`;
      const head = text.slice(0, text.indexOf(`\nfn ${name}(`));
      t.match(
        head.slice(head.lastIndexOf("\n\n")),
        new RegExp(`^\\s+/// ${number}\\b`),
        `${plot} tells ${number}`,
      );
      const row = rows.find((r) => r.number === number);
      t.ok(
        row?.tests.some(([f, n]) => f === file && n === name),
        `${plot} is a plot of ${number}`,
      );
    }
    for (const { number, tests } of rows) {
      for (const [file, name] of tests.filter(([file]) => letters.includes(file)))
        t.ok(
          plots.some((plot) => plot.file === file && plot.name === name),
          `${number}: ${file}::${name} is in its registry`,
        );
    }
  },
);
