/**
 * Plot: requests of every principal at the door that is registered from the table of routes, with an agent behind it that
 * only says that it was reached.
 */
import t from "tap";

import type { Audit, AuditRequest } from "../../../src/core/agent/audit.ts";
import { handlers } from "../../../src/core/agent/handlers.ts";
import type { AskedAgent } from "../../../src/core/agent/handlers.ts";
import { openLog } from "../../../src/core/agent/log.ts";
import { createApp } from "../../../src/core/agent/rest.ts";
import { mayDo, roles } from "../../../src/core/model/roles.ts";
import type { Principal } from "../../../src/core/model/roles.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { methodAndPath, routeNames, routes, type RouteSpec } from "../../../src/core/wire/routes.ts";

function reached(): never {
  throw new WeftError({ code: "E-AGENT-03", message: "reached" });
}
/** What the audit was told, one word each. */
const told: string[] = [];
const audit = {
  begin: async ({ what, who, target }: AuditRequest, durable: boolean): Promise<void> => {
    told.push(`begin ${what} ${who.name} ${JSON.stringify(target)}${durable ? " durable" : ""}`);
  },
  end: async ({ what }: AuditRequest, outcome: string): Promise<void> => {
    told.push(`end ${what} ${outcome}`);
  },
  last: reached,
  verify: reached,
  refused: async ({ what, who }: AuditRequest, source: string, outcome: string): Promise<void> => {
    told.push(`refused ${what} ${who.name} ${source} ${outcome}`);
  },
};
Object.defineProperty(audit, "counts", { get: reached });
const agent: AskedAgent = {
  audit: audit as unknown as Audit,
  member: reached,
  status: reached,
  disks: reached,
  init: reached,
  join: reached,
  requestAdmission: reached,
  enter: reached,
  bundles: reached,
  reclaim: reached,
  restart: reached,
};

function door(principal: Principal): ReturnType<typeof createApp> {
  return createApp({ agent, log: openLog("silent"), names: routeNames, principalOf: () => principal });
}

const root: Principal = { kind: "root", uid: 0, pid: 1 };
const token = (role: (typeof roles)[number], volumes: readonly string[] | null = null): Principal => ({
  kind: "token",
  id: "a81c04fe",
  name: "ci",
  role,
  volumes,
});
const principals: readonly Principal[] = [
  root,
  { kind: "group", uid: 1000, pid: 1 },
  { kind: "host", host: "00000000-0000-4000-8000-000000000001" as never, name: "h2" },
  ...roles.map((role) => token(role)),
  ...roles.map((role) => token(role, [])),
  { kind: "nobody", address: "10.0.0.9" },
];

type Ask = { readonly status: number; readonly code: string | null };

async function ask(app: ReturnType<typeof door>, name: string, body: unknown = {}): Promise<Ask> {
  const [method, path = ""] = name.split(" ");
  const answer = await app.inject({
    method: method as "GET",
    url: path.replace(":ref", "db").replace(":rid", "1"),
    payload: JSON.stringify(body),
    headers: { "content-type": "application/json" },
  });
  const json = answer.json<{ readonly error?: { readonly code: string } }>();
  return { status: answer.statusCode, code: json.error?.code ?? null };
}

void t.test("routes: what is in the table is served, and nothing else can be", async (t) => {
  const app = door(root);
  t.teardown(() => app.close());
  for (const name of routeNames) {
    const { method, path } = methodAndPath(name);
    t.ok(app.hasRoute({ method, url: path }), name);
    t.not((await ask(app, name)).status, 404, name);
  }
  t.strictSame(Object.keys(handlers).toSorted(), [...routeNames].toSorted());
  const again = createApp({ agent, log: openLog("silent"), names: [], principalOf: () => root });
  t.throws(() => again.get("/v1/more", () => ({})), /GET \/v1\/more is not in the table/);
  t.throws(() => again.all("/v1/status", () => ({})), /is not in the table/);
  t.same(await ask(app, "PUT /v1/status"), { status: 404, code: "E-ARG-01" });
  t.same(await ask(app, "GET /v1/more"), { status: 404, code: "E-ARG-01" });
});

