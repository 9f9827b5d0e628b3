/**
 * A guest with a kernel of its own: User-mode Linux, an ordinary process. It sees this machine's files, changes none of
 * them, and has kernel modules that the machine lacks (brd, dm-thin).
 *
 * Must always hold:
 * - it ends within its time, also when whoever started it is gone; nothing of it stays behind;
 * - a program's exit status is its own only if the program ran to its end: all else is an error with a reason.
 */
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";

export type GuestOptions = {
  readonly program: readonly string[];
  /** Modules with their parameters: `brd rd_nr=1 rd_size=65536` (KiB). */
  readonly modules: readonly string[];
  readonly memoryMiB: number;
  /** From the start of its kernel. */
  readonly seconds: number;
  /** Where the program starts. */
  readonly directory: string;
  /** For the program, beside PATH and HOME. */
  readonly env: Readonly<Record<string, string>>;
  /** Its kernel. */
  readonly kernel?: string;
  /** Of what it writes, each line as it comes. */
  readonly tell: (line: string) => void;
};

/** Debian's. */
const KERNEL = "/usr/bin/linux.uml";

/** Exit status of its program. */
export async function runGuest(options: GuestOptions): Promise<number> {
  const kernel = options.kernel ?? KERNEL;
  if (!existsSync(kernel))
    throw new Error(`${kernel} is missing: it comes with Debian's package user-mode-linux (x86 only).`);
  const shared = mkdtempSync(join(tmpdir(), "weft-lab-"));
  try {
    copyFileSync(join(import.meta.dirname, "guest-init.sh"), join(shared, "init"));
    chmodSync(join(shared, "init"), 0o755);
    writeFileSync(join(shared, "run"), runScript(options));
    const last: string[] = [];
    // Before and after it the kernel speaks of itself.
    let isProgram = false;
    const guest = execa(
      "timeout",
      ["-k", "2", String(options.seconds), kernel, ...kernelLine(options, shared)],
      {
        all: true,
        reject: false,
        stdin: "ignore",
        buffer: false,
      },
    );
    for await (const line of guest.iterable({ from: "all" })) {
      if (line === "weft-lab: ends") isProgram = false;
      if (isProgram) options.tell(line);
      if (line === "weft-lab: begins") isProgram = true;
      last.push(line);
      if (last.length > 20) last.shift();
    }
    const { exitCode } = await guest;
    if (exitCode === 124 || exitCode === 137)
      throw new Error(`The guest was not done after ${options.seconds} s, and was ended.`);
    const status = contentOf(join(shared, "status"));
    if (status !== null) return Number(status);
    const said = last.length === 0 ? "It said nothing." : `It said last:\n${last.join("\n")}`;
    throw new Error(
      existsSync(join(shared, "started"))
        ? `The guest ended before its program did. ${said}`
        : `This machine can't run the guest: its kernel, ${kernel}, did not get as far as to the program. ${said}`,
    );
  } finally {
    rmSync(shared, { recursive: true, force: true });
  }
}

function kernelLine({ memoryMiB }: GuestOptions, shared: string): readonly string[] {
  const console = ["con=null", "con0=null,fd:1", "ssl=null"];
  const root = ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"];
  return [`mem=${memoryMiB}M`, ...root, ...console, "loglevel=1", "panic=1", `init=${join(shared, "init")}`];
}

function runScript({ program, modules, directory, env }: GuestOptions): string {
  return [
    ...modules.map((module) => `modprobe ${module.split(" ").map(quoted).join(" ")} || exit 125`),
    ...Object.entries(env).map(([name, value]) => `export ${name}=${quoted(value)}`),
    `cd ${quoted(directory)} || exit 125`,
    `exec ${program.map(quoted).join(" ")}`,
    "",
  ].join("\n");
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

function contentOf(path: string): string | null {
  const content = existsSync(path) ? readFileSync(path, "utf8").trim() : "";
  return content === "" ? null : content;
}
