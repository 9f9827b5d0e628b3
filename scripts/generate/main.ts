/** `npm run generate`: the files that are made from other files, and committed. A test of weft-control compares them. */
import { runTask } from "../lib/task.ts";

const command = ["cargo", "run", "--quiet", "-p", "weft-control", "--bin", "weft-control-generate"];
const { ok } = await runTask({ name: "generate", cwd: "native", command, show: () => true });
process.exitCode = ok ? 0 : 1;
