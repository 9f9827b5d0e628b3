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
import { tellAway, tellBack, whoToldAway } from "../sm-driver/setup/store-away.ts";
import { withLocalSession } from "../sm-driver/setup/session.ts";

const XAPI_MS = 20_000;

export function alertSink({ xapiSocket }: Pick<AgentOptions, "xapiSocket">, log: Log): AlertSink {
  const local = (): Parameters<typeof withLocalSession>[0] => ({
    socketPath: xapiSocket,
    deadline: AbortSignal.timeout(XAPI_MS),
    log,
  });
  const inPool = async <T>(absent: T, work: Parameters<typeof withLocalSession<T>>[1]): Promise<T> =>
    (await isSocket(xapiSocket)) ? withLocalSession(local(), work) : absent;
  return {
    hosts: async () => {
      const pool = await inPool(null, readPool);
      return pool === null ? null : new Set(pool.hosts.map(({ uuid }) => uuid));
    },
    say: async (messages) => {
      for (const { name, priority, text } of messages) log.warn({ name, priority }, text);
      await inPool(undefined, (xapi) => createMessages(xapi, messages));
    },
    sayAway: async (message) => {
      const isTold = await inPool(true, (xapi) => tellAway(xapi, message, Date.now()));
      if (isTold) log.warn({ name: message.name, priority: message.priority }, message.text);
      return isTold;
    },
    away: () => inPool(null, whoToldAway),
    sayBack: async (message) => {
      log.info({ name: message.name, priority: message.priority }, message.text);
      await inPool(undefined, (xapi) => tellBack(xapi, message));
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
