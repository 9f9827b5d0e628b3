/**
 * Requests of any kind at a whole agent: real fastify, real etcd, a weftd that keeps no disks; and values in the store
 * that nobody should have written, between the requests.
 *
 * Must always hold: every request is answered, with JSON; a refusal has a code of docs/errors.md and the status of its
 * class; nothing is ever a bug of ours (E-AGENT-06), and the agent goes on.
 */
import { connect } from "node:net";
import { join } from "node:path";

import * as fc from "fast-check";
import type { z } from "zod";

import type { StoreClient } from "../../src/core/wire/store-client.ts";
import { keys } from "../../src/core/wire/store-keys.ts";
import { methodAndPath, type RouteName, routeNames, type Routes } from "../../src/core/wire/routes.ts";
import { startCluster } from "../core/agent/test-host.ts";
import type { TestHost } from "../core/agent/test-host.ts";
import { assertCode } from "./codes.ts";
import type { OpenDoor } from "./door.ts";
import { goodValues } from "./good-values.ts";
import { anyJson, nearly, textOf } from "./values.ts";

/** No answer within this time is a finding: nothing that is asked here waits for anybody. */
const ANSWER_MS = 60_000;

type Request = {
  readonly method: string;
  readonly path: string;
  readonly type: string;
  readonly body: string;
};
type Input =
  | { readonly kind: "request"; readonly request: Request }
  | { readonly kind: "put"; readonly key: string; readonly value: string };

const volume = { name: "db", size: "1048576", copies: 1, minIsr: 1, hosts: null, createdBy: null };
/** Paths that the agent itself opens lead nowhere, whatever is in them. */
const file = { path: "/dev/null/file" };

const nobody = "00000000-0000-4000-8000-000000000009";
const newcomer = { host: nobody, name: "h9", address: "127.0.0.9", cert: "-----BEGIN CERTIFICATE-----" };

