/**
 * One step of `npm run check` or `npm test`: a command with a name.
 *
 * Must always hold: a step that could not be started has failed.
 */
import { execa } from "execa";

import { repository } from "./repository.ts";

export type Task = {
  readonly name: string;
  readonly command: readonly string[];
  /** From the repository's root. */
  readonly cwd?: string;
  /** The lines of its output that go to the terminal as they come: none, unless told. */
  readonly show?: (line: string) => boolean;
};

export type TaskResult = {
  readonly task: Task;
  readonly ok: boolean;
  readonly seconds: number;
  /** Everything that it wrote. */
  readonly output: string;
};

export async function runTask(task: Task): Promise<TaskResult> {
  const started = performance.now();
  const [file = "true", ...args] = task.command;
  const child = execa(file, args, {
    cwd: `${repository}/${task.cwd ?? ""}`,
    all: true,
    reject: false,
    stdin: "ignore",
    maxBuffer: 256 * 1024 * 1024,
  });
  const { show } = task;
  if (show !== undefined) {
    for await (const line of child.iterable({ from: "all" })) if (show(line)) console.log(line);
  }
  const { all, exitCode, originalMessage } = await child;
  const reason = exitCode === undefined ? `\n${originalMessage ?? "ended by a signal"}` : "";
  const seconds = (performance.now() - started) / 1000;
  return { task, ok: exitCode === 0, seconds, output: `${all ?? ""}${reason}` };
}
