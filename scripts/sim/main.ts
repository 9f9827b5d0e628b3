/**
 * `npm run sim -- --seeds 1000`, `-- --seed 42 --verbose`, `-- --mutation all`: the simulated world. Arguments are weft-sim's own.
 *
 * Must always hold: a relative path among them is one from where the caller stands.
 */
import { execa } from "execa";

import { builtSimulator } from "../lib/simulator.ts";

try {
  const { exitCode } = await execa(await builtSimulator(), process.argv.slice(2), {
    cwd: process.env["INIT_CWD"] ?? ".",
    stdio: "inherit",
    reject: false,
  });
  process.exitCode = exitCode ?? 1;
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
