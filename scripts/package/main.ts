/**
 * `npm run rpm`, `npm run deb`: a package of weft from this checkout.
 *
 *     npm run rpm -- --sign KEY        signed with a key of gpg's ring
 *     npm run deb
 *
 * Must always hold: the last line is the path of a whole package; a package that could not be made whole isn't there.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { join, resolve } from "node:path";

import { Command, Option } from "commander";

import { profile, repository } from "../lib/repository.ts";
import { packDeb } from "./deb.ts";
import type { EtcdChoice } from "./etcd.ts";
import { packRpm, signRpm } from "./rpm.ts";
import { layHostFiles, layTree, settle } from "./tree.ts";

type Options = {
  readonly release: string;
  readonly etcd: EtcdChoice;
  readonly out: string;
  readonly sign?: string;
  readonly compression: string;
};

await new Command("npm run rpm|deb --")
  .description("A package of weft from this checkout.")
  .argument("<kind>", "rpm or deb")
  .option("--release <n>", "number of this build of the version", "1")
  .option("--out <directory>", "where it goes", "dist/package")
  .option("--sign <key>", "sign the RPM with this key of gpg's ring")
  .option("--compression <level>", "1 (quick) to 9 (small)", "6")
  .addOption(
    new Option(
      "--etcd <which>",
      "static from Go's modules, or Debian's; auto takes the first that can be had",
    )
      .choices(["auto", "go", "debian"])
      .default("auto"),
  )
  .action(make)
  .parseAsync();

async function make(kind: string, options: Options): Promise<void> {
  if (kind !== "rpm" && kind !== "deb") throw new Error(`no package of the kind ${kind}: rpm, deb`);
  if (kind === "deb" && options.sign !== undefined)
    throw new Error("a .deb is signed by the list of its repository");
  if (profile() === "dev") console.log("weftd is of the dev profile: for tests, not for production.");
  const { version } = JSON.parse(readFileSync(join(repository, "package.json"), "utf8")) as {
    version: string;
  };
  const tree = join(repository, "dist/package", `tree-${kind}`);
  const say = (line: string): void => console.log(line);
  const etcd = await layTree({ directory: tree, version, etcd: options.etcd, say });
  layHostFiles(tree, kind === "rpm" ? "xcp-ng" : "kvm");
  const epoch = sourceDate();
  settle(tree, epoch);
  const pack = {
    tree,
    out: resolve(options.out),
    version,
    release: options.release,
    etcd,
    epoch,
    compression: Number(options.compression),
  };
  const path = kind === "rpm" ? await packRpm(pack) : await packDeb(pack);
  if (options.sign !== undefined) await signRpm(path, options.sign);
  const sha256 = createHash("sha256").update(readFileSync(path)).digest("hex");
  console.log(`${(statSync(path).size / 1e6).toFixed(1)} MB, SHA-256 ${sha256}`);
  console.log(path);
}

/** SOURCE_DATE_EPOCH, else the time of the last commit. */
function sourceDate(): number {
  const told = process.env["SOURCE_DATE_EPOCH"] ?? "";
  const text =
    told === "" ? execFileSync("git", ["log", "-1", "--format=%ct"], { cwd: repository }).toString() : told;
  if (!/^\d+\s*$/.test(text)) throw new Error(`SOURCE_DATE_EPOCH is "${text}": it wants seconds`);
  return Number(text);
}
