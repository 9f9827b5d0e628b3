/** `weft sr list|create|delete`: storage repositories, as XAPI has them. XAPI makes and deletes them itself; these are for when it lost one, or left one. */
import type { Command } from "commander";

import { parseUuid } from "../core/model/ids.ts";
import { formatSize } from "../core/model/size.ts";
import { WeftError } from "../core/wire/errors.ts";
import { copies } from "./arguments.ts";
import type { Bind } from "./context.ts";
import { oneLine } from "./table.ts";

type Create = { readonly label?: string; readonly copies?: number };

export function addSrCommands(program: Command, bind: Bind): void {
  const sr = program.command("sr").description("storage repositories of XAPI");

  const list = sr.command("list").description("all of them, and what room there is");
  bind(list, async (context) => {
    context.list(
      await context.client.srs(),
      ({ uuid }) => uuid,
      [
        { title: "REPOSITORY", of: ({ label }) => label },
        { title: "COPIES", of: ({ copies: each }) => (each === null ? "—" : String(each)), right: true },
        { title: "SIZE", of: ({ physicalSize }) => formatSize(physicalSize), right: true },
        { title: "USED", of: ({ physicalUtilisation }) => formatSize(physicalUtilisation), right: true },
        { title: "DISKS", of: ({ virtualAllocation }) => formatSize(virtualAllocation), right: true },
        { title: "UUID", of: ({ uuid }) => uuid },
      ],
      "No storage repositories yet.  On XCP-ng:  xe sr-create type=weft shared=true name-label=NAME",
    );
  });

  const create = sr
    .command("create")
    .description("know a repository of XAPI's again that the store has lost; a scan then takes its disks in")
    .argument("<uuid>", "as XAPI has it")
    .option("--label <text>", "its name (default: a scan brings XAPI's)")
    .option("--copies <n>", "of each disk (default: as volumes have them)", copies);
  bind<[string], Create>(create, async (context, [uuid], options) => {
    const made = await context.client.createSr({
      uuid: uuidOf(uuid),
      label: options.label ?? "",
      copies: options.copies ?? null,
    });
    context.show(
      made,
      ({ uuid: id }) => id,
      ({ uuid: id }) => `Repository ${id} is known.  Next:  xe sr-scan uuid=${id}`,
    );
  });

  const remove = sr
    .command("delete")
    .description("forget a repository without disks, which XAPI has not any more")
    .argument("<uuid>", "as the list has it");
  bind<[string], object>(remove, async (context, [text]) => {
    const uuid = uuidOf(text);
    const { label } = await context.client.sr(uuid);
    await context.client.deleteSr(uuid);
    context.done({ sr: uuid }, `Repository "${oneLine(label)}" (${uuid}) is deleted.`);
  });
}

function uuidOf(text: string): string {
  const uuid = parseUuid(text);
  if (uuid !== null) return uuid;
  throw new WeftError({
    code: "E-ARG-02",
    message: `"${text}" is no UUID.`,
    facts: { uuid: text },
    do: [{ why: "See those that there are", command: "weft sr list" }],
  });
}
