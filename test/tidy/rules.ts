/**
 * House rules that no compiler holds, as functions from the tree's files to findings.
 *
 * Must always hold:
 * - a finding names file, line, what was found and what to write instead;
 * - the rules read only what they are given, so that tidy.test.ts can show each of them a small bad tree.
 */

export type Tree = ReadonlyMap<string, string>;

type Finding = { readonly path: string; readonly line: number; readonly text: string };

export function findingLines(tree: Tree): readonly string[] {
  return [
    ...bannedWords(tree),
    ...heads(tree),
    ...names(tree),
    ...layout(tree),
    ...titlesAndLinks(tree),
    ...errorCodes(tree),
    ...npmScripts(tree),
    ...importsGoDown(tree),
    ...cratesGoDown(tree),
    ...roomsOnTheMap(tree),
    ...decisionsInTheIndex(tree),
  ].map(({ path, line, text }) => `${path}:${line}: ${text}`);
}

type Ban = {
  readonly pattern: RegExp;
  readonly found: string;
  readonly instead: string;
  readonly where: (path: string) => boolean;
};

const typescript = (path: string): boolean => path.endsWith(".ts");
const rust = (path: string): boolean => path.endsWith(".rs");
const anyText = (path: string): boolean => !isGenerated(path) && !path.endsWith(".svg");
/** Rust that runs on a host: what only a test, the simulator or a checker runs may stop with any message. */
const daemon = (path: string): boolean =>
  /^native\/(weft-proto|weft-io|weft-export|weft-control|weft-node|weftd)\/src\//.test(path) &&
  !/\/(testing|tests?|mutants)(\/|\.rs)/.test(path);

