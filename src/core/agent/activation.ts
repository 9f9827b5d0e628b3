/**
 * A virtual disk is opened for a guest that XAPI starts on this host, and closed again: who has it elsewhere is asked, waited
 * for, or found to be dead (core/model/activation.ts).
 *
 * Must always hold:
 * - what is decided rests on a report of the session that the record names, and weftd takes the disk from that session or from
 *   none: another owner is asked anew;
 * - what is closed was drained and sealed: the next host opens it without asking anybody;
 * - who asks again is answered with the session that is open;
 * - what is opened is what the disk's key names then: a disk may have been laid over another one meanwhile.
 */
import { stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";

import { type ActivationInput, decideActivation, type OwnerReport } from "../model/activation.ts";
import { hostName } from "../model/cluster.ts";
import type { HostId, SessionId, SnapshotId, VolumeId } from "../model/ids.ts";
import type { Snapshot } from "../model/snapshot.ts";
import { stillMade, type Vdi, vdiName } from "../model/vdi.ts";
import type { VolumeRecord } from "../model/volume-record.ts";
import type { VolumeUsers, VolumeUsersRequest } from "../wire/door-api.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { HostClient } from "../wire/host-client.ts";
import { parseNameKey } from "../wire/record.ts";
import type * as sr from "../wire/sr-api.ts";
import { keys } from "../wire/store-keys.ts";
import { attachVolume } from "./attach.ts";
import { isStillIts, noteLayerOpened, type Opened, refuseHalf, refuseWhileComposing } from "./composing.ts";
import type { MemberContext } from "./context.ts";
import { snapshotsOf } from "./facts.ts";
import { findListed, findSnapshot } from "./find.ts";
import { heldHere } from "./holder.ts";
import type { Mirror } from "./mirror.ts";
import { CHANGING_HANDS } from "./owner-work.ts";
import { openCaretaker } from "./perform.ts";
import { DATA_PORT, knock } from "./reachable.ts";
import { attachSnapshot } from "./snapshots.ts";
import {
  findVdi,
  isDeclaredDead,
  lookAtVdis,
  openHosts,
  type VdiFacts,
  vdiOf,
  xapiHostsOf,
} from "./sr-facts.ts";
import { dropUnread, nameHelper, readersOn } from "./vdi-helpers.ts";

/** It answers from memory. */
const ANSWER_MS = 3000;
const PROBE_MS = 1500;
/** What a host that was given a disk may take until its guest's end is connected. */
const COMING_MS = 30_000;
/** So often another host's last reader may go in the same moment. */
const READ_TRIES = 5;
/** No place for one, too many of them, or no room. */
const NO_SNAPSHOT: ReadonlySet<string> = new Set(["E-SNAP-01", "E-SNAP-06", "E-SNAP-08"]);

export async function activateVdi(
  context: MemberContext,
  uuid: string,
  request: sr.VdiActivateRequest,
): Promise<sr.VdiActivated> {
  await context.mirror.sync();
  const facts = findVdi(context.mirror, uuid);
  const { vdi, stage } = facts;
  if (stage === "making") throw WeftError.fromFinding(stillMade(vdi));
  if (vdi.snapshot === null) refuseWhileComposing(context, uuid);
  if (vdi.snapshot === null && !vdi.readOnly)
    return request.writable ? activateDisk(context, uuid, request) : readDisk(context, uuid, request);
  if (request.writable)
    throw new WeftError({
      code: "E-VDI-06",
      message: `The virtual disk "${vdi.label}" (${uuid}) can only be read.`,
      facts: { vdi: uuid },
      safe: "Nothing was changed.",
    });
  if (vdi.snapshot === null) refuseHalf(context, facts);
  return read(context, facts, vdi.snapshot ?? (await readerOf(context, facts)));
}

/** What hosts read of a disk that nobody writes: a snapshot, taken when the first one reads it. */
async function readerOf(context: MemberContext, facts: VdiFacts): Promise<SnapshotId> {
  const { vdi, record } = facts;
  const { reader, volume } = vdi;
  const { known } = snapshotsOf(context.mirror, volume);
  const found = known.find(({ id }) => id === reader) ?? null;
  if (found !== null && (vdi.readOnly || isAsItWas(found, record))) return found.id;
  return nameHelper(context, facts, "reader");
}

/** Whoever took it has closed the volume, which begins an epoch, and nobody has opened it since. */
function isAsItWas({ epoch }: Snapshot, record: VolumeRecord | null): boolean {
  return record !== null && record.epoch <= epoch + 1n;
}

/**
 * Read by as many hosts as like to, as it is now, while no guest has it: by a snapshot. Whoever has it open is asked for as by a
 * guest that writes; what is taken over, and what can have no snapshot, is open on one host.
 */
async function readDisk(
  context: MemberContext,
  uuid: string,
  request: sr.VdiActivateRequest,
): Promise<sr.VdiActivated> {
  const { mirror, log } = context;
  for (let tries = 1; ; tries += 1) {
    const facts = findVdi(mirror, uuid);
    if (guestOf(facts) !== null) return activateDisk(context, uuid, request);
    refuseHalf(context, facts);
    try {
      const reader = await readerOf(context, facts);
      await mirror.sync();
      // A guest that came in meanwhile has it for itself.
      if (guestOf(findVdi(mirror, uuid)) === null) return await read(context, facts, reader);
      await dropUnread(context, uuid);
    } catch (error) {
      if (!isWeftError(error)) throw error;
      // Its last reader on another host has gone in this moment, and it with him.
      const isGone = error.code === "E-SNAP-09" && tries < READ_TRIES;
      if (!isGone && !NO_SNAPSHOT.has(error.code)) throw error;
      if (!isGone) {
        log.info(
          { vdi: uuid, code: error.code },
          "a disk that can have no snapshot is read on one host alone",
        );
        return activateDisk(context, uuid, request);
      }
      await mirror.sync();
    }
  }
}

async function read(context: MemberContext, facts: VdiFacts, snapshot: SnapshotId): Promise<sr.VdiActivated> {
  const { path } = await attachSnapshot(context, snapshot);
  const { volume } = facts.vdi;
  // Of what is read: the disk may have grown since.
  const size = findSnapshot(context.mirror, snapshot).snapshot.sizeBytes;
  return { path, size, volume, session: null, snapshot };
}

async function activateDisk(
  context: MemberContext,
  uuid: string,
  { writable, deadHosts, waitMs }: sr.VdiActivateRequest,
): Promise<sr.VdiActivated> {
  const { mirror, host: here, log } = context;
  const begunMs = performance.now();
  const [endMs, handsMs] = [begunMs + waitMs, begunMs + CHANGING_HANDS.forMs];
  let away = null as Away | null;
  for (;;) {
    const facts = findVdi(mirror, uuid);
    const guest = guestOf(facts);
    const known = guest === null ? undefined : xapiHostsOf(mirror).get(guest.host);
    const isOwnerDead =
      guest !== null &&
      ((known !== undefined && deadHosts.includes(known)) || isDeclaredDead(mirror, guest.host));
    const input = { here, guest, writable, isOwnerDead, endMs, report: null };
    let decision = decideActivation(input, performance.now());
    let since: string | null = null;
    if (decision.kind === "ask" && guest !== null) {
      const told: Told = await askOwner(context, facts, guest.host);
      const nowMs = performance.now();
      if (told.report.kind !== "silent") away = null;
      else if (away?.session !== guest.session) away = { session: guest.session, sinceMs: nowMs };
      await mirror.sync();
      if (guestOf(findVdi(mirror, uuid))?.session !== guest.session) continue;
      const report: OwnerReport =
        told.report.kind === "silent"
          ? { kind: "away", sinceMs: away?.sinceMs ?? nowMs, refused: told.report.refused }
          : told.report;
      decision = decideActivation({ ...input, report }, nowMs);
      since = told.since;
    }
    switch (decision.kind) {
      case "open":
      case "steal": {
        if (decision.kind === "steal") log.warn({ vdi: uuid, why: decision.why }, "a disk is taken over");
        const expected = decision.kind === "steal" ? (guest?.session ?? null) : null;
        refuseHalf(context, facts);
        const opened = await openHere(context, facts, expected, Math.max(endMs, handsMs));
        if (opened === null || !(await isStillIts(context, uuid, opened))) break;
        await noteLayerOpened(context, uuid);
        return opened.answer;
      }
      case "wait":
        await untilOther(mirror, uuid, guest?.session ?? null, decision.forMs);
        break;
      case "ask":
      case "refuse":
        throw openElsewhere(context, facts, { since, waitMs: writable ? waitMs : 0 });
    }
  }
}

type Away = { readonly session: SessionId; readonly sinceMs: number };
type Guest = NonNullable<ActivationInput["guest"]>;

function guestOf({ record, extra }: VdiFacts): Guest | null {
  return extra?.caretaker === true ? null : (record?.owner ?? null);
}

/** Null: it changes hands in this moment, look again. `expected`: the session that it is taken from; null: from none. */
async function openHere(
  context: MemberContext,
  { vdi }: VdiFacts,
  expected: SessionId | null,
  endMs: number,
): Promise<Opened | null> {
  const { volume } = vdi;
  try {
    await closeFenced(context, vdi);
    const { path, session, epoch } = await attachVolume(context, volume, {
      steal: expected !== null,
      expected,
    });
    // It may have grown since it was looked at.
    const size = findVdi(context.mirror, vdi.uuid).record?.sizeBytes ?? 0n;
    return { answer: { path, size, volume, session, snapshot: null }, epoch };
  } catch (error) {
    if (!CHANGING_HANDS.is(error) || performance.now() >= endMs) throw error;
    await delay(CHANGING_HANDS.againMs);
    await context.mirror.sync();
    return null;
  }
}

/** One that another host has taken over, and that has not heard of it yet: whatever it still has under way is refused. */
async function closeFenced(
  { daemon, mirror, host, log }: MemberContext,
  { uuid, volume }: Vdi,
): Promise<void> {
  const { sessions } = await daemon.client.call("session.list", {});
  const here = sessions.find((one) => one.volume === volume && !one.caretaker);
  if (here === undefined || !["serving", "paused"].includes(here.phase)) return;
  // In this order: what served before this look at the store is named there, or fenced.
  await mirror.sync();
  const record = vdiOf(mirror, uuid)?.record ?? null;
  // One that can't be read says nothing of whose it is.
  if (record === null || record.owner?.host === host) return;
  log.warn({ vdi: uuid, session: here.session }, "a session here was taken over, and is closed");
  await daemon.client.call("session.close", { volume, abandon: true });
}

/** Until another session has it, or nobody; at most so long. */
async function untilOther(
  mirror: Mirror,
  uuid: string,
  session: SessionId | null,
  forMs: number,
): Promise<void> {
  try {
    await mirror.until("Another owner", forMs, () =>
      guestOf(findVdi(mirror, uuid))?.session === session ? null : true,
    );
  } catch (error) {
    if (!isWeftError(error, "E-AGENT-04")) throw error;
  }
}

type Told = {
  readonly report:
    | Exclude<OwnerReport, { kind: "away" }>
    | { readonly kind: "silent"; readonly refused: boolean };
  /** Since when the guest's session is open there. */
  readonly since: string | null;
};

async function askOwner(context: MemberContext, { vdi }: VdiFacts, host: HostId): Promise<Told> {
  try {
    const { connected, since } = await usersOn(context, host, { volume: vdi.volume, snapshot: null });
    return { report: { kind: "answered", connected }, since };
  } catch (error) {
    if (!isWeftError(error)) throw error;
    // One of an older version has an answer, and not to this.
    const report = error.code === "E-HOST-09" ? await lookAt(context, host) : { kind: "up" as const };
    return { report, since: null };
  }
}

/** Its agent gave no answer: does its weftd, to ours or to a connection? */
async function lookAt({ daemon, identity }: MemberContext, host: HostId): Promise<Told["report"]> {
  const { links } = await daemon.client.call("link.list", {});
  if (links.some((link) => link.host === host && link.state === "connected")) return { kind: "up" };
  const { address } = findListed(identity.trust(), host);
  const found = await knock(address, DATA_PORT, PROBE_MS);
  return found === "open" ? { kind: "up" } : { kind: "silent", refused: found === "refused" };
}

function openElsewhere(
  { view, mirror }: MemberContext,
  { vdi }: VdiFacts,
  { since, waitMs }: { readonly since: string | null; readonly waitMs: number },
): WeftError {
  const guest = guestOf(findVdi(mirror, vdi.uuid));
  const host = guest === null ? "another host" : hostName(view.cluster(), guest.host);
  const from = since === null ? "" : ` since ${since}`;
  const waited = waitMs === 0 ? "" : `, and did not close it within ${Math.round(waitMs / 1000)} s`;
  return new WeftError({
    code: "E-VDI-04",
    message: `${host} has the virtual disk "${vdi.label}" (${vdi.uuid}) open${from}${waited}. Not activated.`,
    facts: { vdi: vdi.uuid, host: guest?.host ?? null, since },
    safe: "Nothing was changed.",
    do: [{ why: `If nothing on ${host} uses it any more`, command: `weft steal ${vdi.volume}` }],
  });
}

/** Drained and sealed, so that another host opens it without asking. One that is not open here is no error. */
export async function deactivateVdi(context: MemberContext, uuid: string): Promise<void> {
  const { mirror, daemon, host } = context;
  await mirror.sync();
  const facts = readDamaged(() => vdiOf(mirror, uuid));
  if (facts === "damaged") return closeUnread(context, uuid);
  if (facts === null) return;
  const { vdi } = facts;
  const { volume } = vdi;
  const read = vdi.snapshot === null ? readersOn(mirror, vdi, host) : [vdi.snapshot];
  for (const id of read) await daemon.client.call("snapshot.close", { volume, id });
  if (vdi.snapshot !== null) return;
  if (vdi.reader !== null && !vdi.readOnly) await dropUnread(context, uuid);
  await closeFenced(context, vdi);
  const { sessions } = await daemon.client.call("session.list", {});
  const here = sessions.find((one) => one.volume === volume && one.phase !== "ended") ?? null;
  if (here !== null && !here.caretaker) await daemon.client.call("session.close", { volume, abandon: false });
  else if (here === null && guestOf(facts)?.host === host) await closeLost(context, volume);
}

/** A guest that ends is not kept by a damaged key: what is open here for the disk is closed. */
async function closeUnread({ daemon, mirror, log }: MemberContext, uuid: string): Promise<void> {
  const { client } = daemon;
  const [{ sessions }, { snapshots }] = await Promise.all([
    client.call("session.list", {}),
    client.call("snapshot.open_list", {}),
  ]);
  // One that was composed has another volume than its own id, and that has the disk's name.
  const name = mirror.get(keys.name(vdiName(uuid)));
  const named = name === null ? null : readDamaged(() => parseNameKey(name.key, name.value).volume);
  const own = named === null || named === "damaged" ? uuid : named;
  const session = sessions.find(({ volume, caretaker }) => volume === own && !caretaker);
  if (session !== undefined) await client.call("session.close", { volume: session.volume, abandon: false });
  const snapshot = snapshots.find(({ id }) => id === uuid);
  if (snapshot !== undefined)
    await client.call("snapshot.close", { volume: snapshot.volume, id: snapshot.id });
  log.warn({ vdi: uuid }, "a disk was closed whose key can't be read");
}

function readDamaged<T>(read: () => T): T | "damaged" {
  try {
    return read();
  } catch (error) {
    if (isWeftError(error, "E-STORE-07")) return "damaged";
    throw error;
  }
}

/** This host's session, where no guest uses it: as a host leaves it that is started anew, or a guest that was taken from elsewhere. */
export async function closeUnused(context: MemberContext, facts: VdiFacts): Promise<void> {
  const { uuid, volume } = facts.vdi;
  if (guestOf(facts)?.host !== context.host) return;
  const { connected } = await ownUsers(context, { volume, snapshot: null });
  if (connected === false) await deactivateVdi(context, uuid);
}

/**
 * Who is to delete it finds it nobody's, where its last guest ended with its host: what is left of that session goes as in a
 * take-over. What is in use stays so, and what has a session stays with it on its own host: whoever asks is refused then.
 */
export async function freeEnded(context: MemberContext, facts: VdiFacts): Promise<void> {
  const { uuid, volume } = facts.vdi;
  const guest = guestOf(facts);
  if (guest === null) return;
  try {
    if (guest.host !== context.host)
      await activateVdi(context, uuid, { writable: true, deadHosts: [], waitMs: 0 });
    else if (await hasSession(context, volume)) return;
    await deactivateVdi(context, uuid);
  } catch (error) {
    if (!isWeftError(error)) throw error;
    context.log.info({ vdi: uuid, code: error.code }, "a disk that is to be deleted is not free");
  }
}

async function hasSession({ daemon }: MemberContext, volume: VolumeId): Promise<boolean> {
  try {
    await daemon.client.call("session.show", { volume });
    return true;
  } catch (error) {
    if (isWeftError(error, "E-VOL-13")) return false;
    throw error;
  }
}

/** This host's weftd was restarted and has not opened it again: its record says that a guest has it here. */
async function closeLost({ daemon }: MemberContext, volume: VolumeId): Promise<void> {
  try {
    await openCaretaker(daemon.client, volume);
  } catch (error) {
    // Another host has taken it in this moment.
    if (isWeftError(error, "E-VOL-12")) return;
    throw error;
  }
  await daemon.client.call("session.close", { volume, abandon: false });
}

export async function vdiUsers(context: MemberContext, uuid: string): Promise<sr.VdiUsersAnswer> {
  const { mirror, view } = context;
  await mirror.sync();
  const facts = findVdi(mirror, uuid);
  const { volume, snapshot, reader } = facts.vdi;
  const owner = guestOf(facts)?.host ?? null;
  const about = (host: HostId): VolumeUsersRequest =>
    snapshot === null && host === owner
      ? { volume, snapshot: null }
      : { volume, snapshot: snapshot ?? reader };
  const xapiHosts = xapiHostsOf(mirror);
  const users = openHosts(mirror, facts).map(async (host) => ({
    host: { uuid: host, name: hostName(view.cluster(), host) },
    xapiHost: xapiHosts.get(host) ?? null,
    connected: await isConnected(context, host, about(host)),
  }));
  return { users: await Promise.all(users) };
}

async function isConnected(
  context: MemberContext,
  host: HostId,
  about: VolumeUsersRequest,
): Promise<boolean | null> {
  try {
    return (await usersOn(context, host, about)).connected;
  } catch (error) {
    if (isWeftError(error)) return null;
    throw error;
  }
}

async function usersOn(
  context: MemberContext,
  host: HostId,
  about: VolumeUsersRequest,
): Promise<VolumeUsers> {
  const { identity, self } = context;
  if (host === context.host) return ownUsers(context, about);
  const trust = identity.trust();
  const { address } = findListed(trust, host);
  const expect = { kind: "host" as const, trust, host };
  const shown = identity.current();
  const client = new HostClient({ address, shown, from: self.address, expect, answerMs: ANSWER_MS });
  return (await client.volumeUsers(about)).answer;
}

/** As another host asks for it: a guest that may still be connecting counts as one that is. */
export async function usersForOthers(
  context: MemberContext,
  about: VolumeUsersRequest,
): Promise<VolumeUsers> {
  const { awaited, connected, since } = await ownUsers(context, about);
  return { connected: awaited ? true : connected, since };
}

/**
 * Whether a guest's end is connected here. Where the holder has it, that is its client: it is one of weftd's itself, and keeps its
 * guest while weftd is away. A guest whose device stands counts also while that is paused. `awaited`: it was opened a moment ago, and
 * nobody has come yet.
 */
async function ownUsers(
  context: MemberContext,
  { volume, snapshot }: VolumeUsersRequest,
): Promise<VolumeUsers & { readonly awaited: boolean }> {
  const { daemon, options } = context;
  const held = (await heldHere(options.runDir))?.filter(
    (one) => one.volume === volume && one.snapshot === snapshot,
  );
  const isHeld = held?.some(({ connected, lost }) => connected && lost === null) ?? false;
  if (isHeld) return { connected: true, since: null, awaited: false };
  const open = await offered(daemon.client, volume, snapshot);
  const isServed = held === undefined || held.length === 0 ? (open?.clients ?? 0) > 0 : false;
  const isLost = held?.some(({ lost }) => lost !== null) ?? false;
  const connected = isServed || (isLost ? false : await hasDevice(context, { volume, snapshot }));
  const madeAt = await timeOf(open?.path ?? null);
  const ageMs = madeAt === null ? Infinity : Date.now() - madeAt.getTime();
  const awaited = open?.clientsSeen === 0 && Math.abs(ageMs) < COMING_MS;
  return { connected, since: madeAt?.toISOString() ?? null, awaited };
}

/** Null: nobody can say. */
async function hasDevice(
  { guests, mirror, log }: MemberContext,
  { volume, snapshot }: VolumeUsersRequest,
): Promise<boolean | null> {
  try {
    const standing = await guests();
    if (standing.size === 0) return false;
    const { vdis } = lookAtVdis(mirror);
    // Readers have the snapshot under the name of the disk that it is read for.
    const isOf = ({ vdi }: VdiFacts): boolean =>
      snapshot === null
        ? vdi.volume === volume && vdi.snapshot === null
        : vdi.snapshot === snapshot || vdi.reader === snapshot;
    return [snapshot ?? volume, ...vdis.filter(isOf).map(({ vdi }) => vdi.uuid)].some((id) =>
      standing.has(id),
    );
  } catch (error) {
    log.warn({ volume, reason: reasonOf(error) }, "which guests' devices stand here can't be told");
    return null;
  }
}

/** As weftd offers it here; null: it doesn't. */
async function offered(
  client: MemberContext["daemon"]["client"],
  volume: string,
  snapshot: string | null,
): Promise<Offered | null> {
  if (snapshot !== null) {
    const { snapshots } = await client.call("snapshot.open_list", {}, ANSWER_MS);
    const read = snapshots.find(({ id }) => id === snapshot) ?? null;
    // Nobody takes it away from who reads it.
    return read === null ? null : { clients: read.clients, clientsSeen: null, path: read.path };
  }
  const { sessions } = await client.call("session.list", {}, ANSWER_MS);
  const open = sessions.find((one) => one.volume === volume && !one.caretaker && one.phase !== "ended");
  return open === undefined
    ? null
    : { clients: open.clients, clientsSeen: open.clients_seen, path: open.path };
}

type Offered = {
  readonly clients: number;
  /** Those that have gone among them; null: it is not counted. */
  readonly clientsSeen: number | null;
  readonly path: string | null;
};

/** A session is as old as its socket. */
async function timeOf(path: string | null): Promise<Date | null> {
  if (path === null) return null;
  try {
    return (await stat(path)).mtime;
  } catch {
    return null;
  }
}
