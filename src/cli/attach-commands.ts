/** `weft attach|detach|steal`: sessions on this host. */
import type { Command } from "commander";

import type { AttachAnswer } from "../core/wire/agent-api.ts";
import type { Bind, Context } from "./context.ts";
import { withSuggestion } from "./reference.ts";
import { watchVolume } from "./watch.ts";

export function addAttachCommands(program: Command, bind: Bind): void {
  const attach = program
    .command("attach")
    .description("open a volume on this host and offer it by NBD")
    .argument("<volume>", "its name or id")
    .option("--wait", "stay until all copies are in sync");
  bind<[string], { readonly wait?: true }>(attach, async (context, [ref], options) => {
    const answer = await withSuggestion(context.client, "volume", ref, () => context.client.attach(ref));
    showAttached(context, ref, answer, "attached");
    if (options.wait === true) await watchVolume(context, ref);
  });

  const steal = program
    .command("steal")
    .description("open a volume on this host though it is open elsewhere: the other session is fenced")
    .argument("<volume>", "its name or id");
  bind<[string], object>(steal, async (context, [ref]) => {
    await context.confirm(`Take "${ref}" over? A guest that uses it on another host gets I/O errors.`);
    const answer = await withSuggestion(context.client, "volume", ref, () => context.client.steal(ref));
    showAttached(context, ref, answer, "taken over");
  });

  const detach = program
    .command("detach")
    .description("close a volume on this host")
    .argument("<volume>", "its name or id")
    .option(
      "--abandon",
      "drop writes that wait because the volume is paused; the guest never heard that they are done",
    );
  bind<[string], { readonly abandon?: true }>(detach, async (context, [ref], options) => {
    const abandon = options.abandon === true;
    const answer = await withSuggestion(context.client, "volume", ref, () =>
      context.client.detach(ref, { abandon }),
    );
    const lost = answer.lostWrites;
    if (lost > 0) context.exitCode = 3;
    const dropped =
      lost === 0 ? "" : ` ${lost} unfinished ${lost === 1 ? "write was" : "writes were"} dropped.`;
    context.show(
      answer,
      ({ volume }) => volume,
      () => `"${ref}" detached.${dropped}`,
    );
  });
}

/** Where libnbd, qemu and nbd-client find it. */
export function nbdUri(path: string): string {
  return `nbd+unix:///?socket=${encodeURIComponent(path).replaceAll("%2F", "/")}`;
}

function showAttached(context: Context, ref: string, answer: AttachAnswer, what: string): void {
  const uri = nbdUri(answer.path);
  context.show(
    { ...answer, uri },
    () => uri,
    () => `"${ref}" ${what}, epoch ${answer.epoch}.\n  ${uri}\n  socket ${answer.path}`,
  );
}
