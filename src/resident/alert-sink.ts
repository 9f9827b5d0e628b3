/**
 * Alerts as XAPI's messages, which its clients show and pass on.
 *
 * Must always hold: where this host has no XAPI nothing is tried, and nobody is taken for one who left its pool.
 */
import { stat } from "node:fs/promises";

import type { AlertSink } from "../core/agent/alert-keeper.ts";
import type { Log } from "../core/agent/log.ts";
import type { AgentOptions } from "../core/agent/options.ts";
import { createMessages } from "../sm-driver/setup/messages.ts";
import { readPool } from "../sm-driver/setup/pool-records.ts";
import { withLocalSession } from "../sm-driver/setup/session.ts";

const XAPI_MS = 20_000;

export function alertSink({ xapiSocket }: Pick<AgentOptions, "xapiSocket">, log: Log): AlertSink {
  const local = (): Parameters<typeof withLocalSession>[0] => ({
    socketPath: xapiSocket,
    deadline: AbortSignal.timeout(XAPI_MS),
    log,
  });
  return {
    hosts: async () => {
      if (!(await isSocket(xapiSocket))) return null;
      const { hosts } = await withLocalSession(local(), readPool);
      return new Set(hosts.map(({ uuid }) => uuid));
    },
    say: async (messages) => {
      for (const { name, priority, text } of messages) log.warn({ name, priority }, text);
      if (await isSocket(xapiSocket))
        await withLocalSession(local(), (xapi) => createMessages(xapi, messages));
    },
  };
}

async function isSocket(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isSocket();
  } catch {
    return false;
  }
}
