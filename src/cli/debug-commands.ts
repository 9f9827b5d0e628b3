/**
 * `weft debug dump|check PATH`: what a pool directory holds, read offline by `weftd debug …`.
 *
 * Must always hold: weft itself reads no pool; it starts the daemon's program and passes on its words and exit code.
 */
import { spawn } from "node:child_process";
import { access, constants } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Command } from "commander";

import { reasonOf, WeftError } from "../core/wire/errors.ts";
import { absolutePath } from "./arguments.ts";
import type { Bind, Context } from "./context.ts";

export function addDebugCommands(program: Command, bind: Bind): void {
  const debug = program.command("debug").description("look into a pool directory, without a running daemon");
  for (const [verb, description] of [
    ["dump", "print what it holds"],
    ["check", "verify checksums and the log"],
  ] as const) {
    const command = debug
      .command(verb)
      .description(description)
      .argument("<directory>", "a pool's directory");
    bind<[string], object>(command, async (context, [path]) => {
      await run(context, [
        "debug",
        verb,
        absolutePath(path),
        ...(context.globals.json === true ? ["--json"] : []),
      ]);
    });
  }
}

async function run(context: Context, args: readonly string[]): Promise<void> {
  const program = await findDaemon(context.environment);
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  child.stdout.setEncoding("utf8").on("data", (text: string) => context.console.write(text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => context.console.writeError(text));
  const code = await new Promise<number>((resolve, reject) => {
    child.once("error", (cause) =>
      reject(
        new WeftError({
          code: "E-ARG-01",
          message: `${program} can't be started: ${reasonOf(cause)}.`,
          cause,
        }),
      ),
    );
    child.once("close", (status) => resolve(status ?? 1));
  });
  context.exitCode = code;
}

/** WEFTD, else beside the installed `weft`, else what cargo built here. */
async function findDaemon(environment: NodeJS.ProcessEnv): Promise<string> {
  const named = environment["WEFTD"] ?? "";
  if (named !== "") return named;
  const places: string[] = [];
  for (let at = import.meta.dirname; at !== dirname(at); at = dirname(at)) {
    places.push(
      join(at, "bin", "weftd"),
      join(at, "native/target/release/weftd"),
      join(at, "native/target/debug/weftd"),
    );
  }
  for (const place of places) {
    if (await isExecutable(place)) return place;
  }
  throw new WeftError({
    code: "E-ARG-01",
    message: "The program weftd is not beside weft.",
    do: [{ why: "Say where it is", command: "WEFTD=/usr/sbin/weftd weft debug …" }],
  });
}

async function isExecutable(path: string): Promise<boolean> {
  try {
    await access(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