type WithBody = {
  [Name in RouteName as Routes[Name]["request"] extends z.ZodType ? Name : never]: z.input<
    Extract<Routes[Name]["request"], z.ZodType>
  >;
};
/** One for each route that takes a body: a new one is tried too, or this does not compile. */
const bodies: WithBody = {
  "POST /v1/init": { name: "h1", address: "127.0.0.1", clusterName: "lab" },
  "POST /v1/join": { from: "127.0.0.1", token: "04F6", name: "h1", address: "127.0.0.1" },
  "POST /v1/admission/request": { name: "h1", address: "127.0.0.1" },
  "POST /v1/admission": { ...newcomer, vouchedBy: "XAPI host 1" },
  "POST /v1/admission/answer": {
    cluster: { id: nobody, name: "lab", createdAt: "2026-11-22T10:00:00Z", host: nobody, endpoints: [] },
    cert: "-----BEGIN CERTIFICATE-----",
    authority: "-----BEGIN CERTIFICATE-----",
    trust: "{}",
  },
  "POST /v1/bundles/key": {
    bundle: { cluster: nobody, host: nobody, kid: "0".repeat(64) },
    request: newcomer,
    addresses: ["127.0.0.9"],
    vouchedBy: "XAPI",
  },
  "POST /v1/reclaim": { bundle: "{}", key: { from: "AAAA", box: "AAAA" } },
  "POST /v1/stop-check": { waitMs: 0 },
  "PUT /v1/settings": { transport: "tls" },
  "POST /v1/tokens": { forMs: 60_000, name: null },
  "POST /v1/api-tokens": { name: "ci", role: "viewer", volumes: null, forMs: 60_000 },
  "POST /v1/ca/backup": { ...file, passphrase: "not a word in any book" },
  "POST /v1/ca/restore": { ...file, passphrase: "not a word in any book" },
  "POST /v1/ca/rotate": {},
  "POST /v1/pools": { path: "/pool" },
  "POST /v1/disks/wipe": { device: "/dev/null/file", host: null, name: "" },
  "PATCH /v1/hosts/:ref": { labels: { rack: "a", site: null } },
  "POST /v1/volumes": volume,
  "PATCH /v1/volumes/:ref": { limits: { iops: 2000, bps: "1048576", burstS: 5 } },
  "POST /v1/volumes/:ref/plan": { move: { from: "h1", to: "h1", pool: null } },
  "POST /v1/volumes/:ref/scrub": { rate: "1048576" },
  "POST /v1/volumes/:ref/snapshots": { name: "s", id: null },
  "POST /v1/snapshots": { volumes: ["db", "web"], name: "s", id: null },
  "PATCH /v1/snapshots/:ref": { name: "s" },
  "DELETE /v1/volumes/:ref": { keepSnapshots: false },
  "POST /v1/volumes/:ref/attach": { steal: false },
  "POST /v1/volumes/:ref/detach": { abandon: false },
  "POST /v1/volumes/:ref/replicas": { host: null },
  "POST /v1/srs": { uuid: goodValues.want.id, label: "replicated", copies: 1 },
  "PATCH /v1/srs/:ref": { label: "r" },
  "POST /v1/srs/:ref/vdis": { uuid: goodValues.host.id, size: "1048576", smConfig: { a: "b" } },
  "POST /v1/srs/:ref/introduce": { uuid: goodValues.want.id, label: null },
  "PATCH /v1/vdis/:ref": { size: "2097152", label: "d", snapshotOf: null, settled: true },
  "POST /v1/vdis/:ref/snapshot": { uuid: goodValues.pool.id },
  "POST /v1/vdis/:ref/clone": { uuid: goodValues.pool.id, label: "c" },
  "POST /v1/vdis/:ref/revert": { snapshot: goodValues.pool.id },
  "POST /v1/vdis/:ref/compose": { parent: goodValues.pool.id },
  "POST /v1/vdis/:ref/reset": { mark: true },
  "POST /v1/vdis/:ref/changed": { since: goodValues.pool.id },
  "POST /v1/vdis/:ref/activate": { writable: true, deadHosts: [goodValues.host.id], waitMs: 0 },
  "PUT /v1/xapi-host": { uuid: goodValues.host.id },
  "POST /v1/xapi-host/dead": { uuid: goodValues.host.id },
  "POST /v1/store/backup": file,
  "POST /v1/store/restore": file,
  "POST /v1/store/repair": { assent: false },
};
/** What would change the world that all other inputs are tried in. */
const untried: readonly RouteName[] = ["POST /v1/ca/rotate", "POST /v1/store/repair"];
const queries: Partial<Record<RouteName, string>> = {
  "GET /v1/disks": "?device=/dev/null/file",
  "GET /v1/snapshots/:ref/changed": "?since=db@x&offset=65536&len=4096",
  "GET /v1/audit": "?since=2026-11-21T14:00:00Z&volume=db&who=root&refused=true&limit=5",
};

/** Every route of the table, with a body or query that it takes. */
const shapes: readonly (readonly [method: string, path: string, body: unknown])[] = [
  ...routeNames
    .filter((name) => !untried.includes(name))
    .map((name) => {
      const { method, path } = methodAndPath(name);
      const named = path.replace(":ref", "REF").replace(":rid", "1");
      const body = name in bodies ? bodies[name as keyof WithBody] : {};
      return [method, named + (queries[name] ?? ""), body] as const;
    }),
  ["POST", "/v1/volumes", { ...volume, name: "web" }],
  ["PATCH", "/v1/volumes/REF", { size: "2097152" }],
  ["PATCH", "/v1/volumes/REF", { size: "4096", loseData: "db" }],
  ["PATCH", "/v1/volumes/REF", { spread: "rack" }],
  ["PATCH", "/v1/volumes/REF", { copies: 1, minIsr: 1 }],
  ["PATCH", "/v1/snapshots/REF", { protected: true }],
  ["PUT", "/v1/settings", { scrub: { everyDays: 30, rate: "1048576" } }],
];

