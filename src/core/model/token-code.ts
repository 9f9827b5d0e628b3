/**
 * The text of a join token: what `weft token create` prints once, and a person carries to the host that joins.
 *
 *     byte 0       1..16                          17..20   21..32    33..34
 *     version 1    SHA-256 of the authority's     id       secret    CRC-16/CCITT-FALSE
 *                  public key, first 128 bits              96 bits   of bytes 0..32, high byte first
 *
 * 280 bits are 56 characters of Crockford's base32, in 14 groups of 4: `04F6-…`.
 *
 * Must always hold:
 * - every text that names a token names exactly one: case, hyphens and white space are free, O reads as 0, I and L as 1;
 * - one mistyped character, or two that changed places, is E-TOKEN-01 here: no secret leaves this host for a typing
 *   error, and none counts as a wrong try at the other;
 * - a finding never shows a part of the text: it may hold the secret.
 */
import type { Decision } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import { Secret } from "./secret.ts";

export type JoinToken = {
  /** First 16 bytes of SHA-256 over the authority's public key (SubjectPublicKeyInfo, DER). */
  readonly fingerprint16: Uint8Array;
  /** Names the token in the store and in lists; no secret. */
  readonly id4: Uint8Array;
  readonly secret12: Secret<Uint8Array>;
};

const VERSION = 1;
const FINGERPRINT_BYTES = 16;
const ID_BYTES = 4;
const SECRET_BYTES = 12;
const CRC_AT = 1 + FINGERPRINT_BYTES + ID_BYTES + SECRET_BYTES;
const TOKEN_BYTES = CRC_AT + 2;
const TOKEN_CHARACTERS = (TOKEN_BYTES * 8) / 5;
const GROUP = 4;
/** With a blank or a hyphen beside every character a token is shorter than this: longer texts aren't looked at. */
const TEXT_LENGTH_MAX = 4 * TOKEN_CHARACTERS;

/** Crockford's: without I, L, O and U. */
const DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

export function encodeJoinToken({ fingerprint16, id4, secret12 }: JoinToken): string {
  const secret = secret12.reveal();
  assertLength("fingerprint", fingerprint16, FINGERPRINT_BYTES);
  assertLength("id", id4, ID_BYTES);
  assertLength("secret", secret, SECRET_BYTES);
  const bytes = new Uint8Array(TOKEN_BYTES);
  bytes[0] = VERSION;
  bytes.set(fingerprint16, 1);
  bytes.set(id4, 1 + FINGERPRINT_BYTES);
  bytes.set(secret, 1 + FINGERPRINT_BYTES + ID_BYTES);
  const crc = crc16(bytes.subarray(0, CRC_AT));
  bytes[CRC_AT] = crc >> 8;
  bytes[CRC_AT + 1] = crc & 0xff;
  return grouped(base32(bytes));
}

/** Refused with E-TOKEN-01, which says what is wrong without showing any of it. */
export function decodeJoinToken(text: string): Decision<JoinToken> {
  if (text.length > TEXT_LENGTH_MAX) return malformed(`it has ${text.length} characters`);
  const characters = text.replaceAll(/[-\s]/g, "").toUpperCase();
  if (characters === "") return malformed("it is empty");
  const digits = Array.from(characters, digitOf);
  const stranger = digits.indexOf(-1);
  if (stranger >= 0) {
    return malformed(
      `its character ${stranger + 1}, hyphens not counted, is not one that tokens are made of`,
    );
  }
  if (digits.length !== TOKEN_CHARACTERS) return malformed(`it has ${digits.length}, hyphens not counted`);
  const bytes = unpacked(digits);
  const crc = ((bytes[CRC_AT] ?? 0) << 8) | (bytes[CRC_AT + 1] ?? 0);
  if (crc16(bytes.subarray(0, CRC_AT)) !== crc) {
    return malformed(
      "its check characters don't fit the others: something is mistyped or in the wrong place",
    );
  }
  if (bytes[0] !== VERSION) return malformed(`it is of version ${bytes[0]}, this software knows ${VERSION}`);
  const secretAt = 1 + FINGERPRINT_BYTES + ID_BYTES;
  return ok({
    fingerprint16: bytes.slice(1, 1 + FINGERPRINT_BYTES),
    id4: bytes.slice(1 + FINGERPRINT_BYTES, secretAt),
    secret12: new Secret(bytes.slice(secretAt, CRC_AT)),
  });
}

function malformed(what: string): Decision<JoinToken> {
  return refused(
    finding("E-TOKEN-01", `This is not a join token of ${TOKEN_CHARACTERS} characters: ${what}.`, {
      safe: "Nothing was sent, and no try was counted.",
      do: [
        { why: "Copy it whole, or make another one on a host of the cluster", command: "weft token create" },
      ],
    }),
  );
}

/** Value of a character, -1 for one that isn't in the alphabet. */
function digitOf(character: string): number {
  if (character === "O") return 0;
  if (character === "I" || character === "L") return 1;
  return character.length === 1 ? DIGITS.indexOf(character) : -1;
}

function base32(bytes: Uint8Array): string {
  let text = "";
  let rest = 0;
  let bits = 0;
  for (const byte of bytes) {
    rest = (rest << 8) | byte;
    for (bits += 8; bits >= 5;) {
      bits -= 5;
      text += DIGITS[(rest >> bits) & 31];
    }
    rest &= (1 << bits) - 1;
  }
  return text;
}

function unpacked(digits: readonly number[]): Uint8Array {
  const bytes = new Uint8Array((digits.length * 5) / 8);
  let rest = 0;
  let bits = 0;
  let at = 0;
  for (const digit of digits) {
    rest = (rest << 5) | digit;
    bits += 5;
    if (bits < 8) continue;
    bits -= 8;
    bytes[at++] = rest >> bits;
    rest &= (1 << bits) - 1;
  }
  return bytes;
}

function grouped(text: string): string {
  return Array.from({ length: text.length / GROUP }, (_, i) => text.slice(i * GROUP, (i + 1) * GROUP)).join(
    "-",
  );
}

/** CRC-16/CCITT-FALSE: polynomial 0x1021, begins with 0xffff. */
function crc16(bytes: Uint8Array): number {
  let crc = 0xffff;
  for (const byte of bytes) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit += 1) crc = ((crc << 1) ^ ((crc & 0x8000) === 0 ? 0 : 0x1021)) & 0xffff;
  }
  return crc;
}

function assertLength(name: string, bytes: Uint8Array, length: number): void {
  if (bytes.length !== length) throw new Error(`a token's ${name} has ${length} bytes, not ${bytes.length}`);
}
