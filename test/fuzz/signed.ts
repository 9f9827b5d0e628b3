/**
 * Signed values and trust lists as a stolen host may have left them in the store: it can write every key, and sign nothing.
 *
 * Must always hold:
 * - a text is opened only with the body that an authority signed as that kind, else refused with E-TRUST-01; what a host says
 *   of itself, only with the body that its own key signed as that kind;
 * - a trust list is read, consistent and written again as the same list, or refused with E-STORE-07 or E-STORE-13.
 */
import { createPrivateKey, createPublicKey } from "node:crypto";

import * as fc from "fast-check";

import { faultOf } from "../../src/core/model/trust.ts";
import { kidOf } from "../../src/core/wire/certificate.ts";
import { isWeftError } from "../../src/core/wire/errors.ts";
import { openByHost, openSigned, sign, signByHost } from "../../src/core/wire/signed.ts";
import type { SignedKind } from "../../src/core/wire/signed.ts";
import { parseTrust, renderTrust } from "../../src/core/wire/trust.ts";
import { makeAuthority, makeKey } from "../../src/core/wire/x509-make.ts";
import type { OpenDoor } from "./door.ts";
import { anyJson, nearly, textOf } from "./values.ts";

const [cluster, host, gone] = [
  "c0000000-0000-4000-8000-000000000000",
  "11111111-1111-4111-8111-111111111111",
  "22222222-2222-4222-8222-222222222222",
];
const at = "2026-11-21T12:00:00.000Z";
const kinds: readonly SignedKind[] = ["trust", "join-token", "api-token", "revocation-ack", "audit-head"];

type Input =
  | { readonly signed: string; readonly kind: SignedKind }
  | { readonly byHost: string; readonly kind: SignedKind }
  | { readonly list: string }
  | { readonly bodyOf: unknown };

export async function openSignedDoor(): Promise<OpenDoor> {
  const nowMs = Date.parse(at);
  const a = await makeAuthority({ kind: "host", cluster, nowMs });
  const b = await makeAuthority({ kind: "store", cluster, nowMs });
  const key = createPrivateKey(a.keyPem.reveal());
  const listed = { state: "active", since: at };
  const list = {
    fmt: 1,
    cluster,
    generation: "17",
    nonce: "33333333-3333-4333-8333-333333333333",
    transport: "tls",
    authorities: [{ kid: a.kid, pem: a.pem, ...listed }],
    storeAuthorities: [{ kid: b.kid, pem: b.pem, ...listed }],
    hosts: {
      [host]: {
        name: "h1",
        address: "10.0.9.11",
        member: true,
        keys: [{ kid: "1".repeat(64), since: at }],
        certs: [{ serial: "4f", by: a.kid, notAfter: at }],
        held: [a.kid],
      },
    },
    revoked: {
      [gone]: {
        name: "h2",
        at,
        by: "root",
        keys: ["2".repeat(64)],
        serials: [{ serial: "50", notAfter: at }],
      },
    },
    rotation: { id: gone, phase: "announce", why: "asked", since: at },
  };
  const body = JSON.stringify(list);
  const text = sign("trust", body, key);
  const own = createPrivateKey(makeKey().reveal());
  const kids = [kidOf(createPublicKey(own))];
  const said = JSON.stringify({ agent: true, weftd: true, member: null, revoked: gone, by: host });
  const byHost = signByHost("revocation-ack", said, own);

  const judge = (input: Input): void => {
    if ("list" in input) return judgeList(input.list);
    if ("byHost" in input) {
      const opened = openByHost(input.kind, input.byHost, kids);
      if (opened !== null && (opened !== said || input.kind !== "revocation-ack"))
        throw new Error(`believed of a host: ${input.kind} ${opened}`);
      return;
    }
    if ("bodyOf" in input) {
      const any = JSON.stringify(input.bodyOf) ?? "";
      if (any.isWellFormed()) assertBelieved(sign("trust", any, key), any, [b, a]);
      return;
    }
    const opened = openSigned(input.kind, input.signed, [b, a]);
    if (opened.kind === "ok") {
      if (opened.value.body !== body || opened.value.by !== a.kid || input.kind !== "trust")
        throw new Error(`believed: ${input.kind} ${opened.value.body}`);
    } else if (opened.finding.code !== "E-TRUST-01") throw new Error(`code ${opened.finding.code}`);
  };

  return {
    arbitrary: fc.oneof(
      fc.record({ signed: textOf(nearly(JSON.parse(text))), kind: fc.constantFrom(...kinds) }),
      fc.record({ signed: textOf(anyJson), kind: fc.constantFrom(...kinds) }),
      fc.record({ byHost: textOf(nearly(JSON.parse(byHost))), kind: fc.constantFrom(...kinds) }),
      fc.record({ list: textOf(fc.oneof(nearly(list), anyJson)) }),
      fc.record({ bodyOf: anyJson }),
    ),
    judge,
    kept: [{ signed: text, kind: "trust" }, { byHost, kind: "revocation-ack" }, { list: body }],
    shrinks: true,
    close: async () => undefined,
  };
}

function assertBelieved(text: string, body: string, authorities: Parameters<typeof openSigned>[2]): void {
  const opened = openSigned("trust", text, authorities);
  if (opened.kind === "refused" || opened.value.body !== body) throw new Error("what was signed is refused");
}

function judgeList(text: string): void {
  try {
    const trust = parseTrust("/weft/v1/trust", text);
    const fault = faultOf(trust);
    if (fault !== null) throw new Error(`accepted: ${fault}`);
    const written = renderTrust(trust, text);
    if (renderTrust(parseTrust("/weft/v1/trust", written), written) !== written)
      throw new Error("a list is not read as it was written");
  } catch (error) {
    if (!isWeftError(error, "E-STORE-07") && !isWeftError(error, "E-STORE-13")) throw error;
  }
}
