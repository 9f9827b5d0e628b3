/** `weft replica add|remove`: copies of a volume, while guests go on. */
import type { Command } from "commander";

import { hostName } from "./arguments.ts";
import type { Bind } from "./context.ts";
import { findReplica, withSuggestion } from "./reference.ts";
import { copiesText, whereText } from "./volume-text.ts";
import { watchVolume } from "./watch.ts";

export function addReplicaCommands(program: Command, bind: Bind): Command {
  const replica = program.command("replica").description("copies of a volume");

  const add = replica
    .command("add")
    .description("one copy more; guests go on")
    .argument("<volume>", "its name or id")
    .option("--host <name>", "on this host (default: where there is most room)", hostName)
    .option("--wait", "stay until the copy is in sync");
  bind<[string], { readonly host?: string; readonly wait?: true }>(add, async (context, [ref], options) => {
    const { client } = context;
    const asked = await withSuggestion(client, "volume", ref, () =>
      client.addReplica(ref, { host: options.host ?? null }),
    );
    if (options.wait === true) await watchVolume(context, ref);
    const now = options.wait === true ? await client.volume(ref) : asked;
    context.show(
      now,
      ({ id }) => id,
      (volume) =>
        options.wait === true
          ? `"${volume.name}" has ${copiesText(volume)} in sync, on ${whereText(volume)}.`
          : `A copy of "${volume.name}" is being made: ${whereText(volume)}.  Watch:  weft volume show ${volume.name} --watch`,
    );
  });

  const remove = replica
    .command("remove")
    .description("one copy less; never the last in-sync one")
    .argument("<volume>", "its name or id")
    .argument("<copy>", "its number or its host's name");
  bind<[string, string], object>(remove, async (context, [ref, copy]) => {
    const { client } = context;
    const volume = await withSuggestion(client, "volume", ref, () => client.volume(ref));
    const found = findReplica(volume, copy);
    const after = await client.removeReplica(ref, found.rid);
    context.show(
      after,
      ({ id }) => id,
      ({ name }) =>
        `Copy ${found.rid} of "${name}" on ${found.hostName} goes; its data rests in the trash for 24 h.`,
    );
  });
  return replica;
}