void t.test("routes: each principal reaches what its rights allow, and is refused the rest", async (t) => {
  for (const principal of principals) {
    const app = door(principal);
    t.teardown(() => app.close());
    for (const name of routeNames) {
      const spec: RouteSpec = routes[name];
      const subject =
        spec.subject === "cluster" || spec.subject === "volumes"
          ? ({ kind: spec.subject } as const)
          : ({ kind: "volume", volume: null } as const);
      const { code, status } = await ask(app, name);
      const what = `${JSON.stringify(principal)} ${name}`;
      if (mayDo(principal, spec.right, subject)) {
        // An empty body is no body for some; the judgement came before.
        t.ok(code === "E-AGENT-03" || code === "E-ARG-02", what);
      } else {
        const nobody = principal.kind === "nobody";
        t.same({ code, status }, nobody ? refusal(401) : refusal(403), what);
      }
    }
  }
});

void t.test("routes: every change is a mutation of the table, and nobody's by default", async (t) => {
  for (const name of routeNames) {
    const spec: RouteSpec = routes[name];
    const questions: readonly string[] = ["POST /v1/volumes/:ref/plan", "POST /v1/stop-check"];
    const asks = methodAndPath(name).method === "GET" || questions.includes(name);
    t.equal(spec.audit, asks ? "read" : "mutation", name);
    if (spec.audit === "mutation") t.not(spec.right, "viewer", name);
    // That a scrub is taken back destroys nothing.
    const isTakenBack = name === "DELETE /v1/volumes/:ref/scrub";
    if (/^DELETE|^PATCH \/v1\/hosts|\/store\/|\/steal$/.test(name))
      t.equal(spec.right, isTakenBack ? "operator" : "admin", name);
  }
});

void t.test(
  "routes: an operator neither steals, abandons, loses data nor moves copies by a field of the body",
  async (t) => {
    const app = door(token("operator"));
    const admin = door(token("admin"));
    t.teardown(() => app.close());
    t.teardown(() => admin.close());
    for (const [name, field] of [
      ["POST /v1/volumes/:ref/attach", "steal"],
      ["POST /v1/volumes/:ref/detach", "abandon"],
    ] as const) {
      t.same(await ask(app, name, { [field]: false }), { status: 409, code: "E-AGENT-03" });
      t.same(await ask(app, name, { [field]: true }), refusal(403));
      t.same(await ask(admin, name, { [field]: true }), { status: 409, code: "E-AGENT-03" });
      t.same(await ask(app, name, { [field]: "true" }), { status: 400, code: "E-ARG-02" });
    }
    const resize = "PATCH /v1/volumes/:ref";
    t.same(await ask(app, resize, { size: "8192" }), { status: 409, code: "E-AGENT-03" });
    t.same(await ask(app, resize, { size: "8192", loseData: "db" }), refusal(403));
    t.same(await ask(admin, resize, { size: "8192", loseData: "db" }), { status: 409, code: "E-AGENT-03" });
    const change = "PATCH /v1/volumes/:ref";
    const move = { from: "h1", to: "h2" };
    t.same(await ask(app, change, { limits: null }), { status: 409, code: "E-AGENT-03" });
    for (const body of [{ copies: 3 }, { copies: 1, minIsr: 1 }, { spread: "rack" }, { move }]) {
      t.same(await ask(app, change, body), refusal(403), JSON.stringify(body));
      t.same(await ask(admin, change, body), { status: 409, code: "E-AGENT-03" }, JSON.stringify(body));
      t.same(await ask(app, `POST /v1/volumes/:ref/plan`, body), { status: 409, code: "E-AGENT-03" });
    }
    for (const body of [
      {},
      { minIsr: 1 },
      { copies: 2, move },
      { copies: 9 },
      { spread: "row" },
      { limits: null, spread: "rack" },
    ])
      t.same(await ask(admin, change, body), { status: 400, code: "E-ARG-02" }, JSON.stringify(body));
  },
);

