/**
 * What XAPI says before or after it does something to a host or the pool (/etc/xapi.d/NAME/).
 *
 *     pool-join, pool-eject     on the host that came or went, when all of it is done
 *     host-post-declare-dead    on the master
 *     xapi-pre-shutdown         on the host, whenever its XAPI stops: at each restart of a toolstack, and at the host's stop
 *
 * Must always hold: a hook keeps XAPI from nothing; what it answers is for XAPI's log.
 */
import { z } from "zod";

import { type Message, stopsMessage } from "../../core/model/alerts.ts";
import type { StatusAnswer } from "../../core/wire/agent-api.ts";
import type { AgentClient } from "../../core/wire/agent-client.ts";
import { isWeftError, reasonOf } from "../../core/wire/errors.ts";
import type { Log } from "../call.ts";
import { onlyHere } from "./eject.ts";

const hookRequest = z.object({
  hook: z.string().max(100),
  args: z.record(z.string().max(100), z.string().max(1000)),
});

export type HookContext = {
  readonly agent: AgentClient;
  /** Whether the host is going down, and not its toolstack alone. */
  readonly isStopping: () => Promise<boolean>;
  /** As a message of XAPI. */
  readonly say: (messages: readonly Message[]) => Promise<void>;
  readonly log: Log;
};

type Args = Readonly<Record<string, string>>;

const hooks: Readonly<Record<string, (context: HookContext, args: Args) => Promise<string>>> = {
  "pool-join": onJoin,
  "host-post-declare-dead": onDead,
  "pool-eject": onEject,
  "xapi-pre-shutdown": onStop,
};

/** `body` is JSON. */
export async function answerHook(
  context: HookContext,
  body: string,
): Promise<{ readonly hook: string; readonly text: string }> {
  const parsed = hookRequest.safeParse(JSON.parse(body));
  if (!parsed.success) return { hook: "unknown", text: "weft does not know this hook" };
  const { hook, args } = parsed.data;
  context.log.info({ hook, ...args }, "XAPI's hook");
  const answer = Object.hasOwn(hooks, hook) ? hooks[hook] : undefined;
  const text = answer === undefined ? "" : await answer(context, args);
  if (text !== "") context.log.warn({ hook }, text);
  return { hook, text };
}

/** XAPI plugs the pool's SRs here after this, and a host is let in then. One that is a member elsewhere is not. */
async function onJoin({ agent }: HookContext): Promise<string> {
  const status = await statusOf(agent);
  if (status?.kind !== "cluster") return "";
  const { self, cluster } = status;
  return `${self.name} is a host of weft's cluster "${cluster.name}". Where the pool that it joined has another one, that one's storage repository can't be plugged here.`;
}

async function onEject({ agent }: HookContext): Promise<string> {
  const status = await statusOf(agent);
  if (status?.kind !== "cluster") return "";
  const alone = await onlyHere(agent);
  return [
    ...(alone === null ? [] : [`${alone} It has left the pool: copy them before it is erased.`]),
    `Take it out of weft as well: weft host remove ${status.self.name}, on another host.`,
  ].join(" ");
}

/** What it had open may be taken over at once: the next activation need not ask XAPI, nor wait for the host. */
async function onDead({ agent, log }: HookContext, { hostuuid = "" }: Args): Promise<string> {
  try {
    await agent.declareXapiHostDead(hostuuid);
  } catch (error) {
    if (!isWeftError(error)) throw error;
    // Then it is asked, by whoever activates one of its disks.
    log.warn({ host: hostuuid, reason: reasonOf(error) }, "that XAPI has declared a host dead is not kept");
  }
  return "";
}

/**
 * The guard has waited by now (packaging/libexec/stop-guard), or nobody let it. XAPI, which may be the pool's master, is there for a
 * last word.
 */
async function onStop({ agent, isStopping, say, log }: HookContext): Promise<string> {
  if (!(await isStopping())) return "";
  try {
    const { held, because } = await agent.stopCheck(0);
    if (!held) return "";
    const status = await statusOf(agent);
    const message = stopsMessage(status?.kind === "cluster" ? status.self.name : "A host", because);
    await say([message]);
    return message.text;
  } catch (error) {
    log.warn({ reason: reasonOf(error) }, "who depends on this host could not be told as it stops");
    return "";
  }
}

async function statusOf(agent: AgentClient): Promise<StatusAnswer | null> {
  return agent.status().catch((error: unknown) => {
    if (isWeftError(error)) return null;
    throw error;
  });
}
