/**
 * `npm run lab`: programs in a guest with a kernel of its own (User-mode Linux), for what this machine's kernel lacks.
 *
 *     npm run lab -- lvm                         tests of pools on LVM's thin volumes: weft-io's, then the agent's
 *     npm run lab -- lvm FILTER --nocapture      some of weft-io's: what stands behind `lvm` goes to them
 *     npm run lab -- nbd                         tests of kernel nbd devices on volumes; what stands behind it goes to them
 *     npm run lab -- run PROGRAM ARGUMENT…       any program of this machine; /dev/ram0 and /dev/ram1 are blank disks
 *     npm run lab -- --seconds 60 run PROGRAM    ended after so long (default 900)
 *     npm run lab -- --memory 512 --disk 64 …    MiB of memory (default 3072) and of each disk (default 512, taken as it is written)
 *
 * Must always hold: the exit status is the program's; 125 where it did not run to its end, with the reason.
 */
import { join } from "node:path";
import { parseArgs } from "node:util";

import { execa } from "execa";

import { nativeTarget, profile, repository } from "../lib/repository.ts";
import { runGuest } from "./guest.ts";

const options = {
  seconds: { type: "string", default: "900" },
  memory: { type: "string", default: "3072" },
  disk: { type: "string", default: "512" },
} as const;

try {
  process.exitCode = await lab();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 125;
}

async function lab(): Promise<number> {
  const given = process.argv.slice(2);
  // What stands behind the command is the program's.
  const { tokens } = parseArgs({ args: given, options, allowPositionals: true, strict: false, tokens: true });
  const at = tokens.find(({ kind }) => kind === "positional")?.index ?? given.length;
  const { values } = parseArgs({ args: given.slice(0, at), options });
  const [command, ...rest] = given.slice(at);
  if (command !== "lvm" && command !== "nbd" && (command !== "run" || rest.length === 0))
    throw new Error("npm run lab -- lvm|nbd [FILTER…], or npm run lab -- run PROGRAM [ARGUMENT…]");
  const guest = (program: readonly string[], diskMiB: number): Promise<number> =>
    runGuest({
      program,
      // As XAPI's helper loads nbd: numbers from 32 up are made by whoever wants them.
      modules: [`brd rd_nr=2 rd_size=${diskMiB * 1024}`, "loop", "dm_thin_pool", "nbd nbds_max=24"],
      memoryMiB: numberOf("memory", values.memory),
      seconds: numberOf("seconds", values.seconds),
      directory: process.env["INIT_CWD"] ?? process.cwd(),
      env: { RUST_BACKTRACE: "1", CARGO_TARGET_DIR: nativeTarget(), WEFT_PROFILE: profile() },
      tell: (line) => console.log(line),
    });
  const disk = numberOf("disk", values.disk);
  if (command === "run") return guest(rest, disk);
  if (command === "nbd") {
    const tests = await testsOf(["--workspace"], "kernel_nbd");
    return guest([tests, "--test-threads", "1", "--nocapture", ...rest], disk);
  }
  const native = await guest(
    [await testsOf(["--package", "weft-io"], "lvm"), "--test-threads", "1", ...rest],
    disk,
  );
  if (native !== 0 || rest.length > 0) return native;
  const plots = join(repository, "test/core/agent/lvm-plots.ts");
  return guest(["env", `TAP_TIMEOUT=${values.seconds}`, process.execPath, plots], disk);
}

function numberOf(option: string, text: string): number {
  const number = Number(text);
  if (Number.isInteger(number) && number > 0) return number;
  throw new Error(`--${option} ${text} is no number above 0.`);
}

/** Path of the test binary, built. */
async function testsOf(rooms: readonly string[], name: string): Promise<string> {
  const what = [...rooms, "--test", name, "--no-run", "--message-format", "json"];
  const { stdout } = await execa("cargo", ["test", "--quiet", ...what], {
    cwd: join(repository, "native"),
    stderr: "inherit",
  });
  const built = stdout.split("\n").map((line) => /"executable":"([^"]+)"/.exec(line)?.[1]);
  const path = built.findLast((one) => one !== undefined);
  if (path === undefined) throw new Error(`cargo told of no test binary ${name}`);
  return path;
}
