/**
 * What a host needs to become a member of the store: the authorities' private keys, given by a member over a connection
 * on which both have proven who they are.
 *
 * Must always hold:
 * - they are given to a host only that the signed list names as a member: what etcd and the store's keys say of members is
 *   every host's to write;
 * - the list says for ever that this host had them, and says so before it has them: revoking it calls for new ones.
 */
import { createPrivateKey, createPublicKey } from "node:crypto";

import { ok } from "../model/finding.ts";
import type { HostId } from "../model/ids.ts";
import { Secret } from "../model/secret.ts";
import { signerOf, withHeld } from "../model/trust.ts";
import type { Trust } from "../model/trust.ts";
import { kidOf } from "../wire/certificate.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import type { Member } from "../wire/store-members.ts";
import type { AuthorityKeys } from "../wire/x509-make.ts";
import type { HeldAuthorities } from "./authority.ts";
import { peerUrl } from "./etcd-process.ts";
import { changeTrust } from "./trust-change.ts";
import type { TrustWriter } from "./trust-change.ts";

/** Of both kinds: those in use, those of a change under way, and some that were never announced. */
const AUTHORITIES_MAX = 32;

/** The listed host at whose address a member of etcd is; null: there is none. What the member calls itself counts for nothing. */
export function hostOfMember(trust: Trust, { peerUrls }: Pick<Member, "peerUrls">): HostId | null {
  const [url] = peerUrls;
  const found = Array.from(trust.hosts).find(([, { address }]) => peerUrl(address) === url);
  return peerUrls.length === 1 ? (found?.[0] ?? null) : null;
}

/** As it goes over the wire; `key` is PKCS#8, PEM. */
type SentAuthority = { readonly kid: string; readonly pem: string; readonly key: string };
export type MemberCredentials = {
  readonly authorities: SentAuthority[];
  readonly storeAuthorities: SentAuthority[];
  /** The newest trust list, signed. */
  readonly trust: string;
};

/** To `host`, which has proven itself. E-CA-01 where this host has none to give, E-CA-07 where `host` is no member. */
export async function memberCredentials(context: TrustWriter, host: HostId): Promise<MemberCredentials> {
  const { authority } = context;
  // The list is read anew from the store for that, and swapped if this host was not said to have had them.
  try {
    const change = await changeTrust(context, (trust) => {
      if (!isMember(trust, host)) throw noMember(host);
      return withHeld(trust, { host, kids: kidsOf(authority.give(trust)), nonce: "" });
    });
    if (change.kind !== "changed") throw new Error("a change of the list alone compares nothing else");
    return handedOver(authority.give(change.signed.trust), change.text);
  } catch (error) {
    const again = isWeftError(error, "E-STORE-01") ? saidToHave(context, host) : null;
    if (again === null) throw error;
    return again;
  }
}

/** Keys that nobody gave to this host: it took them from a backup. The list is to say so of itself, as of others. */
export async function sayHeld(context: TrustWriter): Promise<void> {
  const { authority, identity } = context;
  const owned = ({ authorities, storeAuthorities }: Trust): readonly string[] =>
    [...authorities, ...storeAuthorities]
      .map(({ kid }) => kid)
      .filter((kid) => authority.kids().includes(kid));
  const known = identity.trust();
  const own = known.hosts.get(identity.host);
  if (own === undefined || owned(known).every((kid) => own.held.includes(kid))) return;
  await changeTrust(context, (trust) =>
    trust.hosts.has(identity.host)
      ? withHeld(trust, { host: identity.host, kids: owned(trust), nonce: "" })
      : ok(trust),
  );
}

/**
 * Without the store: its majority may be away because of just this member, which has none of the keys yet. What the list says
 * that it has had can be given to it again; null: the list says so of none, or not of all.
 */
function saidToHave({ authority, identity }: TrustWriter, host: HostId): MemberCredentials | null {
  const trust = identity.trust();
  const given = authority.give(trust);
  const held = isMember(trust, host) ? (trust.hosts.get(host)?.held ?? []) : [];
  return kidsOf(given).every((kid) => held.includes(kid)) ? handedOver(given, identity.text) : null;
}

function kidsOf({ host, store }: HeldAuthorities): readonly string[] {
  return [...host, ...store].map(({ kid }) => kid);
}

/** Keys of authorities as they are handed to another member, also of such that no list names yet; `trust` is the list of now. */
export function handedOver(authorities: HeldAuthorities, trust: string): MemberCredentials {
  return {
    authorities: authorities.host.map(sent),
    storeAuthorities: authorities.store.map(sent),
    trust,
  };
}

/**
 * Another member hands over the keys of authorities that are to come. `from` has proven itself; E-CA-07 where the list
 * doesn't name it as a member that has the authority's key itself, E-CA-01 where this host is none.
 */
export async function takeAuthorities(
  { authority, identity }: Pick<TrustWriter, "authority" | "identity">,
  from: HostId,
  body: MemberCredentials,
): Promise<void> {
  const trust = identity.trust();
  if (!authority.holds(trust)) authority.give(trust);
  const has = trust.hosts.get(from)?.held.includes(signerOf(trust)) ?? false;
  if (!has || !isMember(trust, from)) throw noMember(from);
  if (authority.kids().length > AUTHORITIES_MAX) throw tooMany();
  await authority.take(receivedAuthorities(body));
}

/** What a member answered, as keys whose certificates fit them: E-CA-05 otherwise, when they are written. */
export function receivedAuthorities(answer: MemberCredentials): HeldAuthorities {
  return {
    host: answer.authorities.map(received),
    store: answer.storeAuthorities.map(received),
  };
}

function isMember(trust: Trust, host: HostId): boolean {
  return trust.hosts.get(host)?.member ?? false;
}

function sent({ kid, pem, keyPem }: AuthorityKeys): SentAuthority {
  return { kid, pem, key: keyPem.reveal() };
}

/** Its name is the hash of its key, whatever the answer calls it. */
function received({ pem, key }: SentAuthority): AuthorityKeys {
  return { kid: kidOfPrivate(key), pem, keyPem: new Secret(key) };
}

function kidOfPrivate(key: string): string {
  try {
    return kidOf(createPublicKey(createPrivateKey(key)));
  } catch {
    // The cause may quote what it read.
    throw new WeftError({
      code: "E-CA-05",
      message: "A key of an authority that another host handed over can't be used.",
      safe: "Nothing was changed.",
    });
  }
}

function tooMany(): WeftError {
  return new WeftError({
    code: "E-CA-02",
    message: "This host has keys of more authorities than any change of them needs.",
    safe: "Nothing was changed.",
    do: [{ why: "See what is under way", command: "weft ca show" }],
  });
}

function noMember(host: HostId): WeftError {
  return new WeftError({
    code: "E-CA-07",
    message: `Host ${host} is no member of the store: it gets no authority's key.`,
    facts: { host },
    safe: "Nothing was changed.",
  });
}
