/**
 * What a host serves to other machines on port 7400: the table of requests, and their bodies and answers as schemas.
 *
 * Must always hold:
 * - the door serves exactly these; `open` ones are for whoever reaches it, and judge by themselves what they are shown;
 * - an answer is parsed before anybody sees it, and fields that a reader doesn't know are left alone.
 */
import { z } from "zod";

import { GROUP_VOLUMES_MAX } from "../model/limits.ts";
import { clusterAnswer, sessionStats } from "./agent-api.ts";
import { auditLine } from "./audit-line.ts";
import { address, hostName, instant, snapshotName, u32, u64, uuid } from "./json-types.ts";

const pem = z.string().max(8192);
/** A signed value of the store (signed.ts). */
const signedText = z.string().max(1 << 20);

export const helloAnswer = z.object({
  /** Of the cluster. Whether it is that one is known only from the certificate that the connection has shown. */
  cluster: uuid,
  /** Addresses of the store's members: those that can let a host in. */
  members: z.array(address).max(64),
  version: z.string().max(64),
  /** Of the trust list that it goes by; a host that has an older one asks for it. */
  generation: u64,
  /** What its clock says. */
  now: instant,
});

export const enrolRequest = z.strictObject({
  /** The token's secret is never sent (join-proof.ts). */
  token: z.strictObject({
    id: z.string().regex(/^[0-9a-f]{8}$/),
    key: z.string().regex(/^[0-9a-f]{64}$/),
    signature: z.string().regex(/^[0-9a-f]{128}$/),
  }),
  host: z.strictObject({ id: uuid, name: hostName, address }),
});

export const enrolAnswer = z.object({
  /** `host` is the one that was let in. */
  cluster: clusterAnswer,
  /** Its certificate, without the authority's, which the connection has shown. */
  cert: pem,
  /** The list in which it stands. */
  trust: signedText,
});

/** Nothing of a certificate's content is asked for: it is made anew for who has proven the listed key. */
export const renewRequest = z.strictObject({});
export const renewAnswer = z.object({
  cert: pem,
  authority: pem,
  trust: signedText,
  /** The lists by which authorities took over from each other, for a host that was away then. */
  links: z.array(signedText).max(64).default([]),
});

/** For who has proven a listed key, whatever became of its certificate: what it needs to follow the list to that of now. */
export const listsAnswer = z.object({ trust: signedText, links: z.array(signedText).max(64) });

const authorityKeys = z.object({ kid: z.string().regex(/^[0-9a-f]{64}$/), pem, key: z.string().max(4096) });
export const credentialsRequest = z.strictObject({});
/** With private keys: for a host that the store's members have among them, and for nobody else. */
export const credentialsAnswer = z.object({
  authorities: z.array(authorityKeys).max(8),
  storeAuthorities: z.array(authorityKeys).max(8),
  trust: signedText,
});
export const authorityRequest = credentialsAnswer.strict();
export const authorityAnswer = z.object({});

/** The key that the asking host's own bundle is sealed with (bundle.ts). */
export const bundleKeyRequest = z.strictObject({});
export const bundleKeyAnswer = z.object({
  kid: z.string().regex(/^[0-9a-f]{64}$/),
  key: z.string().regex(/^[0-9a-f]{64}$/),
});

/** As `GET /v1/audit` asks, where the host and its names were looked up already. */
export const auditLinesRequest = z.strictObject({
  sinceMs: z.number().nullable(),
  volume: z.array(z.string().max(256)).max(100).nullable(),
  who: z.string().max(256).nullable(),
  refusedOnly: z.boolean(),
  limit: z.int().min(1).max(1000),
});
export const auditLinesAnswer = z.object({ lines: z.array(auditLine) });

/** Of a volume that a guest uses on the asked host; null: none does. */
export const statsRequest = z.strictObject({ volume: uuid });
export const sessionStatsAnswer = z.object({ open: sessionStats.nullable() });

/** Of a volume that a guest may use on the asked host, or of a snapshot that may be read there. */
export const volumeUsersRequest = z.strictObject({ volume: uuid, snapshot: uuid.nullable() });
export const volumeUsersAnswer = z.object({
  /** A guest's end is connected there; null: nobody can say. */
  connected: z.boolean().nullable(),
  /** Since when it is open there; null: it is not, or nobody can say. */
  since: instant.nullable(),
});

