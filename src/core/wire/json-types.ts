/**
 * The small words of our JSON, parsed once: identifiers, 64-bit numbers as decimal strings, names, addresses.
 *
 * Must always hold: a number that may pass 2^53 is a decimal string on the wire and a bigint inside.
 */
import { z } from "zod";

import type { Decision } from "../model/finding.ts";
import { parseAddress, parseName } from "../model/name.ts";

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

/**
 * What only counts up: above that nobody believes it, so that whoever reads it can raise it
 * (native/weft-proto/src/record.rs, COUNTER_MAX).
 */
export const counter = u64.refine((value) => value <= 1n << 48n, "expected a count of at most 2^48");

/** The same of a volume's epochs (EPOCH_MAX there). */
export const epoch = u64.refine((value) => value < 1n << 39n, "expected an epoch below 2^39");

export const u32 = z.int().min(0).max(0xffff_ffff);

/** Names and addresses are judged by the model, which also says what is wrong with them. */
export const volumeName = judged((text) => parseName("volume", text));
export const snapshotName = judged((text) => parseName("snapshot", text));
export const hostName = judged((text) => parseName("host", text));
export const address = judged(parseAddress);
export const tokenName = judged((text) => parseName("token", text));
export const label = judged((text) => parseName("label", text));
/** Where a host stands; null: not said. */
export const labels = z.object({ rack: label.nullable(), site: label.nullable() });
export const clusterName = judged((text) => parseName("cluster", text));

/** What a volume's guests may take. Their ranges are the model's to judge (`checkLimits`). */
export const volumeLimits = z.object({
  iops: z.number().nullable(),
  bps: u64.nullable(),
  burstS: z.number(),
});

/** A moment, ISO 8601 in UTC. */
export const instant = z.iso.datetime();

function judged(judge: (text: string) => Decision<string>): z.ZodString {
  return z
    .string()
    .max(1000)
    .check((context) => {
      const decision = judge(context.value);
      if (decision.kind === "ok") return;
      context.issues.push({ code: "custom", message: decision.finding.message, input: context.value });
    });
}
