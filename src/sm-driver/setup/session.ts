/**
 * A session of XAPI for what nobody asked of the driver: XAPI believes who connects to its socket as root.
 *
 * Must always hold: a session that was made is ended, whatever happens in it.
 */
import { reasonOf } from "../../core/wire/errors.ts";
import type { Log } from "../call.ts";
import { XenApi } from "../xen-api.ts";

export type LocalXapi = {
  readonly socketPath: string;
  readonly deadline: AbortSignal;
  readonly callMs?: number;
  readonly log: Log;
};

export async function withLocalSession<T>(
  { socketPath, deadline, callMs, log }: LocalXapi,
  work: (xapi: XenApi) => Promise<T>,
): Promise<T> {
  const options = { socketPath, subtaskOf: null, deadline, ...(callMs === undefined ? {} : { callMs }) };
  const bare = new XenApi({ ...options, sessionRef: null });
  const session = await bare.callBare("session.login_with_password", "root", "", "1.0", "weft");
  if (typeof session !== "string") throw new Error("XAPI's answer to a login is no session");
  const xapi = new XenApi({ ...options, sessionRef: session });
  try {
    return await work(xapi);
  } finally {
    await xapi.call("session.logout").catch((error: unknown) => {
      log.debug({ reason: reasonOf(error) }, "XAPI ends the session by itself");
    });
  }
}

/** XAPI's ref of this host: who asks by the local socket is on the host of its own session. */
export async function thisHost(xapi: XenApi): Promise<string> {
  const { session } = xapi;
  if (session === null) throw new Error("a session was to be made first");
  return xapi.text("session.get_this_host", session);
}