/** What the asked host's weftd shall do in the session that it has of the volume. */
export const ownerWork = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("grow"), volume: uuid, size: u64 }),
  z.strictObject({
    kind: z.literal("snapshot"),
    volume: uuid,
    id: uuid,
    name: snapshotName,
    /** Who asks, as people or programs call themselves. */
    by: z.string().max(128),
  }),
  z.strictObject({ kind: z.literal("delete-snapshot"), volume: uuid, id: uuid }),
  z.strictObject({
    kind: z.literal("protect-snapshot"),
    volume: uuid,
    id: uuid,
    protected: z.boolean(),
  }),
  z.strictObject({ kind: z.literal("destroy-data"), volume: uuid, id: uuid }),
  /** That copy has all of the snapshot now. */
  z.strictObject({ kind: z.literal("add-snapshot-copy"), volume: uuid, id: uuid, rid: u32 }),
  z.strictObject({ kind: z.literal("rename-snapshot"), volume: uuid, id: uuid, name: snapshotName }),
]);
/** Snapshots of several volumes at one moment, in the sessions that the asked host's weftd has or opens. */
export const groupWork = z.strictObject({
  group: uuid,
  name: snapshotName,
  by: z.string().max(128),
  volumes: z
    .array(z.strictObject({ volume: uuid, id: uuid }))
    .min(1)
    .max(GROUP_VOLUMES_MAX),
});
export const ownerWorkAnswer = z.object({
  /** How long the guest's writes waited; null: nothing was taken. */
  heldMs: u64.nullable().default(null),
});

export const doorRoutes = {
  "GET /v1/hello": { right: "open", request: null, answer: helloAnswer, audit: "read" },
  "POST /v1/enrol": { right: "open", request: enrolRequest, answer: enrolAnswer, audit: "mutation" },
  // By the key alone: the certificate may have expired, or be of an authority that is gone.
  "POST /v1/identity/renew": {
    right: "open",
    request: renewRequest,
    answer: renewAnswer,
    audit: "mutation",
  },
  "GET /v1/identity/lists": { right: "open", request: null, answer: listsAnswer, audit: "read" },
  "POST /v1/members/credentials": {
    right: "host",
    request: credentialsRequest,
    answer: credentialsAnswer,
    audit: "mutation",
  },
  "POST /v1/identity/bundle-key": {
    right: "host",
    request: bundleKeyRequest,
    answer: bundleKeyAnswer,
    audit: "mutation",
  },
  "POST /v1/internal/audit": {
    right: "host",
    request: auditLinesRequest,
    answer: auditLinesAnswer,
    audit: "read",
  },
  "POST /v1/internal/stats": {
    right: "host",
    request: statsRequest,
    answer: sessionStatsAnswer,
    audit: "read",
  },
  "POST /v1/internal/volume-users": {
    right: "host",
    request: volumeUsersRequest,
    answer: volumeUsersAnswer,
    audit: "read",
  },
  "POST /v1/internal/volume-work": {
    right: "host",
    request: ownerWork,
    answer: ownerWorkAnswer,
    audit: "mutation",
  },
  "POST /v1/internal/group-work": {
    right: "host",
    request: groupWork,
    answer: ownerWorkAnswer,
    audit: "mutation",
  },
  "PUT /v1/members/authority": {
    right: "host",
    request: authorityRequest,
    answer: authorityAnswer,
    audit: "mutation",
  },
} as const satisfies Readonly<
  Record<
    `${"GET" | "POST" | "PUT"} /v1/${string}`,
    {
      readonly right: "open" | "host";
      readonly request: z.ZodType | null;
      readonly answer: z.ZodType;
      readonly audit: "mutation" | "read";
    }
  >
>;

type DoorRoutes = typeof doorRoutes;
export type DoorRouteName = keyof DoorRoutes;
/** The body that a handler gets: parsed, null where none is taken. */
export type DoorBody<Name extends DoorRouteName> = DoorRoutes[Name]["request"] extends z.ZodType
  ? z.output<DoorRoutes[Name]["request"]>
  : null;
export type DoorAnswer<Name extends DoorRouteName> = z.output<DoorRoutes[Name]["answer"]>;

export type Hello = z.output<typeof helloAnswer>;
export type EnrolRequest = z.output<typeof enrolRequest>;
export type EnrolAnswer = z.output<typeof enrolAnswer>;
export type AuditLinesRequest = z.output<typeof auditLinesRequest>;
export type AuditLinesAnswer = z.output<typeof auditLinesAnswer>;
export type StatsRequest = z.output<typeof statsRequest>;
export type VolumeUsersRequest = z.output<typeof volumeUsersRequest>;
export type VolumeUsers = z.output<typeof volumeUsersAnswer>;
export type OwnerWork = z.output<typeof ownerWork>;
export type GroupWork = z.output<typeof groupWork>;
export type OwnerWorkAnswer = z.output<typeof ownerWorkAnswer>;
export type SessionStatsAnswer = z.output<typeof sessionStatsAnswer>;
export type RenewAnswer = z.output<typeof renewAnswer>;
export type ListsAnswer = z.output<typeof listsAnswer>;
export type CredentialsAnswer = z.output<typeof credentialsAnswer>;
