/**
 * The simulator, built for speed and with the broken rules that its gate switches on.
 *
 * Must always hold: it is built into a directory of its own. cargo gives one build's features to all that the build makes, and
 * no daemon may ever carry a broken rule (test/scripts/simulator.test.ts).
 */
import { join } from "node:path";

import { nativeTarget } from "./repository.ts";
import { runTask } from "./task.ts";

export function simulatorTarget(): string {
  return join(nativeTarget(), "sim");
}

/** Its path, once it is built; an error says what the compiler said. */
export async function builtSimulator(): Promise<string> {
  const target = simulatorTarget();
  const command = ["cargo", "build", "--quiet", "--release", "-p", "weft-sim", "--features", "mutants"];
  const { ok, output } = await runTask({
    name: "build of the simulator",
    cwd: "native",
    command: [...command, "--target-dir", target],
  });
  if (!ok) throw new Error(`the simulator was not built:\n${output}`);
  return join(target, "release/weft-sim");
}
