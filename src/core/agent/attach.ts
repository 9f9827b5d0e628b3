/**
 * Attach, detach and steal on this host: asked of this host's weftd, after looking who has the volume.
 *
 * Must always hold:
 * - attaching twice on one host answers with the session that is open;
 * - only a caretaker's session (no guest behind it) is taken over unasked, and weftd compares in the swap: a guest that
 *   came in after the look keeps the volume.
 */
import type { SessionId } from "../model/ids.ts";
import { checkAttach, checkDetach } from "../model/volume-check.ts";
import type { AttachAnswer, DetachAnswer } from "../wire/agent-api.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import { unknownMember } from "../wire/daemon-client.ts";
import type { SessionStatus } from "../wire/daemon.gen.ts";
import type { MemberContext } from "./context.ts";
import { findVolume } from "./find.ts";
import { limitsForDaemon } from "./limit-keeper.ts";

/** `expected`: the only guest's session that may lose it to a steal; null: any. E-VOL-12 where another one has it. */
export async function attachVolume(
  context: MemberContext,
  ref: string,
  { steal, expected }: { readonly steal: boolean; readonly expected: SessionId | null },
): Promise<AttachAnswer> {
  const { mirror, daemon, view, host } = context;
  await mirror.sync();
  const { id, want, record, extra, unreadable } = findVolume(mirror, ref);
  if (unreadable !== null) throw unreadable;
  const ownerIsCaretaker = extra?.caretaker ?? false;
  const { sessions } = await daemon.client.call("session.list", {});
  const live = sessions.filter(({ phase }) => phase !== "ended");
  const attachedHere = live.filter(({ caretaker }) => !caretaker).length;
  const checked = checkAttach({
    want,
    record,
    cluster: view.cluster(),
    ownerIsCaretaker,
    here: host,
    attachedHere,
    steal,
  });
  if (checked.kind === "refused") throw WeftError.fromFinding(checked.finding);
  const here = live.find(({ volume }) => volume === id) ?? null;
  if (here !== null && !here.caretaker && here.path !== null) {
    return { volume: id, session: here.session, epoch: BigInt(here.epoch), path: here.path };
  }
  if (here !== null && here.caretaker) await makeWay(daemon, id);
  // A caretaker makes way to `closed` too, and so does what a weftd that was restarted had itself.
  const asked = {
    volume: id,
    mode: steal ? "steal" : "closed",
    export: { nbd: { path: null } },
    caretaker: false,
    old_stopped: false,
    limits: limitsForDaemon(want.limits),
  } as const;
  const opened = await daemon.client.call("session.open", { ...asked, expected }).catch((error: unknown) => {
    // A weftd of before an update, until it is restarted: it takes a disk from whoever has it, as it did then.
    if (expected === null || unknownMember(error) !== "expected") throw error;
    return daemon.client.call("session.open", { ...asked, expected: null });
  });
  // What was wanted since the look at it above.
  context.limitKeeper.nudge();
  if (opened.path === null) throw new Error(`weftd opened "${want.name}" without an export`);
  return { volume: id, session: opened.session, epoch: BigInt(opened.epoch), path: opened.path };
}

/**
 * A caretaker's session here ends for a guest's. One that still waits for a copy can't be ended in order, and has nothing of a guest's to
 * lose: what it was about is the next session's.
 */
async function makeWay({ client }: MemberContext["daemon"], volume: string): Promise<void> {
  try {
    await client.call("session.close", { volume, abandon: false });
  } catch (error) {
    if (!isWeftError(error) || error.code !== "E-VOL-10") throw error;
    await client.call("session.close", { volume, abandon: true });
  }
}

export async function detachVolume(
  context: MemberContext,
  ref: string,
  abandon: boolean,
): Promise<DetachAnswer> {
  const { mirror, daemon, view, host } = context;
  await mirror.sync();
  const { id, want, record, extra } = findVolume(mirror, ref);
  const here = await sessionHere(context, id);
  // A session that the store doesn't know (any more) is closed all the same: weftd knows what it lost.
  if (here === null || here.caretaker) {
    const ownerIsCaretaker = extra?.caretaker ?? false;
    const checked = checkDetach({ want, record, cluster: view.cluster(), ownerIsCaretaker, here: host });
    if (checked.kind === "refused") throw WeftError.fromFinding(checked.finding);
  }
  const closed = await daemon.client.call("session.close", { volume: id, abandon });
  return { volume: id, lostWrites: closed.lost_writes };
}

async function sessionHere({ daemon }: MemberContext, volume: string): Promise<SessionStatus | null> {
  try {
    return await daemon.client.call("session.show", { volume });
  } catch (error) {
    if (isWeftError(error) && ["E-VOL-13", "E-ARG-01"].includes(error.code)) return null;
    throw error;
  }
}