const ref = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.constantFrom(
      "db",
      "web",
      "db%40x",
      "1",
      goodValues.want.id,
      "nobody",
      "%2e%2e",
      "%00",
      "%zz",
      "a".repeat(300),
    ),
  },
  { weight: 1, arbitrary: fc.string({ maxLength: 20, unit: "binary" }).map(encoded) },
);

const request = fc.constantFrom(...shapes).chain(([method, path, good]) =>
  fc.record({
    method: fc.oneof(
      { weight: 15, arbitrary: fc.constant(method) },
      { weight: 1, arbitrary: fc.constantFrom("PUT", "PATCH", "HEAD", "OPTIONS", "POST") },
    ),
    path: fc
      .tuple(
        ref,
        fc.oneof(
          { weight: 9, arbitrary: fc.constant("") },
          { weight: 1, arbitrary: fc.string().map(encoded) },
        ),
      )
      .map(([name, more]) => path.replace("REF", name) + more),
    type: fc.oneof(
      { weight: 15, arbitrary: fc.constant("application/json") },
      {
        weight: 1,
        arbitrary: fc.constantFrom("text/plain", "", "application/json; charset=x", "multipart/form-data"),
      },
    ),
    body: path.startsWith("/v1/store/")
      ? // Nothing of these may name a file that is there.
        fc.oneof(
          fc.constant(JSON.stringify(good)),
          textOf(anyJson).filter((text) => !text.includes("path")),
        )
      : fc.oneof(
          { weight: 3, arbitrary: fc.constant(JSON.stringify(good)) },
          { weight: 3, arbitrary: textOf(nearly(good)) },
          { weight: 1, arbitrary: textOf(anyJson) },
          { weight: 1, arbitrary: fc.string({ maxLength: 100, unit: "binary" }) },
        ),
  }),
);

const other = goodValues.want.id;
const places: readonly (readonly [key: string, good: unknown])[] = [
  [keys.host(goodValues.host.id), goodValues.host],
  [keys.alive(goodValues.host.id), goodValues.alive],
  [keys.pool(goodValues.pool.id), goodValues.pool],
  [keys.poolUsage(goodValues.pool.id), goodValues.usage],
  [keys.name("db2"), goodValues.name],
  [keys.want(other), goodValues.want],
  [keys.made(other, 1), goodValues.made],
  [keys.state(other), goodValues.state],
  [keys.snapshot(other, goodValues.snapshot.id), goodValues.snapshot],
  [keys.snapshotOpen(goodValues.snapshot.id) + goodValues.host.id, { volume: other, since: "1" }],
  [keys.progress(other), { rid: 1, copied: "1", total: "2" }],
  [keys.emptyTrash(other), {}],
  [keys.token("t"), { volume: other }],
  [keys.sr(other), goodValues.sr],
  [keys.vdi(other), goodValues.vdi],
  [keys.xapiHost(goodValues.host.id), { format: 1, uuid: other }],
];

const put = fc.constantFrom(...places).chain(([key, good]) =>
  fc.record({
    kind: fc.constant("put" as const),
    key: fc.constant(key),
    value: textOf(fc.oneof(nearly(good), anyJson)),
  }),
);

export async function openRest(): Promise<OpenDoor> {
  const teardowns: (() => Promise<void>)[] = [];
  const [host] = await startCluster({ teardown: (fn) => void teardowns.push(fn) }, 1, 11);
  if (host === undefined) throw new Error("no host");
  // A busy machine is no finding.
  const store = await host.store(60_000);
  return {
    arbitrary: fc.oneof(
      { weight: 4, arbitrary: request.map((it) => ({ kind: "request", request: it }) as const) },
      { weight: 1, arbitrary: put },
    ),
    judge: (input: Input) => judge(host, store, input),
    kept: [
      {
        kind: "request",
        request: {
          method: "POST",
          path: "/v1/store/backup",
          type: "application/json",
          body: JSON.stringify(file),
        },
      },
      {
        kind: "put",
        key: keys.want(other),
        value: JSON.stringify({ ...goodValues.want, deletedAt: "9999-12-31T23:59:59.999Z" }),
      },
      {
        kind: "put",
        key: keys.state(other),
        value: JSON.stringify({ ...goodValues.state, deleted: "18446744073709551615" }),
      },
      {
        kind: "put",
        key: keys.want(other),
        value: JSON.stringify({ ...goodValues.want, deletedAt: "2999-01-01T00:00:00.000Z" }),
      },
    ] satisfies readonly Input[],
    shrinks: false,
    close: async () => {
      for (const teardown of teardowns.toReversed()) await teardown();
    },
  };
}

