/**
 * The libraries that bundled programs need, and the loader that loads them: those of the machine that builds.
 *
 * Must always hold:
 * - nothing that a bundled file needs is left to the host that it is installed on;
 * - libraries are the very bytes of their package: a program's DT_RPATH holds for what its libraries need as well.
 */
import { chmodSync, copyFileSync, existsSync, mkdirSync, realpathSync } from "node:fs";
import { join } from "node:path";

import { execa } from "execa";

import { readElf } from "./elf.ts";

export const LOADER = "ld-linux-x86-64.so.2";
/** What the C library loads by name while it runs: none of it is in a NEEDED entry. */
const LOADED_LATER = ["libgcc_s.so.1"];

/** Where the machine that builds has its libraries, by name. */
async function known(): Promise<ReadonlyMap<string, string>> {
  const { stdout } = await execa("/sbin/ldconfig", ["-p"], { env: { LC_ALL: "C" } });
  const found = new Map<string, string>();
  for (const [, name = "", path = ""] of stdout.matchAll(/^\s+(\S+) \([^)]*x86-64[^)]*\) => (\S+)$/gm))
    if (!found.has(name)) found.set(name, path);
  return found;
}

/** Copies all that `programs` need into `directory`; the files that they were copied from. */
export async function bundleLibraries(
  programs: readonly string[],
  directory: string,
): Promise<readonly string[]> {
  mkdirSync(directory, { recursive: true });
  const machine = await known();
  const sources = new Map<string, string>();
  const open = [LOADER, ...LOADED_LATER, ...(await Promise.all(programs.map(needs))).flat()];
  for (let name = open.pop(); name !== undefined; name = open.pop()) {
    if (sources.has(name)) continue;
    const source = machine.get(name);
    if (source === undefined || !existsSync(source))
      throw new Error(`${name} is needed and not on this machine`);
    sources.set(name, realpathSync(source));
    open.push(...(await needs(source)));
  }
  for (const [name, source] of sources) {
    const to = join(directory, name);
    copyFileSync(source, to);
    chmodSync(to, 0o755);
  }
  return [...sources.values()];
}

async function needs(path: string): Promise<readonly string[]> {
  return (await readElf(path)).needed;
}
