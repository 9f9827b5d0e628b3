/**
 * A signed trust list, from the store or from this host's own file, to what may be believed of it.
 *
 * Must always hold: nothing of a list's body is acted on before its signature was verified, and `acceptTrust` let it in.
 */
import type { Decision } from "../model/finding.ts";
import { finding, ok, refused } from "../model/finding.ts";
import { acceptTrust } from "../model/trust.ts";
import type { SignedTrust, Trust } from "../model/trust.ts";
import { isWeftError } from "./errors.ts";
import { openSigned } from "./signed.ts";
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
