/**
 * The trust list as JSON: the body of the store's key `trust` and of the file that every host keeps.
 *
 * Must always hold:
 * - what is read doesn't contradict itself, and every authority's KID is the hash of the key in its certificate;
 * - the same list is always the same text: hosts in the order of their identifiers;
 * - fields of newer software survive our writing, at the top and in every host's entry.
 */
import { z } from "zod";

import { byText } from "../model/ids.ts";
import type { HostId } from "../model/ids.ts";
import { faultOf } from "../model/trust.ts";
import type { Authority, Revoked, Rotation, Trust, TrustedHost } from "../model/trust.ts";
import { isP256, kidOf, readCertificate } from "./certificate.ts";
import { address, instant, u64, uuid } from "./json-types.ts";
import { hostId, isObject, objectOf, reader } from "./record.ts";

/** The newest format of the list that this software understands. */
const TRUST_FORMAT = 1;
const AUTHORITIES_MAX = 8;
const KEYS_MAX = 8;

const kid = z.string().regex(/^[0-9a-f]{64}$/, "expected the SHA-256 of a key in lower-case hex");
const serial = z.string().regex(/^[0-9a-f]{2,40}$/, "expected a serial number in lower-case hex");
/** Certificates know no moment after the year 9999 (RFC 5280). */
const YEAR_9999_MS = Date.UTC(9999, 0);
const moment = instant
  .transform((text) => Date.parse(text))
  .refine((ms) => ms < YEAR_9999_MS, "expected a moment before the year 9999");

const authority = z
  .object({
    kid,
    pem: z.string().max(4096),
    state: z.enum(["active", "incoming", "outgoing"]),
    since: moment,
  })
  .transform((a): Authority => ({ kid: a.kid, pem: a.pem, state: a.state, sinceMs: a.since }))
  .refine(
    isWhatItsKidSays,
    "the certificate is not of the P-256 key that the KID names, or not an authority's",
  );

const trustedHost = z
  .object({
    name: z.string().min(1).max(64),
    address,
    member: z.boolean(),
    keys: z
      .array(z.object({ kid, since: moment }))
      .min(1)
      .max(KEYS_MAX),
    certs: z.array(z.object({ serial, by: kid, notAfter: moment })).max(1000),
    held: z.array(kid).max(1000),
  })
  .transform((h): TrustedHost => ({
    name: h.name,
    address: h.address,
    member: h.member,
    keys: h.keys.map((key) => ({ kid: key.kid, sinceMs: key.since })),
    certs: h.certs.map((cert) => ({ serial: cert.serial, by: cert.by, notAfterMs: cert.notAfter })),
    held: h.held,
  }));

const revokedHost = z
  .object({
    name: z.string().min(1).max(64),
    at: moment,
    by: z.string().max(200),
    keys: z.array(kid).max(KEYS_MAX),
    serials: z.array(z.object({ serial, notAfter: moment })).max(1000),
  })
  .transform((r): Revoked => ({
    name: r.name,
    atMs: r.at,
    by: r.by,
    keys: r.keys,
    serials: r.serials.map((cert) => ({ serial: cert.serial, notAfterMs: cert.notAfter })),
  }));

const rotation = z
  .object({
    id: uuid,
    phase: z.enum(["announce", "bundle", "issue", "drop"]),
    why: z.enum(["asked", "revoked"]),
    since: moment,
    without: z.array(hostId).max(10_000).default([]),
  })
  .transform((r): Rotation => ({
    id: r.id,
    phase: r.phase,
    why: r.why,
    sinceMs: r.since,
    without: r.without,
  }));

