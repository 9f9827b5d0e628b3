/**
 * The REST interface on RUN/agent.sock, and `GET /v1/cluster` for hosts that want to join.
 *
 * Must always hold:
 * - bodies are parsed before anything is done, answers are encoded by the schema that clients decode with;
 * - every error has a code; what has none is a bug and says so (E-AGENT-06).
 */
import { chmod, rm } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { fastify, type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import type { z } from "zod";

import { parseVolumeId } from "../model/ids.ts";
import * as api from "../wire/agent-api.ts";
import { badRequest } from "../wire/agent-client.ts";
import { reasonOf, WeftError } from "../wire/errors.ts";
import type { Agent } from "./agent.ts";
import { attachVolume, detachVolume } from "./attach.ts";
import type { MemberContext } from "./context.ts";
import { AGENT_PORT } from "./etcd-process.ts";
import { findVolume } from "./find.ts";
import { volumeOf, volumesOf } from "./facts.ts";
import { removeHost } from "./hosts.ts";
import type { Log } from "./log.ts";
import { createPool, removePool } from "./pools.ts";
import { repairStore } from "./repair.ts";
import * as show from "./status.ts";
import { membersOrNone } from "./store-status.ts";
import { backupStore, restoreStore } from "./store-file.ts";
import { syncIfPossible } from "./mirror.ts";
import * as volumes from "./volumes.ts";
import { progressAnswer, whyAnswer } from "./why.ts";

const SOCKET_MODE = 0o660;
const BODY_MAX = 64 * 1024;
/** Longer names of volumes, pools and hosts are no path of ours; shorter ones are looked for, and not found. */
const PARAM_MAX = 256;
/** As much of a path that we don't know is repeated. */
const SHOWN_MAX = 100;

/** The host's own socket: everything. */
export async function serveLocal(agent: Agent, runDir: string, log: Log): Promise<FastifyInstance> {
  const path = join(runDir, "agent.sock");
  await refuseSecond(path);
  const app = createApp(log);
  addRoutes(app, agent);
  await app.listen({ path });
  await chmod(path, SOCKET_MODE);
  return app;
}

/** The cluster's address: read-only, for `weft join`. */
export async function serveCluster(agent: Agent, address: string, log: Log): Promise<FastifyInstance> {
  const app = createApp(log);
  app.get("/v1/cluster", () => api.clusterAnswer.encode(show.clusterAnswer(agent.member())));
  await app.listen({ host: address, port: AGENT_PORT });
  return app;
}

function createApp(log: Log): FastifyInstance {
  const app = fastify({
    logger: false,
    bodyLimit: BODY_MAX,
    forceCloseConnections: true,
    routerOptions: { maxParamLength: PARAM_MAX },
    // What fastify refuses before it has looked for a route: a path that can't be decoded, or is too long.
    frameworkErrors: (error, _request: FastifyRequest, reply: FastifyReply) => {
      const known = unexpected(error);
      void reply.status(known.status).send({ error: known.toBody() });
    },
  });
  // A POST without a body is one with an empty body.
  app.addContentTypeParser("application/json", { parseAs: "string" }, (_request, body, done) => {
    try {
      done(null, body === "" ? {} : JSON.parse(String(body)));
    } catch (cause) {
      done(new WeftError({ code: "E-ARG-02", message: "The request's body is not JSON.", cause }));
    }
  });
  app.setErrorHandler((error, request, reply) => {
    const known = error instanceof WeftError ? error : unexpected(error);
    if (known.code === "E-AGENT-06")
      log.error({ url: request.url, error: reasonOf(error), stack: stackOf(error) }, "a bug");
    return reply.status(known.status).send({ error: known.toBody() });
  });
  app.setNotFoundHandler((request, reply) => {
    const error = new WeftError({
      code: "E-ARG-01",
      message: `No request ${request.method} ${request.url.slice(0, SHOWN_MAX)}.`,
    });
    return reply.status(404).send({ error: error.toBody() });
  });
  return app;
}

type Params = { readonly ref: string };

function addRoutes(app: FastifyInstance, agent: Agent): void {
  app.get("/v1/status", async () => api.statusAnswer.encode(await agent.status()));
  app.post("/v1/init", async ({ body }) => {
    await agent.init(parse(api.initRequest, body));
    return api.clusterAnswer.encode(show.clusterAnswer(agent.member()));
  });
  app.post("/v1/join", async ({ body }) => {
    await agent.join(parse(api.joinRequest, body));
    return api.clusterAnswer.encode(show.clusterAnswer(agent.member()));
  });
  app.get("/v1/cluster", () => api.clusterAnswer.encode(show.clusterAnswer(agent.member())));

  app.get("/v1/hosts", async () => {
    const context = await fresh(agent);
    const members = await membersOrNone(context, context.view.storeUp);
    return show.hostAnswers(context, members).map((host) => api.hostAnswer.encode(host));
  });
  app.delete<{ Params: Params }>("/v1/hosts/:ref", async ({ params }) =>
    api.hostRemoveAnswer.encode(await removeHost(agent.member(), params.ref)),
  );

  app.get("/v1/pools", async () =>
    show.poolAnswers(await fresh(agent)).map((pool) => api.poolAnswer.encode(pool)),
  );
  app.post("/v1/pools", async ({ body }) =>
    api.poolAnswer.encode(await createPool(agent.member(), parse(api.poolCreateRequest, body).path)),
  );
  app.delete<{ Params: Params }>("/v1/pools/:ref", async ({ params }) => {
    await removePool(agent.member(), params.ref);
    return {};
  });
  addVolumeRoutes(app, agent);
  addReplicaRoutes(app, agent);
  addTrashRoutes(app, agent);
  addStoreRoutes(app, agent);
}

function addVolumeRoutes(app: FastifyInstance, agent: Agent): void {
  app.get("/v1/volumes", async () => {
    const context = await fresh(agent);
    const answers = volumesOf(context.mirror)
      .filter(({ want }) => want !== null && want.deletedAtMs === null)
      .flatMap((volume) => show.volumeAnswer(context, volume) ?? []);
    return answers
      .toSorted((a, b) => (a.name < b.name ? -1 : 1))
      .map((volume) => api.volumeAnswer.encode(volume));
  });
  app.post("/v1/volumes", async ({ body }) => {
    const context = agent.member();
    return shown(context, await volumes.createVolume(context, parse(api.volumeCreateRequest, body)));
  });
  app.get<{ Params: Params }>("/v1/volumes/:ref", async ({ params }) => {
    const context = await fresh(agent);
    return shown(context, findVolume(context.mirror, params.ref).id);
  });
  app.delete<{ Params: Params }>("/v1/volumes/:ref", async ({ params }) => {
    await volumes.deleteVolume(agent.member(), params.ref);
    return {};
  });
  app.post<{ Params: Params }>("/v1/volumes/:ref/attach", async ({ params, body }) => {
    const { steal } = parse(api.attachRequest, body);
    return api.attachAnswer.encode(await attachVolume(agent.member(), params.ref, steal));
  });
  app.post<{ Params: Params }>("/v1/volumes/:ref/steal", async ({ params }) =>
    api.attachAnswer.encode(await attachVolume(agent.member(), params.ref, true)),
  );
  app.post<{ Params: Params }>("/v1/volumes/:ref/detach", async ({ params, body }) => {
    const { abandon } = parse(api.detachRequest, body);
    return api.detachAnswer.encode(await detachVolume(agent.member(), params.ref, abandon));
  });
  app.get<{ Params: Params }>("/v1/volumes/:ref/why", async ({ params }) =>
    api.whyAnswer.encode(await whyAnswer(await fresh(agent), params.ref)),
  );
  app.get<{ Params: Params }>("/v1/volumes/:ref/progress", async ({ params }) =>
    api.progressAnswer.encode(progressAnswer(await fresh(agent), params.ref)),
  );
}

function addReplicaRoutes(app: FastifyInstance, agent: Agent): void {
  app.post<{ Params: Params }>("/v1/volumes/:ref/replicas", async ({ params, body }) => {
    const context = agent.member();
    const { host } = parse(api.replicaAddRequest, body);
    return shown(context, await volumes.addReplica(context, params.ref, host));
  });
  app.delete<{ Params: Params & { readonly rid: string } }>(
    "/v1/volumes/:ref/replicas/:rid",
    async ({ params }) => {
      const context = agent.member();
      return shown(context, await volumes.removeReplica(context, params.ref, Number(params.rid)));
    },
  );
}

function addTrashRoutes(app: FastifyInstance, agent: Agent): void {
  app.get("/v1/trash", async () =>
    show.trashAnswers(await fresh(agent)).map((item) => api.trashAnswer.encode(item)),
  );
  app.post<{ Params: Params }>("/v1/trash/:ref/restore", async ({ params }) => {
    const context = agent.member();
    return shown(context, await volumes.restoreVolume(context, params.ref));
  });
  app.delete("/v1/trash", async () => {
    await volumes.emptyTrash(agent.member(), null);
    return {};
  });
  app.delete<{ Params: Params }>("/v1/trash/:ref", async ({ params }) => {
    await volumes.emptyTrash(agent.member(), params.ref);
    return {};
  });
}

function addStoreRoutes(app: FastifyInstance, agent: Agent): void {
  app.post("/v1/store/backup", async ({ body }) =>
    api.backupAnswer.encode(await backupStore(agent.member(), parse(api.storeFileRequest, body).path)),
  );
  app.post("/v1/store/restore", async ({ body }) => {
    await restoreStore(agent.member(), parse(api.storeFileRequest, body).path);
    await agent.restart();
    return {};
  });
  app.post("/v1/store/repair", async ({ body }) =>
    api.repairAnswer.encode(await repairStore(agent.member(), parse(api.storeRepairRequest, body).assent)),
  );
}

async function fresh(agent: Agent): Promise<MemberContext> {
  const context = agent.member();
  // While the store is away the last known state is shown; status says so.
  if (context.view.storeUp) await syncIfPossible(context.mirror);
  return context;
}

function shown(context: MemberContext, id: string): z.input<typeof api.volumeAnswer> {
  const volume = parseVolumeId(id);
  const answer = volume === null ? null : show.volumeAnswer(context, volumeOf(context.mirror, volume));
  if (answer === null)
    throw new WeftError({ code: "E-ARG-01", message: `No volume "${id}".`, facts: { ref: id } });
  return api.volumeAnswer.encode(answer);
}

function parse<S extends z.ZodType>(schema: S, body: unknown): z.output<S> {
  const parsed = schema.safeParse(body ?? {});
  if (parsed.success) return parsed.data;
  throw badRequest(parsed.error);
}

function unexpected(error: unknown): WeftError {
  // fastify's own refusals: too large, another content type.
  if (error instanceof Error && "statusCode" in error && Number(error.statusCode) < 500) {
    const message = `${error.message.slice(0, SHOWN_MAX)}.`;
    return new WeftError({ code: "E-ARG-02", message, cause: error });
  }
  return new WeftError({
    code: "E-AGENT-06",
    message: `The agent failed in a way that it believed impossible: ${reasonOf(error)}.`,
    safe: "The data path does not depend on the agent.",
    cause: error,
  });
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? "") : "";
}

/** A socket file that nobody listens on is left from a crash; one that answers is another agent's. */
async function refuseSecond(path: string): Promise<void> {
  const answers = await new Promise<boolean>((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
  if (answers) {
    throw new WeftError({
      code: "E-HOST-08",
      message: `Another agent serves ${path}.`,
      facts: { socket: path },
    });
  }
  await rm(path, { force: true });
}
