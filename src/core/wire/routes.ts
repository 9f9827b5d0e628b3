/**
 * The one table of the REST interface: every request, who may make it, and what it takes and answers.
 *
 * Must always hold:
 * - the agent serves exactly these: it registers from here, and refuses to register anything else;
 * - a mutation is a row of `mutation(…)`: it is written into the audit before it is done, and after; what isn't a GET is
 *   one, but for what only asks with a body (`question(…)`);
 * - `logs` names no field that may hold a secret.
 */
import { z } from "zod";

import { TRUST_BYTES } from "../model/limits.ts";
import type { Right } from "../model/roles.ts";
import * as admission from "./admission-api.ts";
import * as api from "./agent-api.ts";
import { BUNDLE_BYTES_MAX, wrappedKey } from "./bundle.ts";
import * as sr from "./sr-api.ts";

const BODY_MAX = 64 * 1024;

/** What the path's `:ref` is about, for tokens that are bound to volumes. */
export type RouteSubject = "cluster" | "volumes" | "volume" | "deleted volume" | "snapshot";

export type RouteSpec = {
  /** What anybody needs who makes this request at all: judged before its body is read. */
  readonly right: Right;
  /** What the body asks for besides: judged before anything is done. Null: nothing. */
  readonly raise: ((body: unknown) => Right) | null;
  readonly subject: RouteSubject;
  /** A field of the body that names volumes: each is judged as one in the path is. Null: the body is about no other volume. */
  readonly names: string | null;
  /** Null: it takes none, and one that is sent is not looked at. */
  readonly request: z.ZodType | null;
  /** Bytes of the body: a larger one is refused before it is parsed. */
  readonly bodyMax: number;
  /** What may stand behind the path's `?`; null: nothing is looked at. */
  readonly query: z.ZodType | null;
  readonly answer: z.ZodType;
  readonly audit: "mutation" | "read";
  /** Fields of the body that the audit shows. */
  readonly logs: readonly string[];
};

