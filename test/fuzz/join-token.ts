/**
 * Join tokens as anybody may type or paste them.
 *
 * Must always hold: a text is a token that is written back to the same bytes, or is refused with E-TOKEN-01 by a finding
 * that shows no part of it.
 */
import * as fc from "fast-check";

import { Secret } from "../../src/core/model/secret.ts";
import { decodeJoinToken, encodeJoinToken } from "../../src/core/model/token-code.ts";
import type { JoinToken } from "../../src/core/model/token-code.ts";
import { assertCode } from "./codes.ts";
import type { OpenDoor } from "./door.ts";

const bytes = (length: number): fc.Arbitrary<Uint8Array> =>
  fc.uint8Array({ minLength: length, maxLength: length });
const token: fc.Arbitrary<JoinToken> = fc.record({
  fingerprint16: bytes(16),
  id4: bytes(4),
  secret12: bytes(12).map((value) => new Secret(value)),
});

/** A good one with something put in, taken out or written over. */
const spoilt = fc
  .tuple(token, fc.nat(70), fc.nat(3), fc.string({ unit: "binary", maxLength: 5 }))
  .map(([token, at, gone, put]) => {
    const text = encodeJoinToken(token);
    return text.slice(0, at) + put + text.slice(at + gone);
  });
const alphabet = fc.string({
  unit: fc.constantFrom(...Array.from("0123456789ABCDEFGHJKMNPQRSTVWXYZoOiIlLuU- \n")),
  maxLength: 80,
});

export async function openJoinToken(): Promise<OpenDoor> {
  return {
    arbitrary: fc.oneof(
      spoilt,
      token.map(encodeJoinToken),
      alphabet,
      fc.string({ unit: "binary", maxLength: 300 }),
    ),
    judge,
    kept: ["", "-", "\u0130".repeat(56), "\ud800".repeat(56), "ß".repeat(56), "0".repeat(56)],
    shrinks: true,
    close: async () => undefined,
  };
}

function judge(text: string): void {
  const decoded = decodeJoinToken(text);
  if (decoded.kind === "ok") {
    const again = decodeJoinToken(encodeJoinToken(decoded.value));
    if (again.kind === "refused") throw new Error("a token is not read as it was written");
    if (bytesOf(again.value) !== bytesOf(decoded.value))
      throw new Error("a token changed when it was written");
    return;
  }
  const { finding } = decoded;
  if (finding.code !== "E-TOKEN-01") throw new Error(`code ${finding.code}`);
  assertCode(finding.code, "a join token");
  const bare = text.trim();
  // Shorter ones may stand in any sentence.
  if (bare.length > 8 && JSON.stringify(finding).includes(bare))
    throw new Error("the finding shows the token");
}

function bytesOf({ fingerprint16, id4, secret12 }: JoinToken): string {
  return [fingerprint16, id4, secret12.reveal()].map((part) => part.join(",")).join(" ");
}