// Written in pieces where the rule would otherwise find itself.
const bans: readonly Ban[] = [
  {
    pattern: /\b(?:FIX[M]E|TO[D]O|X[X]X|HAC[K])\b/,
    found: "a note to do it later",
    instead: "do it, or describe the limit in docs/",
    where: anyText,
  },
  {
    pattern: /^(?:<{7}|>{7}) /,
    found: "two versions of one place",
    instead: "one of them",
    where: anyText,
  },
  {
    pattern: /(?:^|[\s"'`(=])\/(?:home|Users|root|work)\//,
    found: "a path of one machine",
    instead: "a path from the repository's root, or an option",
    where: anyText,
  },
  {
    pattern: /\b(?:t|test)\.(?:skip|todo)\(|\bskip: *(?:true|["'`])/,
    found: "a test that does not run",
    instead: "a test that runs, or none",
    where: (path) => typescript(path) && path.startsWith("test/"),
  },
  {
    pattern: /\b(?:t|test)\.only\(|\bonly: *true/,
    found: "a test that keeps others from running",
    instead: "no only",
    where: (path) => typescript(path) && path.startsWith("test/"),
  },
  {
    pattern: /@ts-(?:ignore|nocheck|expect-error)/,
    found: "a silenced compiler",
    instead: "a type that says it",
    where: typescript,
  },
  {
    pattern: /\bconsole\.(?:log|error|warn)\(/,
    found: "console in the agent's rooms",
    instead: "the logger that was handed in",
    where: (path) => path.startsWith("src/core/"),
  },
  {
    pattern: /^import .* from "(?:fs|net|http|https|path|os|child_process|crypto|events|stream|util)"/,
    found: "a built-in without its prefix",
    instead: '"node:…"',
    where: typescript,
  },
  {
    pattern: /#\[ignore/,
    found: "a test that does not run",
    instead: "a test that runs, or none",
    where: rust,
  },
  {
    pattern: /\b(?:todo|unimplemented|dbg)!\(/,
    found: "unfinished Rust",
    instead: "the finished thing",
    where: rust,
  },
  {
    pattern: /\bthread::sleep\(/,
    found: "a sleep",
    instead: "wait for the event, with a deadline",
    where: daemon,
  },
  {
    pattern: /\.unwrap\(\)/,
    found: "unwrap",
    instead: '`?`, or expect("why it always holds")',
    where: daemon,
  },
  {
    pattern: /\bunsafe *(?:\{|fn|impl)/,
    found: "unsafe",
    instead: "safe code, or move it to weft-io, weft-export or weft-node",
    // And where a fault is planted for the sanitizer to find.
    where: (path) => rust(path) && !/^native\/(?:weft-(?:io|export|node)|fuzz\/fuzz_targets)\//.test(path),
  },
  {
    pattern: /\bstd::/,
    found: "std on floor 0",
    instead: "core or alloc; clock, file and randomness are arguments",
    where: (path) => daemon(path) && path.startsWith("native/weft-proto/"),
  },
];

function bannedWords(tree: Tree): Finding[] {
  return eachLine(tree, (path) => bans.some(({ where }) => where(path))).flatMap(({ path, line, text }) =>
    bans
      .filter(({ where, pattern }) => where(path) && pattern.test(text))
      .map(({ found, instead }) => ({ path, line, text: `${found}; instead: ${instead}` })),
  );
}

/** The first thing in a file is what it is for. */
function heads(tree: Tree): Finding[] {
  const bad = Array.from(tree).filter(([path, content]) => {
    if (typescript(path)) return !/^(?:#!.*\n)?\/[/*]/.test(content);
    if (rust(path)) return !content.startsWith("//");
    if (path.endsWith(".sh")) return !/^(?:#!.*\n)?# ./.test(content);
    return false;
  });
  return bad.map(([path]) => ({
    path,
    line: 1,
    text: "no head; instead: begin with a comment that says what the file is for",
  }));
}

function names(tree: Tree): Finding[] {
  const bad = Array.from(tree.keys()).filter((path) => {
    const name = path.slice(path.lastIndexOf("/") + 1);
    if (typescript(path)) return !/^[a-z0-9]+(?:-[a-z0-9]+)*(?:\.(?:test|gen|d))*\.ts$/.test(name);
    // The name of a program is the name of its file.
    if (rust(path)) return !(path.includes("/src/bin/") ? /^[a-z0-9-]+\.rs$/ : /^[a-z0-9_]+\.rs$/).test(name);
    return false;
  });
  return bad.map((path) => ({ path, line: 1, text: "name; instead: kebab-case.ts, snake_case.rs" }));
}

function layout(tree: Tree): Finding[] {
  const lines = eachLine(tree, (path) => anyText(path) && !path.endsWith(".txt"))
    .filter(({ text }) => /[ \t\r]$/.test(text))
    .map(({ path, line }) => ({ path, line, text: "white space at the end of the line" }));
  const ends = Array.from(tree)
    .filter(([path, content]) => anyText(path) && content !== "" && !/[^\n]\n$/.test(content))
    .map(([path, content]) => ({
      path,
      line: content.split("\n").length,
      text: "a file ends with one line break",
    }));
  return [...lines, ...ends];
}

function titlesAndLinks(tree: Tree): Finding[] {
  return Array.from(tree).flatMap(([path, content]) => {
    if (!path.endsWith(".md")) return [];
    const prose = content.replaceAll(/^```[^]*?^```/gm, (block) => block.replaceAll(/[^\n]/g, ""));
    const titles = prose.split("\n").filter((text) => text.startsWith("# "));
    const titleFindings =
      titles.length === 1 && prose.startsWith("# ")
        ? []
        : [{ path, line: 1, text: `${titles.length} titles; instead: one, on the first line` }];
    const dead = prose.split("\n").flatMap((text, i) =>
      Array.from(text.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g), ([, target = ""]) => target)
        .filter((target) => !/^[a-z]+:/.test(target) && !exists(tree, resolved(path, target)))
        .map((target) => ({ path, line: i + 1, text: `link to ${target}, which does not exist` })),
    );
    return [...titleFindings, ...dead];
  });
}

const CODE =
  /E-(?:ARG|VOL|REPL|POOL|HOST|STORE|DISK|SESS|NBD|NET|AGENT|TOKEN|TRUST|CA|AUTH|LIMIT|AUDIT|CTX|SNAP|SETUP|SR|VDI|HOLD)-[0-9]{2}\b/g;
const ERRORS = "docs/errors.md";

function errorCodes(tree: Tree): Finding[] {
  const rows = (tree.get(ERRORS) ?? "")
    .split("\n")
    .map((text, i) => ({ line: i + 1, code: /^\| (E-[A-Z]+-[0-9]{2}) \|/.exec(text)?.[1] }));
  const documented = new Map<string, number>();
  const findings: Finding[] = [];
  for (const { line, code } of rows) {
    if (code === undefined) continue;
    const first = documented.get(code);
    if (first !== undefined)
      findings.push({ path: ERRORS, line, text: `${code} stands in line ${first} already` });
    documented.set(code, first ?? line);
  }
  const raised = new Set<string>();
  for (const { path, line, text } of eachLine(
    tree,
    (path) => /^(?:src|native|bin)\//.test(path) && !isTest(path),
  )) {
    for (const [code] of text.matchAll(CODE)) {
      if (!raised.has(code) && !documented.has(code))
        findings.push({ path, line, text: `${code} has no row in ${ERRORS}` });
      raised.add(code);
    }
  }
  const unused = Array.from(documented).filter(([code]) => !raised.has(code));
  return [
    ...findings,
    ...unused.map(([code, line]) => ({ path: ERRORS, line, text: `${code} is raised nowhere` })),
  ];
}

/** What the documents tell people to type exists. */
function npmScripts(tree: Tree): Finding[] {
  const scripts = Object.keys(
    (JSON.parse(tree.get("package.json") ?? "{}") as { scripts?: object }).scripts ?? {},
  );
  return eachLine(tree, (path) => path.endsWith(".md")).flatMap(({ path, line, text }) =>
    Array.from(text.matchAll(/\bnpm run ([a-z][a-z0-9:-]*)/g), ([, name = ""]) => name)
      .filter((name) => !scripts.includes(name))
      .map((name) => ({ path, line, text: `npm run ${name}: package.json has no such script` })),
  );
}

/** Rooms by floor; within a floor nobody imports a neighbour. */
const rooms: readonly (readonly [prefix: string, floor: number])[] = [
  ["src/core/model/", 0],
  ["src/core/wire/", 1],
  ["src/core/agent/", 2],
  ["src/cli/", 2],
  ["src/ha/", 2],
  ["src/sm-driver/", 2],
  ["src/libvirt/", 2],
  ["src/panel/", 2],
  ["src/resident/", 3],
  ["scripts/", 3],
  ["test/", 4],
];

function importsGoDown(tree: Tree): Finding[] {
  return eachLine(tree, typescript).flatMap(({ path, line, text }) => {
    const target = /\b(?:from|import\(?) *"(\.{1,2}\/[^"]+)"/.exec(text)?.[1];
    if (target === undefined) return [];
    const from = roomOf(path);
    const to = roomOf(resolved(path, target));
    if (from === null || to === null || from[0] === to[0]) return [];
    // Scripts play the operator: they reach the host's rooms by the doors, not by import.
    const allowed = to[1] < from[1] && !(from[0] === "scripts/" && to[1] >= 2);
    return allowed
      ? []
      : [{ path, line, text: `${from[0]} imports ${to[0]}; instead: what both need belongs one floor down` }];
  });
}

function roomOf(path: string): readonly [string, number] | null {
  return rooms.find(([prefix]) => path.startsWith(prefix)) ?? null;
}

const crateFloors: Readonly<Record<string, number>> = {
  "weft-proto": 0,
  "weft-io": 1,
  "weft-export": 1,
  "weft-control": 1,
  "weft-node": 1,
  weftd: 2,
  "weft-sim": 2,
  "weft-model": 2,
  "weft-floor": 2,
  "weft-faultfs": 2,
  "weft-checker": 2,
  "weft-liar": 2,
  "weft-crash": 3,
};

function cratesGoDown(tree: Tree): Finding[] {
  return Array.from(tree).flatMap(([path, content]) => {
    const crate = /^native\/([a-z-]+)\/Cargo\.toml$/.exec(path)?.[1];
    const floor = crate === undefined ? undefined : crateFloors[crate];
    if (floor === undefined) return [];
    // What only tests need may come from a neighbour.
    let section = "";
    return content.split("\n").flatMap((text, i) => {
      section = /^\[(.*)\]/.exec(text)?.[1] ?? section;
      const needed = section === "dependencies" ? /^(weft[a-z-]*)\b/.exec(text)?.[1] : undefined;
      const below = needed === undefined ? undefined : crateFloors[needed];
      if (below === undefined || below < floor) return [];
      return [{ path, line: i + 1, text: `${crate} depends on ${needed}; crates depend downwards only` }];
    });
  });
}

const MAP = "docs/ARCHITECTURE.md";

function roomsOnTheMap(tree: Tree): Finding[] {
  const map = tree.get(MAP) ?? "";
  const found = new Set(
    Array.from(tree.keys()).flatMap(
      (path) => /^(?:src\/core|src|native|scripts)\/([a-z-]+)\/[^]*\.(?:ts|rs|sh)$/.exec(path)?.[1] ?? [],
    ),
  );
  return Array.from(found)
    .filter((room) => room !== "core" && !map.includes(`${room}/`))
    .map((room) => ({ path: MAP, line: 1, text: `${room}/ is not on the map` }));
}

const DECISIONS = "docs/adr/";

function decisionsInTheIndex(tree: Tree): Finding[] {
  const index = `${DECISIONS}README.md`;
  return Array.from(tree.keys())
    .filter((path) => path.startsWith(DECISIONS) && path !== index)
    .map((path) => path.slice(DECISIONS.length))
    .filter((name) => !(tree.get(index) ?? "").includes(`(${name})`))
    .map((name) => ({ path: index, line: 1, text: `${name} is not in the list` }));
}

function isGenerated(path: string): boolean {
  return /\.gen\.ts$|(?:^|\/)(?:package-lock\.json|Cargo\.lock|schema\.json|LICENSE)$/.test(path);
}

function isTest(path: string): boolean {
  return /(?:^|\/)tests?\//.test(path);
}

/** Lines of files, those of a Rust file up to its test module. */
function eachLine(tree: Tree, where: (path: string) => boolean): Finding[] {
  return Array.from(tree)
    .filter(([path]) => where(path))
    .flatMap(([path, content]) => {
      const code = rust(path) ? (content.split(/^#\[cfg\(test\)\]\nmod /m)[0] ?? "") : content;
      return code.split("\n").map((text, i) => ({ path, line: i + 1, text }));
    });
}

function resolved(from: string, target: string): string {
  const parts = target.startsWith("/") ? [] : from.split("/").slice(0, -1);
  for (const part of target.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "." && part !== "") parts.push(part);
  }
  return parts.join("/");
}

function exists(tree: Tree, path: string): boolean {
  return tree.has(path) || Array.from(tree.keys()).some((known) => known.startsWith(`${path}/`));
}
