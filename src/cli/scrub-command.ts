/**
 * `weft scrub`: the copies of volumes compared with each other.
 *
 * Must always hold: exit code 3 when something differs, is lost, or stayed rotten; ^C ends the waiting only.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Command } from "commander";

import type { VolumeAnswer } from "../core/wire/agent-api.ts";
import { WeftError } from "../core/wire/errors.ts";
import { rate as parsedRate } from "./arguments.ts";
import type { Bind, Context } from "./context.ts";
import { withSuggestion } from "./reference.ts";
import { isSound, scrubProgressText, scrubText } from "./scrub-text.ts";

const PERIOD_MS = 500;

type Options = { readonly rate?: bigint; readonly wait?: true; readonly stop?: true };

export function addScrubCommand(program: Command, bind: Bind): void {
  const scrub = program
    .command("scrub")
    .description("compare a volume's copies with each other, and repair what has rotted")
    .argument("[volume]", "its name or id (default: all of them)")
    .option("--rate <size>", "bytes a second of each: 64MiB/s (default: the setting scrub.rate)", parsedRate)
    .option("--wait", "stay until it is done, and say what was found")
    .option("--stop", "no further");
  bind<[string | undefined], Options>(scrub, async (context, [ref], options) => {
    if (options.stop === true && (options.wait === true || options.rate !== undefined)) {
      throw new WeftError({ code: "E-ARG-03", message: "--stop takes neither --rate nor --wait." });
    }
    const { client } = context;
    const refs = ref === undefined ? (await client.volumes()).map(({ id }) => id) : [ref];
    const asked: VolumeAnswer[] = [];
    for (const one of refs) {
      asked.push(
        await withSuggestion(client, "volume", one, () =>
          options.stop === true ? client.stopScrub(one) : client.scrub(one, options.rate ?? null),
        ),
      );
    }
    if (options.wait !== true) {
      show(context, asked, options.stop === true ? stoppedText : beginsText);
      return;
    }
    const done: VolumeAnswer[] = [];
    const signal = context.interruption();
    for (const { id } of asked) done.push(await ended(context, id, signal));
    if (!done.every(({ scrub: { last } }) => last === null || isSound(last))) context.exitCode = 3;
    show(context, done, scrubText);
  });
}

function show(
  context: Context,
  volumes: readonly VolumeAnswer[],
  text: (volume: VolumeAnswer) => string,
): void {
  const [only] = volumes;
  if (only !== undefined && volumes.length === 1) {
    context.show(only, ({ id }) => id, text);
    return;
  }
  context.show(
    volumes,
    (all) => all.map(({ id }) => id).join("\n"),
    (all) => (all.length === 0 ? "No volumes yet." : all.map(text).join("\n")),
  );
}

function beginsText({ name }: VolumeAnswer): string {
  return `The copies of "${name}" are being compared.  Look:  weft volume show ${name}`;
}

function stoppedText({ name }: VolumeAnswer): string {
  return `The copies of "${name}" are not compared any further.`;
}

/** It is not asked for any more: what it found is there, or somebody stopped it. */
async function ended(context: Context, ref: string, signal: AbortSignal): Promise<VolumeAnswer> {
  let shown = "";
  for (;;) {
    const volume = await context.client.volume(ref);
    if (volume.scrub.asked === null) return volume;
    const line = scrubProgressText(volume);
    if (line !== shown && context.globals.quiet !== true) context.console.progress(line);
    shown = line;
    try {
      await delay(PERIOD_MS, undefined, { signal });
    } catch (cause) {
      const message = "Not waited for the end; the scrub goes on by itself.";
      throw new WeftError({ code: "E-AGENT-04", message, cause });
    }
  }
}