const trustJson = z
  .object({
    fmt: z.int().min(1),
    cluster: uuid,
    generation: u64,
    nonce: uuid,
    transport: z.enum(["tls", "auth", "clear"]),
    authorities: z.array(authority).max(AUTHORITIES_MAX),
    storeAuthorities: z.array(authority).max(AUTHORITIES_MAX),
    hosts: byHost(trustedHost),
    revoked: byHost(revokedHost),
    rotation: rotation.nullable(),
  })
  .transform((t): Trust => ({
    cluster: t.cluster,
    generation: t.generation,
    nonce: t.nonce,
    transport: t.transport,
    authorities: t.authorities,
    storeAuthorities: t.storeAuthorities,
    hosts: t.hosts,
    revoked: t.revoked,
    rotation: t.rotation,
  }))
  .check((context) => {
    const fault = faultOf(context.value);
    if (fault !== null) context.issues.push({ code: "custom", message: fault, input: context.value });
  });

/** Throws E-STORE-07, or E-STORE-13 for a list that only newer software may read; `key` is named in the error. */
export const parseTrust: (key: string, text: string) => Trust = reader<Trust>(trustJson);

/** The body to be signed; `before` is the one that it follows, so that fields of newer software stay. */
export function renderTrust(trust: Trust, before: string | null): string {
  const old = before === null ? {} : objectOf(before);
  return JSON.stringify({
    ...old,
    fmt: TRUST_FORMAT,
    cluster: trust.cluster,
    generation: String(trust.generation),
    nonce: trust.nonce,
    transport: trust.transport,
    authorities: trust.authorities.map(renderAuthority),
    storeAuthorities: trust.storeAuthorities.map(renderAuthority),
    hosts: renderHosts(trust.hosts, old["hosts"], (host) => ({
      name: host.name,
      address: host.address,
      member: host.member,
      keys: host.keys.map((key) => ({ kid: key.kid, since: iso(key.sinceMs) })),
      certs: host.certs.map((cert) => ({ serial: cert.serial, by: cert.by, notAfter: iso(cert.notAfterMs) })),
      held: host.held,
    })),
    revoked: renderHosts(trust.revoked, old["revoked"], (host) => ({
      name: host.name,
      at: iso(host.atMs),
      by: host.by,
      keys: host.keys,
      serials: host.serials.map((cert) => ({ serial: cert.serial, notAfter: iso(cert.notAfterMs) })),
    })),
    rotation:
      trust.rotation === null
        ? null
        : {
            id: trust.rotation.id,
            phase: trust.rotation.phase,
            why: trust.rotation.why,
            since: iso(trust.rotation.sinceMs),
            without: trust.rotation.without,
          },
  });
}

function renderAuthority(authority: Authority): object {
  return {
    kid: authority.kid,
    pem: authority.pem,
    state: authority.state,
    since: iso(authority.sinceMs),
  };
}

function renderHosts<Entry>(
  hosts: ReadonlyMap<HostId, Entry>,
  old: unknown,
  render: (entry: Entry) => object,
): object {
  const entries = Array.from(hosts, ([host, entry]): [string, object] => {
    const before = isObject(old) ? old[host] : undefined;
    return [host, { ...(isObject(before) ? before : {}), ...render(entry) }];
  });
  return Object.fromEntries(entries.toSorted(([a], [b]) => byText(a, b)));
}

/** A map by host identifier; two spellings of one identifier are refused. */
function byHost<Entry>(entry: z.ZodType<Entry>): z.ZodType<ReadonlyMap<HostId, Entry>> {
  return z.record(z.string(), z.unknown()).transform((entries, context) => {
    const hosts = new Map<HostId, Entry>();
    for (const [text, value] of Object.entries(entries)) {
      const host = hostId.safeParse(text);
      const parsed = entry.safeParse(value);
      if (!host.success || host.data !== text) {
        context.addIssue({ code: "custom", message: "expected a UUID in lower case", path: [text] });
      } else if (parsed.success) {
        hosts.set(host.data, parsed.data);
      } else {
        const [issue] = parsed.error.issues;
        const path = [text, ...(issue?.path ?? [])];
        context.addIssue({ code: "custom", message: issue?.message ?? "not understood", path });
      }
    }
    return hosts;
  });
}

function isWhatItsKidSays(authority: Authority): boolean {
  const certificate = readCertificate(authority.pem);
  return (
    certificate !== null &&
    certificate.ca &&
    isP256(certificate.publicKey) &&
    kidOf(certificate.publicKey) === authority.kid
  );
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