export const routes = {
  "GET /v1/status": read("viewer", "cluster", api.statusAnswer),
  "POST /v1/init": mutation("local-root", "cluster", api.initRequest, api.enteredAnswer, {
    logs: ["name", "address", "clusterName"],
  }),
  "POST /v1/join": mutation("local-root", "cluster", api.joinRequest, api.enteredAnswer, {
    logs: ["from", "name", "address"],
  }),
  /** Three steps of one thing, each on its host (admission-api.ts). */
  "POST /v1/admission/request": mutation(
    "local-root",
    "cluster",
    admission.admissionWish,
    admission.admissionRequest,
    { logs: ["name", "address"] },
  ),
  "POST /v1/admission": mutation(
    "local-root",
    "cluster",
    admission.admissionOrder,
    admission.admissionAnswer,
    { logs: ["host", "name", "address", "vouchedBy"] },
  ),
  "POST /v1/admission/answer": mutation(
    "local-root",
    "cluster",
    admission.admissionAnswer,
    api.enteredAnswer,
    // The trust list is in it.
    { bodyMax: TRUST_BYTES.most + BODY_MAX },
  ),
  /** A host that was installed anew, and has a disk of its own still (bundle.ts). */
  "GET /v1/bundles": read("local-root", "cluster", admission.bundlesAnswer),
  "POST /v1/bundles/key": mutation("local-root", "cluster", admission.unsealOrder, wrappedKey, {
    logs: ["bundle", "addresses", "vouchedBy"],
  }),
  "POST /v1/reclaim": mutation("local-root", "cluster", admission.reclaimRequest, api.enteredAnswer, {
    bodyMax: BUNDLE_BYTES_MAX + BODY_MAX,
  }),
  "GET /v1/cluster": read("viewer", "cluster", api.clusterAnswer),

  "GET /v1/settings": read("viewer", "cluster", api.settings),
  "PUT /v1/settings": mutation("admin", "cluster", api.settingsChange, api.settings, {
    logs: ["transport", "scrub", "pools", "snapshots"],
  }),

  "GET /v1/tokens": read("admin", "cluster", api.tokenAnswer.array()),
  "POST /v1/tokens": mutation("admin", "cluster", api.tokenCreateRequest, api.tokenCreated, {
    logs: ["forMs", "name"],
  }),
  "DELETE /v1/tokens/:ref": mutation("admin", "cluster", null, api.okAnswer),

  "GET /v1/me": read("viewer", "volumes", api.meAnswer),
  "GET /v1/api-tokens": read("admin", "cluster", api.apiTokenAnswer.array()),
  "POST /v1/api-tokens": mutation("admin", "cluster", api.apiTokenCreateRequest, api.apiTokenCreated, {
    logs: ["name", "role", "volumes", "forMs"],
  }),
  "DELETE /v1/api-tokens/:ref": mutation("admin", "cluster", null, api.okAnswer),

  "GET /v1/hosts": read("viewer", "cluster", api.hostAnswer.array()),
  "DELETE /v1/hosts/:ref": mutation("admin", "cluster", null, api.hostRemoveAnswer),

  "PATCH /v1/hosts/:ref": mutation("admin", "cluster", api.hostChangeRequest, api.hostAnswer, {
    logs: ["labels"],
  }),
  "POST /v1/hosts/:ref/revoke": mutation("admin", "cluster", null, api.hostRevokeAnswer),
  /** Of the host that is asked. */
  "POST /v1/stop-check": question("operator", "cluster", api.stopRequest, api.stopAnswer),
  "GET /v1/ca": read("viewer", "cluster", api.caAnswer),
  "POST /v1/ca/backup": mutation("admin", "cluster", api.caFileRequest, api.caFileAnswer, { logs: ["path"] }),
  "POST /v1/ca/restore": mutation("local-root", "cluster", api.caFileRequest, api.caFileAnswer, {
    logs: ["path"],
  }),
  "POST /v1/ca/rotate": mutation("admin", "cluster", api.caRotateRequest, api.caAnswer, {
    logs: ["without"],
  }),

  "GET /v1/pools": read("viewer", "cluster", api.poolAnswer.array()),
  "POST /v1/pools": mutation("admin", "cluster", api.poolCreateRequest, api.poolAnswer, {
    logs: ["path", "kind"],
  }),
  "DELETE /v1/pools/:ref": mutation("admin", "cluster", null, api.okAnswer),

  /** Those of the host that is asked. */
  "GET /v1/disks": asked("viewer", "cluster", api.diskQuery, api.diskAnswer.array()),
  "POST /v1/disks/wipe": mutation("admin", "cluster", api.diskWipeRequest, api.diskWipeAnswer, {
    logs: ["device", "host", "name"],
  }),

  "GET /v1/volumes": read("viewer", "volumes", api.volumeAnswer.array()),
  "POST /v1/volumes": mutation("operator", "cluster", api.volumeCreateRequest, api.volumeAnswer, {
    logs: ["name", "size", "from", "copies", "minIsr", "hosts", "spread", "thick"],
  }),
  "GET /v1/volumes/:ref": read("viewer", "volume", api.volumeAnswer),
  // A copy less is the admin's, as below: each change of places may take one away.
  "PATCH /v1/volumes/:ref": mutation("operator", "volume", api.volumeChangeRequest, api.volumeAnswer, {
    raise: (body) => (body.loseData !== null || api.changesPlaces(body) ? "admin" : "operator"),
    logs: ["size", "loseData", "copies", "minIsr", "spread", "move", "limits"],
  }),
  "POST /v1/volumes/:ref/plan": question("operator", "volume", api.placeChangeRequest, api.planAnswer),
  "DELETE /v1/volumes/:ref": mutation("admin", "volume", api.volumeDeleteRequest, api.okAnswer, {
    logs: ["keepSnapshots"],
  }),
  "POST /v1/volumes/:ref/attach": mutation("operator", "volume", api.attachRequest, api.attachAnswer, {
    raise: ({ steal }) => (steal ? "admin" : "operator"),
    logs: ["steal"],
  }),
  "POST /v1/volumes/:ref/steal": mutation("admin", "volume", null, api.attachAnswer),
  "POST /v1/volumes/:ref/detach": mutation("operator", "volume", api.detachRequest, api.detachAnswer, {
    raise: ({ abandon }) => (abandon ? "admin" : "operator"),
    logs: ["abandon"],
  }),
  "GET /v1/volumes/:ref/why": read("viewer", "volume", api.whyAnswer),
  "GET /v1/volumes/:ref/progress": read("viewer", "volume", api.progressAnswer),
  "GET /v1/volumes/:ref/stats": read("viewer", "volume", api.statsAnswer),

  "POST /v1/volumes/:ref/scrub": mutation("operator", "volume", api.scrubRequest, api.volumeAnswer, {
    logs: ["rate"],
  }),
  "DELETE /v1/volumes/:ref/scrub": mutation("operator", "volume", null, api.volumeAnswer),

  "POST /v1/volumes/:ref/replicas": mutation("operator", "volume", api.replicaAddRequest, api.volumeAnswer, {
    logs: ["host"],
  }),
  "DELETE /v1/volumes/:ref/replicas/:rid": mutation("admin", "volume", null, api.volumeAnswer),

  "GET /v1/volumes/:ref/snapshots": read("viewer", "volume", api.snapshotAnswer.array()),
  "POST /v1/volumes/:ref/snapshots": mutation(
    "operator",
    "volume",
    api.snapshotCreateRequest,
    api.snapshotCreated,
    { logs: ["name", "id"] },
  ),
  "GET /v1/snapshots": read("viewer", "volumes", api.snapshotAnswer.array()),
  "POST /v1/snapshots": mutation("operator", "volumes", api.groupCreateRequest, api.groupCreated, {
    names: "volumes",
    logs: ["name", "id", "volumes"],
  }),
  /** `:ref` is its id, or `VOLUME@NAME`. */
  "GET /v1/snapshots/:ref": read("viewer", "snapshot", api.snapshotAnswer),
  // What stands between a snapshot and its deletion is the admin's, as that is.
  "PATCH /v1/snapshots/:ref": mutation(
    "operator",
    "snapshot",
    api.snapshotChangeRequest,
    api.snapshotAnswer,
    {
      raise: (body) => (body.protected === undefined ? "operator" : "admin"),
      logs: ["name", "protected"],
    },
  ),
  "DELETE /v1/snapshots/:ref": mutation("admin", "snapshot", null, api.okAnswer),
  // What was written since then is lost.
  "POST /v1/snapshots/:ref/revert": mutation("admin", "snapshot", null, api.volumeAnswer),
  "POST /v1/snapshots/:ref/destroy-data": mutation("admin", "snapshot", null, api.snapshotAnswer),
  // What it reads of copies takes as much as a guest's reads.
  "GET /v1/snapshots/:ref/changed": asked("operator", "snapshot", api.changedQuery, api.changedAnswer),
  "POST /v1/snapshots/:ref/attach": mutation("operator", "snapshot", null, api.snapshotAttached),
  "POST /v1/snapshots/:ref/detach": mutation("operator", "snapshot", null, api.okAnswer),

  /** `:ref` of an SR or a VDI is its UUID. */
  "GET /v1/srs": read("viewer", "cluster", sr.srAnswer.array()),
  "GET /v1/srs/:ref": read("viewer", "cluster", sr.srAnswer),
  "POST /v1/srs": mutation("admin", "cluster", sr.srCreateRequest, sr.srAnswer, {
    logs: ["uuid", "label", "copies"],
  }),
  "PATCH /v1/srs/:ref": mutation("admin", "cluster", sr.srChangeRequest, sr.srAnswer, { logs: ["label"] }),
  "DELETE /v1/srs/:ref": mutation("admin", "cluster", null, api.okAnswer),
  "GET /v1/srs/:ref/vdis": read("viewer", "cluster", sr.vdiListAnswer),
  "POST /v1/srs/:ref/vdis": mutation("admin", "cluster", sr.vdiCreateRequest, sr.vdiAnswer, {
    logs: ["uuid", "size", "label", "type"],
  }),
  "POST /v1/srs/:ref/introduce": mutation("admin", "cluster", sr.vdiIntroduceRequest, sr.vdiAnswer, {
    logs: ["uuid", "label"],
  }),
  "GET /v1/vdis/:ref": read("viewer", "cluster", sr.vdiAnswer),
  "PATCH /v1/vdis/:ref": mutation("admin", "cluster", sr.vdiChangeRequest, sr.vdiAnswer, {
    logs: ["size", "label", "type", "cbt", "managed", "readOnly", "sharable", "settled"],
  }),
  "DELETE /v1/vdis/:ref": mutation("admin", "cluster", null, api.okAnswer),
  "POST /v1/vdis/:ref/snapshot": mutation("admin", "cluster", sr.vdiCopyRequest, sr.vdiAnswer, {
    logs: ["uuid", "label"],
  }),
  "POST /v1/vdis/:ref/clone": mutation("admin", "cluster", sr.vdiCopyRequest, sr.vdiAnswer, {
    logs: ["uuid", "label"],
  }),
  "POST /v1/vdis/:ref/destroy-data": mutation("admin", "cluster", null, sr.vdiAnswer),
  "POST /v1/vdis/:ref/revert": mutation("admin", "cluster", sr.vdiRevertRequest, sr.vdiAnswer, {
    logs: ["snapshot"],
  }),
  "POST /v1/vdis/:ref/layer": mutation("admin", "cluster", null, sr.vdiAnswer),
  "POST /v1/vdis/:ref/compose": mutation("admin", "cluster", sr.vdiComposeRequest, sr.vdiAnswer, {
    logs: ["parent"],
  }),
  "POST /v1/vdis/:ref/reset": mutation("admin", "cluster", sr.vdiResetRequest, sr.vdiAnswer, {
    logs: ["mark"],
  }),
  // Of a disk, and not of a snapshot of it, a snapshot is taken for it and goes again.
  "POST /v1/vdis/:ref/changed": mutation("admin", "cluster", sr.vdiChangedRequest, sr.vdiChangedAnswer, {
    logs: ["since"],
  }),
  "POST /v1/vdis/:ref/activate": mutation("admin", "cluster", sr.vdiActivateRequest, sr.vdiActivated, {
    logs: ["writable", "deadHosts"],
  }),
  "POST /v1/vdis/:ref/deactivate": mutation("admin", "cluster", null, api.okAnswer),
  "GET /v1/vdis/:ref/users": read("viewer", "cluster", sr.vdiUsersAnswer),
  /** By which UUID XAPI knows the host that is asked. */
  "PUT /v1/xapi-host": mutation("local-root", "cluster", sr.xapiHostRequest, api.okAnswer, {
    logs: ["uuid"],
  }),
  /** XAPI has declared this host of its pool dead. */
  "POST /v1/xapi-host/dead": mutation("local-root", "cluster", sr.xapiHostRequest, sr.xapiHostDead, {
    logs: ["uuid"],
  }),

  "GET /v1/trash": read("viewer", "volumes", api.trashAnswer.array()),
  "POST /v1/trash/:ref/restore": mutation("operator", "deleted volume", null, api.volumeAnswer),
  "DELETE /v1/trash": mutation("admin", "cluster", null, api.okAnswer),
  "DELETE /v1/trash/:ref": mutation("admin", "deleted volume", null, api.okAnswer),

  "POST /v1/store/backup": mutation("admin", "cluster", api.storeFileRequest, api.backupAnswer, {
    logs: ["path"],
  }),
  "POST /v1/store/restore": mutation("admin", "cluster", api.storeFileRequest, api.okAnswer, {
    logs: ["path"],
  }),
  "POST /v1/store/repair": mutation("admin", "cluster", api.storeRepairRequest, api.repairAnswer, {
    logs: ["assent"],
  }),

  /** For collectors of figures: text, as Prometheus reads it. */
  "GET /metrics": read("viewer", "cluster", z.string()),

  "GET /v1/audit": asked("admin", "cluster", api.auditQuery, api.auditAnswer),
  "GET /v1/audit/verify": read("admin", "cluster", api.auditVerdict),
} as const satisfies Readonly<Record<`${Method} /${string}`, RouteSpec>>;

