/** `weft settings show|set`: what the whole cluster goes by. */
import { Argument, type Command } from "commander";

import { formatSizeExact } from "../core/model/size.ts";
import type { Settings } from "../core/wire/agent-api.ts";
import { days, onOrOff, overcommit, rate, transport } from "./arguments.ts";
import type { Bind, Context } from "./context.ts";

/** Names as the documentation has them. */
const names = [
  "transport.encryption",
  "scrub.everyDays",
  "scrub.rate",
  "pools.overcommit",
  "snapshots.copy",
] as const;
type Name = (typeof names)[number];

const meaning: Readonly<Record<Settings["transport"], string>> = {
  tls: "hosts prove themselves, and all between them is encrypted",
  auth: "hosts prove themselves; requests can't be forged, guests' data can be read and altered on the network",
  clear: "NOTHING IS PROTECTED: for measuring only",
};

export function addSettingsCommands(program: Command, bind: Bind): void {
  const settings = program.command("settings").description("what the whole cluster goes by");

  const show = settings.command("show").description("all settings");
  bind(show, async (context) => {
    context.show(await context.client.settings(), idsOf, textOf);
  });

  const set = settings
    .command("set")
    .description("change a setting: set transport.encryption tls, set scrub.everyDays 30")
    .addArgument(new Argument("<name>", "of the setting").choices(names))
    .argument(
      "<value>",
      "tls, auth or clear; a number of days, 0 for never; a rate such as 32MiB/s; a number; on or off",
    );
  bind<[Name, string], object>(set, async (context, [name, value]) => {
    const after = await changed(context, name, value);
    context.show(
      after,
      (answer) => valueOf(name, answer),
      (answer) => lineOf(name, answer),
    );
  });
}

async function changed(context: Context, name: Name, value: string): Promise<Settings> {
  const { client } = context;
  switch (name) {
    case "transport.encryption": {
      const wanted = transport(value);
      if (wanted !== "tls") await context.confirm(`After this: ${meaning[wanted]}. Go on?`);
      return client.changeSettings({ transport: wanted });
    }
    case "scrub.everyDays":
      return client.changeSettings({ scrub: { everyDays: days(value) } });
    case "scrub.rate":
      return client.changeSettings({ scrub: { rate: String(rate(value)) } });
    case "pools.overcommit":
      return client.changeSettings({ pools: { overcommit: overcommit(value) } });
    case "snapshots.copy":
      return client.changeSettings({ snapshots: { copy: onOrOff(value) } });
  }
}

function idsOf(settings: Settings): string {
  return names.map((name) => valueOf(name, settings)).join("\n");
}

function textOf(settings: Settings): string {
  return names.map((name) => lineOf(name, settings)).join("\n");
}

function lineOf(name: Name, settings: Settings): string {
  return `${name}  ${valueOf(name, settings)}  ${meaningOf(name, settings)}`;
}

function valueOf(name: Name, { transport: encryption, scrub, pools, snapshots }: Settings): string {
  switch (name) {
    case "transport.encryption":
      return encryption;
    case "scrub.everyDays":
      return String(scrub.everyDays);
    case "scrub.rate":
      return `${formatSizeExact(scrub.rate)}/s`;
    case "pools.overcommit":
      return String(pools.overcommit);
    case "snapshots.copy":
      return snapshots.copy ? "on" : "off";
  }
}

function meaningOf(name: Name, { transport: encryption, scrub, snapshots }: Settings): string {
  switch (name) {
    case "transport.encryption":
      return meaning[encryption];
    case "scrub.everyDays":
      return scrub.everyDays === 0
        ? "copies are compared only when somebody asks for it"
        : "copies of a volume are compared so often";
    case "scrub.rate":
      return "of each volume, at most";
    case "pools.overcommit":
      return "times a pool's size that its volumes may grow to before weft status says so";
    case "snapshots.copy":
      return snapshots.copy
        ? "copies that were away or came later are given the snapshots that they missed"
        : "copies stay without the snapshots that they missed";
  }
}
