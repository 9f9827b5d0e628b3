/**
 * A signed trust list, from the store or from this host's own file, to what may be believed of it.
 *
 * Must always hold: nothing of a list's body is acted on before its signature was verified, and `acceptTrust` let it in.
 */
import type { Decision } from "../model/finding.ts";
import { finding, ok, refused } from "../model/finding.ts";
import type { HostId } from "../model/ids.ts";
import { acceptTrust } from "../model/trust.ts";
import type { SignedTrust, Trust } from "../model/trust.ts";
import { isWeftError } from "./errors.ts";
import { openByHost, openSigned, type SignedKind } from "./signed.ts";
import { keys } from "./store-keys.ts";
import { parseTrust } from "./trust.ts";

/**
 * The first list of a host: signed by one of the authorities that it names itself. That this authority is the right one
 * the caller has to know: by a token's fingerprint (compare `by`), or because the list lay in this host's own file.
 */
export function openFirstTrust(text: string): Decision<SignedTrust> {
  const body = bodyOf(text);
  if (body === null) return unreadable("it is not a signed value");
  const trust = parsed(body);
  if (trust.kind === "refused") return trust;
  const opened = openSigned("trust", text, trust.value.authorities);
  if (opened.kind === "refused") return opened;
  return acceptTrust(null, { trust: trust.value, body: opened.value.body, by: opened.value.by });
}

/** The list that follows `known`; `known` itself where the text is the same list. Refused: E-TRUST-01, E-TRUST-02. */
export function openNextTrust(known: SignedTrust, text: string): Decision<SignedTrust> {
  const opened = openSigned("trust", text, known.trust.authorities);
  if (opened.kind === "refused") return opened;
  const { body, by } = opened.value;
  const trust = parsed(body);
  return trust.kind === "refused" ? trust : acceptTrust(known, { trust: trust.value, body, by });
}

/** What this host signed as this kind, by a key that the list has of it; null: it has not. */
export function openOfHost(trust: Trust, host: HostId, kind: SignedKind, text: string): string | null {
  const kids = (trust.hosts.get(host)?.keys ?? []).map(({ kid }) => kid);
  return openByHost(kind, text, kids);
}

/** Where a text that may be a list would stand among lists: to put them in order, and for nothing else. 0: nowhere. */
export function generationOf(text: string): bigint {
  try {
    const { generation } = JSON.parse(bodyOf(text) ?? "") as { readonly generation?: unknown };
    return typeof generation === "string" && /^\d{1,20}$/.test(generation) ? BigInt(generation) : 0n;
  } catch {
    return 0n;
  }
}

/** The newest list to which these lead, each where it follows; `known` itself where none does. */
export function followTrust(known: SignedTrust, texts: readonly string[]): SignedTrust {
  return texts.reduce((so, text) => {
    const next = openNextTrust(so, text);
    return next.kind === "ok" ? next.value : so;
  }, known);
}

/**
 * What several hosts say to one that was away: each a list, and those that lead to it. All must be steps of one way: where two
 * lists are newer than the known one and none leads to the other, one of them was signed by somebody who has no right to it
 * any more, and this host can't know which. Gives the index of the newest; null: none is newer. Refused: E-TRUST-06.
 */
export function newestTrust(
  known: SignedTrust,
  said: readonly (readonly string[])[],
): Decision<number | null> {
  const newer = said
    .map((texts, index) => ({ index, texts, end: followTrust(known, texts) }))
    .filter(({ end }) => end !== known && end.body !== known.body)
    .toSorted((a, b) => (a.end.trust.generation < b.end.trust.generation ? -1 : 1));
  for (const [i, later] of newer.entries()) {
    const before = newer[i - 1];
    if (before === undefined || followTrust(before.end, later.texts).body === later.end.body) continue;
    return forked(before.end.trust, later.end.trust);
  }
  return ok(newer.at(-1)?.index ?? null);
}

function forked(one: Trust, other: Trust): Decision<never> {
  const [first, second] = [String(one.generation), String(other.generation)];
  return refused(
    finding(
      "E-TRUST-06",
      `Two members show trust lists that are newer than this host's, and neither follows the other: generation ${first} and ${second}.`,
      {
        facts: { first, second },
        safe: "Neither is believed. The list that this host has stays in force.",
        do: [
          {
            why: "Which members were revoked while this host was off? Ask one that you trust, and take them off the network",
            command: "weft ca show",
          },
        ],
      },
    ),
  );
}

function parsed(body: string): Decision<Trust> {
  try {
    return ok(parseTrust(keys.trust, body));
  } catch (error) {
    if (isWeftError(error)) return unreadable(error.message);
    throw error;
  }
}

function bodyOf(text: string): string | null {
  try {
    const json: unknown = JSON.parse(text);
    const isSigned = typeof json === "object" && json !== null && "body" in json;
    return isSigned && typeof json.body === "string" ? json.body : null;
  } catch {
    return null;
  }
}

function unreadable(why: string): Decision<never> {
  return refused(
    finding("E-TRUST-01", `A trust list is refused: ${why}`, {
      safe: "It is not believed, and nothing was changed.",
    }),
  );
}
