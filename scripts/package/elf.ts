/**
 * Programs and libraries as the dynamic linker sees them, by binutils' readelf and patchelf.
 *
 * Must always hold: a file is stripped before it is patched; the other way round its tables of versions are destroyed.
 */
import { openSync, readSync, closeSync } from "node:fs";

import { execa } from "execa";

export type Elf = {
  /** The dynamic linker's path; null in libraries and in static programs. */
  readonly interpreter: string | null;
  readonly needed: readonly string[];
  /** Where needed libraries are looked for first, inherited by what is loaded (DT_RPATH). */
  readonly rpath: string | null;
  /** Where they are looked for later, and which makes the loader forget `rpath` (DT_RUNPATH). */
  readonly runpath: string | null;
  /** Versions of the C library's symbols that it wants, such as `GLIBC_2.17`. */
  readonly symbolVersions: readonly string[];
};

export function isElf(path: string): boolean {
  const file = openSync(path, "r");
  try {
    const start = Buffer.alloc(4);
    return readSync(file, start, 0, 4, 0) === 4 && start.equals(Buffer.from("\x7fELF", "latin1"));
  } finally {
    closeSync(file);
  }
}

export async function readElf(path: string): Promise<Elf> {
  const { stdout } = await execa(
    "readelf",
    ["--wide", "--program-headers", "--dynamic", "--version-info", path],
    {
      env: { LC_ALL: "C" },
    },
  );
  return parseReadelf(stdout);
}

export function parseReadelf(text: string): Elf {
  const one = (pattern: RegExp): string | null => pattern.exec(text)?.[1] ?? null;
  const all = (pattern: RegExp): readonly string[] =>
    Array.from(text.matchAll(pattern), ([, found = ""]) => found);
  return {
    interpreter: one(/Requesting program interpreter: (.+)\]/),
    needed: all(/\(NEEDED\)\s+Shared library: \[(.+)\]/g),
    rpath: one(/\(RPATH\)\s+Library rpath: \[(.*)\]/),
    runpath: one(/\(RUNPATH\)\s+Library runpath: \[(.*)\]/),
    symbolVersions: [...new Set(all(/Name: (GLIBC_[0-9.]+)/g))],
  };
}

export async function strip(path: string): Promise<void> {
  await execa("strip", ["--strip-unneeded", path]);
}

/**
 * From now on this program is loaded by the loader in `libraries`, and finds what it needs there: whatever the host has, and
 * whatever the environment says (DT_RPATH comes before LD_LIBRARY_PATH). An absolute path, as the loader's has to be; `$ORIGIN`
 * is not known where /proc isn't mounted.
 */
export async function bindTo(path: string, libraries: string, loader: string): Promise<void> {
  const how = ["--set-interpreter", `${libraries}/${loader}`, "--force-rpath", "--set-rpath", libraries];
  await execa("patchelf", [...how, path]);
}
