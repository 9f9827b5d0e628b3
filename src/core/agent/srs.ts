/**
 * Storage repositories: registered, shown, renamed, forgotten. A repository is nothing but a key; its disks are volumes.
 *
 * Must always hold:
 * - one goes only without disks: who deletes it marks its key before the look for disks, a disk comes in a transaction on the
 *   key without the mark, and the key goes in one on the key with it;
 * - what is asked again is answered as then.
 */
import type { z } from "zod";

import { type Sr, SR_DELETE_MS } from "../model/sr.ts";
import type * as sr from "../wire/sr-api.ts";
import { WeftError } from "../wire/errors.ts";
import { renderSr, renderXapiDead, renderXapiHost } from "../wire/sr-json.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import {
  findSr,
  lookAtVdis,
  srAnswer,
  srsOf,
  type SrFacts,
  vdiAnswer,
  vdisOf,
  xapiHostsOf,
} from "./sr-facts.ts";

/** Longer than its lease lives, and than XAPI takes to start what ran there. */
const DECLARED_DEAD_S = 180;

export async function listSrs(context: MemberContext): Promise<sr.SrAnswer[]> {
  await context.mirror.sync();
  const { vdis } = lookAtVdis(context.mirror);
  return srsOf(context.mirror).map((facts) => srAnswer(context, facts, vdis));
}

export async function showSr(context: MemberContext, uuid: string): Promise<sr.SrAnswer> {
  await context.mirror.sync();
  return shown(context, uuid);
}

/** The repository and all its disks, of one look at the store. */
export async function listVdis(context: MemberContext, uuid: string): Promise<sr.VdiListAnswer> {
  const { mirror } = context;
  await mirror.sync();
  const facts = findSr(mirror, uuid);
  const { vdis, unread } = lookAtVdis(mirror, uuid);
  const own = vdis.filter(({ vdi, stage }) => vdi.sr === uuid && stage !== "gone");
  return {
    sr: srAnswer(context, facts, vdis),
    vdis: own.map((one) => vdiAnswer(context, one)),
    unread: [...unread],
  };
}

/** E-SR-03 where it is there with another number of copies. */
export async function createSr(context: MemberContext, request: sr.SrCreateRequest): Promise<sr.SrAnswer> {
  const { store, mirror } = context;
  const { uuid, label, description, copies } = request;
  await mirror.sync();
  if (mirror.get(keys.sr(uuid)) === null) {
    const made: Sr = {
      uuid,
      label,
      description,
      copies,
      createdAt: new Date().toISOString(),
      deletingAt: null,
    };
    // Who lost was overtaken by the same request, or by another one: what is there says which.
    await store.cas(keys.sr(uuid), 0n, renderSr(made, null));
    await mirror.sync();
  }
  const found = findSr(mirror, uuid).sr;
  if (found.copies !== copies)
    throw new WeftError({
      code: "E-SR-03",
      message: `The storage repository ${uuid} ("${found.label}") is there, with ${copiesText(found.copies)} of each disk, not ${copiesText(copies)}.`,
      facts: { sr: uuid, copies: found.copies },
      safe: "Nothing was changed.",
    });
  return shown(context, uuid);
}

function copiesText(copies: number | null): string {
  if (copies === null) return "as many copies as volumes have where nobody says a number";
  return copies === 1 ? "1 copy" : `${copies} copies`;
}

export async function changeSr(
  context: MemberContext,
  uuid: string,
  { label, description }: sr.SrChange,
): Promise<sr.SrAnswer> {
  const { store, mirror } = context;
  for (;;) {
    await mirror.sync();
    const { sr: before, entry } = findSr(mirror, uuid);
    const after: Sr = {
      ...before,
      label: label ?? before.label,
      description: description ?? before.description,
    };
    if (after.label === before.label && after.description === before.description) break;
    const { kind } = await store.cas(entry.key, entry.modRevision, renderSr(after, entry.value));
    if (kind === "won") break;
  }
  await mirror.sync();
  return shown(context, uuid);
}

