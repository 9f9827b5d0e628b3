/**
 * `npm run miri`: the buffer code of weft-io and the byte codecs of weft-proto under Miri, which sees undefined behaviour
 * that no run shows. Arguments go to the tests (a filter).
 *
 * Must always hold: the nightly compiler is one of a known date, installed if it is missing; nothing but Miri uses it.
 */
import { join } from "node:path";

import { execa } from "execa";

import { nativeTarget, repository } from "../lib/repository.ts";

const NIGHTLY = "nightly-2026-10-30";
/** That day's compiler says the day before. */
const COMMIT_DATE = "2026-10-29";

/**
 * Miri runs no system calls of io_uring, libaio or O_DIRECT: of weft-io only the buffers, which are where its memory is
 * handled. Of weft-proto everything that reads bytes.
 */
const PARTS: readonly (readonly [crate: string, tests: readonly string[]])[] = [
  ["weft-io", ["buffer::", "sidecar::"]],
  ["weft-proto", ["record::", "durable::", "a_header_with", "hello_of_a_newer", "is_chosen"]],
];

const native = join(repository, "native");

async function toolchain(): Promise<string> {
  for (const name of [NIGHTLY, "nightly"]) {
    const { stdout } = await execa("rustup", ["run", name, "rustc", "-vV"], { reject: false });
    const miri = await execa("rustup", ["run", name, "cargo", "miri", "--version"], { reject: false });
    if (stdout.includes(`commit-date: ${COMMIT_DATE}`) && miri.exitCode === 0) return name;
  }
  await execa(
    "rustup",
    ["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "miri,rust-src"],
    {
      stdio: "inherit",
    },
  );
  return NIGHTLY;
}

const name = await toolchain();
let failed = false;
for (const [crate, tests] of PARTS) {
  const filters = process.argv.length > 2 ? process.argv.slice(2) : tests;
  const { exitCode } = await execa(
    "rustup",
    ["run", name, "cargo", "miri", "test", "-p", crate, "--lib", "--", ...filters],
    {
      cwd: native,
      env: {
        CARGO_TARGET_DIR: join(nativeTarget(), "miri"),
        // The tests' directories have names from the clock and the process.
        MIRIFLAGS: "-Zmiri-disable-isolation",
        PROPTEST_CASES: "4",
      },
      stdio: "inherit",
      reject: false,
    },
  );
  failed ||= exitCode !== 0;
}
process.exitCode = failed ? 1 : 0;
