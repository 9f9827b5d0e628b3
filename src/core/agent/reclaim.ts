/**
 * A host whose system was installed anew becomes again who it was: its bundle lies on its pools' disks (bundle-keeper.ts).
 *
 *     disks looked at ──▶ bundles ──▶ a member: is it that host, and is nobody it now? ──key, for this host alone──▶
 *           opened, checked ──▶ identity and devices.json written ──▶ host.json ──▶ member
 *
 * Must always hold:
 * - a member gives a key for a host that is listed, whose agent nobody reaches, to the public key that the asking host itself
 *   showed; who that is its caller vouches for, who is root here;
 * - looking changes nothing: disks are mounted to be read, and unmounted; groups of LVM are activated for it, and idle again;
 * - what was opened is believed only where certificate, list and key belong together; host.json is written last.
 */
import { lstat, readFile } from "node:fs/promises";
import { join } from "node:path";

import { type HostId, parseHostId } from "../model/ids.ts";
import { Secret } from "../model/secret.ts";
import type { Reclaim, UnsealOrder } from "../wire/admission-api.ts";
import {
  BUNDLE_BYTES_MAX,
  type BundlePayload,
  openBundle,
  parseBundle,
  unwrapKey,
  type WrappedKey,
  wrapKey,
} from "../wire/bundle.ts";
import { factsOf, kidOf, readCertificate } from "../wire/certificate.ts";
import { writeDurably } from "../wire/durable-file.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { openFirstTrust } from "../wire/signed-trust.ts";
import { askHost } from "./ask-members.ts";
import { readJoinCert } from "./admit.ts";
import { BUNDLE_FILE } from "./bundle-keeper.ts";
import type { MemberContext } from "./context.ts";
import { mountsNow, xfsDevices } from "./disks.ts";
import { mountToRead, unmountDevice } from "./device-work.ts";
import { type JoinContext, refuseMember } from "./entering.ts";
import { activateGroup, deactivateGroup, idleGroups } from "./thin-group.ts";
import { aliveOf } from "./facts.ts";
import { type HostFile, parseHostFile } from "./host-file.ts";

/** Of a file system that weft made (device-work.ts). */
const LABEL = /^weft-[0-9a-f]{6}$/;

/** Texts of the bundles on this host's disks, as far as they can be read. */
export async function findBundles({ files, log }: JoinContext): Promise<readonly string[]> {
  await refuseMember(files);
  const woken = await wakeGroups(log);
  try {
    return await lookOnDisks({ files, log });
  } finally {
    for (const id of woken) {
      await deactivateGroup(id).catch((error: unknown) => {
        log.warn({ id, reason: reasonOf(error) }, "a group of LVM stays active after a look at it");
      });
    }
  }
}

/** Ids of those that are active by this. */
async function wakeGroups(log: JoinContext["log"]): Promise<readonly string[]> {
  const woken: string[] = [];
  for (const id of await idleGroups()) {
    try {
      await activateGroup(id);
      woken.push(id);
    } catch (error) {
      log.info({ id, reason: reasonOf(error) }, "a group of LVM can't be looked at");
    }
  }
  return woken;
}

async function lookOnDisks({ files, log }: Pick<JoinContext, "files" | "log">): Promise<readonly string[]> {
  const mounted = new Set((await mountsNow()).map(({ number }) => number));
  const found: string[] = [];
  for (const { path, number, superblock } of await xfsDevices()) {
    if (!LABEL.test(superblock.label) || superblock.inProgress || mounted.has(number)) continue;
    const at = join(files.stateDir, "looking", superblock.uuid);
    try {
      await mountToRead(path, at);
      try {
        const text = await bundleAt(join(at, BUNDLE_FILE));
        if (text !== null) found.push(text);
      } finally {
        await unmountDevice(at);
      }
    } catch (error) {
      log.info({ path, reason: reasonOf(error) }, "no bundle is on this disk");
    }
  }
  return found;
}

/** Anybody may have written that disk: what is no file there is not followed, nor waited for. Null: no bundle. */
export async function bundleAt(path: string): Promise<string | null> {
  const seen = await lstat(path);
  if (!seen.isFile() || seen.size > BUNDLE_BYTES_MAX) return null;
  const text = await readFile(path, "utf8");
  return parseBundle(text) === null ? null : text;
}