/** E-SR-02 while it has disks. Those in the trash don't count: restored, they are volumes of no repository. */
export async function deleteSr({ store, mirror }: MemberContext, uuid: string): Promise<void> {
  for (;;) {
    await mirror.sync();
    const { sr: found, entry } = findSr(mirror, uuid);
    refuseFull(mirror, found);
    const marked = renderSr({ ...found, deletingAt: new Date().toISOString() }, entry.value);
    if ((await store.cas(entry.key, entry.modRevision, marked)).kind === "lost") continue;
    await mirror.sync();
    const { entry: now } = findSr(mirror, uuid);
    if (now.value !== marked) continue;
    const held = { key: now.key, modRevision: now.modRevision };
    try {
      refuseFull(mirror, found);
    } catch (error) {
      // A disk came just before the mark.
      await store.cas(now.key, now.modRevision, renderSr({ ...found, deletingAt: null }, now.value));
      throw error;
    }
    const { kind } = await store.txn([held], [{ kind: "delete", key: now.key }]);
    if (kind === "succeeded" || (await store.get(now.key)) === null) break;
  }
  await mirror.sync();
}

function refuseFull(mirror: MemberContext["mirror"], { uuid, label }: Sr): void {
  const count = vdisOf(mirror, uuid).filter(({ vdi, stage }) => vdi.sr === uuid && stage !== "gone").length;
  if (count === 0) return;
  throw new WeftError({
    code: "E-SR-02",
    message: `The storage repository "${label}" (${uuid}) has ${count} virtual ${count === 1 ? "disk" : "disks"}. Not deleted.`,
    facts: { sr: uuid, vdis: count },
    safe: "Nothing was changed.",
  });
}

/** For who makes a disk there. E-SR-01 while somebody deletes it; a mark that its maker has left is taken off. */
export async function usableSr({ store, mirror }: MemberContext, uuid: string): Promise<Sr> {
  for (;;) {
    const { sr: found, entry } = findSr(mirror, uuid);
    const { deletingAt } = found;
    if (deletingAt === null) return found;
    if (Date.now() - Date.parse(deletingAt) < SR_DELETE_MS) throw beingDeleted(found);
    await store.cas(entry.key, entry.modRevision, renderSr({ ...found, deletingAt: null }, entry.value));
    await mirror.sync();
  }
}

function beingDeleted({ uuid, label }: Sr): WeftError {
  return new WeftError({
    code: "E-SR-01",
    message: `The storage repository "${label}" (${uuid}) is being deleted.`,
    facts: { sr: uuid },
    safe: "Nothing was changed.",
  });
}

/** By which UUID XAPI knows this host: written when it is news. */
export async function setXapiHost({ store, mirror, host }: MemberContext, uuid: string): Promise<void> {
  const key = keys.xapiHost(host);
  const value = renderXapiHost(uuid);
  if (mirror.get(key)?.value === value) return;
  await store.put(key, value);
}

/**
 * XAPI's word that a host of its pool is dead, for the next activations of what that host has: kept for some minutes, or until its
 * agent shows a sign of life that was not there then.
 */
export async function declareDead(
  { store, mirror, log }: MemberContext,
  uuid: string,
): Promise<z.output<typeof sr.xapiHostDead>> {
  await mirror.sync();
  const [host] = Array.from(xapiHostsOf(mirror)).flatMap(([id, known]) => (known === uuid ? [id] : []));
  if (host === undefined) return { host: null };
  const alive = mirror.get(keys.alive(host))?.modRevision ?? null;
  const lease = await store.grantLease(DECLARED_DEAD_S);
  await store.put(keys.xapiDead(host), renderXapiDead({ alive }), lease);
  await mirror.sync();
  log.warn({ host, xapiHost: uuid }, "XAPI has declared a host dead");
  return { host };
}

function shown(context: MemberContext, uuid: string): sr.SrAnswer {
  return srAnswer(context, findSr(context.mirror, uuid), lookAtVdis(context.mirror, uuid).vdis);
}

/** What a transaction that makes a disk compares: its repository is there, and nobody deletes it. */
export function inSr({ sr: found, entry }: SrFacts): { readonly key: string; readonly modRevision: bigint } {
  if (found.deletingAt !== null) throw beingDeleted(found);
  return { key: entry.key, modRevision: entry.modRevision };
}
