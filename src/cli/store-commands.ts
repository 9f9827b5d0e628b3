/** `weft store backup|restore|repair`: the cluster's metadata. Guests' data is never in it. */
import type { Command } from "commander";

import { formatSize } from "../core/model/size.ts";
import { absolutePath } from "./arguments.ts";
import type { Bind } from "./context.ts";

export function addStoreCommands(program: Command, bind: Bind): void {
  const store = program.command("store").description("the cluster's metadata store");

  const backup = store
    .command("backup")
    .description("write the store to a file on this host")
    .argument("<file>", "must not exist");
  bind<[string], object>(backup, async (context, [file]) => {
    const answer = await context.client.backupStore(absolutePath(file));
    context.show(
      answer,
      ({ path }) => path,
      ({ path, bytes, revision, sha256 }) =>
        `Store written to ${path}: ${formatSize(bytes)}, revision ${revision}, sha256 ${sha256}.`,
    );
  });

  const restore = store
    .command("restore")
    .description("begin a store from a backup, when the store is lost for good")
    .argument("<file>", "written by weft store backup");
  bind<[string], object>(restore, async (context, [file]) => {
    await context.confirm("Begin the store anew from this backup? Nothing opens before weft store repair.");
    await context.client.restoreStore(absolutePath(file));
    context.done({ restored: file }, "Store restored. Volumes open after:  weft store repair");
  });

  const repair = store
    .command("repair")
    .description("rebuild volumes' records from the copies, after a loss or an old backup")
    .option("--assent", "accept that a member of a volume's best record does not answer");
  bind<[], { readonly assent?: true }>(repair, async (context, _, options) => {
    const assent = options.assent === true;
    if (assent) {
      await context.confirm(
        "Repair without the copies and hosts that do not answer? Writes that only they have are lost.",
      );
    }
    const answer = await context.client.repairStore({ assent });
    if (answer.missing.length > 0) context.exitCode = 3;
    context.show(
      answer,
      ({ incarnation }) => String(incarnation),
      ({ incarnation, answered, missing, volumes, snapshots }) =>
        [
          `Store repaired, incarnation ${incarnation}: ${counted(volumes.length, "record")}${snapshots === 0 ? "" : ` and ${counted(snapshots, "snapshot")}`} rebuilt.`,
          `  answered: ${answered.join(", ") || "none"}`,
          ...(missing.length === 0 ? [] : [`  missing:  ${missing.join(", ")}`]),
        ].join("\n"),
    );
  });
}

function counted(count: number, thing: string): string {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}
