/** `weft volume copies|spread` and `weft replica move`: where a volume's copies are, while guests go on. */
import type { Command } from "commander";
import type { z } from "zod";

import { spreads } from "../core/model/spread.ts";
import type { placeChangeRequest } from "../core/wire/agent-api.ts";
import { WeftError } from "../core/wire/errors.ts";
import { copies, hostName, minIsr } from "./arguments.ts";
import type { Bind, Context } from "./context.ts";
import { planText } from "./plan-text.ts";
import { withSuggestion } from "./reference.ts";
import { copiesText, whereText } from "./volume-text.ts";
import { isInPlace, watchVolume } from "./watch.ts";

type Change = z.input<typeof placeChangeRequest>;
type How = { readonly plan?: true; readonly wait?: true };

const PLAN =
  "show what would be done, how much moves and what is at stake; nothing is done unless you say so";
const WAIT = "stay until the copies are as wanted";

/** Beside those of volume-commands.ts and replica-commands.ts. */
export function addPlaceCommands(volume: Command, replica: Command, bind: Bind): void {
  const number = volume
    .command("copies")
    .description("another number of copies; guests go on")
    .argument("<volume>", "its name or id")
    .argument("<number>", "1 to 8, on distinct hosts")
    .option("--min-isr <number>", "fewest in-sync copies under which writes complete (as it is)", minIsr)
    .option("--plan", PLAN)
    .option("--wait", WAIT);
  bind<[string, string], How & { readonly minIsr?: number }>(
    number,
    async (context, [ref, text], options) => {
      const change = {
        copies: copies(text),
        ...(options.minIsr === undefined ? {} : { minIsr: options.minIsr }),
      };
      await changePlaces(context, ref, change, options);
    },
  );

  const spread = volume
    .command("spread")
    .description("another rule of what copies must not share; those that do are moved, guests go on")
    .argument("<volume>", "its name or id")
    .argument("<rule>", spreads.join(", "))
    .option("--plan", PLAN)
    .option("--wait", WAIT);
  bind<[string, string], How>(spread, async (context, [ref, text], options) => {
    await changePlaces(context, ref, { spread: spreadRule(text) }, options);
  });

  const move = replica
    .command("move")
    .description("a copy to another host or pool: made there, waited for, then removed here; guests go on")
    .argument("<volume>", "its name or id")
    .requiredOption("--from <host>", "the host that it leaves", hostName)
    .requiredOption("--to <host[:pool]>", "where it goes; a pool by its path or id")
    .option("--plan", PLAN)
    .option("--wait", WAIT);
  bind<[string], How & { readonly from: string; readonly to: string }>(
    move,
    async (context, [ref], options) => {
      const [to = "", ...pool] = options.to.split(":");
      const target = { to: hostName(to), pool: pool.length === 0 ? null : pool.join(":") };
      await changePlaces(context, ref, { move: { from: options.from, ...target } }, options);
    },
  );
}

/** For `volume create --spread`, too. */
export function spreadRule(text: string): (typeof spreads)[number] {
  const rule = spreads.find((known) => known === text);
  if (rule !== undefined) return rule;
  throw new WeftError({
    code: "E-ARG-02",
    message: `"${text}" is no rule for copies: they can be kept apart by ${spreads.join(", ")}.`,
  });
}

async function changePlaces(context: Context, ref: string, change: Change, how: How): Promise<void> {
  const { client } = context;
  if (how.plan === true && !(await agreedPlan(context, ref, change))) return;
  await withSuggestion(client, "volume", ref, () => client.changeVolume(ref, change));
  if (how.wait === true) await watchVolume(context, ref, { places: true });
  const now = await client.volume(ref);
  context.show(
    now,
    ({ id }) => id,
    (answer) =>
      isInPlace(answer)
        ? `"${answer.name}" has ${copiesText(answer)} on ${whereText(answer)}.`
        : `The copies of "${answer.name}" change: ${whereText(answer)}.  Watch:  weft volume show ${answer.name} --watch`,
  );
}

/** Shown first. Only a person at a terminal can say that it shall be done. */
async function agreedPlan(context: Context, ref: string, change: Change): Promise<boolean> {
  const { client, globals, console } = context;
  const plan = await withSuggestion(client, "volume", ref, () => client.planVolume(ref, change));
  context.show(plan, ({ volume }) => volume, planText);
  const isAsked = globals.json !== true && globals.quiet !== true && globals.yes !== true;
  if (!isAsked || plan.steps.length === 0) return false;
  const answer = await console.confirm("Proceed?");
  if (answer === false) context.note("Nothing was changed.");
  return answer === true;
}
