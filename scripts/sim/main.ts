/** `npm run sim -- --seeds 1000` or `-- --seed 42`: the simulated world, built for speed. Arguments are weft-sim's own. */
import { runTask } from "../lib/task.ts";

const command = ["cargo", "run", "--quiet", "--release", "-p", "weft-sim", "--", ...process.argv.slice(2)];
const { ok } = await runTask({ name: "sim", cwd: "native", command, show: () => true });
process.exitCode = ok ? 0 : 1;
