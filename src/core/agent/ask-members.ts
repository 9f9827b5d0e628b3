/**
 * Asks the store's members, over their doors, for what only they have: one after the other, until one gives it.
 *
 * Must always hold:
 * - who is asked has proven by the trust list that it is a host of the cluster;
 * - a list that one of them shows is followed only as agreed-trust.ts says: one that was revoked meanwhile can sign lists as
 *   well, and a store that it shows has them.
 */
import { setTimeout as sleep } from "node:timers/promises";

import { type Agreed, agreedTrust } from "../wire/agreed-trust.ts";
import { kidOf, readCertificate } from "../wire/certificate.ts";
import type { Hello } from "../wire/door-api.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import { type Answered, HostClient } from "../wire/host-client.ts";
import type { StoreClient } from "../wire/store-client.ts";
import type { HostId } from "../model/ids.ts";
import { signerOf, type Trust } from "../model/trust.ts";
import type { AuthorityKeeper, HeldAuthorities } from "./authority.ts";
import type { HostFile } from "./host-file.ts";
import type { IdentityKeeper, RenewedCert } from "./identity.ts";
import { handedOver } from "./members.ts";
import { issueOwn } from "./renew.ts";

/** A member that takes longer to write four files is away. */
const GIVE_MS = 3000;
/** Where all are asked, one that is slower than this is not waited for. */
const EACH_MS = 5000;

export type AskContext = {
  readonly self: HostFile;
  readonly store: StoreClient;
  readonly identity: IdentityKeeper;
};

/** Throws what the last of them refused; E-HOST-09 where none answers. */
export async function askMembers<Answer>(
  { self, store, identity }: AskContext,
  ask: (member: HostClient) => Promise<Answered<Answer>>,
  kind: "host" | "key" = "host",
): Promise<Answer> {
  let last: WeftError = noOther(self);
  for (const address of memberAddresses(store)) {
    if (address === self.address) continue;
    const shown = identity.current();
    const trust = identity.trust();
    const expect = kind === "key" ? { kind, trust } : { kind, trust, host: null };
    try {
      return (await ask(new HostClient({ address, shown, from: self.address, expect }))).answer;
    } catch (error) {
      if (!isWeftError(error)) throw error;
      last = error;
    }
  }
  throw last;
}

/** A new certificate for this host's key: a member makes its own, others are given one for the key that they prove. */
export async function renewOwn(
  context: AskContext & {
    readonly authority: AuthorityKeeper;
    readonly isAway: () => boolean;
    /** Follows the list that is in force, by what other hosts say. */
    readonly follow: () => Promise<void>;
  },
): Promise<RenewedCert> {
  const { authority, identity, isAway, follow } = context;
  if (authority.holds(identity.trust())) return issueOwn(authority, identity);
  if (isAway()) {
    await follow();
    return renewByAny(context);
  }
  const { cert: certPem, authority: chainPem } = await askMembers(context, (member) => member.renew(), "key");
  const isKnown = (): boolean =>
    identity.trust().authorities.some((known) => known.kid === kidOfPem(chainPem));
  // One member's word for an authority that this host has not heard of is none.
  if (!isKnown()) await follow();
  if (!isKnown()) throw otherAuthority();
  return { certPem, chainPem };
}

/**
 * While the store is away: other authorities may have taken over without this host, so that the store and it don't believe
 * each other any more. Any host whose key the list names tells whether there is a newer list. `keep` makes the list that is
 * known durable, before a certificate by its authority is asked for: where none is given, the next call goes on there.
 */
export async function catchUp(
  context: AskContext & { readonly follow: () => Promise<void>; readonly keep: () => Promise<void> },
): Promise<boolean> {
  const { identity, follow, keep } = context;
  await follow();
  const trust = identity.trust();
  // Revoked: whoever hears of the change destroys this host's identity, and there is nothing to go on with.
  if (!trust.hosts.has(identity.host)) return false;
  if (identity.issuerOf(trust) === signerOf(trust)) return false;
  await keep();
  await identity.take(await renewByAny(context));
  return true;
}

/** What hosts say of the list in force, and what follows from it; `refusal`: who is asked says that this host was revoked. */
export type Followed = { readonly agreed: Agreed; readonly refusal: WeftError | null };

export type Following = {
  /** Who has not answered by then says nothing. */
  readonly roundMs: number;
  /** As in agreed-trust.ts. */
  readonly isRecent: boolean;
};

/**
 * Asks the store's voters that this host knows, or all hosts of its list, which list is in force, and follows it where that
 * is agreed.
 */
export async function followHosts(
  context: AskContext,
  asked: "voters" | "all",
  { roundMs, isRecent }: Following,
): Promise<Followed> {
  const { self, identity, store } = context;
  const { known } = identity;
  const voters = memberAddresses(store);
  const electorate = {
    self: identity.host,
    isRecent,
    voters: voters.map((address) =>
      address === self.address ? identity.host : hostAt(known.trust, address),
    ),
  };
  if (electorate.voters.every((voter) => voter === identity.host))
    return { agreed: { kind: "agreed", newest: null, all: true }, refusal: null };
  const listed = asked === "all" ? Array.from(known.trust.hosts.values(), ({ address }) => address) : [];
  const heard = await hear(context, Array.from(new Set([...voters, ...listed])), roundMs);
  const agreed = agreedTrust(known, heard, electorate);
  const newest = agreed.kind === "agreed" && agreed.newest !== null ? heard[agreed.newest] : undefined;
  if (newest !== undefined && identity.known === known) identity.offerAll(newest.texts);
  const refusal = heard.find(({ revoked }) => revoked !== null)?.revoked ?? null;
  return { agreed, refusal: identity.known === known ? refusal : null };
}

