/**
 * What this host answers to other machines, as a member of its cluster.
 *
 * Must always hold: who asks was judged by the door; a request that gives keys away looks itself at whom it gives them to.
 */
import { IdentityFiles } from "../wire/identity-files.ts";
import { judgeKey } from "../model/trust.ts";
import { factsOf } from "../wire/certificate.ts";
import { reasonOf } from "../wire/errors.ts";
import { usersForOthers } from "./activation.ts";
import { ApiTokens } from "./api-tokens.ts";
import { memberAddresses } from "./ask-members.ts";
import { ownLines } from "./audit-read.ts";
import { ownBundleKey } from "./bundle-keeper.ts";
import type { MemberContext } from "./context.ts";
import { Door, type DoorHandlers } from "./door.ts";
import { Enrolment } from "./enrol.ts";
import { doGroupWork } from "./group-snapshot.ts";
import type { AskedAgent } from "./handlers.ts";
import type { IdentityKeeper } from "./identity.ts";
import { memberCredentials, takeAuthorities } from "./members.ts";
import { doOwnerWork } from "./owner-work.ts";
import { listsFor, renewIdentity } from "./renew.ts";
import { ownStats } from "./stats.ts";
import { AGENT_VERSION, clusterAnswer } from "./status.ts";

/** E-HOST-08 when the address can't be served. */
export function openDoor(context: MemberContext, agent: AskedAgent): Promise<Door> {
  const { self, identity, log } = context;
  const tokens = new ApiTokens(context);
  // Where this host holds the key: in a planned change of the authority its tokens live on.
  identity.onChange((change) => {
    if (change.kind === "certificate") return;
    tokens.signAnew().catch((error: unknown) => {
      log.warn({ reason: reasonOf(error) }, "API tokens were not signed anew yet");
    });
  });
  return Door.listen({
    address: self.address,
    tls: identity.tls,
    isHostAddress: hostAddresses(identity),
    handlers: handlersOf(context, agent.audit),
    rest: { agent, judgeToken: (token, address, nowMs) => tokens.judge(token, address, nowMs) },
    audit: agent.audit,
    log,
  });
}

/** Asked for every connection of a flood: looked up once, until the list changes. */
function hostAddresses(identity: IdentityKeeper): (address: string) => boolean {
  let known: ReadonlySet<string> | null = null;
  identity.onChange((change) => {
    if (change.kind === "trust") known = null;
  });
  return (address) => {
    known ??= new Set(Array.from(identity.trust().hosts.values(), (host) => host.address));
    return known.has(address);
  };
}

function handlersOf(context: MemberContext, audit: AskedAgent["audit"]): DoorHandlers {
  const { options, store, authority, identity, self } = context;
  const enrolment = new Enrolment({
    store,
    authority,
    identity,
    cluster: () => clusterAnswer(context),
    members: () => memberAddresses(store),
  });
  const files = new IdentityFiles(options.stateDir);
  return {
    "GET /v1/hello": async () => ({
      cluster: self.cluster,
      members: [...memberAddresses(store)],
      version: AGENT_VERSION,
      generation: identity.trust().generation,
      now: new Date().toISOString(),
    }),
    "POST /v1/enrol": (call) => enrolment.enrol(call),
    "POST /v1/identity/renew": async ({ caller, begin }) => {
      const { certificate } = caller;
      const trust = identity.trust();
      const verdict = certificate === null ? null : judgeKey(trust, factsOf(certificate, trust.authorities));
      if (verdict?.kind === "ok") await begin({ host: verdict.host });
      return renewIdentity({ store, authority, identity, files }, certificate);
    },
    "GET /v1/identity/lists": ({ caller }) => listsFor({ store, identity }, caller.certificate),
    "POST /v1/members/credentials": async ({ caller, begin }) => {
      if (caller.verdict?.kind !== "ok") throw new Error("the door lets hosts only ask for credentials");
      await begin({ host: caller.verdict.host });
      const given = await memberCredentials({ store, authority, identity }, caller.verdict.host);
      return {
        authorities: [...given.authorities],
        storeAuthorities: [...given.storeAuthorities],
        trust: given.trust,
      };
    },
    "POST /v1/identity/bundle-key": async ({ caller, begin }) => {
      if (caller.verdict?.kind !== "ok")
        throw new Error("the door lets hosts only ask for their bundle's key");
      await begin({ host: caller.verdict.host });
      return ownBundleKey(authority, identity.trust(), caller.verdict.host, memberAddresses(store));
    },
    "POST /v1/internal/audit": async ({ body: { limit, ...filter } }) => ({
      lines: [...(await ownLines(audit, filter, limit))],
    }),
    "POST /v1/internal/stats": async ({ body: { volume } }) => ({ open: await ownStats(context, volume) }),
    "POST /v1/internal/volume-users": ({ body }) => usersForOthers(context, body),
    "POST /v1/internal/volume-work": async ({ caller, body, begin }) => {
      if (caller.verdict?.kind !== "ok") throw new Error("the door lets hosts only ask for work on volumes");
      const snapshot = "id" in body ? { snapshot: body.id } : {};
      await begin({ host: caller.verdict.host, volume: body.volume, work: body.kind, ...snapshot });
      return doOwnerWork(context, body);
    },
    "POST /v1/internal/group-work": async ({ caller, body, begin }) => {
      if (caller.verdict?.kind !== "ok") throw new Error("the door lets hosts only ask for work on volumes");
      const { group, volumes } = body;
      await begin({ host: caller.verdict.host, group, volumes: volumes.map(({ volume }) => volume) });
      await context.mirror.sync();
      return doGroupWork(context, body);
    },
    "PUT /v1/members/authority": async ({ caller, body, begin }) => {
      if (caller.verdict?.kind !== "ok") throw new Error("the door lets hosts only hand over authorities");
      await begin({ host: caller.verdict.host });
      await takeAuthorities({ authority, identity }, caller.verdict.host, body);
      return {};
    },
  };
}
