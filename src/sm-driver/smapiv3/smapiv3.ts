/**
 * From a call of xapi-storage-script to its answer: a thin adapter over what SMAPIv1's driver stands on.
 *
 * Must always hold: each call ends, with a result or an error of SMAPIv3's form; a method that isn't there is `Unimplemented`.
 */
import { z } from "zod";

import { AgentClient } from "../../core/wire/agent-client.ts";
import { reasonOf } from "../../core/wire/errors.ts";
import type { SmContext } from "../call.ts";
import type { Driver } from "../driver.ts";
import type { DriverOptions } from "../driver.ts";
import { datapathMethods } from "./datapath-plugin.ts";
import { type Commanded, type Json, PluginError, pluginErrorOf } from "./plugin-call.ts";
import { volumeMethods } from "./volume-plugin.ts";

/** xapi-storage-script waits for ever. */
const CALL_MS = 60_000;

const request = z.object({
  plugin: z.enum(["volume", "datapath"]),
  /** As the file is named, in whatever case. */
  method: z.string().max(100),
  params: z.record(z.string(), z.unknown()),
});

export type PluginAnswer = {
  /** `{result}` or `{error: {code, params, backtrace}}`. */
  readonly body: string;
  readonly method: string;
  /** What it was about, for the audit. */
  readonly target: Readonly<Record<string, string>>;
  /** Null: it worked. */
  readonly error: PluginError | null;
};

export class Smapiv3 {
  readonly #options: Pick<DriverOptions, "agentSocket" | "newUuid" | "log">;
  readonly #driver: Pick<Driver, "command">;

  constructor(
    options: Pick<DriverOptions, "agentSocket" | "newUuid" | "log">,
    driver: Pick<Driver, "command">,
  ) {
    this.#options = options;
    this.#driver = driver;
  }

  async handle(body: string, gone: AbortSignal): Promise<PluginAnswer> {
    const parsed = parse(body);
    if (parsed === null)
      return failed("unknown", {}, new PluginError("Bad_request", ["the request is not understood"]));
    const { plugin, method, params } = parsed;
    const name = method.toLowerCase();
    const target = targetOf(params);
    const table = plugin === "volume" ? volumeMethods : datapathMethods;
    const work = Object.hasOwn(table, name) ? table[name] : undefined;
    if (work === undefined) return failed(method, target, new PluginError("Unimplemented", [method]));
    const { agentSocket, newUuid, log } = this.#options;
    // Whether a disk is reset on boot is said when it is opened: what is marked then stays so.
    const command: Commanded = (command, disk, args, onBoot = "reset") =>
      this.#driver.command(callOf(command, disk, args, onBoot), gone);
    try {
      const agent = new AgentClient({ socketPath: agentSocket, timeoutMs: CALL_MS });
      return {
        body: JSON.stringify({ result: await work({ agent, newUuid, command }, params) }),
        method,
        target,
        error: null,
      };
    } catch (error) {
      log.warn({ method, reason: reasonOf(error) }, "a call of SMAPIv3 failed");
      return failed(method, target, pluginErrorOf(error, method, params));
    }
  }
}

function parse(body: string): z.output<typeof request> | null {
  try {
    const parsed = request.safeParse(JSON.parse(body));
    return parsed.success ? parsed.data : null;
  } catch {
    return null;
  }
}

function targetOf(params: Readonly<Record<string, unknown>>): Readonly<Record<string, string>> {
  const shown = Object.entries(params).filter(([name]) => ["sr", "key", "uri", "uuid"].includes(name));
  return Object.fromEntries(shown.map(([name, value]) => [name, JSON.stringify(value)]));
}

function failed(method: string, target: PluginAnswer["target"], error: PluginError): PluginAnswer {
  const backtrace: Json = { error: error.message, files: [], lines: [] };
  return {
    body: JSON.stringify({ error: { code: error.code, params: error.params, backtrace } }),
    method,
    target,
    error,
  };
}

/** As SMAPIv1 would ask; there is no session, and no record of XAPI's to name. */
function callOf(
  command: string,
  { sr, vdi }: { readonly sr: string; readonly vdi: string },
  args: readonly string[],
  onBoot: SmContext["call"]["onBoot"],
): SmContext["call"] {
  const none = new Map<string, string>();
  return {
    command,
    args,
    deviceConfig: none,
    isMaster: false,
    hostRef: null,
    sessionRef: null,
    srRef: "OpaqueRef:NULL",
    srUuid: sr,
    srSmConfig: none,
    vdiRef: "OpaqueRef:NULL",
    vdiUuid: vdi,
    vdiLocation: vdi,
    vdiType: null,
    vdiSmConfig: none,
    driverParams: none,
    newUuid: null,
    subtaskOf: null,
    onBoot,
    allowCaching: false,
  };
}
