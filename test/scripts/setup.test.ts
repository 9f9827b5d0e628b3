/** The first minute on a fresh machine: who may not install is told what is missing, and nothing is changed. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import t from "tap";

import { repository } from "../../scripts/lib/repository.ts";

const missing = 'wanted_packages="no-such-program:one-package /no/such/file:other-package sh:dash"';
const prelude = `say() { printf '%s\\n' "$*" >&2; }; . scripts/setup/packages.sh; ${missing}`;

await t.test("setup: a command or file that is missing names its package", async (t) => {
  const { stdout } = await execa("sh", ["-euc", `${prelude}; missing_packages`], { cwd: repository });
  t.equal(stdout.trim(), "one-package other-package");
});

await t.test("setup: without root the missing packages are named, and the exit status is 1", async (t) => {
  const asNobody = `${prelude}; id() { echo 65534; }; ensure_packages`;
  const { exitCode, stderr } = await execa("sh", ["-euc", asNobody], { cwd: repository, reject: false });
  t.equal(exitCode, 1);
  t.match(stderr, "apt-get install --no-install-recommends one-package other-package");
  t.match(stderr, "systemctl disable --now etcd");
});

/** What setup says while this stands for cargo. */
async function built(t: { readonly teardown: (fn: () => void) => void }, cargo: string) {
  const directory = mkdtempSync(join(tmpdir(), "weft-setup-"));
  t.teardown(() => rmSync(directory, { recursive: true }));
  writeFileSync(join(directory, "cargo"), `#!/bin/sh\n${cargo}\n`, { mode: 0o755 });
  const say = `say() { printf '%s\\n' "$*" >&2; }; . scripts/setup/native.sh; ensure_native; echo went on`;
  return execa("sh", ["-euc", say], {
    cwd: repository,
    reject: false,
    env: { PATH: `${directory}:${process.env["PATH"] ?? ""}`, WEFT_PROFILE: "release" },
  });
}

await t.test("setup: a long build says what it builds before it does, and how far it is", async (t) => {
  const libraries = `i=0; while [ $i -lt 45 ]; do echo "   Compiling lib$i v1.0.0" >&2; i=$((i+1)); done`;
  const cargo = `${libraries}; echo "   Compiling weftd v0.1.0 (/w/native/weftd)" >&2
    echo "warning: unused" >&2; echo "    Finished release" >&2`;
  const { exitCode, stdout, stderr } = await built(t, cargo);
  t.equal(exitCode, 0);
  t.equal(stdout, "went on");
  const lines = stderr.split("\n");
  t.match(lines[0], /^setup: building the data path from Rust .*, release\): 2 to 5 minutes the first time$/);
  t.match(lines.slice(1), [
    /^setup: 20 libraries after \d+ s$/,
    /^setup: 40 libraries after \d+ s$/,
    /^setup: weftd after \d+ s$/,
    "warning: unused",
  ]);
  t.equal(lines.length, 5);
});

await t.test(
  "setup: what is built already is not spoken of, and a build that fails ends the script",
  async (t) => {
    const done = await built(t, `echo "    Finished release" >&2`);
    t.match(done, { exitCode: 0, stdout: "went on", stderr: "" });
    const failed = await built(t, `echo "error: could not compile" >&2; exit 101`);
    t.match(failed, { exitCode: 101, stdout: "", stderr: "error: could not compile" });
  },
);

await t.test("setup: a script's arguments arrive as they were given", async (t) => {
  const script = "test/scripts/echo-arguments.ts";
  const { stdout } = await execa("sh", ["scripts/setup/ensure.sh", "node", script, "a b", "*", ""], {
    cwd: repository,
  });
  t.equal(stdout, JSON.stringify(["a b", "*", ""]));
});