/** The member's side: the bundle's key, for who asks with this certificate of a key of its own. */
export async function unsealFor(
  { authority, identity, mirror, self }: MemberContext,
  { bundle, request, addresses }: UnsealOrder,
): Promise<WrappedKey> {
  const host = parseHostId(bundle.host);
  const trust = identity.trust();
  const listed = host === null ? undefined : trust.hosts.get(host);
  if (host === null || listed === undefined || bundle.cluster !== trust.cluster)
    throw notYours("no host of this cluster is listed by that id");
  if (!addresses.includes(listed.address))
    throw notYours(`${listed.name} has the address ${listed.address}, and this host has not`);
  await refuseAlive({ identity, mirror, self }, host, listed);
  const key = authority.bundleKey({ ...bundle, host });
  if (key === null) throw notYours("it is sealed by an authority that this member has no key of");
  return wrapKey(key, readJoinCert(request.cert, request.host).publicKey);
}

/** This host is who the bundle says. What it wished to become before is forgotten. */
export async function takeBundle(
  { files, identityFiles, etcd }: JoinContext,
  { bundle, key: wrapped }: Reclaim,
): Promise<HostFile> {
  await refuseMember(files);
  const own = await identityFiles.readHostKey();
  const sealed = parseBundle(bundle);
  const key = own === null ? null : unwrapKey(wrapped, own);
  const payload = key === null || sealed === null ? null : openBundle(key, sealed);
  if (payload === null || sealed === null) throw notYours("its key does not open it");
  const file = checked(payload, sealed);
  await etcd.retire();
  await identityFiles.dropHost();
  await identityFiles.dropAuthorities();
  const keyPem = new Secret(payload.keyPem);
  await identityFiles.writeHostKey(keyPem);
  await identityFiles.writeHost({ certPem: payload.certPem, chainPem: payload.chainPem, keyPem });
  await identityFiles.writeTrustFirst(payload.trust);
  if (payload.devices !== null) await writeDurably(join(files.stateDir, "devices.json"), payload.devices);
  await files.writeHost(file);
  await files.removeIntent();
  return file;
}

/** As if it came from anybody: the disk was somewhere else meanwhile. */
function checked(payload: BundlePayload, of: { readonly cluster: string; readonly host: string }): HostFile {
  const file = parseHostFile(payload.hostFile);
  if (file === null || file.cluster !== of.cluster || file.host !== of.host)
    throw notYours("what is in it is of another host");
  const leaf = readCertificate(payload.certPem);
  const first = openFirstTrust(payload.trust);
  if (leaf === null || first.kind === "refused") throw notYours("its certificate or its list can't be read");
  const { trust } = first.value;
  const { kid } = factsOf(leaf, trust.authorities);
  const names = Array.from(trust.hosts).find(([id]) => id === file.host)?.[1];
  if (trust.cluster !== of.cluster || names?.keys.some((known) => known.kid === kid) !== true)
    throw notYours("its list does not name its key");
  if (kidOf(leaf.publicKey) !== kid) throw notYours("its key is not its certificate's");
  return file;
}

/** Somebody is that host now: another one with its identity would be a second one. */
async function refuseAlive(
  { identity, mirror, self }: Pick<MemberContext, "identity" | "mirror" | "self">,
  host: HostId,
  { name, address }: { readonly name: string; readonly address: string },
): Promise<void> {
  const isThere = aliveOf(mirror).has(host) || (await answers({ identity, self }, address));
  if (!isThere) return;
  throw notYours(`${name} is there, and answers`);
}

async function answers(context: Pick<MemberContext, "identity" | "self">, address: string): Promise<boolean> {
  try {
    await askHost(context, address);
    return true;
  } catch (error) {
    if (isWeftError(error)) return false;
    throw error;
  }
}

function notYours(why: string): WeftError {
  return new WeftError({
    code: "E-SETUP-17",
    message: `The identity on this host's disk can't be taken up again: ${why}.`,
    safe: "Nothing was changed.",
    do: [
      {
        why: "Take the old host out, on another one; then this one joins anew",
        command: "weft host remove HOST",
      },
    ],
  });
}
