/** The first minute on a fresh machine: who may not install is told what is missing, and nothing is changed. */
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

await t.test("setup: a script's arguments arrive as they were given", async (t) => {
  const script = "test/scripts/echo-arguments.ts";
  const { stdout } = await execa("sh", ["scripts/setup/ensure.sh", "node", script, "a b", "*", ""], {
    cwd: repository,
  });
  t.equal(stdout, JSON.stringify(["a b", "*", ""]));
});
