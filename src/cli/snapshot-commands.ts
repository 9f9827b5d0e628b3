/** `weft snapshot create|list|show|changed|rename|protect|unprotect|clone|revert|attach|detach|destroy-data|delete`. */
import type { Command } from "commander";

import { addRanges, type ByteRange, bytesIn } from "../core/model/changed-blocks.ts";
import type { AgentClient } from "../core/wire/agent-client.ts";
import type { SnapshotAnswer, VolumeAnswer } from "../core/wire/agent-api.ts";
import { isWeftError, WeftError } from "../core/wire/errors.ts";
import { knownSnapshot, snapshotName, snapshotRef, volumeList, volumeName } from "./arguments.ts";
import { nbdUri } from "./attach-commands.ts";
import { type Changed, changedText } from "./changed-text.ts";
import type { Bind, Context } from "./context.ts";
import { withSuggestion } from "./reference.ts";
import {
  groupText,
  momentText,
  refOf,
  revertedText,
  snapshotColumns,
  snapshotText,
  takenText,
} from "./snapshot-text.ts";
import { type Places, placesOf, withPlaces } from "./volume-commands.ts";
import { madeText } from "./volume-text.ts";
import { watchVolume } from "./watch.ts";

const REF = "VOLUME@NAME, or its id";

export function addSnapshotCommands(program: Command, bind: Bind): Command {
  const snapshot = program.command("snapshot").description("a volume as it was at a moment");

  const create = snapshot
    .command("create")
    .description("take one; guests go on, their writes wait for some milliseconds")
    .argument(
      "[volume[@name]]",
      "the volume, and what to call it (default: by the moment); with --group the name",
    )
    .option("--group <volumes>", "of several volumes at one moment, all or none: db,log", volumeList);
  bind<[string | undefined], { readonly group?: readonly string[] }>(
    create,
    async (context, [ref], { group }) => {
      const { client } = context;
      if (group !== undefined) {
        const name = ref === undefined ? null : snapshotName(ref);
        const taken = await client.createGroup({ volumes: [...group], name });
        context.show(taken, ({ snapshots }) => snapshots.map(({ id }) => id).join("\n"), groupText);
        return;
      }
      if (ref === undefined)
        throw new WeftError({ code: "E-ARG-03", message: "Of which volume? Write VOLUME@NAME, or --group." });
      const { volume, name } = ref.includes("@") ? snapshotRef(ref) : { volume: ref, name: null };
      const taken = await withSuggestion(client, "volume", volume, () =>
        client.createSnapshot(volume, { name: name === null ? null : snapshotName(name) }),
      );
      context.show(taken, ({ id }) => id, takenText);
    },
  );

  const list = snapshot
    .command("list")
    .description("those of a volume, or all; the youngest first")
    .argument("[volume]", "its name or id");
  bind<[string | undefined], object>(list, async (context, [ref]) => {
    const { client } = context;
    const found =
      ref === undefined
        ? await client.snapshots()
        : await withSuggestion(client, "volume", ref, () => client.snapshots(ref));
    context.list(
      found,
      ({ id }) => id,
      snapshotColumns,
      `No snapshots${ref === undefined ? "" : ` of "${ref}"`} yet.  Next:  weft snapshot create ${ref ?? "VOLUME"}@NAME`,
    );
  });

  const show = snapshot.command("show").description("one snapshot").argument("<snapshot>", REF);
  bind<[string], object>(show, async (context, [ref]) => {
    const found = await context.client.snapshot(knownSnapshot(ref));
    if (isLess(found)) context.exitCode = 3;
    context.show(found, ({ id }) => id, snapshotText);
  });

  const rename = snapshot
    .command("rename")
    .description("give it another name")
    .argument("<snapshot>", REF)
    .argument("<name>", "1 to 63 characters of a-z 0-9 . _ -");
  bind<[string, string], object>(rename, async (context, [ref, name]) => {
    const after = await context.client.changeSnapshot(knownSnapshot(ref), { name: snapshotName(name) });
    context.show(
      after,
      ({ id }) => id,
      () => `Snapshot ${ref} is ${refOf(after)} now.`,
    );
  });

  const protections = [
    ["protect", true, "it can't be deleted", "is protected"],
    ["unprotect", false, "it can be deleted again", "is not protected any more"],
  ] as const;
  for (const [verb, isProtected, what, outcome] of protections) {
    const command = snapshot.command(verb).description(what).argument("<snapshot>", REF);
    bind<[string], object>(command, async (context, [ref]) => {
      const after = await context.client.changeSnapshot(knownSnapshot(ref), { protected: isProtected });
      context.show(
        after,
        ({ id }) => id,
        () => `Snapshot ${refOf(after)} ${outcome}.`,
      );
    });
  }

  const clone = snapshot
    .command("clone")
    .description("make a volume that begins as it; both go on alone")
    .argument("<snapshot>", REF)
    .argument("<name>", "of the new volume");
  withPlaces(clone, "as its volume has");
  bind<[string, string], Places>(clone, async (context, [ref, name], options) => {
    const made = await context.client.createVolume({
      name: volumeName(name),
      from: knownSnapshot(ref),
      ...placesOf(options),
    });
    context.show(made, ({ id }) => id, madeText);
  });

  const revert = snapshot
    .command("revert")
    .description("take its volume back to it, detached: what was written since is lost")
    .argument("<snapshot>", REF);
  bind<[string], object>(revert, async (context, [ref]) => {
    const found = await context.client.snapshot(knownSnapshot(ref));
    const { volumeName: name, takenAt } = found;
    await context.confirmName(
      `Everything written to "${name}" since ${momentText(takenAt)} UTC is lost, unless another snapshot has it. The volume's name, to go on:`,
      name,
    );
    const after = await revertedVolume(context, found);
    context.show(
      after,
      ({ id }) => id,
      (volume) => revertedText(found, volume),
    );
  });

  const changed = snapshot
    .command("changed")
    .description(
      "which blocks changed since an older one, for backups; --json has all ranges, -q a line each",
    )
    .argument("<snapshot>", REF)
    .option("--since <snapshot>", "the older one, of the same volume: VOLUME@NAME, NAME or its id");
  bind<[string], { readonly since?: string }>(changed, async (context, [ref], { since }) => {
    if (since === undefined)
      throw new WeftError({
        code: "E-ARG-03",
        message: "Since which snapshot? Write --since VOLUME@NAME.",
      });
    const found = await allChanged(context.client, knownSnapshot(ref), since);
    const { json, quiet } = context.globals;
    if (json !== true && quiet === true) {
      for (const { offset, len } of found.ranges) context.console.line(`${offset} ${len}`);
      return;
    }
    context.show(
      found,
      ({ snapshot: id }) => id,
      (answer) => changedText(ref, since, answer),
    );
  });

  const attach = snapshot
    .command("attach")
    .description("offer it on this host by NBD, to be read only")
    .argument("<snapshot>", REF);
  bind<[string], object>(attach, async (context, [ref]) => {
    const answer = await context.client.attachSnapshot(knownSnapshot(ref));
    const uri = nbdUri(answer.path);
    context.show(
      { ...answer, uri },
      () => uri,
      () => `${ref} attached, read-only.\n  ${uri}\n  socket ${answer.path}`,
    );
  });

  const detach = snapshot
    .command("detach")
    .description("offer it on this host no more")
    .argument("<snapshot>", REF);
  bind<[string], object>(detach, async (context, [ref]) => {
    await context.client.detachSnapshot(knownSnapshot(ref));
    context.done({ snapshot: ref }, `${ref} detached.`);
  });

  const destroy = snapshot
    .command("destroy-data")
    .description("give up what it holds; which blocks changed since can be told still")
    .argument("<snapshot>", REF);
  bind<[string], object>(destroy, async (context, [ref]) => {
    const found = await context.client.snapshot(knownSnapshot(ref));
    await context.confirm(
      `Destroy what ${refOf(found)} holds, for good? It can't be read, cloned or gone back to any more.`,
    );
    const after = await context.client.destroySnapshotData(found.id);
    context.show(
      after,
      ({ id }) => id,
      () => `The data of ${refOf(after)} is destroyed; its space comes back by and by.`,
    );
  });

  const remove = snapshot
    .command("delete")
    .description("give it up; others stay as they are")
    .argument("<snapshot>", REF);
  bind<[string], object>(remove, async (context, [ref]) => {
    await context.client.deleteSnapshot(knownSnapshot(ref));
    context.done({ snapshot: ref }, `Snapshot ${ref} is deleted; its space comes back by and by.`);
  });
  return snapshot;
}

