/**
 * Asks the store's members, over their doors, for what only they have: one after the other, until one gives it.
 *
 * Must always hold: who is asked has proven by the trust list that it is a host of the cluster.
 */
import { kidOf, readCertificate } from "../wire/certificate.ts";
import type { Hello } from "../wire/door-api.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import { type Answered, HostClient } from "../wire/host-client.ts";
import type { StoreClient } from "../wire/store-client.ts";
import type { HostId } from "../model/ids.ts";
import type { AuthorityKeeper, HeldAuthorities } from "./authority.ts";
import type { HostFile } from "./host-file.ts";
import type { IdentityKeeper, RenewedCert } from "./identity.ts";
import { handedOver } from "./members.ts";
import { issueOwn } from "./renew.ts";

/** A member that takes longer to write four files is away. */
const GIVE_MS = 3000;

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
  context: AskContext & { readonly authority: AuthorityKeeper },
): Promise<RenewedCert> {
  const { authority, identity } = context;
  if (authority.holds(identity.trust())) return issueOwn(authority, identity);
  return renewByMember(context);
}

/**
 * While the store is away: other authorities may have taken over without this host, so that the store and it don't believe
 * each other any more. Any host whose key the list names tells whether there is a newer list.
 */
export async function catchUp(context: AskContext): Promise<boolean> {
  const { identity } = context;
  const { generation } = await askMembers(context, (member) => member.hello(), "key");
  if (generation <= identity.trust().generation) return false;
  await identity.take(await renewByMember(context));
  return true;
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

async function renewByMember(context: AskContext): Promise<RenewedCert> {
  const { identity } = context;
  const answer = await askMembers(context, (member) => member.renew(), "key");
  const { cert, authority: chainPem, trust, links } = answer;
  identity.offerAll([...links, trust]);
  const issuer = readCertificate(chainPem);
  const kid = issuer === null ? null : kidOf(issuer.publicKey);
  if (identity.trust().authorities.some((known) => known.kid === kid)) return { certPem: cert, chainPem };
  throw new WeftError({
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
