/**
 * `weft ca rotate|show`: a new authority takes the place of the old one while everything goes on (rotation.ts).
 *
 * Must always hold: the new authorities' keys are at every member of the store before a list names them.
 */
import { randomUUID } from "node:crypto";

import { hostName } from "../model/cluster.ts";
import { byText } from "../model/ids.ts";
import type { HostId } from "../model/ids.ts";
import { leaveBehind, startRotation } from "../model/rotation.ts";
import type { Decision } from "../model/finding.ts";
import { ok } from "../model/finding.ts";
import { membersOf } from "../model/trust.ts";
import type { Authority, Trust } from "../model/trust.ts";
import type { CaAnswer } from "../wire/agent-api.ts";
import { WeftError } from "../wire/errors.ts";
import type { AuthorityKeys } from "../wire/x509-make.ts";
import { giveAuthorities } from "./ask-members.ts";
import type { MemberContext } from "./context.ts";
import { findListed } from "./find.ts";
import { hostOfMember } from "./members.ts";
import { acksOf, awaitedNow } from "./rotation-keeper.ts";
import { changeTrust } from "./trust-change.ts";

/** Begins it, or leaves hosts behind in one that is under way. It goes on by itself. */
export async function rotateAuthority(context: MemberContext, without: readonly string[]): Promise<CaAnswer> {
  const { identity, authority, mirror, self } = context;
  await mirror.sync();
  const left = without.map((ref) => findListed(identity.trust(), ref).id);
  if (identity.trust().rotation === null) {
    if (!authority.holds(identity.trust())) authority.give(identity.trust());
    const members = await memberHosts(context);
    const next = await authority.makeNext(self.cluster);
    const others = members.filter((id) => id !== self.host);
    const missing = await giveAuthorities(context, { host: [next.host], store: [next.store] }, others);
    if (missing.length > 0) throw notTaken(context, missing);
    const start = {
      id: randomUUID(),
      authority: named(next.host),
      storeAuthority: named(next.store),
      members,
      nonce: "",
      nowMs: Date.now(),
    };
    await changeTrust(context, (trust) => withLeft(startRotation(trust, start), left));
  } else if (left.length > 0) {
    await changeTrust(context, (trust) => withLeft(ok(trust), left));
  }
  return showAuthority(context);
}

export async function showAuthority(context: MemberContext): Promise<CaAnswer> {
  const { identity, mirror, view } = context;
  const trust = identity.trust();
  const cluster = view.cluster();
  const { rotation } = trust;
  const awaited = rotation === null ? [] : awaitedNow(mirror, trust, await memberHosts(context));
  const acks = acksOf(mirror, trust);
  const listed = (kind: "host" | "store", list: readonly Authority[]): CaAnswer["authorities"] =>
    list.map(({ kid, state, sinceMs }) => ({
      kind,
      kid,
      state,
      since: new Date(sinceMs).toISOString(),
      signed: Array.from(trust.hosts.values()).filter(({ certs }) =>
        certs.some((cert) => cert.by === kid && cert.notAfterMs > Date.now()),
      ).length,
    }));
  return {
    generation: trust.generation,
    transport: trust.transport,
    authorities: [...listed("host", trust.authorities), ...listed("store", trust.storeAuthorities)],
    rotation:
      rotation === null
        ? null
        : {
            phase: rotation.phase,
            why: rotation.why,
            since: new Date(rotation.sinceMs).toISOString(),
            without: rotation.without.map((id) => hostName(cluster, id)),
            awaited: awaited.map(({ host, what }) => ({ host: hostName(cluster, host), what })),
          },
    hosts: byName(trust.hosts).map(([id, { name, keys, certs }]) => ({
      host: id,
      name,
      keys: keys.map(({ kid }) => kid),
      notAfter:
        certs.length === 0 ? null : new Date(Math.max(...certs.map((c) => c.notAfterMs))).toISOString(),
      generation: acks.get(id)?.generation ?? null,
    })),
    revoked: byName(trust.revoked).map(([id, { name, atMs, by }]) => ({
      host: id,
      name,
      at: new Date(atMs).toISOString(),
      by,
    })),
  };
}

/** Hosts that the list names as members and that etcd has now: what etcd says alone is every host's to change. */
export async function memberHosts({
  identity,
  storeKeeper,
}: Pick<MemberContext, "identity" | "storeKeeper">): Promise<readonly HostId[]> {
  const trust = identity.trust();
  const known = (await storeKeeper.members.list()).map((member) => hostOfMember(trust, member));
  return membersOf(trust).filter((host) => known.includes(host));
}

function byName<Entry extends { readonly name: string }>(
  hosts: ReadonlyMap<HostId, Entry>,
): readonly (readonly [HostId, Entry])[] {
  return Array.from(hosts).toSorted(([, a], [, b]) => byText(a.name, b.name));
}

function withLeft(trust: Decision<Trust>, left: readonly HostId[]): Decision<Trust> {
  if (trust.kind === "refused" || left.length === 0) return trust;
  return ok(leaveBehind(trust.value, left, ""));
}

function named({ kid, pem }: AuthorityKeys): Omit<Authority, "state"> {
  return { kid, pem, sinceMs: Date.now() };
}

function notTaken({ view }: MemberContext, missing: readonly HostId[]): WeftError {
  const names = missing.map((id) => hostName(view.cluster(), id));
  return new WeftError({
    code: "E-CA-03",
    message: `A change of the authority waits for members of the store that don't answer: ${names.join(", ")}.`,
    facts: { hosts: names },
    safe: "Nothing was changed.",
    do: [
      {
        why: "Bring them back, or take them out of the cluster",
        command: `weft host remove ${names[0] ?? "HOST"}`,
      },
    ],
  });
}