export type Method = "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
export type Routes = typeof routes;
export type RouteName = keyof Routes;

/** The body that a handler gets: parsed, null where none is taken. */
export type RouteBody<Name extends RouteName> = Routes[Name]["request"] extends z.ZodType
  ? z.output<Routes[Name]["request"]>
  : null;
export type RouteQuery<Name extends RouteName> = Routes[Name]["query"] extends z.ZodType
  ? z.output<Routes[Name]["query"]>
  : null;
export type RouteAnswer<Name extends RouteName> = z.output<Routes[Name]["answer"]>;
/** What stands for the `:words` of its path, decoded. */
export type RouteParams<Name extends RouteName> = Readonly<Record<WordsOf<Name>, string>>;

type WordsOf<Path extends string> = Path extends `${string}:${infer Word}/${infer Rest}`
  ? Word | WordsOf<Rest>
  : Path extends `${string}:${infer Word}`
    ? Word
    : never;

export const routeNames = Object.keys(routes) as readonly RouteName[];

export function methodAndPath(name: RouteName): { readonly method: Method; readonly path: string } {
  const [method, path] = name.split(" ") as [Method, string];
  return { method, path };
}

function read<Answer extends z.ZodType>(right: Right, subject: RouteSubject, answer: Answer) {
  return asked(right, subject, null, answer);
}

