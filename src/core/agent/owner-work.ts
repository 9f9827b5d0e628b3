/**
 * Work that only a volume's owner can do, from whichever host it is asked: done by this host's weftd where it has the
 * volume, in a session without a guest where nobody has it, else by the owner's agent, which is asked over its door.
 *
 *     asked ──nobody owns it──▶ a caretaker's session here, for this work alone
 *        ├────owned here──────▶ this host's weftd
 *        └────owned elsewhere─▶ POST /v1/internal/volume-work there ──▶ its weftd; its error is the answer
 *
 * Must always hold:
 * - the work is idempotent: it is asked for again, as it was, while the volume changes hands;
 * - a caretaker's session that a request uses is not closed for want of other work;
 * - what the owner's weftd refuses comes back as it said it.
 */
import { setTimeout as delay } from "node:timers/promises";

import { type HostId, parseVolumeId, type VolumeId } from "../model/ids.ts";
import type { OwnerWork, OwnerWorkAnswer } from "../wire/door-api.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import { HostClient } from "../wire/host-client.ts";
import type { MemberContext } from "./context.ts";
import { volumeOf } from "./facts.ts";
import { findListed } from "./find.ts";
import { heldHere } from "./holder.ts";
import { openCaretaker } from "./perform.ts";

/** Somebody else has it by now, or it is being closed: it is somebody's again within a moment, and then it is clear who does it. */
export const CHANGING_HANDS = {
  forMs: 10_000,
  againMs: 250,
  is: (error: unknown): boolean =>
    isWeftError(error) && ["E-VOL-12", "E-VOL-13", "E-VOL-14", "E-SESS-01"].includes(error.code),
};
/** No majority, what came of a change is not known, weftd is being started anew, copies are away: work goes on where it is asked for again. */
const PASSING: ReadonlySet<string> = new Set(["E-STORE-01", "E-STORE-06", "E-AGENT-05", "E-VOL-09"]);

export function isPassing(error: unknown): boolean {
  return CHANGING_HANDS.is(error) || (isWeftError(error) && PASSING.has(error.code));
}
/** The owner's weftd gives up before. */
const ANSWER_MS = 35_000;

/** As much of a host as doing its own part takes. */
type Doer = Pick<MemberContext, "daemon" | "held" | "mirror" | "host" | "options">;

/** E-VOL-13 where nobody can be found who has the volume open, E-HOST-09 where the owner's agent does not answer. */
export async function byOwner(context: MemberContext, work: OwnerWork): Promise<OwnerWorkAnswer> {
  const end = performance.now() + CHANGING_HANDS.forMs;
  for (;;) {
    await context.mirror.sync();
    try {
      return await once(context, work);
    } catch (error) {
      if (!CHANGING_HANDS.is(error) || performance.now() > end) throw error;
    }
    await delay(CHANGING_HANDS.againMs);
  }
}

async function once(context: MemberContext, work: OwnerWork): Promise<OwnerWorkAnswer> {
  const volume = volumeIdOf(work);
  const owner = volumeOf(context.mirror, volume).record?.owner?.host ?? null;
  if (owner === null) {
    await inCaretaker(context, volume, () => ask(context, work));
    return nothingHeld;
  }
  if (owner === context.host) return doOwnerWork(context, work);
  try {
    return await there(context, owner, work);
  } catch (error) {
    // Its host has ended in such work, which is no guest's.
    const isCaretakers = volumeOf(context.mirror, volume).extra?.caretaker === true;
    if (!isCaretakers || !isWeftError(error, "E-HOST-09")) throw error;
    await inCaretaker(context, volume, () => ask(context, work));
    return nothingHeld;
  }
}

/**
 * By this host's weftd, in the session that it has; where what had the volume here has ended with its process (weftd was killed, the
 * host was started anew), in one without a guest. E-VOL-13 where it has none and it is not this host's, or where the holder has its guest:
 * then weftd opens it again within a moment.
 */
export async function doOwnerWork(context: Doer, work: OwnerWork): Promise<OwnerWorkAnswer> {
  const { held, mirror } = context;
  const volume = volumeIdOf(work);
  const isCaretaker = volumeOf(mirror, volume).extra?.caretaker === true && !held.has(volume);
  if (isCaretaker) held.add(volume);
  try {
    const answer = await ask(context, work);
    return isCaretaker ? nothingHeld : answer;
  } catch (error) {
    if (!isWeftError(error, "E-VOL-13") || !(await isLeft(context, volume))) throw error;
  } finally {
    if (isCaretaker) held.delete(volume);
  }
  await inCaretaker(context, volume, () => ask(context, work));
  return nothingHeld;
}