void t.test("routes: who may not ask is refused before the body is read", async (t) => {
  const app = door({ kind: "nobody", address: "10.0.0.9" });
  t.teardown(() => app.close());
  const answer = await app.inject({
    method: "POST",
    url: "/v1/volumes",
    payload: "{".repeat(200_000),
    headers: { "content-type": "application/json" },
  });
  t.equal(answer.statusCode, 401);
});

void t.test(
  "routes: a mutation begins and ends in the audit, a refusal is one line, reading leaves none",
  async (t) => {
    const app = door(token("operator"));
    t.teardown(() => app.close());
    const heard = async (...asks: Parameters<typeof ask>): Promise<readonly string[]> => {
      told.length = 0;
      await ask(...asks);
      return [...told];
    };
    const volume = { name: "db", size: "1048576", createdBy: "canary" };
    t.same(await heard(app, "POST /v1/volumes", volume), [
      'begin POST /v1/volumes ci {"name":"db","size":"1048576","from":null,"copies":null,"minIsr":null,"hosts":null,"spread":null,"thick":false}',
      "end POST /v1/volumes E-AGENT-03",
    ]);
    t.same(await heard(app, "POST /v1/volumes/:ref/attach", {}), [
      'begin POST /v1/volumes/:ref/attach ci {"ref":"db","steal":false}',
      "end POST /v1/volumes/:ref/attach E-AGENT-03",
    ]);
    const limits = { iops: 5, bps: "65536" };
    t.same(await heard(app, "PATCH /v1/volumes/:ref", { limits }), [
      `begin PATCH /v1/volumes/:ref ci ${JSON.stringify({
        ref: "db",
        loseData: null,
        limits: '{"iops":5,"bps":"65536","burstS":1}',
      })}`,
      "end PATCH /v1/volumes/:ref E-AGENT-03",
    ]);
    const attach = "refused POST /v1/volumes/:ref/attach ci token a81c04fe";
    t.same(await heard(app, "POST /v1/volumes/:ref/attach", { steal: true }), [`${attach} E-AUTH-02`]);
    t.same(await heard(app, "POST /v1/volumes/:ref/attach", { steal: 1 }), [`${attach} E-ARG-02`]);
    t.same(await heard(app, "GET /v1/volumes"), []);
    t.same(await heard(app, "GET /v1/volumes/:ref"), []);
    t.same(await heard(app, "GET /v1/audit"), ["refused GET /v1/audit ci token a81c04fe E-AUTH-02"]);

    // What only an administrator may do stands on the disk before it is done.
    const admin = door(root);
    t.teardown(() => admin.close());
    t.same(await heard(admin, "DELETE /v1/volumes/:ref"), [
      'begin DELETE /v1/volumes/:ref root {"ref":"db","keepSnapshots":false} durable',
      "end DELETE /v1/volumes/:ref E-AGENT-03",
    ]);
  },
);

void t.test("routes: a body that is too large is refused, whoever sends it", async (t) => {
  const app = door(root);
  t.teardown(() => app.close());
  const volume = { name: "db", size: "1048576", hosts: ["h".repeat(70_000)] };
  t.same(await ask(app, "POST /v1/volumes", volume), { status: 413, code: "E-LIMIT-01" });
});

void t.test("routes: what can't be written into the audit is not done", async (t) => {
  let reached = false;
  const full: AskedAgent = {
    ...agent,
    audit: {
      ...audit,
      begin: async () => {
        throw new WeftError({ code: "E-AUDIT-01", message: "The audit can't be written: no space." });
      },
    } as unknown as Audit,
    member: () => {
      reached = true;
      throw new WeftError({ code: "E-AGENT-03", message: "reached" });
    },
  };
  const app = createApp({ agent: full, log: openLog("silent"), names: routeNames, principalOf: () => root });
  t.teardown(() => app.close());
  t.same(await ask(app, "POST /v1/pools", { path: "/p" }), { status: 503, code: "E-AUDIT-01" });
  t.notOk(reached);
  t.same(await ask(app, "GET /v1/pools"), { status: 409, code: "E-AGENT-03" });
});

function refusal(status: 401 | 403): Ask {
  return { status, code: status === 401 ? "E-AUTH-01" : "E-AUTH-02" };
}