function asked<Query extends z.ZodType | null, Answer extends z.ZodType>(
  right: Right,
  subject: RouteSubject,
  query: Query,
  answer: Answer,
) {
  return {
    right,
    raise: null,
    subject,
    names: null,
    request: null,
    bodyMax: BODY_MAX,
    query,
    answer,
    audit: "read",
    logs: [],
  } as const;
}

/** A question that needs a body: it changes nothing. */
function question<Request extends z.ZodType, Answer extends z.ZodType>(
  right: Right,
  subject: RouteSubject,
  request: Request,
  answer: Answer,
) {
  return {
    right,
    raise: null,
    subject,
    names: null,
    request,
    bodyMax: BODY_MAX,
    query: null,
    answer,
    audit: "read",
    logs: [],
  } as const;
}

function mutation<Request extends z.ZodType | null, Answer extends z.ZodType>(
  right: Right,
  subject: RouteSubject,
  request: Request,
  answer: Answer,
  more: {
    readonly raise?: (body: z.output<NonNullable<Request>>) => Right;
    readonly names?: keyof z.output<NonNullable<Request>> & string;
    readonly logs?: readonly (keyof z.output<NonNullable<Request>> & string)[];
    readonly bodyMax?: number;
  } = {},
) {
  const { raise, names, logs, bodyMax } = more;
  return {
    right,
    // The body was parsed by `request` before it comes here.
    raise: raise === undefined ? null : (body: unknown) => raise(body as z.output<NonNullable<Request>>),
    subject,
    names: names ?? null,
    request,
    bodyMax: bodyMax ?? BODY_MAX,
    query: null,
    answer,
    audit: "mutation",
    logs: logs ?? [],
  } as const;
}
