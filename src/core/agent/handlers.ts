/**
 * What is done for each route of the table. Who asks was judged before, the body was parsed; the answer is encoded after.
 *
 * Must always hold: one handler for each route, and none besides (the type says so).
 */
import { maySee, type Principal, shownPrincipal } from "../model/roles.ts";
import { parseVolumeId } from "../model/ids.ts";
import type * as api from "../wire/agent-api.ts";
import { changesPlaces } from "../wire/agent-api.ts";
import { WeftError } from "../wire/errors.ts";
import { whoOf } from "../wire/audit-line.ts";
import type { RouteAnswer, RouteBody, RouteName, RouteParams, RouteQuery } from "../wire/routes.ts";
import { admitHost } from "./admit.ts";
import type { Agent } from "./agent.ts";
import { createApiToken, listApiTokens, revokeApiToken } from "./api-tokens.ts";
import { memberAddresses } from "./ask-members.ts";
import { auditAnswer, auditProblems, auditVerdict } from "./audit-read.ts";
import { attachVolume, detachVolume } from "./attach.ts";
import { backupAuthority, restoreAuthority } from "./ca-file.ts";
import { changedBlocks } from "./changed-blocks.ts";
import type { MemberContext } from "./context.ts";
import { createVolume } from "./create-volume.ts";
import { clusterJsonOf, volumeOf, volumesOf } from "./facts.ts";
import { findSnapshot, findVolume } from "./find.ts";
import { labelHost, removeHost } from "./hosts.ts";
import { createGroup } from "./group-snapshot.ts";
import { createToken, listTokens, revokeToken } from "./join-tokens.ts";
import { metricsText } from "./metrics.ts";
import { syncIfPossible } from "./mirror.ts";
import { changePlaces, planPlaces } from "./place-change.ts";
import { createPool, removePool, wipeDisk } from "./pools.ts";
import { repairStore } from "./repair.ts";
import { unsealFor } from "./reclaim.ts";
import { revokeHost } from "./revoke.ts";
import { rotateAuthority, showAuthority } from "./rotate.ts";
import { changeSettings, settingsOf } from "./settings.ts";
import * as snapshots from "./snapshots.ts";
import { mayStop } from "./stop-guard.ts";
import { srHandlers } from "./sr-handlers.ts";
import { statsAnswer } from "./stats.ts";
import * as show from "./status.ts";
import { backupStore, restoreStore } from "./store-file.ts";
import { membersOrNone } from "./store-status.ts";
import { revertAny } from "./vdi-copies.ts";
import * as volumes from "./volumes.ts";
import { progressAnswer, whyAnswer } from "./why.ts";

/** As much of the agent as a request may use. */
export type AskedAgent = Pick<
  Agent,
  | "member"
  | "status"
  | "disks"
  | "init"
  | "join"
  | "requestAdmission"
  | "enter"
  | "bundles"
  | "reclaim"
  | "restart"
  | "audit"
>;

export type Asked<Name extends RouteName> = {
  readonly principal: Principal;
  readonly params: RouteParams<Name>;
  readonly body: RouteBody<Name>;
  readonly query: RouteQuery<Name>;
};

type Handlers = {
  readonly [Name in RouteName]: (
    agent: AskedAgent,
    asked: Asked<Name>,
  ) => Promise<RouteAnswer<Name>> | RouteAnswer<Name>;
};

