/**
 * Asks the store's members, over their doors, for what only they have: one after the other, until one gives it.
 *
 * Must always hold:
 * - who is asked has proven by the trust list that it is a host of the cluster;
 * - while this host can't follow the store, a newer list is believed only where no other member that answers contradicts it:
 *   one that was revoked meanwhile can sign lists as well.
 */
import { kidOf, readCertificate } from "../wire/certificate.ts";
import type { Hello, RenewAnswer } from "../wire/door-api.ts";
import { decided, isWeftError, WeftError } from "../wire/errors.ts";
import { type Answered, HostClient } from "../wire/host-client.ts";
import { newestTrust } from "../wire/signed-trust.ts";
import type { StoreClient } from "../wire/store-client.ts";
import type { HostId } from "../model/ids.ts";
import { signerOf } from "../model/trust.ts";
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
  context: AskContext & { readonly authority: AuthorityKeeper; readonly isAway: () => boolean },
): Promise<RenewedCert> {
  const { authority, identity, isAway } = context;
  if (authority.holds(identity.trust())) return issueOwn(authority, identity);
  if (isAway()) {
    await followMembers(context);
    return renewByAny(context);
  }
  return taken(identity, await askMembers(context, (member) => member.renew(), "key"));
}

/**
 * While the store is away: other authorities may have taken over without this host, so that the store and it don't believe
 * each other any more. Any host whose key the list names tells whether there is a newer list. `keep` makes a list that is
 * followed durable, before a certificate by its authority is asked for: where none is given, the next call goes on there.
 */
export async function catchUp(
  context: AskContext & { readonly keep: () => Promise<void> },
): Promise<boolean> {
  const { identity, keep } = context;
  const heard = await askEach(context, (member) => member.hello());
  const isNewer = heard.some(({ generation }) => generation > identity.trust().generation);
  const isFollowed = isNewer && (await followMembers(context));
  const trust = identity.trust();
  // Revoked: whoever hears of the change destroys this host's identity, and there is nothing to go on with.
  if (!trust.hosts.has(identity.host)) return false;
  if (isFollowed) await keep();
  if (identity.issuerOf(trust) === signerOf(trust)) return false;
  await identity.take(await renewByAny(context));
  return true;
}

/**
 * Of the lists that members have the newest is taken, where all are steps of one way; E-TRUST-06 where two contradict each
 * other. False: none is newer. E-HOST-14 where a member says so, and no list that can be followed does.
 */
async function followMembers(context: AskContext): Promise<boolean> {
  const { identity } = context;
  const heard = await askEach(context, listsOf);
  const said = heard.map(({ links, trust }) => [...links, trust]);
  const newest = newestTrust(identity.known, said);
  if (newest.kind === "refused") identity.doubt(newest.finding);
  const index = decided(newest);
  if (index === null) {
    const refusal = heard.find(({ revoked }) => revoked !== null)?.revoked ?? null;
    if (refusal !== null) throw refusal;
    return false;
  }
  identity.offerAll(said[index] ?? []);
  return true;
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

function taken(identity: IdentityKeeper, answer: RenewAnswer): RenewedCert {
  const { cert, authority: chainPem, trust, links } = answer;
  identity.offerAll([...links, trust]);
  const kid = kidOfPem(chainPem);
  if (identity.trust().authorities.some((known) => known.kid === kid)) return { certPem: cert, chainPem };
  throw otherAuthority();
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
