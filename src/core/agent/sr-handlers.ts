/** What is done for the routes about storage repositories and virtual disks. */
import { type Principal, shownPrincipal } from "../model/roles.ts";
import type { RouteAnswer, RouteName } from "../wire/routes.ts";
import { activateVdi, deactivateVdi, vdiUsers } from "./activation.ts";
import type { MemberContext } from "./context.ts";
import type { Asked, AskedAgent } from "./handlers.ts";
import * as srs from "./srs.ts";
import { composeVdi, layerVdi } from "./vdi-compose.ts";
import * as copies from "./vdi-copies.ts";
import { resetVdi } from "./vdi-reset.ts";
import * as vdis from "./vdis.ts";

type SrRoute = Extract<
  RouteName,
  `${string} /v1/srs${string}` | `${string} /v1/vdis${string}` | `${string} /v1/xapi-host${string}`
>;
type SrHandlers = {
  readonly [Name in SrRoute]: (agent: AskedAgent, asked: Asked<Name>) => Promise<RouteAnswer<Name>>;
};

export const srHandlers: SrHandlers = {
  "GET /v1/srs": (agent) => srs.listSrs(agent.member()),
  "GET /v1/srs/:ref": (agent, { params }) => srs.showSr(agent.member(), params.ref),
  "POST /v1/srs": (agent, { body }) => srs.createSr(agent.member(), body),
  "PATCH /v1/srs/:ref": (agent, { params, body }) => srs.changeSr(agent.member(), params.ref, body),
  "DELETE /v1/srs/:ref": async (agent, { params }) => {
    await srs.deleteSr(agent.member(), params.ref);
    return {};
  },
  "GET /v1/srs/:ref/vdis": (agent, { params }) => srs.listVdis(agent.member(), params.ref),
  "POST /v1/srs/:ref/vdis": (agent, { params, body }) => vdis.createVdi(agent.member(), params.ref, body),
  "POST /v1/srs/:ref/introduce": (agent, { params, body }) =>
    vdis.introduceVdi(agent.member(), params.ref, body),

  "GET /v1/vdis/:ref": (agent, { params }) => vdis.showVdi(agent.member(), params.ref),
  "PATCH /v1/vdis/:ref": (agent, { params, body }) => vdis.changeVdi(agent.member(), params.ref, body),
  "DELETE /v1/vdis/:ref": async (agent, { params }) => {
    await vdis.deleteVdi(agent.member(), params.ref);
    return {};
  },
  "POST /v1/vdis/:ref/snapshot": (agent, { principal, params, body }) => {
    const context = agent.member();
    return copies.snapshotVdi(context, params.ref, body, byOf(context, principal));
  },
  "POST /v1/vdis/:ref/clone": (agent, { params, body }) => copies.cloneVdi(agent.member(), params.ref, body),
  "POST /v1/vdis/:ref/destroy-data": (agent, { params }) => copies.destroyVdiData(agent.member(), params.ref),
  "POST /v1/vdis/:ref/revert": (agent, { params, body }) =>
    copies.revertVdi(agent.member(), params.ref, body.snapshot),
  "POST /v1/vdis/:ref/layer": (agent, { params }) => layerVdi(agent.member(), params.ref),
  "POST /v1/vdis/:ref/compose": (agent, { params, body }) =>
    composeVdi(agent.member(), params.ref, body.parent),
  "POST /v1/vdis/:ref/reset": async (agent, { params, body }) => {
    const context = agent.member();
    await resetVdi(context, params.ref, body.mark);
    return vdis.showVdi(context, params.ref);
  },
  "POST /v1/vdis/:ref/changed": (agent, { params, body }) =>
    copies.changedVdi(agent.member(), params.ref, body.since),
  "POST /v1/vdis/:ref/activate": (agent, { params, body }) => activateVdi(agent.member(), params.ref, body),
  "POST /v1/vdis/:ref/deactivate": async (agent, { params }) => {
    await deactivateVdi(agent.member(), params.ref);
    return {};
  },
  "GET /v1/vdis/:ref/users": (agent, { params }) => vdiUsers(agent.member(), params.ref),
  "POST /v1/xapi-host/dead": (agent, { body }) => srs.declareDead(agent.member(), body.uuid),
  "PUT /v1/xapi-host": async (agent, { body }) => {
    await srs.setXapiHost(agent.member(), body.uuid);
    return {};
  },
};

function byOf({ self }: MemberContext, principal: Principal): string {
  return `${shownPrincipal(principal)}@${self.name}`;
}
