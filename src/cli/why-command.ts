/** `weft why VOLUME`: is my data safe, who is affected, what is it doing, when is it done, what can I do. */
import type { Command } from "commander";

import type { WhyAnswer } from "../core/wire/agent-api.ts";
import type { Bind } from "./context.ts";
import { withSuggestion } from "./reference.ts";
import { oneLine } from "./table.ts";

export function addWhyCommand(program: Command, bind: Bind): void {
  const why = program
    .command("why")
    .description("why a volume is as it is, and what helps")
    .argument("<volume>", "its name or id");
  bind<[string], object>(why, async (context, [ref]) => {
    const answer = await withSuggestion(context.client, "volume", ref, () => context.client.why(ref));
    if (answer.health !== "healthy") context.exitCode = 3;
    context.show(answer, ({ health }) => health, whyText);
  });
}

function whyText({ name, health, because, do: remedies }: WhyAnswer): string {
  return [
    `"${name}" is ${health}.`,
    ...because.map((sentence) => `  ${oneLine(sentence)}`),
    ...remedies.map(({ why, command }) =>
      command === null ? `  → ${oneLine(why)}` : `  → ${oneLine(why)}:  ${oneLine(command)}`,
    ),
  ].join("\n");
}
