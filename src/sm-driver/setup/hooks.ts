/**
 * What XAPI says before or after it does something to a host or the pool (/etc/xapi.d/NAME/).
 *
 * Must always hold: a hook keeps XAPI from one thing only: to eject a host whose volumes would go with it.
 */
import { z } from "zod";

import type { AgentClient } from "../../core/wire/agent-client.ts";
import { isWeftError } from "../../core/wire/errors.ts";
import type { Log } from "../call.ts";

const hookRequest = z.object({
  hook: z.string().max(100),
  args: z.record(z.string().max(100), z.string().max(1000)),
});

export type HookAnswer = {
  /** XAPI shows it where it gives up, and logs it else. */
  readonly text: string;
  readonly refused: boolean;
};

/** `body` is JSON. */
export async function answerHook(
  { agent, log }: { readonly agent: AgentClient; readonly log: Log },
  body: string,
): Promise<HookAnswer & { readonly hook: string }> {
  const parsed = hookRequest.safeParse(JSON.parse(body));
  if (!parsed.success) return { hook: "unknown", text: "weft does not know this hook", refused: false };
  const { hook, args } = parsed.data;
  log.info({ hook, ...args }, "XAPI's hook");
  const answer = hook === "pool-eject" ? await onEject(agent) : { text: "", refused: false };
  return { hook, ...answer };
}

/** The host leaves the pool: what only it has would go with it. Its other copies are made anew elsewhere. */
async function onEject(agent: AgentClient): Promise<HookAnswer> {
  const status = await agent.status().catch((error: unknown) => {
    if (isWeftError(error)) return null;
    throw error;
  });
  if (status?.kind !== "cluster") return { text: "", refused: false };
  const { self, volumes } = status;
  const alone = volumes.filter(({ health, replicas }) => {
    const inSync = replicas.filter(({ state }) => state === "INSYNC");
    const here = inSync.some(({ host }) => host === self.host);
    return health !== "deleted" && here && !inSync.some(({ host, alive }) => host !== self.host && alive);
  });
  if (alone.length === 0)
    return {
      text: `Take it out of weft as well: weft host remove ${self.name}, on another host.`,
      refused: false,
    };
  const names = alone.slice(0, 5).map(({ name }) => name);
  const more = alone.length > names.length ? ` and ${alone.length - names.length} more` : "";
  return {
    refused: true,
    text:
      `E-HOST-01 ${self.name} has the only copy in sync of ${alone.length} ${alone.length === 1 ? "volume" : "volumes"} of weft (${names.join(", ")}${more}). ` +
      "Move or copy them first: weft replica move, weft volume copies.",
  };
}
