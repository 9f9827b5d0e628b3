/** `weft volume create|list|show|resize|limit|stats|delete`. */
import type { Command } from "commander";

import { formatSize } from "../core/model/size.ts";
import type { VolumeAnswer } from "../core/wire/agent-api.ts";
import type { Spread } from "../core/model/spread.ts";
import { limitsText } from "../core/model/volume-limits.ts";
import type { VolumeCreate } from "../core/wire/agent-client.ts";
import { isWeftError, WeftError } from "../core/wire/errors.ts";
import {
  acknowledgement,
  collectHost,
  copies,
  knownSnapshot,
  type LimitOptions,
  limits,
  minIsr,
  size,
  volumeName,
} from "./arguments.ts";
import type { Bind } from "./context.ts";
import { spreadRule } from "./place-commands.ts";
import { showStats } from "./stats-text.ts";
import { watchVolume } from "./watch.ts";
import { withSuggestion } from "./reference.ts";
import {
  bytesText,
  deletedText,
  listedHealth,
  madeText,
  openOn,
  resizedText,
  volumeText,
  whereText,
} from "./volume-text.ts";

export type Places = {
  readonly copies?: number;
  readonly minIsr?: number;
  readonly host?: readonly string[];
  readonly spread?: Spread;
};
type Create = Places & { readonly ack?: "durable"; readonly thick?: true; readonly from?: string };

export function addVolumeCommands(program: Command, bind: Bind): Command {
  const volume = program.command("volume").description("what a guest sees as a disk");

  const create = volume
    .command("create")
    .description("make a volume")
    .argument("<name>", "1 to 63 characters of a-z 0-9 . _ -")
    .argument("[size]", "256MiB, 200GiB, 3TiB: a multiple of 4 KiB; a clone has its snapshot's")
    .option("--from <snapshot>", "begin as this snapshot of another volume: VOLUME@NAME, or its id")
    .option("--thick", "reserve the room of every copy now, and keep it")
    .option(
      "--ack <mode>",
      "when a write is done: durable, on stable media of every in-sync copy",
      acknowledgement,
    );
  withPlaces(create, "2, or 1 with one host; of a clone as its volume has");
  bind<[string, string | undefined], Create>(create, async (context, [name, sizeText], options) => {
    const { from, thick } = options;
    if (sizeText === undefined && from === undefined) throw sizeMissing(name);
    if (thick === true && from !== undefined) throw neverThick();
    const made = await context.client.createVolume({
      name: volumeName(name),
      ...(sizeText === undefined ? {} : { size: size(sizeText) }),
      ...(from === undefined ? {} : { from: knownSnapshot(from) }),
      ...placesOf(options),
      ...(thick === undefined ? {} : { thick: true }),
    });
    context.show(made, ({ id }) => id, madeText);
  });

  const list = volume.command("list").description("all volumes of the cluster");
  bind(list, async (context) => {
    const volumes = await context.client.volumes();
    context.list(
      volumes,
      ({ id }) => id,
      [
        { title: "VOLUME", of: ({ name }) => name },
        { title: "SIZE", of: ({ size: bytes }) => formatSize(bytes), right: true },
        { title: "USED", of: ({ used }) => bytesText(used), right: true },
        { title: "COPIES", of: ({ inSync, copies: wanted }) => `${inSync}/${wanted}` },
        { title: "WHERE", of: whereText },
        { title: "OPEN ON", of: openOn },
        { title: "HEALTH", of: listedHealth },
        { title: "ID", of: ({ id }) => id.slice(0, 8) },
        ...(volumes.some(({ disk }) => disk !== null)
          ? [{ title: "DISK", of: ({ disk }: VolumeAnswer) => disk?.label ?? "—" }]
          : []),
      ],
      "No volumes yet.  Next:  weft volume create NAME SIZE",
    );
  });

  const show = volume
    .command("show")
    .description("one volume and its copies")
    .argument("<volume>", "its name or id")
    .option("--watch", "stay and show progress until all copies are in sync");
  bind<[string], { readonly watch?: true }>(show, async (context, [ref], options) => {
    await withSuggestion(context.client, "volume", ref, () => context.client.volume(ref));
    if (options.watch === true) await watchVolume(context, ref);
    const found = await context.client.volume(ref);
    if (found.health !== "healthy" && found.health !== "deleted") context.exitCode = 3;
    context.show(found, ({ id }) => id, volumeText);
  });

  const resize = volume
    .command("resize")
    .description("give a volume another size; it grows while guests go on")
    .argument("<volume>", "its name or id")
    .argument("<size>", "256MiB, 200GiB, 3TiB: a multiple of 4 KiB")
    .option(
      "--lose-data <name>",
      "the volume's name once more: it may shrink, and loses what lies beyond (detached only)",
      volumeName,
    );
  bind<[string, string], { readonly loseData?: string }>(
    resize,
    async (context, [ref, sizeText], { loseData = null }) => {
      const { client } = context;
      const bytes = size(sizeText);
      const before = await withSuggestion(client, "volume", ref, () => client.volume(ref));
      const after = await client.resizeVolume(ref, bytes, loseData);
      context.show(
        after,
        ({ id }) => id,
        (answer) => resizedText(before.size, answer),
      );
    },
  );

  const limit = volume
    .command("limit")
    .description("how much its guests may take, wherever it is attached; all of it anew each time")
    .argument("<volume>", "its name or id")
    .option("--iops <number>", "requests a second: reads, writes, trims")
    .option("--rate <size>", "bytes a second, read and written together: 100MiB/s")
    .option("--burst <time>", "so much of it may be saved up and used at once: 0s to 60s (default: 1s)")
    .option("--none", "no limits");
  bind<[string], LimitOptions>(limit, async (context, [ref], options) => {
    const { client } = context;
    const wanted = limits(options);
    const after = await withSuggestion(client, "volume", ref, () => client.limitVolume(ref, wanted));
    context.show(
      after,
      ({ id }) => id,
      ({ name, limits: set }) => `Limits of "${name}": ${limitsText(set)}.`,
    );
  });

  const stats = volume
    .command("stats")
    .description("what its guest does and waits for, looked at for a second; --json: since the attach")
    .argument("<volume>", "its name or id")
    .option("--watch", "a line each second, until ^C");
  bind<[string], { readonly watch?: true }>(stats, async (context, [ref], options) => {
    await withSuggestion(context.client, "volume", ref, () => context.client.volume(ref));
    await showStats(context, ref, options.watch === true);
  });

  const remove = volume
    .command("delete")
    .description("put a volume into the trash, where it rests for 24 h")
    .argument("<volume>", "its name or id")
    .option("--keep-snapshots", "where it has snapshots: they stay, and only what it holds now goes")
    .option("--now", "with --keep-snapshots: what only it holds goes at once, for good");
  bind<[string], DeleteOptions>(remove, async (context, [ref], { keepSnapshots = false, now = false }) => {
    const { client } = context;
    if (now && !keepSnapshots) throw nowAlone(ref);
    if (now) await context.confirm(`Erase what "${ref}" holds now for good, and keep its snapshots?`);
    if (!keepSnapshots) {
      await withSuggestion(client, "volume", ref, () => client.deleteVolume(ref));
      context.done({ volume: ref }, deletedText(ref, null));
      return;
    }
    // Its name is free then: what is asked afterwards is asked by its id.
    const { id } = await withSuggestion(client, "volume", ref, () => client.volume(ref));
    await client.deleteVolume(id, { keepSnapshots });
    if (now) await client.emptyTrash(id);
    const after = await client.volume(id).catch(inTrash);
    context.done({ volume: ref }, deletedText(ref, after));
  });
  return volume;
}

