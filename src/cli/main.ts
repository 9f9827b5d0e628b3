/** The `weft` command: joins the process with the program. */
import { Console } from "./console.ts";
import { runCommandLine } from "./program.ts";

const abort = new AbortController();
process.once("SIGINT", () => abort.abort());

process.exitCode = await runCommandLine(process.argv.slice(2), {
  console: new Console(process, process.env),
  environment: process.env,
  signal: abort.signal,
});
