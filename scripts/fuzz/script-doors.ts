/**
 * The doors in TypeScript, each tried in a process of its own by test/fuzz/main.ts: what hangs or dies there is a finding
 * and not the end of the run.
 */
import { execa } from "execa";
import { z } from "zod";

import { repository } from "../lib/repository.ts";
import type { Outcome } from "./outcome.ts";

/** How much longer than asked a door may take to open and to close. */
const GRACE_MS = 90_000;

const outcome = z.object({
  executions: z.int(),
  finding: z.object({ seed: z.int(), text: z.string() }).nullable(),
});

export async function scriptDoors(): Promise<readonly string[]> {
  const { stdout } = await execa("node", ["test/fuzz/main.ts", "--list"], { cwd: repository });
  return stdout.split("\n").filter((line) => line !== "");
}

export async function tryDoor(name: string, seconds: number, seed: string | null): Promise<Outcome> {
  const args = ["test/fuzz/main.ts", name, String(seconds), ...(seed === null ? [] : [seed])];
  const { stdout, stderr, exitCode } = await execa("node", args, {
    cwd: repository,
    reject: false,
    timeout: seconds * 1000 + GRACE_MS,
    maxBuffer: 64 * 1024 * 1024,
  });
  const report = outcome.safeParse(jsonOf(stdout.split("\n").at(-1) ?? ""));
  const { executions, finding } = report.success
    ? report.data
    : {
        executions: 0,
        finding: { seed: Number(seed ?? 0), text: `status ${exitCode ?? "none"}: ${stderr.slice(-4000)}` },
      };
  const found =
    finding === null
      ? []
      : [
          {
            input: `seed ${finding.seed}`,
            replay: `npm run fuzz -- --target ${name} --seed ${finding.seed}`,
            text: finding.text,
          },
        ];
  return { name, seconds, executions, coverage: null, findings: found };
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
