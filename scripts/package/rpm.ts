/** A package of RPM from a tree that is laid out. */
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";

import { repository } from "../lib/repository.ts";
import { entriesOf } from "./tree.ts";
import type { Entry } from "./tree.ts";

/** Directories of the distribution: they are no package's of ours. */
export const SHARED = new Set(
  [
    ["/etc", "/opt", "/usr", "/usr/bin", "/usr/lib", "/usr/libexec", "/var", "/var/lib", "/var/log"],
    ["/etc/logrotate.d", "/etc/rsyslog.d", "/usr/lib/sysctl.d", "/usr/lib/tmpfiles.d"],
    ["/usr/lib/systemd", "/usr/lib/systemd/system", "/usr/lib/udev", "/usr/lib/udev/rules.d"],
  ].flat(),
);

export type PackOptions = {
  readonly tree: string;
  /** Where the package goes. */
  readonly out: string;
  readonly version: string;
  readonly release: string;
  /** One line about its etcd. */
  readonly etcd: string;
  readonly epoch: number;
  /** 1 is quick, 9 is small. */
  readonly compression: number;
};

export async function packRpm({
  tree,
  out,
  version,
  release,
  etcd,
  epoch,
  compression,
}: PackOptions): Promise<string> {
  const scratch = mkdtempSync(join(tmpdir(), "weft-rpm-"));
  try {
    const files = join(scratch, "files");
    writeFileSync(files, `${fileList(entriesOf(tree)).join("\n")}\n`);
    const macros = {
      _topdir: join(scratch, "top"),
      _tmppath: scratch,
      _rpmdir: out,
      _build_name_fmt: "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
      _dbpath: join(scratch, "db"),
      weft_version: version,
      weft_release: release,
      weft_tree: tree,
      weft_files: files,
      weft_etcd: etcd,
      weft_level: String(compression),
    };
    mkdirSync(out, { recursive: true });
    cpSync(join(repository, "packaging/rpm/weft.spec"), join(scratch, "weft.spec"));
    const defines = Object.entries(macros).flatMap(([name, value]) => ["--define", `${name} ${value}`]);
    await execa("rpmbuild", ["-bb", "--target", "x86_64", ...defines, join(scratch, "weft.spec")], {
      env: { SOURCE_DATE_EPOCH: String(epoch), LC_ALL: "C", HOME: scratch },
      maxBuffer: 64 << 20,
    });
    return join(out, `weft-${version}-${release}.x86_64.rpm`);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Lines of `%files`. */
export function fileList(entries: readonly Entry[]): readonly string[] {
  return entries.flatMap(({ path, kind, executable }) => {
    if (kind === "directory") return SHARED.has(path) ? [] : [`%dir %attr(0755, root, root) "${path}"`];
    if (kind === "link") return [`"${path}"`];
    // An administrator may change them; what XAPI runs is no configuration.
    const config = /^\/etc\/(?!xapi\.d\/|xensource\/)/.test(path) ? "%config(noreplace) " : "";
    return [`${config}%attr(${executable ? "0755" : "0644"}, root, root) "${path}"`];
  });
}

/** Signs it in place, with a key of gpg's ring. */
export async function signRpm(path: string, key: string): Promise<void> {
  // rpm wants gpg2, which is gpg's name in some distributions only.
  const gpg = ["/usr/bin/gpg2", "/usr/bin/gpg"].find((program) => existsSync(program)) ?? "gpg";
  await execa("rpmsign", ["--define", `__gpg ${gpg}`, "--define", `_gpg_name ${key}`, "--addsign", path]);
}
