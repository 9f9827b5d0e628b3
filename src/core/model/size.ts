/**
 * Sizes as people write them: "256MiB", "200G", "3TiB", "4096".
 *
 * Must always hold:
 * - a parsed size is a positive multiple of 4 KiB and at most 64 TiB;
 * - units are binary, with or without "iB" ("200G" is 200 GiB, as lvcreate has it; "GB" is refused, it means two things);
 * - `parseSize(formatSizeExact(n))` is `n`.
 */
import { finding, ok, refused } from "./finding.ts";
import type { Decision } from "./finding.ts";
import { BLOCK_BYTES, VOLUME_BYTES_MAX } from "./limits.ts";

const SIZE = /^(\d{1,20})(?:\.(\d{1,3}))?\s*([kmgtp])?(i?b)?$/i;
const UNITS = ["", "K", "M", "G", "T", "P"] as const;

/** A volume's size; also refuses what is above the limit. */
export function parseSize(text: string): Decision<bigint> {
  const bytes = parseBytes(text.trim());
  if (bytes === null) {
    const decimal = /^\d+(\.\d+)?\s*[kmgtp]b$/i.test(text.trim());
    return refused(
      finding(
        "E-ARG-02",
        decimal
          ? `Size "${text}" is ambiguous: write "${text.trim().slice(0, -1)}iB" for powers of 1024.`
          : `"${text}" is not a size. Examples: 256MiB, 200GiB, 3TiB.`,
        { facts: { size: text } },
      ),
    );
  }
  return checkSize(bytes, text);
}

/** The same limits for a size that arrives as a number of bytes. */
export function checkSize(bytes: bigint, text: string = `${bytes}`): Decision<bigint> {
  if (bytes <= 0n) {
    return refused(finding("E-VOL-02", `Size "${text}" is not more than zero.`, { facts: { size: text } }));
  }
  if (bytes > VOLUME_BYTES_MAX) {
    return refused(
      finding("E-VOL-02", `Size "${text}" is above the limit of ${formatSize(VOLUME_BYTES_MAX)} a volume.`, {
        facts: { size: text, limit: `${VOLUME_BYTES_MAX}` },
      }),
    );
  }
  if (bytes % BLOCK_BYTES !== 0n) {
    const up = (bytes / BLOCK_BYTES + 1n) * BLOCK_BYTES;
    return refused(
      finding(
        "E-ARG-02",
        `Size "${text}" is ${bytes} bytes, not a multiple of 4 KiB. The next one is ${up}.`,
        {
          facts: { size: text, next: `${up}` },
        },
      ),
    );
  }
  return ok(bytes);
}

/** Bytes a second, as `100MiB/s` or `100MiB`; any number of bytes that is not below zero. */
export function parseRate(text: string): Decision<bigint> {
  const bytes = parseBytes(text.trim().replace(/\/s$/i, "").trim());
  if (bytes !== null) return ok(bytes);
  return refused(
    finding("E-ARG-02", `"${text}" is not a rate. Examples: 500KiB/s, 100MiB/s, 2GiB/s.`, {
      facts: { rate: text },
    }),
  );
}

/** Rounded for reading: `894 GiB`, `1.75 TiB`. */
export function formatSize(bytes: bigint): string {
  let unit = 0;
  let whole = bytes;
  while (whole >= 1024n && unit < UNITS.length - 1) {
    whole /= 1024n;
    unit += 1;
  }
  if (unit === 0) return `${bytes} B`;
  const hundredths = (bytes * 100n) >> BigInt(10 * unit);
  const digits = whole >= 100n ? `${whole}` : `${whole}.${`${hundredths % 100n}`.padStart(2, "0")}`;
  const short = digits.includes(".") ? digits.replace(/\.?0+$/, "") : digits;
  return `${short} ${UNITS[unit]}iB`;
}

/** Without loss: the largest unit that divides it. */
export function formatSizeExact(bytes: bigint): string {
  for (let unit = UNITS.length - 1; unit > 0; unit -= 1) {
    const factor = 1n << BigInt(10 * unit);
    if (bytes >= factor && bytes % factor === 0n) return `${bytes / factor}${UNITS[unit]}iB`;
  }
  return `${bytes}`;
}

function parseBytes(text: string): bigint | null {
  const match = SIZE.exec(text);
  if (match === null) return null;
  const [, whole = "", fraction = "", letter = "", suffix = ""] = match;
  if (letter !== "" && suffix.toLowerCase() === "b") return null;
  const unit = UNITS.findIndex((name) => name === letter.toUpperCase());
  if (fraction !== "" && unit < 1) return null;
  const factor = 1n << BigInt(10 * unit);
  // "0.3G" is no whole number of bytes: cut here, and refused by checkSize unless it falls on a block.
  const thousandths = BigInt(fraction.padEnd(3, "0")) * factor;
  return BigInt(whole) * factor + thousandths / 1000n;
}