export const handlers: Handlers = {
  "GET /v1/status": async (agent) => {
    const status = await agent.status();
    if (status.kind === "no-cluster") return status;
    return { ...status, problems: [...status.problems, ...auditProblems(agent.audit)] };
  },
  "POST /v1/init": async (agent, { body }) => {
    await agent.init(body);
    return show.enteredAnswer(agent.member());
  },
  "POST /v1/join": async (agent, { body }) => {
    await agent.join(body);
    return show.enteredAnswer(agent.member());
  },
  "POST /v1/admission/request": (agent, { body }) => agent.requestAdmission(body),
  "POST /v1/admission": (agent, { body }) => {
    const context = agent.member();
    const { store, authority, identity } = context;
    const cluster = (): api.ClusterAnswer => show.clusterAnswer(context);
    return admitHost({ store, authority, identity, cluster, members: () => memberAddresses(store) }, body);
  },
  "POST /v1/admission/answer": async (agent, { body }) => {
    await agent.enter(body);
    return show.enteredAnswer(agent.member());
  },
  "GET /v1/bundles": async (agent) => ({ bundles: [...(await agent.bundles())] }),
  "POST /v1/bundles/key": (agent, { body }) => unsealFor(agent.member(), body),
  "POST /v1/reclaim": async (agent, { body }) => {
    await agent.reclaim(body);
    return show.enteredAnswer(agent.member());
  },
  "GET /v1/cluster": (agent) => show.clusterAnswer(agent.member()),

  "GET /v1/settings": (agent) => settingsOf(agent.member()),
  "PUT /v1/settings": (agent, { body }) => changeSettings(agent.member(), body),

  "GET /v1/tokens": async (agent) => {
    const { store, identity } = agent.member();
    return [...(await listTokens(store, identity.trust()))];
  },
  "POST /v1/tokens": (agent, { principal, body: { forMs, name } }) => {
    const { store, authority, identity, self } = agent.member();
    const by = `${shownPrincipal(principal)}@${self.name}`;
    return createToken({ store, authority, trust: identity.trust() }, { forMs, name, by });
  },
  "DELETE /v1/tokens/:ref": async (agent, { params }) => {
    await revokeToken(agent.member().store, params.ref);
    return {};
  },

  "GET /v1/me": (agent, { principal }) => {
    const { identity, mirror, self } = agent.member();
    const { name, role } = whoOf(principal);
    const volumes = principal.kind === "token" && principal.volumes !== null ? [...principal.volumes] : null;
    const cluster = { id: identity.trust().cluster, name: clusterJsonOf(mirror).name };
    return { cluster, host: { id: self.host, name: self.name }, name, role, volumes };
  },
  "GET /v1/api-tokens": async (agent) => {
    const { store, identity } = agent.member();
    return [...(await listApiTokens(store, identity.trust()))];
  },
  "POST /v1/api-tokens": async (agent, { principal, body }) => {
    const context = await fresh(agent);
    const volumes = body.volumes?.map((ref) => findVolume(context.mirror, ref).id) ?? null;
    const { name, address } = context.self;
    const by = `${shownPrincipal(principal)}@${name}`;
    return createApiToken(context, { ...body, volumes }, { by, address });
  },
  "DELETE /v1/api-tokens/:ref": async (agent, { params }) => {
    const { store, identity } = agent.member();
    await revokeApiToken(store, identity.trust(), params.ref);
    return {};
  },

  "GET /v1/hosts": async (agent) => {
    const context = await fresh(agent);
    return show.hostAnswers(context, await membersOrNone(context, context.view.storeUp));
  },
  "DELETE /v1/hosts/:ref": (agent, { principal, params }) => {
    const context = agent.member();
    return removeHost(context, params.ref, `${shownPrincipal(principal)}@${context.self.name}`);
  },

  "PATCH /v1/hosts/:ref": async (agent, { params, body }) => {
    const context = agent.member();
    const host = await labelHost(context, params.ref, body.labels);
    const answers = show.hostAnswers(context, await membersOrNone(context, context.view.storeUp));
    return found(answers, host);
  },
  "POST /v1/hosts/:ref/revoke": (agent, { principal, params }) => {
    const context = agent.member();
    return revokeHost(context, params.ref, `${shownPrincipal(principal)}@${context.self.name}`);
  },
  "POST /v1/stop-check": (agent, { body }) => mayStop(agent.member(), body.waitMs),
  "GET /v1/ca": async (agent) => showAuthority(await fresh(agent)),
  "POST /v1/ca/backup": (agent, { body }) => backupAuthority(agent.member(), body),
  "POST /v1/ca/restore": (agent, { body }) => restoreAuthority(agent.member(), body),
  "POST /v1/ca/rotate": (agent, { body }) => rotateAuthority(agent.member(), body.without),

  "GET /v1/pools": async (agent) => show.poolAnswers(await fresh(agent)),
  "POST /v1/pools": (agent, { body }) => createPool(agent.member(), body),
  "DELETE /v1/pools/:ref": async (agent, { params }) => {
    await removePool(agent.member(), params.ref);
    return {};
  },

  "GET /v1/disks": (agent, { query }) => agent.disks(query.device),
  "POST /v1/disks/wipe": (agent, { body }) => wipeDisk(agent.member(), body),

  "GET /v1/volumes": async (agent, { principal }) => {
    const context = await fresh(agent);
    const answers = volumesOf(context.mirror)
      .filter(({ want }) => want !== null && want.deletedAtMs === null)
      .flatMap((volume) => show.volumeAnswer(context, volume) ?? []);
    return answers.filter(({ id }) => maySee(principal, id)).toSorted((a, b) => (a.name < b.name ? -1 : 1));
  },
  "POST /v1/volumes": async (agent, { body }) => {
    const context = agent.member();
    return shown(context, await createVolume(context, body));
  },
  "GET /v1/volumes/:ref": async (agent, { params }) => {
    const context = await fresh(agent);
    return shown(context, findVolume(context.mirror, params.ref, "headless too").id);
  },
  "PATCH /v1/volumes/:ref": async (agent, { params, body }) => {
    const context = agent.member();
    return shown(
      context,
      changesPlaces(body)
        ? await changePlaces(context, params.ref, body)
        : await volumes.changeVolume(context, params.ref, body),
    );
  },
  "POST /v1/volumes/:ref/plan": async (agent, { params, body }) =>
    planPlaces(await fresh(agent), params.ref, body),
  "DELETE /v1/volumes/:ref": async (agent, { params, body }) => {
    await volumes.deleteVolume(agent.member(), params.ref, body);
    return {};
  },
  "POST /v1/volumes/:ref/attach": (agent, { params, body }) =>
    attachVolume(agent.member(), params.ref, { steal: body.steal, expected: null }),
  "POST /v1/volumes/:ref/steal": (agent, { params }) =>
    attachVolume(agent.member(), params.ref, { steal: true, expected: null }),
  "POST /v1/volumes/:ref/detach": (agent, { params, body }) =>
    detachVolume(agent.member(), params.ref, body.abandon),
  "GET /v1/volumes/:ref/why": async (agent, { params }) => whyAnswer(await fresh(agent), params.ref),
  "GET /v1/volumes/:ref/progress": async (agent, { params }) =>
    progressAnswer(await fresh(agent), params.ref),
  "GET /v1/volumes/:ref/stats": async (agent, { params }) => statsAnswer(await fresh(agent), params.ref),

  "POST /v1/volumes/:ref/scrub": async (agent, { principal, params, body }) => {
    const context = agent.member();
    const by = `${shownPrincipal(principal)}@${context.self.name}`;
    return shown(context, await volumes.scrubVolume(context, params.ref, { rate: body.rate, by }));
  },
  "DELETE /v1/volumes/:ref/scrub": async (agent, { params }) => {
    const context = agent.member();
    return shown(context, await volumes.stopScrub(context, params.ref));
  },

  "POST /v1/volumes/:ref/replicas": async (agent, { params, body }) => {
    const context = agent.member();
    return shown(context, await volumes.addReplica(context, params.ref, body.host));
  },
  "DELETE /v1/volumes/:ref/replicas/:rid": async (agent, { params }) => {
    const context = agent.member();
    return shown(context, await volumes.removeReplica(context, params.ref, Number(params.rid)));
  },

  "GET /v1/volumes/:ref/snapshots": async (agent, { params }) => {
    const context = await fresh(agent);
    return [...snapshots.snapshotAnswers(context, findVolume(context.mirror, params.ref, "headless too"))];
  },
  "POST /v1/volumes/:ref/snapshots": (agent, { principal, params, body }) => {
    const context = agent.member();
    const by = `${shownPrincipal(principal)}@${context.self.name}`;
    return snapshots.createSnapshot(context, params.ref, { ...body, by });
  },
  "GET /v1/snapshots": async (agent, { principal }) => [
    ...snapshots.allSnapshots(await fresh(agent), principal),
  ],
  "POST /v1/snapshots": (agent, { principal, body }) => {
    const context = agent.member();
    const by = `${shownPrincipal(principal)}@${context.self.name}`;
    return createGroup(context, { ...body, by });
  },
  "GET /v1/snapshots/:ref": async (agent, { params }) => {
    const context = await fresh(agent);
    const { volume, snapshot } = findSnapshot(context.mirror, params.ref);
    return snapshots.shownSnapshot(context, volume.id, snapshot.id);
  },
  "PATCH /v1/snapshots/:ref": (agent, { params, body }) =>
    snapshots.changeSnapshot(agent.member(), params.ref, body),
  "DELETE /v1/snapshots/:ref": async (agent, { params }) => {
    await snapshots.deleteSnapshot(agent.member(), params.ref);
    return {};
  },
  "POST /v1/snapshots/:ref/revert": async (agent, { params }) => {
    const context = agent.member();
    return shown(context, await revertAny(context, params.ref));
  },
  "POST /v1/snapshots/:ref/destroy-data": (agent, { params }) =>
    snapshots.destroyData(agent.member(), params.ref),
  "GET /v1/snapshots/:ref/changed": async (agent, { params, query }) =>
    changedBlocks(await fresh(agent), params.ref, query),
  "POST /v1/snapshots/:ref/attach": (agent, { params }) =>
    snapshots.attachSnapshot(agent.member(), params.ref),
  "POST /v1/snapshots/:ref/detach": async (agent, { params }) => {
    await snapshots.detachSnapshot(agent.member(), params.ref);
    return {};
  },

  ...srHandlers,

  "GET /v1/trash": async (agent, { principal }) =>
    show.trashAnswers(await fresh(agent)).filter(({ volume }) => maySee(principal, volume)),
  "POST /v1/trash/:ref/restore": async (agent, { params }) => {
    const context = agent.member();
    return shown(context, await volumes.restoreVolume(context, params.ref));
  },
  "DELETE /v1/trash": async (agent) => {
    await volumes.emptyTrash(agent.member(), null);
    return {};
  },
  "DELETE /v1/trash/:ref": async (agent, { params }) => {
    await volumes.emptyTrash(agent.member(), params.ref);
    return {};
  },

  "POST /v1/store/backup": (agent, { body }) => backupStore(agent.member(), body.path),
  "POST /v1/store/restore": async (agent, { body }) => {
    await restoreStore(agent.member(), body.path);
    await agent.restart();
    return {};
  },
  "POST /v1/store/repair": (agent, { body }) => repairStore(agent.member(), body.assent),

  "GET /metrics": (agent) => metricsText(agent),

  "GET /v1/audit": (agent, { query }) => auditAnswer(agent, query),
  "GET /v1/audit/verify": (agent) => auditVerdict(agent),
};

async function fresh(agent: AskedAgent): Promise<MemberContext> {
  const context = agent.member();
  // While the store is away the last known state is shown; status says so.
  if (context.view.storeUp) await syncIfPossible(context.mirror);
  return context;
}

function found(hosts: readonly api.HostAnswer[], id: string): api.HostAnswer {
  const answer = hosts.find((host) => host.id === id);
  if (answer !== undefined) return answer;
  throw new WeftError({ code: "E-ARG-01", message: `No host "${id}".`, facts: { ref: id } });
}

function shown(context: MemberContext, id: string): api.VolumeAnswer {
  const volume = parseVolumeId(id);
  const answer = volume === null ? null : show.volumeAnswer(context, volumeOf(context.mirror, volume));
  if (answer === null)
    throw new WeftError({ code: "E-ARG-01", message: `No volume "${id}".`, facts: { ref: id } });
  return answer;
}