type DeleteOptions = { readonly keepSnapshots?: boolean; readonly now?: boolean };

function nowAlone(name: string): WeftError {
  return new WeftError({
    code: "E-ARG-03",
    message: "--now belongs to --keep-snapshots: a volume without snapshots goes into the trash as a whole.",
    do: [{ why: "Then empty the trash", command: `weft trash empty ${name}` }],
  });
}

/** It had no snapshots: all of it is in the trash, or erased. */
function inTrash(error: unknown): null {
  if (isWeftError(error, "E-VOL-11") || isWeftError(error, "E-ARG-01")) return null;
  throw error;
}

/** Where the copies of a new volume go. */
export function withPlaces(command: Command, byDefault: string): Command {
  return command
    .option("--copies <number>", `in-sync copies on distinct hosts (default: ${byDefault})`, copies)
    .option("--min-isr <number>", "fewest in-sync copies under which writes complete (default: 1)", minIsr)
    .option("--host <name>", "put a copy there; once for each copy", collectHost)
    .option(
      "--spread <rule>",
      "what copies must not share: host, rack or site (weft host label); default: host",
      spreadRule,
    );
}

export function placesOf(options: Places): Pick<VolumeCreate, "copies" | "minIsr" | "hosts" | "spread"> {
  checkPolicy(options);
  return {
    copies: options.copies ?? options.host?.length ?? null,
    minIsr: options.minIsr ?? null,
    hosts: options.host === undefined ? null : [...options.host],
    ...(options.spread === undefined ? {} : { spread: options.spread }),
  };
}

function sizeMissing(name: string): WeftError {
  return new WeftError({
    code: "E-ARG-03",
    message: `How large shall "${name}" be? A size is missing, or --from with a snapshot.`,
    do: [
      { why: "An empty one", command: `weft volume create ${name} 10GiB` },
      { why: "As a snapshot", command: `weft volume create ${name} --from VOLUME@NAME` },
    ],
  });
}

function neverThick(): WeftError {
  return new WeftError({
    code: "E-ARG-03",
    message:
      "--thick and --from exclude each other: a clone shares its blocks with the snapshot, none are its own yet.",
  });
}

function checkPolicy(options: Places): void {
  const wanted = options.copies ?? options.host?.length;
  if (options.host !== undefined && options.copies !== undefined && options.host.length !== options.copies) {
    throw new WeftError({
      code: "E-ARG-03",
      message: `--copies ${options.copies} and ${options.host.length} × --host do not agree: name one host for each copy.`,
    });
  }
  if (options.minIsr !== undefined && wanted !== undefined && options.minIsr > wanted) {
    throw new WeftError({
      code: "E-VOL-06",
      message: `--min-isr ${options.minIsr} is more than the ${wanted} ${wanted === 1 ? "copy" : "copies"} wanted: no write would ever complete.`,
    });
  }
}
