/**
 * Which disks are being laid over others, and where: nobody opens one of them meanwhile; and what an activation has to do with it.
 *
 * Must always hold:
 * - that it is done is a hint, under a lease, so that of who dies nothing stays; what decides is the transaction at the end
 *   (vdi-compose.ts), and a look after each open whether the disk still is the volume that was opened;
 * - no guest is started on a layer that another one has written to.
 */
import { z } from "zod";

import { hostName } from "../model/cluster.ts";
import { type HostId, parseHostId } from "../model/ids.ts";
import { noLayer } from "../model/vdi.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import { uuid as uuidText } from "../wire/json-types.ts";
import type * as sr from "../wire/sr-api.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { findVdi, type VdiFacts, vdiOf } from "./sr-facts.ts";
import { readValue } from "./store-value.ts";
import { changeKey } from "./vdi-helpers.ts";

const TOLD_MS = 3000;
/** A watch tells within milliseconds. */
const KNOWN_MS = 200;
const TOLD_LEASE_SECONDS = 10;

const composingJson = z.object({ host: z.string(), parent: uuidText });

/** E-VDI-04 while another host works on it. A hint: what decides is the transaction. */
export function refuseComposing({ mirror, view, host }: MemberContext, uuid: string): void {
  const by = composedBy(mirror, uuid);
  if (by === null || by === host) return;
  throw isComposing(uuid, hostName(view.cluster(), by));
}

/** Until no other host works on them: one that has died is forgotten when its lease ends. At most so long. */
export async function untilNotComposed(
  { mirror, host }: Pick<MemberContext, "mirror" | "host">,
  uuids: readonly string[],
  forMs: number,
): Promise<void> {
  const isFree = (uuid: string): boolean => {
    const by = composedBy(mirror, uuid);
    return by === null || by === host;
  };
  try {
    await mirror.until("The end of its composing", forMs, () => (uuids.every(isFree) ? true : null));
  } catch (error) {
    if (!isWeftError(error, "E-AGENT-04")) throw error;
  }
}

function composedBy(mirror: MemberContext["mirror"], uuid: string): HostId | null {
  const entry = mirror.get(keys.composing(uuid));
  const said = entry === null ? null : readValue(composingJson, entry.value);
  return said === null ? null : parseHostId(said.host);
}

/** E-VDI-04 while any host does: nobody opens it. */
export function refuseWhileComposing(context: MemberContext, uuid: string): void {
  refuseComposing(context, uuid);
  const { composing, self } = context;
  const here = composing.has(uuid) || [...composing.values()].some(({ parent }) => parent === uuid);
  if (here) throw isComposing(uuid, self.name);
}

function isComposing(uuid: string, host: string): WeftError {
  return new WeftError({
    code: "E-VDI-04",
    message: `The virtual disk ${uuid} is being composed on ${host}. Not opened.`,
    facts: { vdi: uuid, host, since: null },
    safe: "Nothing was changed.",
  });
}

/** A disk's volume as it was opened for a guest: the session's epoch tells when. */
export type Opened = { readonly answer: sr.VdiActivated; readonly epoch: bigint };

/** False: it was laid over another disk before it was opened, and its volume is that one's: what was opened is nobody's. */
export async function isStillIts(
  { mirror, daemon, log }: MemberContext,
  uuid: string,
  { answer: { volume }, epoch }: Opened,
): Promise<boolean> {
  const isIts = (): boolean => vdiOf(mirror, uuid)?.vdi.volume === volume;
  try {
    // Whatever the store was told before this session is known as soon as the session itself is.
    await mirror.until("The session", KNOWN_MS, () =>
      !isIts() || (vdiOf(mirror, uuid)?.record?.epoch ?? 0n) >= epoch ? true : null,
    );
  } catch (error) {
    if (!isWeftError(error, "E-AGENT-04")) throw error;
    await mirror.sync();
  }
  if (isIts()) return true;
  log.warn({ vdi: uuid, volume }, "a disk was composed while it was opened: looked at again");
  await daemon.client.call("session.close", { volume, abandon: true });
  return false;
}

/**
 * A layer is opened once: who writes to it does so until it is laid over its parent. Opened again it would be half of a disk, as
 * where XAPI goes on after a compose that failed. E-VDI-08; asked again while it is open it is what it was.
 */
export function refuseHalf({ host }: MemberContext, { vdi, record, extra }: VdiFacts): void {
  const isOpenHere = extra?.caretaker !== true && record?.owner?.host === host;
  if (extra?.layer !== true || isOpenHere || !vdi.layerOpened) return;
  throw WeftError.fromFinding(noLayer(vdi, "it is the newer half of a disk, and was not composed"));
}

/**
 * Said when it is open, and before anybody is told where: what was refused, or of which nobody heard, wrote nothing, and is asked for
 * again.
 */
export async function noteLayerOpened(context: MemberContext, uuid: string): Promise<void> {
  const { vdi, extra } = findVdi(context.mirror, uuid);
  if (extra?.layer !== true) return;
  const { volume } = vdi;
  await changeKey(context, uuid, (now) => (now.volume === volume ? { ...now, layerOpened: true } : null));
}

/** The cluster hears that these disks are worked on, under a lease: of who dies nothing stays. */
export async function told<Result>(
  { store, host, log }: MemberContext,
  [uuid, parent]: readonly [string, string],
  work: () => Promise<Result>,
): Promise<Result> {
  const all = [keys.composing(uuid), keys.composing(parent)];
  const value = JSON.stringify({ host, parent });
  const tell = async (): Promise<void> => {
    const lease = await store.grantLease(TOLD_LEASE_SECONDS);
    for (const key of all) await store.put(key, value, lease);
  };
  const unheard = (error: unknown): void => {
    if (!isWeftError(error)) throw error;
    log.info({ vdi: uuid, code: error.code }, "that it is being composed is not told");
  };
  await tell();
  let telling = Promise.resolve();
  const timer = setInterval(() => {
    telling = telling.then(tell).catch(unheard);
  }, TOLD_MS);
  try {
    return await work();
  } finally {
    clearInterval(timer);
    await telling;
    for (const key of all) await store.delete(key).catch(unheard);
  }
}
