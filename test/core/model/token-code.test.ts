/**
 * Plot: a join token is read aloud, typed and pasted. What arrives is the token, or a plain "this is none" before
 * anything leaves the host.
 */
import { deepStrictEqual, equal, ok } from "node:assert/strict";
import { inspect } from "node:util";

import * as fc from "fast-check";
import t from "tap";

import { decodeJoinToken, encodeJoinToken } from "../../../src/core/model/token-code.ts";
import type { JoinToken } from "../../../src/core/model/token-code.ts";
import { Secret } from "../../../src/core/model/secret.ts";

const bytes = (length: number): fc.Arbitrary<Uint8Array> =>
  fc.uint8Array({ minLength: length, maxLength: length });
const token: fc.Arbitrary<JoinToken> = fc.record({
  fingerprint16: bytes(16),
  id4: bytes(4),
  secret12: bytes(12).map((value) => new Secret(value)),
});
const ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

function plain(text: string): readonly (readonly number[])[] | string {
  const decoded = decodeJoinToken(text);
  if (decoded.kind === "refused") return decoded.finding.code;
  const { fingerprint16, id4, secret12 } = decoded.value;
  return [fingerprint16, id4, secret12.reveal()].map((part) => Array.from(part));
}

const specimen = encodeJoinToken({
  fingerprint16: Uint8Array.from({ length: 16 }, (_, i) => i),
  id4: Uint8Array.of(0xde, 0xad, 0xbe, 0xef),
  secret12: new Secret(Uint8Array.from({ length: 12 }, (_, i) => 255 - i)),
});

void t.test("join token: the text of release 1 stays readable", async (t) => {
  t.equal(specimen, "0400-20G3-0G2G-C1R8-1450-P30D-1R7X-XBDY-XZZZ-XZFW-ZFXF-KY7Q-YVTZ-92XT");
  t.match(specimen, /^([0-9A-Z]{4}-){13}[0-9A-Z]{4}$/);
});

void t.test("join token: what was encoded is decoded, however it is typed", async () => {
  const typed = fc.tuple(
    token,
    fc.infiniteStream(fc.nat(5)),
    fc.infiniteStream(fc.constantFrom("", "", "-", " ")),
  );
  fc.assert(
    fc.property(typed, ([token, how, between]) => {
      const text = Array.from(encodeJoinToken(token).replaceAll("-", ""), (character) => {
        const way = how.next().value ?? 0;
        const gap = between.next().value ?? "";
        if (character === "0" && way > 3) return `${gap}${way === 4 ? "o" : "O"}`;
        if (character === "1" && way > 1) return `${gap}${["I", "i", "L", "l"][way - 2]}`;
        return `${gap}${way === 0 ? character.toLowerCase() : character}`;
      }).join("");
      deepStrictEqual(plain(`${text}\n`), [
        Array.from(token.fingerprint16),
        Array.from(token.id4),
        Array.from(token.secret12.reveal()),
      ]);
    }),
    { numRuns: 300 },
  );
});

void t.test(
  "join token: a wrong character, or two that changed places, is told apart from a token",
  async () => {
    const slip = fc.tuple(token, fc.nat(55), fc.integer({ min: 1, max: 31 }), fc.boolean());
    fc.assert(
      fc.property(slip, ([token, at, by, swap]) => {
        const text = Array.from(encodeJoinToken(token).replaceAll("-", ""));
        const before = text.join("");
        if (swap) [text[at], text[(at + 1) % 56]] = [text[(at + 1) % 56] ?? "", text[at] ?? ""];
        else text[at] = ALPHABET[(ALPHABET.indexOf(text[at] ?? "") + by) % 32] ?? "";
        // The first and the last character are 55 apart: further than the checksum's burst.
        fc.pre(text.join("") !== before && !(swap && at === 55));
        equal(plain(text.join("")), "E-TOKEN-01");
      }),
      { numRuns: 1000 },
    );
  },
);

void t.test("join token: a refusal says what is wrong, and shows nothing of the text", async (t) => {
  const message = (text: string): string => {
    const decoded = decodeJoinToken(text);
    return decoded.kind === "refused" ? decoded.finding.message : "accepted";
  };
  t.match(message(""), /it is empty/);
  t.match(message(" - "), /it is empty/);
  t.match(message(specimen.slice(0, -1)), /it has 55, hyphens not counted/);
  t.match(message(`${specimen}0`), /it has 57/);
  t.match(message(`U${specimen.slice(1)}`), /its character 1,/);
  t.match(message(specimen.replace(/^..../, "04UF")), /its character 3,/);
  t.match(message("x".repeat(5000)), /it has 5000 characters/);
  t.match(
    message(`${specimen.slice(0, 6)}${specimen[6] === "0" ? "1" : "0"}${specimen.slice(7)}`),
    /check characters/,
  );
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 300 }), (text) => {
      const decoded = decodeJoinToken(text);
      if (decoded.kind === "ok" || text.trim().length <= 8) return;
      ok(!JSON.stringify(decoded.finding).includes(text.trim()));
    }),
  );
});

void t.test("join token: another version is named, when the checksum proves that it is one", async (t) => {
  // 2 in the first byte, and the checksum that belongs to it, made by hand from an independent CRC.
  const bytes = [2, ...Array.from({ length: 32 }, () => 7)];
  const crc = bytes.reduce((crc, byte) => {
    let next = crc ^ (byte << 8);
    for (const _ of "12345678") next = (next & 0x8000) === 0 ? next << 1 : (next << 1) ^ 0x11021;
    return next;
  }, 0xffff);
  const bits = [...bytes, crc >> 8, crc & 255].map((byte) => byte.toString(2).padStart(8, "0")).join("");
  const text = (bits.match(/.{5}/g) ?? []).map((five) => ALPHABET[Number.parseInt(five, 2)]).join("");
  const decoded = decodeJoinToken(text);
  t.match(decoded.kind === "refused" && decoded.finding.message, /it is of version 2, this software knows 1/);
});

void t.test("secret: whatever shows it says [secret]", async (t) => {
  const secret = new Secret("hunter2");
  const shown = [
    String(secret),
    JSON.stringify({ secret }),
    inspect({ secret }),
    inspect(secret, { depth: 9, showHidden: true, customInspect: false }),
    Object.values(secret).join(","),
  ];
  t.notMatch(shown.join("\n"), /hunter2/);
  t.strictSame(shown.slice(0, 2), ["[secret]", '{"secret":"[secret]"}']);
  t.equal(secret.reveal(), "hunter2");
});
