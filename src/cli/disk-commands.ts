/** `weft disk list|wipe`: what is on this host's disks, and an end to it. */
import type { Command } from "commander";

import { formatSize } from "../core/model/size.ts";
import type { DiskAnswer } from "../core/wire/agent-api.ts";
import { wordOf } from "../core/model/disk.ts";
import { WeftError } from "../core/wire/errors.ts";
import { diskOfHost } from "./arguments.ts";
import type { Bind, Context } from "./context.ts";

type Wipe = { readonly name?: string };

export function addDiskCommands(program: Command, bind: Bind): void {
  const disk = program.command("disk").description("the disks of this host");

  const list = disk
    .command("list")
    .description("what is there, and what on it: a blank one can become a pool");
  bind(list, async (context) => {
    context.list(
      await context.client.disks(),
      ({ device }) => device,
      [
        { title: "DEVICE", of: ({ device }) => device },
        { title: "SIZE", of: ({ size }) => formatSize(size), right: true },
        { title: "MODEL", of: ({ model, kind }) => model ?? kind },
        { title: "SERIAL", of: ({ serial }) => serial ?? "—" },
        { title: "STATE", of: stateText },
      ],
      "No disks.",
    );
  });

  const wipe = disk
    .command("wipe")
    .description("erase what is on a disk for good, after its name was given")
    .argument("<disk>", "HOST:/dev/sdb, or /dev/sdb on the host that is asked")
    .option(
      "--name <name>",
      "name of what is on it, as it would be asked for: its VG, label or serial number",
    );
  bind<[string], Wipe>(wipe, async (context, [text], options) => {
    const { host, device } = diskOfHost(text);
    const [seen] = await context.client.disks(device);
    if (seen === undefined) throw new Error(`the agent says nothing of ${device}`);
    // What can't be erased is refused by the agent, in its words; so is another host's.
    const isAsked =
      options.name === undefined && seen.state === "data" && (host ?? seen.hostName) === seen.hostName;
    const name = isAsked ? await nameFrom(context, seen) : (options.name ?? "");
    const answer = await context.client.wipeDisk({ device, host, name });
    context.show(
      answer,
      ({ disk: { device: path } }) => path,
      ({ disk: { device: path, hostName }, held }) =>
        held === null
          ? `${path} on ${hostName} is blank already.`
          : `${path} on ${hostName} is erased; it held ${held}.`,
    );
  });
}

function stateText({ state, what }: DiskAnswer): string {
  switch (state) {
    case "blank":
      return "blank";
    case "data":
      return `not blank: ${what ?? ""}`;
    case "in-use":
      return `in use: ${what ?? ""}`;
    case "pool":
      return what ?? "";
    case "unfit":
      return `blank, but ${what ?? ""}`;
    case "unread":
      return `unknown: ${what ?? ""}`;
  }
}

/** Typed by somebody who has read what is there; on the command line by a script. `--yes` is no name. */
async function nameFrom(
  context: Context,
  { device, hostName, what, name, nameKind }: DiskAnswer,
): Promise<string> {
  const word = wordOf(nameKind);
  const typed = await context.console.question(
    `${device} on ${hostName} holds ${what ?? ""}. Its ${word} to erase it for good: `,
  );
  if (typed !== null) return typed;
  throw new WeftError({
    code: "E-ARG-04",
    message: `${device} on ${hostName} holds ${what ?? ""}: its ${word} is wanted, and nobody could be asked.`,
    facts: { device, name },
    safe: "Nothing was erased.",
    do: [{ why: "Give it on the command line", command: `--name "${name}"` }],
  });
}
