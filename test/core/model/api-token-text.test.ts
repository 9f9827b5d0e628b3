/** Plot: texts of API tokens and the header that carries one; and whose signature is believed under tokens. */
import { inspect } from "node:util";

import * as fc from "fast-check";
import t from "tap";

import { parseApiToken, parseAuthorization, renderApiToken } from "../../../src/core/model/api-token-text.ts";
import { Secret } from "../../../src/core/model/secret.ts";
import { tokenSigners } from "../../../src/core/model/token-signers.ts";
import type { Trust } from "../../../src/core/model/trust.ts";

const digits = (alphabet: string, length: number): fc.Arbitrary<string> =>
  fc.string({ unit: fc.constantFrom(...Array.from(alphabet)), minLength: length, maxLength: length });
const token = fc.record({
  id: digits("0123456789abcdef", 8),
  secret: digits("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", 43).map(
    (text) => new Secret(text),
  ),
});

void t.test(
  "api token: is read back, alone and in its header, and shows nothing of its secret",
  async (t) => {
    fc.assert(
      fc.property(token, fc.constantFrom("Bearer ", "bearer  ", "BEARER "), (token, scheme) => {
        const text = renderApiToken(token);
        for (const read of [parseApiToken(text), parseAuthorization(scheme + text)]) {
          t.equal(read?.id, token.id);
          t.equal(read?.secret.reveal(), token.secret.reveal());
          t.notOk(inspect(read).includes(token.secret.reveal()));
        }
      }),
    );
  },
);

void t.test("api token: what differs in anything is none", async (t) => {
  const good = `wft1.a81c04fe.${"x".repeat(43)}`;
  t.not(parseApiToken(good), null);
  for (const bad of [
    "",
    "wft1",
    good.slice(1),
    good.slice(0, -1),
    `${good}x`,
    `${good}.`,
    `${good} `,
    good.toUpperCase(),
    good.replace("wft1", "wft2"),
    good.replace("a81c", "A81C"),
    good.replace("xxx", "x=x"),
    good.replace(".a", ".."),
    "x".repeat(100_000),
  ])
    t.equal(parseApiToken(bad), null, bad.slice(0, 80));
  for (const bad of [
    "",
    good,
    `Basic ${good}`,
    `Bearer${good}`,
    `Bearer ${good} x`,
    `Bearer ${good},${good}`,
  ])
    t.equal(parseAuthorization(bad), null, bad);
});

void t.test(
  "token signers: an authority that is replaced for a revoked host signs nothing any more",
  async (t) => {
    const authority = (kid: string, state: string) => ({ kid, pem: "", state, sinceMs: 0 });
    const trust = (why: string | null): Trust =>
      ({
        authorities: [authority("old", "outgoing"), authority("new", "active")],
        rotation: why === null ? null : { why },
      }) as never;
    const kids = (why: string | null): readonly string[] => tokenSigners(trust(why)).map(({ kid }) => kid);
    t.same(kids("asked"), ["old", "new"]);
    t.same(kids("revoked"), ["new"]);
    t.same(kids(null), ["old", "new"]);
  },
);
