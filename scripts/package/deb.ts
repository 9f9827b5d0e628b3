/** A package of Debian's kind from a tree that is laid out. */
import { chmodSync, lutimesSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { join } from "node:path";

import { execa } from "execa";

import { repository } from "../lib/repository.ts";
import type { PackOptions } from "./rpm.ts";
import { entriesOf } from "./tree.ts";

export async function packDeb({
  tree,
  out,
  version,
  release,
  etcd,
  epoch,
  compression,
}: PackOptions): Promise<string> {
  const control = join(tree, "DEBIAN");
  rmSync(control, { recursive: true, force: true });
  const files = entriesOf(tree).filter(({ kind }) => kind === "file");
  mkdirSync(control);
  const kib = Math.ceil(files.reduce((sum, { path }) => sum + statSync(join(tree, path)).size, 0) / 1024);
  const template = readFileSync(join(repository, "packaging/deb/control"), "utf8");
  const values = { version: `${version}-${release}`, size: String(kib), etcd };
  const texts: Record<string, string> = {
    control: template.replaceAll(/@(version|size|etcd)@/g, (_, name: keyof typeof values) => values[name]),
    conffiles: files
      .map(({ path }) => path)
      .filter((path) => path.startsWith("/etc/"))
      .map((path) => `${path}\n`)
      .join(""),
    md5sums: files.map(({ path }) => `${md5(join(tree, path))}  ${path.slice(1)}\n`).join(""),
  };
  for (const [name, text] of Object.entries(texts)) writeFileSync(join(control, name), text);
  for (const name of ["postinst", "prerm", "postrm"]) {
    writeFileSync(join(control, name), readFileSync(join(repository, "packaging/deb", name)));
    chmodSync(join(control, name), 0o755);
  }
  for (const { path } of entriesOf(control)) lutimesSync(join(control, path), epoch, epoch);
  lutimesSync(control, epoch, epoch);
  mkdirSync(out, { recursive: true });
  const to = join(out, `weft_${version}-${release}_amd64.deb`);
  const how = ["--root-owner-group", "-Zgzip", `-z${compression}`, "--build"];
  await execa("dpkg-deb", [...how, tree, to], { env: { SOURCE_DATE_EPOCH: String(epoch) } });
  return to;
}

function md5(path: string): string {
  return createHash("md5").update(readFileSync(path)).digest("hex");
}