/** The store says that it is open here, and it isn't: nobody opens it again by himself. */
async function isLeft(context: Doer, volume: VolumeId): Promise<boolean> {
  const { daemon, mirror, host, options } = context;
  await mirror.sync();
  if (volumeOf(mirror, volume).record?.owner?.host !== host) return false;
  const { sessions } = await daemon.client.call("session.list", {});
  if (sessions.some((one) => one.volume === volume && one.phase !== "ended")) return false;
  const guests = (await heldHere(options.runDir)) ?? [];
  return !guests.some((one) => one.volume === volume && one.snapshot === null && one.lost === null);
}

async function ask({ daemon }: Pick<Doer, "daemon">, work: OwnerWork): Promise<OwnerWorkAnswer> {
  const { client } = daemon;
  const { volume } = work;
  switch (work.kind) {
    case "grow":
      await client.call("volume.resize", { volume, size: String(work.size), lose: false });
      return nothingHeld;
    case "snapshot": {
      const { id, name, by } = work;
      const taken = await client.call("snapshot.create", { volume, id, name, created_by: by });
      return { heldMs: BigInt(taken.held_ms) };
    }
    case "delete-snapshot":
      await client.call("snapshot.delete", { volume, id: work.id });
      return nothingHeld;
    case "protect-snapshot":
      await client.call("snapshot.protect", { volume, id: work.id, protected: work.protected });
      return nothingHeld;
    case "destroy-data":
      await client.call("snapshot.destroy_data", { volume, id: work.id });
      return nothingHeld;
    case "add-snapshot-copy":
      await client.call("snapshot.add_copy", { volume, id: work.id, rid: work.rid });
      return nothingHeld;
    case "rename-snapshot":
      await client.call("snapshot.rename", { volume, id: work.id, name: work.name });
      return nothingHeld;
  }
}

/** There is no guest whose writes could wait. */
export const nothingHeld: OwnerWorkAnswer = { heldMs: null };

/** Work in a session of this host without a guest, which nobody closes for want of work meanwhile. */
export async function inCaretaker<Result>(
  { daemon, held }: Pick<Doer, "daemon" | "held">,
  volume: VolumeId,
  work: () => Promise<Result>,
): Promise<Result> {
  held.add(volume);
  try {
    await openCaretaker(daemon.client, volume);
    try {
      return await work();
    } finally {
      await daemon.client.call("session.close", { volume, abandon: false }).catch((error: unknown) => {
        // It ended by itself, or it is closed with the next look at it: there is no work in it.
        if (!isWeftError(error)) throw error;
      });
    }
  } finally {
    held.delete(volume);
  }
}

async function there(context: MemberContext, host: HostId, work: OwnerWork): Promise<OwnerWorkAnswer> {
  return askDoor(context, host, ANSWER_MS, (client) => client.volumeWork(work));
}

/** Of the agent of the host that has a volume open. E-HOST-09 where it gives no answer. */
export async function askDoor(
  { identity, self }: MemberContext,
  host: HostId,
  answerMs: number,
  ask: (client: HostClient) => Promise<{ readonly answer: OwnerWorkAnswer }>,
): Promise<OwnerWorkAnswer> {
  const trust = identity.trust();
  const { name, address } = findListed(trust, host);
  const client = new HostClient({
    address,
    shown: identity.current(),
    from: self.address,
    expect: { kind: "host", trust, host },
    answerMs,
  });
  try {
    return (await ask(client)).answer;
  } catch (error) {
    if (!isWeftError(error, "E-HOST-09")) throw error;
    throw new WeftError({
      code: "E-HOST-09",
      message: `${name} has the volume open, and its agent gave no answer.`,
      facts: { host },
      do: [
        { why: "Look what came of it", command: "weft volume list" },
        { why: `Is its agent running? On ${name}`, command: "systemctl status weft-agent" },
      ],
      cause: error,
    });
  }
}

function volumeIdOf({ volume }: OwnerWork): VolumeId {
  const id = parseVolumeId(volume);
  if (id === null) throw new Error(`"${volume}" is no volume's id`);
  return id;
}
