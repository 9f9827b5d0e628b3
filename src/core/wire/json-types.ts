/**
 * The small words of our JSON, parsed once: identifiers, 64-bit numbers as decimal strings, names, addresses.
 *
 * Must always hold: a number that may pass 2^53 is a decimal string on the wire and a bigint inside.
 */
import { z } from "zod";

const U64_MAX = (1n << 64n) - 1n;

/** A UUID, canonical: lower case with hyphens (any version, the nil one included). */
export const uuid = z
  .string()
  .regex(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/, "expected a UUID in lower case with hyphens");

/** A 64-bit number, a decimal string on the wire. */
export const u64 = z.codec(
  z.string().regex(/^(0|[1-9][0-9]{0,19})$/, "expected a decimal number as a string"),
  z.bigint().min(0n).max(U64_MAX),
  { decode: (text) => BigInt(text), encode: (value) => String(value) },
);

export const u32 = z.int().min(0).max(0xffff_ffff);

/** Name of a volume: also a file name of a socket, so no slash, no leading dot or hyphen. */
export const volumeName = z
  .string()
  .regex(
    /^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$/,
    'expected 1 to 63 letters, digits, "." "_" "-", not starting with "." or "-"',
  );

/** Name of a host: a label that can stand in a table and a command line. */
export const hostName = z
  .string()
  .regex(
    /^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$/,
    'expected 1 to 63 letters, digits, "." "-", starting with a letter or digit',
  );

/** An address on the storage network. Names are not accepted: they can be resolved differently on two hosts. */
export const address = z.union([z.ipv4(), z.ipv6()], "expected an IPv4 or IPv6 address");

/** A moment, ISO 8601 in UTC. */
export const instant = z.iso.datetime();
