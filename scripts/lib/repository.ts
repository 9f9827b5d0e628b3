/** Where the parts of a built repository lie. */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";

export const repository = resolve(import.meta.dirname, "../..");

export type Profile = "release" | "dev";

/** The profile that scripts/setup built. */
export function profile(): Profile {
  return process.env["WEFT_PROFILE"] === "dev" ? "dev" : "release";
}

/** Where cargo builds. */
export function nativeTarget(): string {
  const target = process.env["CARGO_TARGET_DIR"] ?? join(repository, "native/target");
  return resolve(repository, "native", target);
}

/** Where cargo puts the programs of a profile. */
export function nativeBin(of: Profile = profile()): string {
  return join(nativeTarget(), of === "dev" ? "debug" : "release");
}

/** The path of `weftd`; an error says how to make it. */
export function weftd(): string {
  const path = join(nativeBin(), "weftd");
  if (existsSync(path)) return path;
  throw new Error(`${path} does not exist: (cd native && cargo build --profile ${profile()} -p weftd)`);
}

/** Files of the repository that git keeps or would keep, as paths from the root. */
export function repositoryFiles(): readonly string[] {
  const list = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], {
    cwd: repository,
    encoding: "utf8",
    maxBuffer: 64 * 1024 * 1024,
  });
  return list
    .split("\0")
    .filter((path) => path !== "" && existsSync(join(repository, path)))
    .toSorted();
}
