/**
 * Where the parts of an installation lie. A package brings the programs that its host may lack (`libexec/`, with a loader and
 * libraries of their own); a checkout has none of them, and takes the system's.
 */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";

/** Where package.json is, upwards from here: the sources and the compiled files lie at different depths. */
export function rootDirectory(): string {
  let directory = import.meta.dirname;
  while (directory !== dirname(directory) && !existsSync(join(directory, "package.json")))
    directory = dirname(directory);
  return directory;
}

/** The programs that came with weft. It need not exist. */
export function programsDirectory(): string {
  return join(rootDirectory(), "libexec");
}

/** The first of these programs that came with weft; else `otherwise`, the system's. */
export function programPath(names: readonly string[], otherwise: string): string {
  const paths = names.map((name) => join(programsDirectory(), name));
  return paths.find((path) => existsSync(path)) ?? otherwise;
}
