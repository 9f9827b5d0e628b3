/** `weft context list|use|show|remove`: the clusters that this user has logged in to. */
import type { Command } from "commander";

import { fingerprintText } from "../core/wire/host-client.ts";
import type { Bind } from "./context.ts";
import { chosenContext, LOCAL, writeContexts } from "./context-file.ts";

export function addContextCommands(program: Command, bind: Bind): void {
  const context = program.command("context").description("clusters that you have logged in to");

  const list = context.command("list").description("all of them");
  bind(list, async (context) => {
    const { current, all } = await context.contexts();
    context.list(
      all.map(({ name, url, fingerprint }) => ({ name, url, fingerprint, current: name === current })),
      ({ name }) => name,
      [
        { title: "CONTEXT", of: ({ name, current }) => (current ? `${name} (in use)` : name) },
        { title: "HOST", of: ({ url }) => url },
        { title: "AUTHORITY", of: ({ fingerprint }) => fingerprintText(fingerprint) },
      ],
      "No contexts: commands go to this host's own agent.  Make one:  weft login https://HOST:7400",
    );
  });

  const use = context
    .command("use")
    .description("send commands there from now on")
    .argument("<name>", "a context; local: this host's own agent");
  bind<[string], object>(use, async (context, [name]) => {
    const path = context.contextsPath;
    const contexts = await context.contexts();
    const chosen = chosenContext(contexts, name);
    await writeContexts(path, { ...contexts, current: chosen?.name ?? null });
    context.done(
      { context: name },
      chosen === null ? "Commands go to this host's own agent." : `Context "${name}" is in use.`,
    );
  });

  const show = context
    .command("show")
    .description("one of them, or the one in use; its token is not shown")
    .argument("[name]", "a context");
  bind<[string | undefined], object>(show, async (context, [name]) => {
    const contexts = await context.contexts();
    const chosen = chosenContext(contexts, name ?? null);
    context.show(
      chosen === null
        ? { name: LOCAL, url: null, fingerprint: null }
        : { name: chosen.name, url: chosen.url, fingerprint: chosen.fingerprint },
      (shown) => shown.name,
      ({ name, url, fingerprint }) =>
        url === null
          ? "No context is in use: commands go to this host's own agent."
          : `${name}\n  host       ${url}\n  authority  ${fingerprint}`,
    );
  });

  const remove = context
    .command("remove")
    .description("forget one of them and its token; the token itself stays valid: api-token revoke")
    .argument("<name>", "a context");
  bind<[string], object>(remove, async (context, [name]) => {
    const path = context.contextsPath;
    const contexts = await context.contexts();
    const chosen = chosenContext(contexts, name);
    const current = contexts.current === name ? null : contexts.current;
    await writeContexts(path, { current, all: contexts.all.filter((other) => other !== chosen) });
    context.done({ context: name, removed: true }, `Context "${name}" is forgotten.`);
  });
}
