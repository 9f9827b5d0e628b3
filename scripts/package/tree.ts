/**
 * The files of a package, laid out as they will lie on a host.
 *
 * Must always hold:
 * - the same sources, tools and time make the same bytes, modes and times;
 * - every bundled program is bound to the bundled loader and libraries by the path of installation: /opt/weft.
 */
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";

import { execa } from "execa";

import { nativeBin, repository, repositoryFiles } from "../lib/repository.ts";
import { bindTo, readElf, strip } from "./elf.ts";
import { provideEtcd } from "./etcd.ts";
import type { EtcdChoice } from "./etcd.ts";
import { bundleLibraries, LOADER } from "./libraries.ts";
import {
  cargoComponents,
  copyLicences,
  debianComponents,
  nodeComponents,
  npmComponents,
  productionPackages,
  writeBill,
} from "./sbom.ts";

export const PREFIX = "/opt/weft";

/** What the agent calls and a dom0 lacks, or has too old. */
const TOOLS = ["mkfs.xfs", "xfs_repair"];

/** Of packages of npm: what no program reads. */
const UNREAD = /\.(?:map|[cm]?ts|flow|markdown)$|(?:^|\/)(?!licen[cs]e)[^/]*\.md$/i;
const UNREAD_DIRECTORIES = new Set([
  "test",
  "tests",
  "docs",
  "doc",
  "example",
  "examples",
  "benchmark",
  "benchmarks",
  ".github",
]);

export type TreeOptions = {
  readonly directory: string;
  readonly version: string;
  readonly etcd: EtcdChoice;
  readonly say: (line: string) => void;
};

/** What every kind of package has: all of /opt/weft. One line about its etcd. */
export async function layTree({ directory, version, etcd: choice, say }: TreeOptions): Promise<string> {
  rmSync(directory, { recursive: true, force: true });
  const root = join(directory, PREFIX);
  for (const part of ["bin", "libexec", "share"]) mkdirSync(join(root, part), { recursive: true });

  const etcd = await provideEtcd(choice, say);
  say(etcd.said);
  const node = realpathSync(join(repository, "node_modules/.bin/node"));
  const tools = TOOLS.map((name) => ({ path: toolPath(name), names: [name] }));
  const programs: string[] = [];
  for (const { path, names } of [{ path: node, names: ["node"] }, ...tools, ...etcd.programs]) {
    const [first = "", ...others] = names;
    const to = join(root, "libexec", first);
    place(path, to);
    for (const other of others) symlinkSync(first, join(root, "libexec", other));
    programs.push(to);
  }
  const crates = ["weftd", "weft-holder"].filter((name) => existsSync(join(repository, "native", name)));
  for (const name of crates) {
    if (!existsSync(join(nativeBin(), name)))
      throw new Error(`${nativeBin()} has no ${name}: build it first`);
    const to = join(root, "bin", name);
    place(join(nativeBin(), name), to);
    programs.push(to);
  }
  for (const program of programs) await strip(program);
  const addon = join(root, "lib/libweft_node.so");
  place(join(nativeBin(), "libweft_node.so"), addon);
  await strip(addon);
  const libraries = await bundleLibraries([...programs, addon], join(root, "lib"));
  for (const program of programs) {
    if ((await readElf(program)).interpreter !== null) await bindTo(program, `${PREFIX}/lib`, LOADER);
  }

  await layScripts(root, version);
  layPackages(root);
  for (const name of ["weft", "weft-agent"]) place(join(repository, "bin", name), join(root, "bin", name));
  overlay(join(repository, "packaging/libexec"), join(root, "libexec"));

  const debian = await debianComponents([
    ...libraries,
    ...tools.map(({ path }) => path),
    ...(etcd.kind === "debian" ? etcd.programs.map(({ path }) => path) : []),
  ]);
  const licensed = [
    ...npmComponents(),
    ...(await nodeComponents(node)),
    ...(await cargoComponents(["weftd", "weft-node", "weft-holder"])),
    ...debian,
  ];
  writeBill(join(root, "share"), version, [...licensed, ...etcd.components]);
  const licences = join(root, "share/licenses");
  copyLicences(licences, licensed);
  if (etcd.licences !== null) cpSync(etcd.licences, licences, { recursive: true });
  copyFileSync(join(repository, "LICENSE"), join(licences, "weft"));
  const { stdout: nodeVersion } = await execa(node, ["--version"]);
  const versions = debian.map(({ name, version }) => `${name} ${version}`).toSorted();
  const said = [
    `weft ${version}`,
    etcd.said,
    `node ${nodeVersion}`,
    ...versions.map((text) => `Debian's ${text}`),
  ];
  writeFileSync(join(root, "share/BUILD"), `${said.join("\n")}\n`);
  mkdirSync(join(directory, "usr/bin"), { recursive: true });
  symlinkSync("../../opt/weft/bin/weft", join(directory, "usr/bin/weft"));
  return etcd.said;
}

