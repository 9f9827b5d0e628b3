/** `weft host list|remove`. */
import type { Command } from "commander";

import type { Bind } from "./context.ts";
import { withSuggestion } from "./reference.ts";

export function addHostCommands(program: Command, bind: Bind): void {
  const host = program.command("host").description("members of the cluster");

  const list = host.command("list").description("all hosts of the cluster");
  bind(list, async (context) => {
    const hosts = await context.client.hosts();
    context.list(
      hosts,
      ({ id }) => id,
      [
        { title: "HOST", of: ({ name, self }) => (self ? `${name} (here)` : name) },
        { title: "ADDRESS", of: ({ address }) => address },
        { title: "ANSWERS", of: ({ alive }) => (alive ? "yes" : "no") },
        { title: "STORE", of: ({ store }) => (store === "none" ? "—" : store) },
        { title: "ID", of: ({ id }) => id },
      ],
      "No hosts.",
    );
  });

  const remove = host
    .command("remove")
    .description("take a host out of the cluster for good")
    .argument("<host>", "its name or id");
  bind<[string], object>(remove, async (context, [ref]) => {
    await context.confirm(`Remove host "${ref}" from the cluster? It can only come back by joining anew.`);
    const answer = await withSuggestion(context.client, "host", ref, () => context.client.removeHost(ref));
    context.show(
      answer,
      ({ host: id }) => id,
      ({ name, storeMemberRemoved }) =>
        `Host ${name} removed.${storeMemberRemoved ? " Its vote in the store is gone too." : ""}`,
    );
  });
}
