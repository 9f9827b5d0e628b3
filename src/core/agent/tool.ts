/**
 * Programs of the system that the agent runs: util-linux, xfsprogs, LVM.
 *
 * Must always hold: arguments are a list and reach no shell; what a program says is English, bounded, and waited for no
 * longer than `timeoutMs`.
 */
import { execFile } from "node:child_process";

import { WeftError } from "../wire/errors.ts";
import { programsDirectory } from "../wire/installed.ts";

/** Of a few hundred disks; a tool that says more is broken. */
const OUTPUT_MAX = 4 << 20;
/** What came with weft first: the mkfs.xfs of a dom0 knows no reflink. */
const SBIN = `${programsDirectory()}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`;

const PACKAGES: ReadonlyMap<string, string> = new Map([
  ["mkfs.xfs", "xfsprogs"],
  ["lvm", "lvm2"],
]);

export type ToolRun = {
  readonly code: number;
  readonly stdout: string;
  /** The end of what it said to people, one line. */
  readonly said: string;
};

/** Null: it isn't installed. E-DISK-06 when it did not come to its own end. */
export function runTool(
  program: string,
  args: readonly string[],
  timeoutMs: number,
): Promise<ToolRun | null> {
  return new Promise((resolve, reject) => {
    const options = {
      timeout: timeoutMs,
      killSignal: "SIGKILL" as const,
      maxBuffer: OUTPUT_MAX,
      env: { PATH: SBIN, LC_ALL: "C.UTF-8" },
    };
    const child = execFile(program, [...args], options, (error, stdout, stderr) => {
      const said = stderr.trim().replaceAll(/\s+/g, " ").slice(-500);
      if (error === null) return resolve({ code: 0, stdout, said });
      if (error.code === "ENOENT") return resolve(null);
      if (typeof error.code === "number") return resolve({ code: error.code, stdout, said });
      const why = error.killed === true ? `took longer than ${timeoutMs / 1000} s` : error.message;
      reject(toolFailed(program, why.slice(0, 500)));
    });
    child.stdin?.end();
  });
}

/** The same of one that has to be there and to succeed. */
export async function needTool(program: string, args: readonly string[], timeoutMs: number): Promise<string> {
  const run = await runTool(program, args, timeoutMs);
  if (run === null) throw toolFailed(program, "it is not installed");
  if (run.code !== 0) throw toolFailed(program, run.said === "" ? `exit status ${run.code}` : run.said);
  return run.stdout;
}

function toolFailed(program: string, why: string): WeftError {
  return new WeftError({
    code: "E-DISK-06",
    message: `${program} failed: ${why.replace(/\.$/, "")}.`,
    facts: { program, why },
    do: [{ why: `It comes with the package ${PACKAGES.get(program) ?? "util-linux"}`, command: null }],
  });
}