/** It has fewer copies than the volume, or one of them is damaged. */
function isLess({ state, dataDestroyed, copies, wantedCopies, members }: SnapshotAnswer): boolean {
  const isDamaged = members.some(({ damagedRegions, left }) => damagedRegions > 0n && !left);
  return state === "ready" && (isDamaged || (!dataDestroyed && copies < wantedCopies));
}

/** However long it takes: it is looked at until it is done. */
async function revertedVolume(context: Context, { id, volume }: SnapshotAnswer): Promise<VolumeAnswer> {
  try {
    return await context.client.revertVolume(id);
  } catch (error) {
    if (!isWeftError(error, "E-AGENT-04")) throw error;
    await watchVolume(context, volume);
    return context.client.volume(volume);
  }
}

/** One answer covers a part. */
async function allChanged(client: AgentClient, ref: string, since: string): Promise<Changed> {
  const ranges: ByteRange[] = [];
  let exact = true;
  let offset = 0n;
  for (;;) {
    const page = await client.changedBlocks(ref, { since, offset });
    const { snapshot, since: older, volume, size, grain, len } = page;
    if (page.offset !== offset || len === 0n)
      throw new WeftError({
        code: "E-AGENT-02",
        message: "The agent's answer covers nothing that was asked.",
      });
    addRanges(ranges, { bitmap: Buffer.from(page.bitmap, "base64"), grain, offset, len });
    exact &&= page.exact;
    offset += len;
    if (offset >= size) {
      const changedBytes = bytesIn(ranges);
      return { snapshot, since: older, volume, size, grain, exact, changedBytes, ranges };
    }
  }
}
