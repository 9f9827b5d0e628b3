/**
 * Doors for XAPI beside the driver's: its plug-in and its hooks.
 *
 * Must always hold: they ask of the agent what everybody may ask there, by the same socket; they have no way of their own.
 */
import { join } from "node:path";

import { execa } from "execa";
import type { z } from "zod";

import type { LocalDoor } from "../core/agent/local-door.ts";
import type { Log } from "../core/agent/log.ts";
import type { AgentOptions } from "../core/agent/options.ts";
import { AgentClient, badRequest } from "../core/wire/agent-client.ts";
import { setupPlanAnswer, setupRequest, setupRunAnswer, setupRunRequest } from "../core/wire/setup-api.ts";
import type { DatapathOf } from "../sm-driver/datapath/datapath.ts";
import { noDatapath } from "../sm-driver/datapath/none.ts";
import { answerHook } from "../sm-driver/setup/hooks.ts";
import { asWeftError, PoolInit } from "../sm-driver/setup/init.ts";
import { Plugin, QUIET_FUNCTIONS } from "../sm-driver/setup/plugin.ts";
import { Toolstack } from "../sm-driver/setup/toolstack.ts";
import { CALL_BYTES_MAX } from "../sm-driver/xml.ts";
import { alertSink } from "./alert-sink.ts";

const XML = "text/xml";
const JSON_TYPE = "application/json";
const SETUP_BYTES_MAX = 2 << 20;
const HOOK_BYTES_MAX = 16 << 10;
/** XAPI waits for a hook. */
const HOOK_MS = 40_000;
const SYSTEMD_MS = 5000;

type Options = Pick<AgentOptions, "runDir" | "xapiSocket" | "dom0Root">;

/** `datapath`: how this host makes a guest's device of a volume. */
export function xapiDoors(
  options: Options,
  log: Log,
  datapath: DatapathOf = () => noDatapath,
): readonly LocalDoor[] {
  return [pluginDoor(options, log, datapath), hookDoor(options, log), ...setupDoors(options, log)];
}

/** For `weft init`. */
function setupDoors({ runDir, xapiSocket }: Options, log: Log): readonly LocalDoor[] {
  const init = new PoolInit({ agentSocket: join(runDir, "agent.sock"), xapiSocket, log });
  const door = <Request, Answer>(
    path: LocalDoor["path"],
    request: z.ZodType<Request>,
    answer: z.ZodType<Answer>,
    work: (asked: Request, gone: AbortSignal) => Promise<Answer>,
    isChange: boolean,
  ): LocalDoor => ({
    method: "POST",
    path,
    contentType: JSON_TYPE,
    bodyLimit: SETUP_BYTES_MAX,
    handle: async (text, gone) => {
      try {
        const parsed = request.safeParse(JSON.parse(text));
        if (!parsed.success) throw badRequest(parsed.error);
        const done = answer.encode(await work(parsed.data, gone));
        const audit = isChange ? { target: {}, outcome: "ok" } : null;
        return { contentType: JSON_TYPE, body: JSON.stringify(done), audit };
      } catch (error) {
        const known = asWeftError(error);
        const body = JSON.stringify({ error: known.toBody() });
        return {
          contentType: JSON_TYPE,
          status: known.status,
          body,
          audit: { target: {}, outcome: known.code },
        };
      }
    },
  });
  return [
    door("/v1/setup/plan", setupRequest, setupPlanAnswer, (asked) => init.plan(asked), false),
    door("/v1/setup/run", setupRunRequest, setupRunAnswer, (asked, gone) => init.run(asked, gone), true),
  ];
}

function pluginDoor({ runDir, xapiSocket, dom0Root }: Options, log: Log, datapath: DatapathOf): LocalDoor {
  const plugin = new Plugin({
    agentSocket: join(runDir, "agent.sock"),
    xapiSocket,
    toolstack: new Toolstack(`${dom0Root}/opt/xensource/bin/xe-toolstack-restart`, log),
    datapath,
    log,
  });
  return {
    method: "POST",
    path: "/v1/plugin",
    contentType: XML,
    bodyLimit: CALL_BYTES_MAX,
    handle: async (request, gone) => {
      const { xml, name, outcome } = await plugin.handle(request, gone);
      const isQuiet = outcome === "ok" && QUIET_FUNCTIONS.has(name);
      return { contentType: XML, body: xml, audit: isQuiet ? null : { target: { function: name }, outcome } };
    },
  };
}

function hookDoor({ runDir, xapiSocket, dom0Root }: Options, log: Log): LocalDoor {
  const agent = new AgentClient({ socketPath: join(runDir, "agent.sock"), timeoutMs: HOOK_MS });
  const { say } = alertSink({ xapiSocket }, log);
  const isStopping = async (): Promise<boolean> => {
    // It has an exit code of its own for each state, and is not there everywhere.
    const { stdout } = await execa(`${dom0Root}/usr/bin/systemctl`, ["is-system-running"], {
      reject: false,
      timeout: SYSTEMD_MS,
    });
    return stdout?.trim() === "stopping";
  };
  return {
    method: "POST",
    path: "/v1/hook",
    contentType: JSON_TYPE,
    bodyLimit: HOOK_BYTES_MAX,
    handle: async (request) => {
      const { hook, text } = await answerHook({ agent, isStopping, say, log }, request);
      return {
        contentType: JSON_TYPE,
        body: JSON.stringify({ text }),
        audit: { target: { hook }, outcome: "ok" },
      };
    },
  };
}
