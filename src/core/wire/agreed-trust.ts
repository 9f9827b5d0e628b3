/**
 * Which trust list is in force, by what other hosts say of it to one that was off or cut off.
 *
 *     known list ──what each host leads to──▶ one way, or several ──a majority of those that this host knew──▶ agreed
 *
 * Must always hold:
 * - a newer list, and that there is none, is believed of a majority alone: of the store's voters that this host knew last, or of
 *   all hosts of its list. Among voters it counts itself, since without a majority so counted there is no store either; but
 *   one that was off for long enough to lose its vote does so only where that majority is one of all hosts as well;
 * - a host that is behind does not speak for an authority that its own list doesn't name: it can't know whether that one was put
 *   in the old one's place by whom the old one's key was stolen from, or by whom it was stolen for;
 * - where hosts contradict each other nothing is believed that has not a majority without this host.
 */
import type { Finding } from "../model/finding.ts";
import type { HostId } from "../model/ids.ts";
import { type Authority, type SignedTrust, signerOf, type Trust } from "../model/trust.ts";
import { followTrust, newestTrust, openNextTrust } from "./signed-trust.ts";

/** By a host that has proven a key of the known list. */
export type Said = {
  readonly host: HostId;
  /** The lists that lead to its own, the oldest first; none: it has no newer one than the known. */
  readonly texts: readonly string[];
};

export type Electorate = {
  readonly self: HostId;
  /** Hosts with a vote in the store, as this host knew them; null: no host of its list is at that address. */
  readonly voters: readonly (HostId | null)[];
  /** It had the store so short a time ago that nobody can have got its own vote meanwhile. */
  readonly isRecent: boolean;
};

export type Agreed =
  | {
      readonly kind: "agreed";
      /** Index of who said the newest list; null: the known one is the newest. */
      readonly newest: number | null;
      /** No voter was silent. */
      readonly all: boolean;
    }
  | { readonly kind: "too-few"; readonly backing: number; readonly needed: number }
  | { readonly kind: "forked"; readonly finding: Finding };

/** Where a host leads to. `index` null: this host's own, known list. */
type Way = {
  readonly index: number | null;
  readonly texts: readonly string[];
  readonly end: SignedTrust;
};
type Tally = { readonly backing: number; readonly needed: number };
type Heard = Way & { readonly host: HostId };

export function agreedTrust(known: SignedTrust, said: readonly Said[], electorate: Electorate): Agreed {
  const { self, voters, isRecent } = electorate;
  const heard = said.flatMap(({ host, texts }, index): readonly Heard[] => {
    const end = followTrust(known, texts);
    const last = texts.at(-1);
    // It has another list, which nothing that it says leads to: no word for this one.
    const isLed = last === undefined || openNextTrust(end, last).kind === "ok";
    return host !== self && isLed ? [{ index, host, texts, end }] : [];
  });
  const listed = Array.from(known.trust.hosts.keys());
  const tally = (group: Electorate["voters"], way: Way, own: HostId | null): Tally => {
    const behind = heard.filter((one) => isBehind(one.end, way)).map(({ host }) => host);
    const backing = group.filter((host) => host !== null && (host === own || behind.includes(host)));
    return { backing: backing.length, needed: Math.floor(group.length / 2) + 1 };
  };
  const isMost = (way: Way, own: HostId | null): boolean => {
    if ([voters, listed].some((group) => isReached(tally(group, way, null)))) return true;
    if (own === null || !isReached(tally(voters, way, own))) return false;
    // Another host may have its vote since: then what makes a majority of voters with it may be no majority any more.
    return isRecent || voters.every((voter) => voter === own) || isReached(tally(listed, way, own));
  };
  const all = voters.every((voter) => voter === self || heard.some(({ host }) => host === voter));
  const none: Way = { index: null, texts: [], end: known };

  const newest = newestTrust(
    known,
    heard.map(({ texts }) => texts),
  );
  if (newest.kind === "refused") {
    const most = heard.find((way) => way.end !== known && isMost(way, null));
    return most === undefined
      ? { kind: "forked", finding: newest.finding }
      : { kind: "agreed", newest: most.index, all };
  }
  const way = newest.value === null ? none : (heard[newest.value] ?? none);
  if (isMost(way, self)) return { kind: "agreed", newest: way.index, all };
  const short = [tally(voters, way, self), tally(listed, way, self)].find((one) => !isReached(one));
  return { kind: "too-few", ...(short ?? tally(voters, way, null)) };
}

function isReached({ backing, needed }: Tally): boolean {
  return backing >= needed;
}

/** Whether a host with this list speaks for the one at the way's end: it is that, or leads to it under authorities that it names. */
function isBehind(own: SignedTrust, { texts, end }: Way): boolean {
  if (own.body === end.body) return true;
  return followTrust(own, texts).body === end.body && namesAuthorities(own.trust, end.trust);
}

function namesAuthorities(before: Trust, after: Trust): boolean {
  const store = after.storeAuthorities.find(({ state }) => state === "active");
  return (
    isNamed(before.authorities, signerOf(after)) &&
    store !== undefined &&
    isNamed(before.storeAuthorities, store.kid)
  );
}

function isNamed(authorities: readonly Authority[], kid: string): boolean {
  return authorities.some((authority) => authority.kid === kid && authority.state !== "outgoing");
}
