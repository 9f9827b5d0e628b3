/**
 * All commands, and the one way in which each runs: parse, ask, show; an error becomes text and an exit code.
 *
 * Must always hold:
 * - exit codes: 0 done, 1 the user's error, 2 refused for safety, 3 degraded, 4 not reachable;
 * - every failure prints one stable code, on stderr, as JSON when `--json` was asked for.
 */
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Command, CommanderError } from "commander";

import { suggest } from "../core/model/suggest.ts";
import { WeftError } from "../core/wire/errors.ts";
import { absolutePath } from "./arguments.ts";
import { addApiTokenCommands } from "./api-token-commands.ts";
import { addAttachCommands } from "./attach-commands.ts";
import { addAuditCommands } from "./audit-commands.ts";
import { addCaCommands } from "./ca-commands.ts";
import { addClusterCommands } from "./cluster-commands.ts";
import { readCodeRow } from "./code-table.ts";
import { json } from "./console.ts";
import { addContextCommands } from "./context-commands.ts";
import { Context } from "./context.ts";
import type { Bind, Globals, Surroundings } from "./context.ts";
import { addDebugCommands } from "./debug-commands.ts";
import { addDiskCommands } from "./disk-commands.ts";
import { asWeftError, errorText } from "./error-text.ts";
import { addLoginCommand } from "./login-command.ts";
import { addHostCommands } from "./host-commands.ts";
import { addMetricsCommand } from "./metrics-command.ts";
import { addPlaceCommands } from "./place-commands.ts";
import { addPoolCommands } from "./pool-commands.ts";
import { addReplicaCommands } from "./replica-commands.ts";
import { addScrubCommand } from "./scrub-command.ts";
import { addSettingsCommands } from "./settings-commands.ts";
import { addStatusCommand } from "./status-command.ts";
import { addSnapshotCommands } from "./snapshot-commands.ts";
import { addStoreCommands } from "./store-commands.ts";
import { addTokenCommands } from "./token-commands.ts";
import { addSrCommands } from "./sr-commands.ts";
import { addTrashCommands } from "./trash-commands.ts";
import { addVolumeCommands } from "./volume-commands.ts";
import { addWhyCommand } from "./why-command.ts";

/** Runs one command line, without the program's own name; answers the exit code. */
export async function runCommandLine(args: readonly string[], surroundings: Surroundings): Promise<number> {
  let exitCode = 0;
  const bind: Bind = (command, work) => {
    command.action(async () => {
      const isNamed =
        command.getOptionValueSourceWithGlobals("runDir") === "cli" ||
        surroundings.environment["WEFT_RUN_DIR"] !== undefined;
      const context = new Context(surroundings, command.optsWithGlobals<Globals>(), isNamed);
      // commander has checked number and presence against the declaration beside each `bind`.
      await work(context, command.processedArgs as unknown as Parameters<typeof work>[1], command.opts());
      exitCode = context.exitCode;
    });
  };
  try {
    const program = buildProgram(surroundings, bind, await version());
    await program.parseAsync(args.length === 0 ? ["help"] : [...args], { from: "user" });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return 0;
    const failure = asWeftError(error);
    const text = args.includes("--json") ? json({ error: failure.toBody() }) : errorText(failure);
    surroundings.console.error(text);
    return failure.exitCode;
  }
}

function buildProgram(surroundings: Surroundings, bind: Bind, ownVersion: string): Command {
  const { console, environment } = surroundings;
  const program = new Command("weft")
    .description("Disks that survive hosts.")
    .version(ownVersion, "--version", "print the version")
    .option("--json", "answer as JSON")
    .option("-q, --quiet", "print ids only")
    .option("-y, --yes", "do not ask")
    .option("--context <name>", "ask this cluster's hosts; local: this host's own agent (WEFT_CONTEXT)")
    .option(
      "--run-dir <directory>",
      "where the sockets are (WEFT_RUN_DIR)",
      absolutePath,
      environment["WEFT_RUN_DIR"] ?? "/run/weft",
    )
    .option(
      "--state-dir <directory>",
      "where this host's state is (WEFT_STATE_DIR)",
      absolutePath,
      environment["WEFT_STATE_DIR"] ?? "/var/lib/weft",
    )
    .exitOverride()
    .configureOutput({ writeOut: (text) => console.write(text), writeErr: () => undefined })
    .showSuggestionAfterError(true)
    .helpCommand(false);
  addClusterCommands(program, bind);
  addTokenCommands(program, bind);
  addCaCommands(program, bind);
  addStatusCommand(program, bind);
  addMetricsCommand(program, bind);
  addPoolCommands(program, bind);
  addDiskCommands(program, bind);
  const volume = addVolumeCommands(program, bind);
  addAttachCommands(program, bind);
  addPlaceCommands(volume, addReplicaCommands(program, bind), bind);
  addScrubCommand(program, bind);
  addSnapshotCommands(program, bind);
  addHostCommands(program, bind);
  addStoreCommands(program, bind);
  addSettingsCommands(program, bind);
  addWhyCommand(program, bind);
  addTrashCommands(program, bind);
  addSrCommands(program, bind);
  addLoginCommand(program, bind);
  addContextCommands(program, bind);
  addApiTokenCommands(program, bind);
  addAuditCommands(program, bind);
  addDebugCommands(program, bind);
  addHelpCommand(program, bind);
  return program;
}

function addHelpCommand(program: Command, bind: Bind): void {
  const help = program
    .command("help")
    .description("explain a command or an error code: help volume create, help E-VOL-12")
    .argument("[topic...]", "a command, or a code");
  bind<[], object>(help, async (context) => {
    const topic = help.args;
    const [first = ""] = topic;
    if (/^e-/i.test(first)) {
      const row = await readCodeRow(first);
      context.show(
        row,
        ({ code }) => code,
        ({ code, meaning, action }) => `${code}   ${meaning}\n           ${action}`,
      );
      return;
    }
    let command = program;
    for (const word of topic) {
      const next = command.commands.find((candidate) => candidate.name() === word);
      if (next === undefined) throw unknownTopic(command, word);
      command = next;
    }
    context.console.write(command.helpInformation());
  });
}

function unknownTopic(command: Command, word: string): WeftError {
  const near = suggest(
    word,
    command.commands.map((candidate) => candidate.name()),
  );
  return new WeftError({
    code: "E-ARG-01",
    message: `No command "${word}".${near === null ? "" : ` Did you mean "${near}"?`}`,
    do: near === null ? [{ why: "See all commands", command: "weft help" }] : [],
  });
}

/** Of the package, found upwards from here: the sources and the compiled files lie at different depths. */
async function version(): Promise<string> {
  for (
    let directory = import.meta.dirname;
    directory !== dirname(directory);
    directory = dirname(directory)
  ) {
    try {
      const parsed: unknown = JSON.parse(await readFile(join(directory, "package.json"), "utf8"));
      if (typeof parsed === "object" && parsed !== null && "version" in parsed) return String(parsed.version);
    } catch {
      continue;
    }
  }
  return "unknown";
}