async function judge(host: TestHost, store: StoreClient, input: Input): Promise<void> {
  if (input.kind === "put") {
    await store.put(input.key, input.value);
    // Everything that shows something shows it, or says what is wrong with it.
    for (const path of [
      "/v1/status",
      "/v1/hosts",
      "/v1/pools",
      "/v1/volumes",
      "/v1/trash",
      `/v1/volumes/${other}`,
      "/v1/snapshots",
      `/v1/snapshots/${goodValues.snapshot.id}`,
      `/v1/volumes/${other}/why`,
      "/v1/srs",
      `/v1/srs/${other}/vdis`,
      `/v1/vdis/${other}`,
    ])
      await asked(host, { method: "GET", path, type: "application/json", body: "" });
    return;
  }
  await asked(host, input.request);
}

async function asked(host: TestHost, request: Request): Promise<void> {
  const { status, body } = await exchange(join(host.directory, "run/agent.sock"), request);
  const shown = `${request.method} ${request.path} ${request.body.slice(0, 300)} -> ${status} ${body.slice(0, 500)}`;
  if (request.method === "HEAD") return;
  // Figures are the one answer that isn't JSON.
  if (status === 200 && request.path.startsWith("/metrics")) return;
  const json: unknown = JSON.parse(body === "" ? "{}" : body);
  if (status >= 200 && status < 300) return;
  if (typeof json !== "object" || json === null || !("error" in json))
    throw new Error(`no error body: ${shown}`);
  const { code, message } = json.error as { readonly code: unknown; readonly message: unknown };
  assertCode(code, shown);
  if (typeof message !== "string" || message === "") throw new Error(`no sentence: ${shown}`);
  if (![400, 404, 409, 413, 415, 431, 503].includes(status)) throw new Error(`status ${status}: ${shown}`);
}

/** By hand: node's client refuses to send half of what is to be tried. */
function exchange(
  socketPath: string,
  { method, path, type, body }: Request,
): Promise<{ status: number; body: string }> {
  const bytes = Buffer.from(body);
  const head = [
    `${method} ${path} HTTP/1.1`,
    "host: weft",
    "connection: close",
    ...(type === "" ? [] : [`content-type: ${type}`]),
    ...(method === "GET" || method === "HEAD" ? [] : [`content-length: ${bytes.length}`]),
  ];
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath);
    const chunks: Buffer[] = [];
    socket.setTimeout(ANSWER_MS, () => socket.destroy(new Error(`no answer to ${method} ${path}`)));
    socket.on("error", reject);
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    socket.on("end", () => {
      const text = Buffer.concat(chunks).toString("utf8");
      const [first = "", ...rest] = text.split("\r\n\r\n");
      const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(first)?.[1] ?? 0);
      const payload = rest.join("\r\n\r\n");
      resolve({ status, body: /transfer-encoding: chunked/i.test(first) ? unchunked(payload) : payload });
    });
    socket.write(`${head.join("\r\n")}\r\n\r\n`);
    if (method !== "GET" && method !== "HEAD") socket.write(bytes);
  });
}

function unchunked(text: string): string {
  return text.replaceAll(/^[0-9a-f]+\r\n|\r\n(?=[0-9a-f]+\r\n)|\r\n0\r\n\r\n$/gm, "");
}

/** Any text as a part of a path: what HTTP itself forbids there is escaped. */
function encoded(text: string): string {
  return Buffer.from(text)
    .toString("latin1")
    .replaceAll(/[^!-~]|[?#%]/g, (char) => `%${char.charCodeAt(0).toString(16).padStart(2, "0")}`);
}
