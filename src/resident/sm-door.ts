/**
 * XAPI's doors into this process, for calls as its stubs hand them on: `POST /v1/sm` (SMAPIv1, packaging/sm/WeftSR), and
 * `POST /v1/smapiv3` (packaging/smapiv3).
 *
 * Must always hold: the driver asks of the agent what everybody may ask there, by the same socket; it has no way of its own.
 */
import { randomUUID } from "node:crypto";
import { join } from "node:path";

import type { LocalDoor } from "../core/agent/local-door.ts";
import type { Log } from "../core/agent/log.ts";
import type { AgentOptions } from "../core/agent/options.ts";
import type { DatapathOf } from "../sm-driver/datapath/datapath.ts";
import { noDatapath } from "../sm-driver/datapath/none.ts";
import { Driver } from "../sm-driver/driver.ts";
import { Smapiv3 } from "../sm-driver/smapiv3/smapiv3.ts";
import { CALL_BYTES_MAX } from "../sm-driver/xml.ts";

const XML = "text/xml";
const JSON_TYPE = "application/json";
/** What XAPI asks all the time and what changes nothing leaves a line only when it failed. */
const QUIET: ReadonlySet<string> = new Set(
  "sr_get_driver_info sr_content_type sr_scan sr_update vdi_update vdi_list_changed_blocks".split(" "),
);
const QUIET_V3 = /^(?:plugin\.|sr\.(?:stat|ls|probe)$|volume\.(?:stat|list_changed_blocks)$)/i;

type Options = Pick<AgentOptions, "runDir" | "xapiSocket">;

/** `datapath`: how this host makes a guest's device of a volume. */
export function smDoors(
  { runDir, xapiSocket }: Options,
  log: Log,
  datapath: DatapathOf = () => noDatapath,
): readonly LocalDoor[] {
  const agentSocket = join(runDir, "agent.sock");
  const parts = { agentSocket, xapiSocket, datapath, newUuid: randomUUID, log };
  const driver = new Driver(parts);
  return [smapiv1Door(driver), smapiv3Door(new Smapiv3(parts, driver))];
}

function smapiv1Door(driver: Driver): LocalDoor {
  return {
    method: "POST",
    path: "/v1/sm",
    contentType: XML,
    bodyLimit: CALL_BYTES_MAX,
    handle: async (body, gone) => {
      const { xml, command, target, fault } = await driver.handle(body, gone);
      const outcome = fault === null ? "ok" : `fault ${fault.code}`;
      const audit = fault === null && QUIET.has(command) ? null : { target, outcome };
      return { contentType: XML, body: xml, audit };
    },
  };
}

function smapiv3Door(smapiv3: Smapiv3): LocalDoor {
  return {
    method: "POST",
    path: "/v1/smapiv3",
    contentType: JSON_TYPE,
    bodyLimit: CALL_BYTES_MAX,
    handle: async (request, gone) => {
      const { body, method, target, error } = await smapiv3.handle(request, gone);
      const audit =
        error === null && QUIET_V3.test(method)
          ? null
          : { target: { method, ...target }, outcome: error === null ? "ok" : error.code };
      return { contentType: JSON_TYPE, body, audit };
    },
  };
}