/** The compiled scripts, which start sooner than their sources; only what has a source today. */
async function layScripts(root: string, version: string): Promise<void> {
  // What a test runner loads into every Node below it is not for the compiler.
  const compiler = ["-u", "NODE_OPTIONS", join(repository, "node_modules/.bin/tsc")];
  await execa("env", [...compiler, "-b", join(repository, "tsconfig.json")]);
  for (const source of repositoryFiles().filter(
    (path) => /^src\/.*\.ts$/.test(path) && !path.endsWith(".d.ts"),
  )) {
    const compiled = source.replace(/\.ts$/, ".js");
    const to = join(root, compiled);
    mkdirSync(dirname(to), { recursive: true });
    const text = readFileSync(join(repository, "dist", compiled), "utf8");
    // The maps stay behind.
    writeFileSync(to, text.replace(/\n?\/\/# sourceMappingURL=.*\n?$/, "\n"));
  }
  const described = { name: "weft", version, private: true, license: "Apache-2.0", type: "module" };
  writeFileSync(join(root, "package.json"), `${JSON.stringify(described, null, 2)}\n`);
}

function layPackages(root: string): void {
  // The `node` package is the program that lies in libexec.
  const wanted = productionPackages().filter(({ path }) => !/^node_modules\/node(?:-|$)/.test(path));
  for (const { path } of wanted) {
    const from = join(repository, path);
    cpSync(from, join(root, path), {
      recursive: true,
      dereference: true,
      filter: (file) => {
        const inside = relative(from, file);
        if (inside === "") return true;
        // Packages inside of this one have lines of their own in the lock file.
        if (inside === "node_modules" || (UNREAD_DIRECTORIES.has(inside) && lstatSync(file).isDirectory()))
          return false;
        return !UNREAD.test(inside);
      },
    });
  }
  mkdirSync(join(root, "node_modules/.bin"), { recursive: true });
  symlinkSync("../../libexec/node", join(root, "node_modules/.bin/node"));
}

/** What only one kind of package has; `kind` names a directory of packaging/root. */
export function layHostFiles(directory: string, kind: "xcp-ng" | "kvm"): void {
  const packaging = join(repository, "packaging");
  for (const name of ["common", kind]) overlay(join(packaging, "root", name), directory);
  if (kind !== "xcp-ng") return;
  // 8.3 looks for drivers in the first of these, 9 in the second.
  for (const drivers of ["opt/xensource/sm", "usr/libexec/sm"])
    overlay(join(packaging, "sm"), join(directory, drivers));
  overlay(join(packaging, "smapiv3"), join(directory, "usr/libexec/xapi-storage-script"));
  overlay(join(packaging, "xapi.d"), join(directory, "etc/xapi.d"));
}

export type Entry = {
  /** As it will be on a host: `/opt/weft/bin`. */
  readonly path: string;
  readonly kind: "directory" | "file" | "link";
  readonly executable: boolean;
};

/** Everything below, parents first. */
export function entriesOf(directory: string): readonly Entry[] {
  const walk = (at: string): Entry[] =>
    readdirSync(join(directory, at), { withFileTypes: true })
      .toSorted((a, b) => (a.name < b.name ? -1 : 1))
      .flatMap((found): Entry[] => {
        const path = `${at}/${found.name}`;
        if (found.isDirectory()) return [{ path, kind: "directory", executable: true }, ...walk(path)];
        if (found.isSymbolicLink()) return [{ path, kind: "link", executable: false }];
        const executable = (lstatSync(join(directory, path)).mode & 0o100) !== 0;
        return [{ path, kind: "file", executable }];
      });
  return walk("");
}

/** One mode for each kind, one time for all. */
export function settle(directory: string, epoch: number): void {
  for (const { path, kind, executable } of entriesOf(directory).toReversed()) {
    const at = join(directory, path);
    if (kind !== "link") chmodSync(at, executable ? 0o755 : 0o644);
    lutimesSync(at, epoch, epoch);
  }
}

/** Copies what is there; nothing where it isn't. */
function overlay(from: string, to: string): void {
  if (!existsSync(from)) return;
  for (const { path, kind } of entriesOf(from)) {
    if (kind === "file") place(join(from, path), join(to, path));
    if (kind === "link") {
      mkdirSync(dirname(join(to, path)), { recursive: true });
      symlinkSync(readlinkSync(join(from, path)), join(to, path));
    }
  }
}

function place(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, to);
  chmodSync(to, (lstatSync(realpathSync(from)).mode & 0o100) === 0 ? 0o644 : 0o755);
}

function toolPath(name: string): string {
  const found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
    .map((at) => join(at, name))
    .find((path) => existsSync(path));
  if (found === undefined) throw new Error(`${name} is not on this machine`);
  return realpathSync(found);
}
