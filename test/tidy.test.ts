/**
 * House rules: one pass over the tree. Every rule is shown a small bad tree first, so that none of them sleeps.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import t from "tap";

import { repository, repositoryFiles } from "../scripts/lib/repository.ts";
import { findingLines } from "./tidy/rules.ts";

await t.test("tidy: the tree keeps the house rules", async (t) => {
  const text = repositoryFiles().filter((path) =>
    /\.(?:ts|rs|md|sh|json|toml|yml|yaml|txt)$|(?:^|\/)[^./]+$/.test(path),
  );
  const tree = new Map(text.map((path) => [path, readFileSync(join(repository, path), "utf8")]));
  t.ok(tree.size > 50, "the tree was found");
  t.strictSame(findingLines(tree), []);
});

type Lock = { readonly packages: Readonly<Record<string, { readonly optionalDependencies?: object }>> };

await t.test("tidy: the lock file names no registry, and every platform's packages", async (t) => {
  const text = readFileSync(join(repository, "package-lock.json"), "utf8");
  t.notMatch(text, /"resolved":/);
  // An npm that can't reach a foreign platform's package leaves it out, and `npm ci` then refuses the file everywhere.
  const { packages } = JSON.parse(text) as Lock;
  const optional = Object.values(packages).flatMap((entry) => Object.keys(entry.optionalDependencies ?? {}));
  const missing = optional.filter(
    (name) => !Object.keys(packages).some((path) => path.endsWith(`node_modules/${name}`)),
  );
  t.strictSame(missing, []);
});

/** Files of a bad tree, and what is found in it. A clean tree has the four files that the rules look for. */
function finds(files: Readonly<Record<string, string>>): readonly string[] {
  const clean = {
    "package.json": '{ "scripts": { "demo": "" } }\n',
    "docs/errors.md": "# Errors\n",
    "docs/ARCHITECTURE.md": "# Map\n\ncli/ model/ wire/ weftd/ weft-proto/ weft-io/ demo/\n",
  };
  return findingLines(new Map(Object.entries({ ...clean, ...files })));
}

await t.test("tidy: nothing is found in a clean tree", async (t) => {
  const source = '/** Head. */\nimport { a } from "../core/wire/a.ts";\n\nexport const b = a;\n';
  t.strictSame(
    finds({ "src/cli/a.ts": source, "README.md": "# Weft\n\n`npm run demo`, [map](docs/ARCHITECTURE.md)\n" }),
    [],
  );
});

// In pieces, or the rules would find this file.
const laterNote = ["TO", "DO"].join("");
const home = ["", "home"].join("/");
const skip = ["sk", "ip"].join("");

