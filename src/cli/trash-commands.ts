/** `weft trash list|restore|empty`: what was deleted in the last 24 h. */
import type { Command } from "commander";

import { formatDuration } from "../core/model/duration.ts";
import { formatSize } from "../core/model/size.ts";
import type { TrashAnswer } from "../core/wire/agent-api.ts";
import type { Bind } from "./context.ts";
import { withSuggestion } from "./reference.ts";

/** A volume as a whole, or the head of one that lives on. */
function whatText(snapshots: number): string {
  if (snapshots === 0) return "volume";
  return `head, of ${snapshots} ${snapshots === 1 ? "snapshot" : "snapshots"}`;
}

export function addTrashCommands(program: Command, bind: Bind): void {
  const trash = program.command("trash").description("deleted volumes rest here for 24 h");

  const list = trash.command("list").description("what can be brought back");
  bind(list, async (context) => {
    const items = await context.client.trash();
    const now = Date.now();
    context.list(
      items,
      ({ volume }) => volume,
      [
        { title: "VOLUME", of: ({ name }) => name },
        { title: "WHAT", of: ({ snapshots }) => whatText(snapshots) },
        { title: "SIZE", of: ({ size }) => formatSize(size), right: true },
        { title: "DELETED", of: ({ deletedAt }) => deletedAt },
        { title: "KEPT FOR", of: ({ keptUntil }) => formatDuration(Date.parse(keptUntil) - now) },
        { title: "ID", of: ({ volume }) => volume },
        ...(items.some(({ diskLabel }) => diskLabel !== null)
          ? [{ title: "DISK", of: ({ diskLabel }: TrashAnswer) => diskLabel ?? "—" }]
          : []),
      ],
      "The trash is empty.",
    );
  });

  const restore = trash
    .command("restore")
    .description("bring a deleted volume back as it was")
    .argument("<volume>", "its name or id");
  bind<[string], object>(restore, async (context, [ref]) => {
    const volume = await withSuggestion(context.client, "deleted volume", ref, () =>
      context.client.restoreFromTrash(ref),
    );
    context.show(
      volume,
      ({ id }) => id,
      ({ name }) => `Volume "${name}" is back.`,
    );
  });

  const empty = trash
    .command("empty")
    .description("erase deleted volumes now, for good")
    .argument("[volume]", "its name or id (default: all of them)");
  bind<[string | undefined], object>(empty, async (context, [ref]) => {
    await context.confirm(
      ref === undefined ? "Erase everything in the trash for good?" : `Erase "${ref}" for good?`,
    );
    const work = (): Promise<void> => context.client.emptyTrash(ref ?? null);
    await (ref === undefined ? work() : withSuggestion(context.client, "deleted volume", ref, work));
    context.done(
      { emptied: ref ?? "all" },
      ref === undefined ? "The trash is empty." : `"${ref}" is erased.`,
    );
  });
}
