/** Where this host's agent is asked to restart the holder under its guests: `POST /v1/holder/restart`. */
import type { LocalDoor } from "../core/agent/local-door.ts";
import type { Log } from "../core/agent/log.ts";
import { reasonOf, isWeftError, WeftError } from "../core/wire/errors.ts";
import { holderRestartAnswer } from "../core/wire/holder-restart-api.ts";
import type { HolderRestart } from "../sm-driver/datapath/holder-restart.ts";

const JSON_TYPE = "application/json";

export function holderDoor(restart: Pick<HolderRestart, "run">): LocalDoor {
  return {
    method: "POST",
    path: "/v1/holder/restart",
    contentType: JSON_TYPE,
    bodyLimit: 1024,
    handle: async () => {
      try {
        const done = holderRestartAnswer.encode(await restart.run());
        return { contentType: JSON_TYPE, body: JSON.stringify(done), audit: { target: {}, outcome: "ok" } };
      } catch (error) {
        const known = isWeftError(error)
          ? error
          : new WeftError({
              code: "E-HOLD-05",
              message: `The holder was not restarted: ${reasonOf(error)}`,
              cause: error,
            });
        const body = JSON.stringify({ error: known.toBody() });
        const audit = { target: {}, outcome: known.code };
        return { contentType: JSON_TYPE, status: known.status, body, audit };
      }
    },
  };
}

/** What a restart that an earlier agent had begun left paused goes on; in the background. */
export function finishHolderRestart(restart: HolderRestart, log: Log): void {
  restart.finish().catch((error: unknown) => {
    log.error({ error: reasonOf(error) }, "guests' disks may be paused: see tap-ctl list");
  });
}