const plots: readonly (readonly [
  title: string,
  files: Readonly<Record<string, string>>,
  found: readonly string[],
])[] = [
  [
    "a note to do it later",
    { "src/cli/a.ts": `/** Head. */\n// ${laterNote}: later\n` },
    ["src/cli/a.ts:2: a note to do it later; instead: do it, or describe the limit in docs/"],
  ],
  [
    "a path of one machine",
    { "README.md": `# Weft\n\nSee ${home}/me/weft.\n` },
    ["README.md:3: a path of one machine; instead: a path from the repository's root, or an option"],
  ],
  [
    "a merge that was not ended",
    { "README.md": `# Weft\n\n${"<".repeat(7)} ours\nOne.\n=======\nTwo.\n${">".repeat(7)} theirs\n` },
    [
      "README.md:3: two versions of one place; instead: one of them",
      "README.md:7: two versions of one place; instead: one of them",
    ],
  ],
  [
    "a skipped test",
    { "test/a.test.ts": `/** Head. */\nt.${skip}("volume: write", async () => {});\n` },
    ["test/a.test.ts:2: a test that does not run; instead: a test that runs, or none"],
  ],
  [
    "unwrap in the daemon, but not in its tests",
    {
      "native/weftd/src/a.rs":
        "//! Head.\nlet a = b.unwrap();\n#[cfg(test)]\nmod tests {\n  b.unwrap();\n}\n",
    },
    ['native/weftd/src/a.rs:2: unwrap; instead: `?`, or expect("why it always holds")'],
  ],
  [
    "std and unsafe on floor 0",
    { "native/weft-proto/src/a.rs": "//! Head.\nuse std::fs;\nunsafe { x() }\n" },
    [
      "native/weft-proto/src/a.rs:2: std on floor 0; instead: core or alloc; clock, file and randomness are arguments",
      "native/weft-proto/src/a.rs:3: unsafe; instead: safe code, or move it to weft-io, weft-export or weft-node",
    ],
  ],
  [
    "a file without a head",
    { "src/cli/a.ts": "export const a = 1;\n" },
    ["src/cli/a.ts:1: no head; instead: begin with a comment that says what the file is for"],
  ],
  [
    "a name",
    { "src/cli/aB.ts": "/** Head. */\n" },
    ["src/cli/aB.ts:1: name; instead: kebab-case.ts, snake_case.rs"],
  ],
  [
    "white space and line breaks",
    { "src/cli/a.ts": "/** Head. */ \nexport {};" },
    ["src/cli/a.ts:1: white space at the end of the line", "src/cli/a.ts:2: a file ends with one line break"],
  ],
  ["two titles", { "README.md": "# A\n\n# B\n" }, ["README.md:1: 2 titles; instead: one, on the first line"]],
  ["a title inside a code block is none", { "README.md": "# A\n\n```\n# B\n```\n" }, []],
  [
    "a dead link",
    { "README.md": "# A\n\n[b](docs/b.md)\n" },
    ["README.md:3: link to docs/b.md, which does not exist"],
  ],
  [
    "an error without a row, a row without an error, and a row given out twice",
    {
      "src/cli/a.ts": '/** Head. */\nexport const a = "E-VOL-01";\n',
      "docs/errors.md": "# Errors\n\n| E-VOL-02 | a | b |\n| E-VOL-02 | a | b |\n",
    },
    [
      "docs/errors.md:4: E-VOL-02 stands in line 3 already",
      "src/cli/a.ts:2: E-VOL-01 has no row in docs/errors.md",
      "docs/errors.md:3: E-VOL-02 is raised nowhere",
    ],
  ],
  [
    "a command that does not exist",
    { "README.md": "# A\n\n    npm run demonstration\n" },
    ["README.md:3: npm run demonstration: package.json has no such script"],
  ],
  [
    "imports upwards and sideways",
    {
      "src/core/wire/a.ts": '/** Head. */\nimport { b } from "../../cli/b.ts";\n',
      "src/cli/a.ts": '/** Head. */\nimport type { b } from "../core/agent/b.ts";\n',
    },
    [
      "src/core/wire/a.ts:2: src/core/wire/ imports src/cli/; instead: what both need belongs one floor down",
      "src/cli/a.ts:2: src/cli/ imports src/core/agent/; instead: what both need belongs one floor down",
    ],
  ],
  [
    "a script that imports the agent",
    { "scripts/demo/a.ts": '/** Head. */\nimport { b } from "../../src/core/agent/b.ts";\n' },
    ["scripts/demo/a.ts:2: scripts/ imports src/core/agent/; instead: what both need belongs one floor down"],
  ],
  [
    "a crate that depends on its neighbour",
    {
      "native/weft-io/Cargo.toml":
        "[dependencies]\nweft-proto.workspace = true\nweft-export.workspace = true\n",
    },
    ["native/weft-io/Cargo.toml:3: weft-io depends on weft-export; crates depend downwards only"],
  ],
  [
    "a decision that is not in the list",
    {
      "docs/adr/README.md": "# Decisions\n\n[1](0001-a.md)\n",
      "docs/adr/0001-a.md": "# A\n",
      "docs/adr/0002-b.md": "# B\n",
    },
    ["docs/adr/README.md:1: 0002-b.md is not in the list"],
  ],
  [
    "a room that is not on the map",
    { "src/attic/a.ts": "/** Head. */\n" },
    ["docs/ARCHITECTURE.md:1: attic/ is not on the map"],
  ],
];

for (const [title, files, found] of plots) {
  await t.test(`tidy: finds ${title}`, async (t) => {
    t.strictSame(finds(files), found);
  });
}
