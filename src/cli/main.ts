/** The `weft` command: joins the process with the program. */
import { defaultAddon, loadAddon } from "../core/wire/addon.ts";
import { reasonOf } from "../core/wire/errors.ts";
import { Console } from "./console.ts";
import { runCommandLine } from "./program.ts";

// `weft volume list | head -1` closes the pipe early: nobody wants the rest, and it is no failure.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(0);
});

process.exitCode = await runCommandLine(process.argv.slice(2), {
  console: new Console(process, process.env),
  environment: process.env,
  interruption: () => {
    const abort = new AbortController();
    process.once("SIGINT", () => abort.abort());
    return abort.signal;
  },
  protect: () => {
    try {
      loadAddon(defaultAddon(process.env)).protect();
      return null;
    } catch (error) {
      return reasonOf(error);
    }
  },
});
