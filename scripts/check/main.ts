/**
 * `npm run check`: everything that can be said about the source without running it. Under a minute when warm.
 *
 * Must always hold: every task runs, also after another one failed; the exit status is 0 only if all held.
 */
import { runTask } from "../lib/task.ts";
import type { Task, TaskResult } from "../lib/task.ts";

const typescript: readonly Task[] = [
  { name: "types and walls", command: ["tsc", "-b"] },
  { name: "lint", command: ["oxlint", "--type-aware"] },
  { name: "format", command: ["oxfmt", "--check", "."] },
  { name: "dead code", command: ["knip"] },
  { name: "house rules", command: ["node", "test/tidy.test.ts"] },
];

const rust: readonly Task[] = [
  { name: "Rust format", cwd: "native", command: ["cargo", "fmt", "--all", "--check"] },
  {
    name: "clippy",
    cwd: "native",
    command: ["cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
  },
];

const results = (await Promise.all([inTurn(typescript), inTurn(rust)])).flat();
const failed = results.filter(({ ok }) => !ok);
console.log(
  failed.length === 0
    ? `${results.length} checks held`
    : `${failed.length} of ${results.length} checks failed`,
);
process.exitCode = failed.length === 0 ? 0 : 1;

async function inTurn(tasks: readonly Task[]): Promise<readonly TaskResult[]> {
  const done: TaskResult[] = [];
  for (const task of tasks) {
    const result = await runTask(task);
    console.log(`${result.ok ? "ok    " : "FAILED"}  ${task.name.padEnd(16)} ${result.seconds.toFixed(1)} s`);
    if (!result.ok) console.log(result.output);
    done.push(result);
  }
  return done;
}
