/**
 * XAPI's door into this process: `POST /v1/sm` with the call that XAPI made, as its stub (packaging/sm/WeftSR) hands it on.
 *
 * Must always hold: the driver asks of the agent what everybody may ask there, by the same socket; it has no way of its own.
 */
import { randomUUID } from "node:crypto";
import { join } from "node:path";

import type { LocalDoor } from "../core/agent/local-door.ts";
import type { Log } from "../core/agent/log.ts";
import type { AgentOptions } from "../core/agent/options.ts";
import { noDatapath } from "../sm-driver/datapath/none.ts";
import { Driver } from "../sm-driver/driver.ts";
import { CALL_BYTES_MAX } from "../sm-driver/xml.ts";

const CONTENT_TYPE = "text/xml";
/** What XAPI asks all the time and what changes nothing leaves a line only when it failed. */
const QUIET: ReadonlySet<string> = new Set(
  "sr_get_driver_info sr_content_type sr_scan sr_update vdi_update vdi_list_changed_blocks".split(" "),
);

export function smDoor(
  { runDir, xapiSocket }: Pick<AgentOptions, "runDir" | "xapiSocket">,
  log: Log,
): LocalDoor {
  const driver = new Driver({
    agentSocket: join(runDir, "agent.sock"),
    xapiSocket,
    datapath: () => noDatapath,
    newUuid: randomUUID,
    log,
  });
  return {
    method: "POST",
    path: "/v1/sm",
    contentType: CONTENT_TYPE,
    bodyLimit: CALL_BYTES_MAX,
    handle: async (body, gone) => {
      const { xml, command, target, fault } = await driver.handle(body, gone);
      const outcome = fault === null ? "ok" : `fault ${fault.code}`;
      const audit = fault === null && QUIET.has(command) ? null : { target, outcome };
      return { contentType: CONTENT_TYPE, body: xml, audit };
    },
  };
}