type Heard = { readonly host: HostId; readonly texts: readonly string[]; readonly revoked: WeftError | null };

/** Each host once, whatever addresses it has. */
async function hear(
  { self, identity }: AskContext,
  addresses: readonly string[],
  roundMs: number,
): Promise<readonly Heard[]> {
  const [shown, trust] = [identity.current(), identity.trust()];
  const heard = new Map<HostId, Heard>();
  const expect = { kind: "key" as const, trust };
  const all = addresses
    .filter((address) => address !== self.address)
    .map(async (address) => {
      const client = new HostClient({ address, shown, from: self.address, expect, answerMs: roundMs });
      try {
        const { answer, by } = await client.hello();
        const isNewer = answer.generation > trust.generation;
        const { trust: last, links, revoked } = isNewer ? (await listsOf(client)).answer : nothingNewer;
        const texts = last === null ? [] : [...links, last];
        if (!heard.has(by.host)) heard.set(by.host, { host: by.host, texts, revoked });
      } catch (error) {
        if (!isWeftError(error)) throw error;
      }
    });
  const late = new AbortController();
  const slow = sleep(roundMs, null, { signal: late.signal, ref: false }).catch(() => null);
  try {
    await Promise.race([Promise.all(all), slow]);
  } finally {
    late.abort();
  }
  return Array.from(heard.values());
}

const nothingNewer = { trust: null, links: [], revoked: null } as const;

function hostAt(trust: Trust, address: string): HostId | null {
  return Array.from(trust.hosts).find(([, host]) => host.address === address)?.[0] ?? null;
}

type Lists = {
  readonly trust: string;
  readonly links: readonly string[];
  /** The member's refusal, which the lists prove. */
  readonly revoked: WeftError | null;
};

/** A host that was revoked is refused by the list that says so. */
async function listsOf(member: HostClient): Promise<{ readonly answer: Lists }> {
  try {
    const { answer } = await member.lists();
    return { answer: { ...answer, revoked: null } };
  } catch (error) {
    if (!isWeftError(error, "E-HOST-14")) throw error;
    const { trust, links } = error.facts;
    if (typeof trust !== "string") throw error;
    return { answer: { trust, links: Array.isArray(links) ? links.map(String) : [], revoked: error } };
  }
}

/** What any host of the cluster says of itself. */
export async function askHost(
  { self, identity }: Pick<AskContext, "self" | "identity">,
  address: string,
): Promise<Hello> {
  const expect = { kind: "host" as const, trust: identity.trust(), host: null };
  const client = new HostClient({ address, shown: identity.current(), from: self.address, expect });
  return (await client.hello()).answer;
}

/** By the authority that signs now, from whichever member gives it: one that is behind, or revoked, gives another one. */
async function renewByAny(context: AskContext): Promise<RenewedCert> {
  const { identity } = context;
  const signer = signerOf(identity.trust());
  const given = await askEach(context, (member) => member.renew());
  const [first] = given.filter(({ authority }) => kidOfPem(authority) === signer);
  if (first === undefined) throw otherAuthority();
  return { certPem: first.cert, chainPem: first.authority };
}

/** What every other member says that answers; throws what the last of them refused where none does. */
async function askEach<Answer>(
  { self, store, identity }: AskContext,
  ask: (member: HostClient) => Promise<Pick<Answered<Answer>, "answer">>,
): Promise<readonly Answer[]> {
  let last: WeftError = noOther(self);
  const [shown, trust] = [identity.current(), identity.trust()];
  const answers = await Promise.all(
    memberAddresses(store)
      .filter((address) => address !== self.address)
      .map(async (address) => {
        const expect = { kind: "key" as const, trust };
        const client = new HostClient({ address, shown, from: self.address, expect, answerMs: EACH_MS });
        try {
          return [(await ask(client)).answer];
        } catch (error) {
          if (!isWeftError(error)) throw error;
          last = error;
          return [];
        }
      }),
  );
  const heard = answers.flat();
  if (heard.length === 0) throw last;
  return heard;
}

function kidOfPem(pem: string): string | null {
  const certificate = readCertificate(pem);
  return certificate === null ? null : kidOf(certificate.publicKey);
}

function otherAuthority(): WeftError {
  return new WeftError({
    code: "E-TRUST-01",
    message: "A member answered with a certificate by an authority that this host's list does not name.",
    safe: "This host goes on with the certificate that it has.",
  });
}

/** Hands keys of authorities to other members of the store, all at once; gives those that did not take them. */
export async function giveAuthorities(
  { self, identity }: Omit<AskContext, "store">,
  authorities: HeldAuthorities,
  members: readonly HostId[],
): Promise<readonly HostId[]> {
  const body = handedOver(authorities, identity.text);
  const trust = identity.trust();
  const shown = identity.current();
  const taken = await Promise.all(
    members.map(async (host) => {
      const address = trust.hosts.get(host)?.address;
      if (address === undefined) return false;
      const expect = { kind: "host" as const, trust, host };
      try {
        const client = new HostClient({ address, shown, from: self.address, expect, answerMs: GIVE_MS });
        await client.putAuthority(body);
        return true;
      } catch (error) {
        if (isWeftError(error)) return false;
        throw error;
      }
    }),
  );
  return members.filter((_, i) => taken[i] !== true);
}

/** Of the store's voters. */
export function memberAddresses(store: StoreClient): readonly string[] {
  return store.call.endpoints.map((url) => new URL(url).hostname.replace(/^\[(.*)\]$/, "$1"));
}

function noOther({ name }: HostFile): WeftError {
  return new WeftError({
    code: "E-HOST-09",
    message: `${name} knows no other member of the store to ask.`,
    safe: "Nothing was changed.",
  });
}
