/**
 * An error as a person reads it:
 *
 *     E-VOL-12   "db" is open on h2 by VM web1. Not deleted.
 *                Data is unchanged.
 *                Detach it there:  weft detach db
 *
 * Must always hold: the first line begins with the code; every further line is indented to the first word of the
 * message; nothing that came from elsewhere can end the line early.
 */
import { CommanderError } from "commander";

import { reasonOf, WeftError } from "../core/wire/errors.ts";
import { oneLine } from "./table.ts";

const INDENT = 11;

export function errorText(error: WeftError): string {
  const label = error.code.padEnd(INDENT - 1);
  const reasons = error.do.map(({ why }) => oneLine(why).replace(/([^:?!])$/, "$1:"));
  const widest = Math.max(0, ...reasons.map((why) => why.length));
  const lines = [
    `${label} ${oneLine(error.message)}`,
    ...(error.safe === null ? [] : [indent(oneLine(error.safe))]),
    ...error.do.map(({ command }, index) => {
      const why = reasons[index] ?? "";
      if (command === null) return indent(why.replace(/\.?:$/, "."));
      return indent(`${why.padEnd(widest)}  ${oneLine(command)}`);
    }),
  ];
  return lines.join("\n");
}

/** Whatever was thrown, as an error with a code. A bug of ours keeps its stack in the cause. */
export function asWeftError(error: unknown): WeftError {
  if (error instanceof WeftError) return error;
  if (error instanceof CommanderError) return ofArguments(error);
  return new WeftError({ code: "E-AGENT-06", message: `A bug in weft: ${reasonOf(error)}.`, cause: error });
}

function ofArguments(error: CommanderError): WeftError {
  if (error.code === "commander.help") {
    return new WeftError({
      code: "E-ARG-03",
      message: "The command is not complete.",
      do: [{ why: "See what it takes", command: "weft help COMMAND" }],
    });
  }
  const [first = "", hint = ""] = error.message.replace(/^error: /, "").split("\n");
  const near = /\(Did you mean (?:one of )?(.+)\?\)/.exec(hint)?.[1] ?? null;
  const sentence = `${first.charAt(0).toUpperCase()}${first.slice(1).replaceAll("'", '"')}`.replace(
    /\.?$/,
    ".",
  );
  return new WeftError({
    code: codeOf(error.code),
    message: near === null ? sentence : `${sentence} Did you mean "${near}"?`,
    do: near === null ? [{ why: "See all commands", command: "weft help" }] : [],
  });
}

function codeOf(commanderCode: string): string {
  switch (commanderCode) {
    case "commander.unknownCommand":
    case "commander.unknownOption":
      return "E-ARG-01";
    case "commander.invalidArgument":
      return "E-ARG-02";
    default:
      return "E-ARG-03";
  }
}

function indent(text: string): string {
  return " ".repeat(INDENT) + text;
}
