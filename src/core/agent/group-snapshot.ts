/**
 * Snapshots of several volumes at one moment, all or none: asked of any host, done by the weftd of the host that has their
 * guests, which holds all their writes at once.
 *
 *     asked ──guests on one host, or none──▶ that host: caretakers for those that nobody uses ──▶ its weftd, one transaction
 *        └───guests on several hosts──▶ E-SNAP-14
 *
 * Must always hold:
 * - a group asked again by its id is the same snapshots: their ids follow from it and from the volumes';
 * - who asks may have been let in to some volumes only: which, was judged before it comes here.
 */
import { createHash, randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";

import { type HostId, parseSnapshotId, parseVolumeId, type SnapshotId, type VolumeId } from "../model/ids.ts";
import { checkSnapshot } from "../model/snapshot.ts";
import { groupHost } from "../model/snapshot-group.ts";
import type * as api from "../wire/agent-api.ts";
import type { GroupWork, OwnerWorkAnswer } from "../wire/door-api.ts";
import { decided, isWeftError, WeftError } from "../wire/errors.ts";
import type { MemberContext } from "./context.ts";
import { snapshotsOf, volumeOf } from "./facts.ts";
import { findVolume, type WantedVolume } from "./find.ts";
import { askDoor, CHANGING_HANDS, inCaretaker, nothingHeld } from "./owner-work.ts";
import { explained, freeName, shownSnapshot } from "./snapshots.ts";
import { stillMade } from "./volumes.ts";

/** weftd tries for 20 s, after up to 30 volumes were opened. */
const ANSWER_MS = 75_000;
const WEFTD_MS = 60_000;

type Member = { readonly id: SnapshotId; readonly volume: WantedVolume };

export async function createGroup(
  context: MemberContext,
  asked: {
    readonly volumes: readonly string[];
    readonly name: string | null;
    readonly id: string | null;
    readonly by: string;
  },
): Promise<api.GroupCreated> {
  const { mirror } = context;
  await mirror.sync();
  const group = asked.id ?? randomUUID();
  const volumes = asked.volumes.map((ref) => findVolume(mirror, ref));
  const all = volumes.flatMap(({ id }) => snapshotsOf(mirror, id).known);
  const name = asked.name ?? freeName(all, new Date().toISOString());
  const members = volumes.map((volume): Member => ({ id: memberOf(group, volume.id), volume }));
  const work: GroupWork = {
    group,
    name,
    by: asked.by,
    volumes: members.map(({ id, volume }) => ({ volume: volume.id, id })),
  };
  const answer = await byGuestsHost(context, members, work).catch((error: unknown) => {
    throw explainedOf(context, members, name, error);
  });
  await mirror.sync();
  const snapshots = members.map(({ id, volume }) => shownSnapshot(context, volume.id, id));
  return {
    id: group,
    name,
    takenAt: snapshots[0]?.takenAt ?? new Date().toISOString(),
    heldMs: answer.heldMs ?? 0n,
    snapshots,
  };
}

/** Whoever has the guests now: while volumes change hands it is looked at anew. */
async function byGuestsHost(
  context: MemberContext,
  members: readonly Member[],
  work: GroupWork,
): Promise<OwnerWorkAnswer> {
  const { mirror, host: self } = context;
  const end = performance.now() + CHANGING_HANDS.forMs;
  for (;;) {
    await mirror.sync();
    try {
      const host = checked(context, members, work.name);
      if (host === self) return await doGroupWork(context, work);
      return await askDoor(context, host, ANSWER_MS, (client) => client.groupWork(work));
    } catch (error) {
      if (!CHANGING_HANDS.is(error) || performance.now() > end) throw error;
    }
    await delay(CHANGING_HANDS.againMs);
  }
}

/** What can be refused before a weftd is asked, and which host's it is. */
function checked({ mirror, view, host }: MemberContext, members: readonly Member[], name: string): HostId {
  const cluster = view.cluster();
  const now = members.map(({ id, volume }) => {
    const { want, record, extra, unreadable } = volumeOf(mirror, volume.id);
    if (unreadable !== null) throw unreadable;
    if (record === null || want === null) throw stillMade(volume.want.name, volume.id);
    return { id, want, record, ownerIsCaretaker: extra?.caretaker ?? false };
  });
  const chosen = decided(groupHost(now, cluster, host));
  for (const { id, want, record } of now) {
    const snapshots = snapshotsOf(mirror, want.volume).known;
    decided(checkSnapshot({ want, record, cluster, snapshots, name, id }));
  }
  return chosen;
}

/** By this host's weftd: in the sessions that it has, and in caretakers for those that nobody uses. */
export async function doGroupWork(
  context: Pick<MemberContext, "daemon" | "held" | "mirror" | "host">,
  work: GroupWork,
): Promise<OwnerWorkAnswer> {
  const { daemon, mirror, host, held } = context;
  const ids = work.volumes.map(({ volume }) => volumeIdOf(volume));
  const sessions = ids.map((id) => {
    const { record, extra } = volumeOf(mirror, id);
    const isHere = record?.owner?.host === host;
    return { id, isHere, isCaretaker: extra?.caretaker === true };
  });
  const hasGuest = sessions.some(({ isHere, isCaretaker }) => isHere && !isCaretaker);
  const take = async (): Promise<OwnerWorkAnswer> => {
    const { group, name, by, volumes } = work;
    const params = { group, name, created_by: by, volumes };
    const { held_ms } = await daemon.client.call("snapshot.create_group", params, WEFTD_MS);
    return hasGuest ? { heldMs: BigInt(held_ms) } : nothingHeld;
  };
  // A caretaker that is here already goes on, and nobody closes it for want of work meanwhile.
  const kept = sessions.filter(({ id, isHere, isCaretaker }) => isHere && isCaretaker && !held.has(id));
  for (const { id } of kept) held.add(id);
  try {
    return await sessions
      .filter(({ isHere }) => !isHere)
      .reduce<() => Promise<OwnerWorkAnswer>>(
        (inner, { id }) =>
          () =>
            inCaretaker(context, id, inner),
        take,
      )();
  } finally {
    for (const { id } of kept) held.delete(id);
  }
}

/** A UUID (version 8) that is the same whenever the group is asked for again. */
function memberOf(group: string, volume: VolumeId): SnapshotId {
  const digest = createHash("sha256").update(`${group} ${volume}`).digest();
  digest[6] = ((digest[6] ?? 0) & 0x0f) | 0x80;
  digest[8] = ((digest[8] ?? 0) & 0x3f) | 0x80;
  const id = parseSnapshotId(digest.toString("hex", 0, 16));
  if (id === null) throw new Error("32 hex digits are a UUID");
  return id;
}

function volumeIdOf(text: string): VolumeId {
  const id = parseVolumeId(text);
  if (id === null) throw new Error(`"${text}" is no volume's id`);
  return id;
}

/** weftd's refusal, about the volume that it names. */
function explainedOf(
  context: MemberContext,
  members: readonly Member[],
  name: string,
  error: unknown,
): unknown {
  if (!isWeftError(error)) return error;
  const about = members.find(({ volume }) => volume.id === error.facts["volume"])?.volume.want;
  if (about === undefined) return error;
  const said = explained(context, about, name, error);
  if (!(said instanceof WeftError) || said === error) return said;
  const refs = members.map(({ volume }) => volume.want.name).join(",");
  return new WeftError({
    ...said.toBody(),
    message: `${said.message} None of the group was taken.`,
    do: said.do.map(({ why, command }) => ({
      why,
      command:
        command?.startsWith("weft snapshot create ") === true
          ? `weft snapshot create --group ${refs} ${name}`
          : command,
    })),
    cause: error,
  });
}
