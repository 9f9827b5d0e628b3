/**
 * The header by which somebody at the door says who he is, as anybody may send it.
 *
 * Must always hold: a header carries one token, whose text stands in it, or none; nothing shows the secret.
 */
import { inspect } from "node:util";

import * as fc from "fast-check";

import { parseAuthorization, renderApiToken } from "../../src/core/model/api-token-text.ts";
import { Secret } from "../../src/core/model/secret.ts";
import type { OpenDoor } from "./door.ts";

const digits = (alphabet: string, length: number): fc.Arbitrary<string> =>
  fc.string({ unit: fc.constantFrom(...Array.from(alphabet)), minLength: length, maxLength: length });
const token = fc
  .tuple(
    digits("0123456789abcdef", 8),
    digits("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", 43),
  )
  .map(([id, secret]) => renderApiToken({ id, secret: new Secret(secret) }));
/** A good one with something put in, taken out or written over. */
const spoilt = fc
  .tuple(token, fc.nat(70), fc.nat(3), fc.string({ unit: "binary", maxLength: 5 }))
  .map(([text, at, gone, put]) => `Bearer ${text}`.slice(0, at) + put + `Bearer ${text}`.slice(at + gone));

export async function openAuthorization(): Promise<OpenDoor> {
  return {
    arbitrary: fc.oneof(
      token.map((text) => `bearer ${text}`),
      spoilt,
      fc.string({ unit: "binary", maxLength: 300 }),
      fc.array(token, { maxLength: 3 }).map((texts) => `Bearer ${texts.join(", ")}`),
    ),
    judge: (header: string) => {
      const found = parseAuthorization(header);
      if (found === null) {
        if (/^Bearer wft1\.[0-9a-f]{8}\.[A-Za-z0-9_-]{43}$/.test(header))
          throw new Error("a good one was not read");
        return;
      }
      if (!header.endsWith(renderApiToken(found))) throw new Error("it is not the one that was sent");
      if (`${inspect(found)}${JSON.stringify(found)}`.includes(found.secret.reveal()))
        throw new Error("the secret is shown");
    },
    kept: [],
    shrinks: true,
    close: async () => undefined,
  };
}
