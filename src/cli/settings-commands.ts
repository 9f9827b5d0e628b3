/** `weft settings show|set`: what the whole cluster goes by. */
import { Argument, type Command } from "commander";

import type { Settings } from "../core/wire/agent-api.ts";
import type { Bind } from "./context.ts";

/** Names as the documentation has them. */
const NAMES = ["transport.encryption"] as const;

const meaning: Readonly<Record<Settings["transport"], string>> = {
  tls: "hosts prove themselves, and all between them is encrypted",
  auth: "hosts prove themselves; requests can't be forged, guests' data can be read and altered on the network",
  clear: "NOTHING IS PROTECTED: for measuring only",
};

export function addSettingsCommands(program: Command, bind: Bind): void {
  const settings = program.command("settings").description("what the whole cluster goes by");

  const show = settings.command("show").description("all settings");
  bind(show, async (context) => {
    context.show(await context.client.settings(), ({ transport }) => transport, lineOf);
  });

  const set = settings
    .command("set")
    .description("change a setting: set transport.encryption tls")
    .addArgument(new Argument("<name>", "of the setting").choices(NAMES))
    .addArgument(new Argument("<value>", "tls, auth or clear").choices(Object.keys(meaning)));
  bind<[string, Settings["transport"]], object>(set, async (context, [, transport]) => {
    if (transport !== "tls") await context.confirm(`After this: ${meaning[transport]}. Go on?`);
    context.show(await context.client.changeSettings({ transport }), (answer) => answer.transport, lineOf);
  });
}

function lineOf({ transport }: Settings): string {
  return `${NAMES[0]}  ${transport}  ${meaning[transport]}`;
}
