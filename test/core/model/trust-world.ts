/** Trust lists for tests of the model, without a certificate: floor 0 never reads one. */
import * as fc from "fast-check";

import { parseHostId } from "../../../src/core/model/ids.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { hostUri } from "../../../src/core/model/trust.ts";
import type { Authority, CertFacts, SignedTrust, Trust } from "../../../src/core/model/trust.ts";

export const CLUSTER = "c0000000-0000-4000-8000-000000000000";
export const DAY_MS = 24 * 3600 * 1000;

export function trustHost(number: number): HostId {
  const id = parseHostId(`${String(number).padStart(8, "0")}-0000-4000-8000-000000000000`);
  if (id === null) throw new Error(`no host ${number}`);
  return id;
}

export function kid(name: string): string {
  return Array.from(name, (character) => character.charCodeAt(0).toString(16))
    .join("")
    .padEnd(64, "0");
}

export function authority(name: string, state: Authority["state"] = "active"): Authority {
  return { kid: kid(name), pem: name, state, sinceMs: 0 };
}

/** Hosts 1..n with keys k1..kn, authority A1 and store authority B1; hosts up to `members` are members and held both. */
export function trustOf(hosts: number, members: number = 0): Trust {
  return {
    cluster: CLUSTER,
    generation: 1n,
    nonce: "n1",
    transport: "tls",
    authorities: [authority("A1")],
    storeAuthorities: [authority("B1")],
    hosts: new Map(
      Array.from({ length: hosts }, (_, i) => [
        trustHost(i + 1),
        {
          name: `h${i + 1}`,
          address: `10.0.0.${i + 1}`,
          member: i < members,
          keys: [{ kid: kid(`k${i + 1}`), sinceMs: 0 }],
          certs: [{ serial: `0${i + 1}`, by: kid("A1"), notAfterMs: 30 * DAY_MS }],
          held: i < members ? [kid("A1"), kid("B1")] : [],
        },
      ]),
    ),
    revoked: new Map(),
    rotation: null,
  };
}

/** The list as if signed; its text tells lists of one generation apart by their nonce. */
export function signedBy(trust: Trust, name: string): SignedTrust {
  return { trust, body: `${trust.generation} ${trust.nonce}`, by: kid(name) };
}

export function certOf(number: number, change: Partial<CertFacts> = {}): CertFacts {
  return {
    kid: kid(`k${number}`),
    uris: [hostUri(CLUSTER, trustHost(number))],
    notBeforeMs: 0,
    notAfterMs: 30 * DAY_MS,
    issuerKid: kid("A1"),
    serverAndClient: true,
    ...change,
  };
}

export const anyTime: fc.Arbitrary<number> = fc.integer({ min: 0, max: 100 * DAY_MS });
