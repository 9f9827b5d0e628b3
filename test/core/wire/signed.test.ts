/**
 * Plot: every host can write every key of the store; what an authority signed is told from what a stolen host wrote there.
 */
import { equal } from "node:assert/strict";
import { createHash, createPublicKey, generateKeyPairSync, verify } from "node:crypto";

import * as fc from "fast-check";
import t from "tap";

import { openSigned, sign, SIGNED_BYTES_MAX } from "../../../src/core/wire/signed.ts";
import { makeKey } from "../../../src/core/wire/x509-make.ts";
import { testAuthority } from "./authority-for-tests.ts";

const a = await testAuthority();
const other = await testAuthority();

function opened(
  text: string,
  kind: Parameters<typeof openSigned>[0] = "trust",
  authorities: Parameters<typeof openSigned>[2] = [other, a],
): string {
  const decision = openSigned(kind, text, authorities);
  return decision.kind === "ok" ? decision.value.body : decision.finding.code;
}

void t.test("signed: what an authority signed is opened, with its signer", async (t) => {
  const bodies = fc.string({ unit: "grapheme", maxLength: 200 });
  fc.assert(
    fc.property(bodies, (body) => equal(opened(sign("trust", body, a.key)), body)),
    { numRuns: 50 },
  );
  const decision = openSigned("trust", sign("trust", "{}", a.key), [a]);
  t.strictSame(decision, { kind: "ok", value: { body: "{}", by: a.kid } });
});

void t.test("signed: the format of release 1, by hand", async (t) => {
  // What the data daemon verifies too: a change here is a change there.
  const { body, by, sig } = JSON.parse(sign("trust", "text", a.key)) as Record<string, string>;
  const publicKey = createPublicKey(a.key);
  t.equal(
    by,
    createHash("sha256")
      .update(publicKey.export({ type: "spki", format: "der" }))
      .digest("hex"),
  );
  t.equal(body, "text");
  const signed = Buffer.concat([Buffer.from("weft trust v1"), Buffer.of(0), Buffer.from("text")]);
  t.ok(verify("sha256", signed, { key: publicKey, dsaEncoding: "der" }, Buffer.from(sig ?? "", "base64")));
});

void t.test("signed: another kind, another signer and a forged name are refused", async (t) => {
  const text = sign("trust", "body", a.key);
  t.equal(opened(text, "join-token"), "E-TRUST-01");
  t.equal(opened(sign("join-token", "body", a.key), "trust"), "E-TRUST-01");
  t.equal(opened(text, "trust", [other]), "E-TRUST-01", "not known here");
  t.equal(opened(text, "trust", []), "E-TRUST-01");
  const forged = { ...(JSON.parse(sign("trust", "body", other.key)) as object), by: a.kid };
  t.equal(opened(JSON.stringify(forged)), "E-TRUST-01", "signed by one, in the name of another");
  const renamed = [{ ...other, kid: a.kid }];
  t.equal(opened(JSON.stringify(forged), "trust", renamed), "E-TRUST-01", "a KID that isn't the key's");
  t.equal(opened(text, "trust", [{ kid: a.kid, pem: "none" }]), "E-TRUST-01");
});

void t.test("signed: one flipped bit anywhere is refused, or changes nothing that is believed", async () => {
  const text = sign("trust", '{"generation":"17"}', a.key);
  const bytes = Buffer.from(text);
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.nat(7), (at, bit) => {
      const flipped = Buffer.from(bytes);
      flipped[at] = (flipped[at] ?? 0) ^ (1 << bit);
      const answer = opened(flipped.toString());
      if (answer !== '{"generation":"17"}') equal(answer, "E-TRUST-01");
    }),
    { numRuns: 600 },
  );
});

void t.test("signed: nothing that isn't of this form is opened", async (t) => {
  const good = JSON.parse(sign("trust", "body", a.key)) as Record<string, string>;
  for (const bad of [
    "",
    "null",
    "[]",
    "{}",
    JSON.stringify({ ...good, sig: "" }),
    JSON.stringify({ ...good, sig: `${good["sig"]}!` }),
    JSON.stringify({ ...good, sig: "MAYCAQACAQA=" }),
    JSON.stringify({ ...good, by: a.kid.toUpperCase() }),
    JSON.stringify({ ...good, body: 1 }),
    JSON.stringify({ ...good, body: "\ud800" }),
    JSON.stringify({ ...good, more: "é".repeat(SIGNED_BYTES_MAX / 2) }),
  ])
    t.equal(opened(bad), "E-TRUST-01", bad.slice(0, 60));
  t.throws(() => sign("trust", "\ud800", a.key), /Unicode/);
  t.throws(() => sign("trust", "x".repeat(SIGNED_BYTES_MAX), a.key), /a signed trust of/);
  t.throws(() => sign("trust", "", generateKeyPairSync("ed25519").privateKey), /P-256/);
  t.not(makeKey().reveal(), makeKey().reveal());
});
