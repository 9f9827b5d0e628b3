/**
 * From a call of XAPI to its answer.
 *
 * Must always hold:
 * - whatever comes in, one XML document goes out: an answer, or a fault with a number of XAPI's (design xapi.md 1.4, 1.11);
 * - each command has a deadline of its own, since XAPI has none: those that all SRs of a host wait for have the shortest.
 */
import { AgentClient } from "../core/wire/agent-client.ts";
import { reasonOf } from "../core/wire/errors.ts";
import {
  type Commands,
  type Log,
  type SmCall,
  smCallOf,
  type SmContext,
  type SmValue,
  shown,
} from "./call.ts";
import type { DatapathOf } from "./datapath/datapath.ts";
import { noDatapath } from "./datapath/none.ts";
import { driverInfo } from "./driver-info.ts";
import { badRequest, faultCodes, faultOf, SmFault } from "./faults.ts";
import { HostNote } from "./host-note.ts";
import { PATIENCE_MS, patient } from "./patience.ts";
import { srCommands } from "./sr-commands.ts";
import { staticCommands } from "./static-attach.ts";
import { vdiCommands } from "./vdi-commands.ts";
import { renderAnswer, renderFault } from "./xml.ts";
import { XenApi } from "./xen-api.ts";

export type DriverOptions = {
  readonly agentSocket: string;
  /** Where XAPI listens. */
  readonly xapiSocket: string;
  /** By the PBD's device-config. */
  readonly datapath: DatapathOf;
  readonly newUuid: () => string;
  readonly log: Log;
  /** How long a guest's commands wait for a store or weftd that is away. */
  readonly patienceMs?: number;
  /** How long one answer of XAPI is waited for. */
  readonly xapiMs?: number;
};

export type SmAnswer = {
  readonly xml: string;
  readonly command: string;
  /** What it was about, for the audit. */
  readonly target: Readonly<Record<string, string>>;
  /** Null: it worked. */
  readonly fault: SmFault | null;
};

/** All of a host's SRs wait for these: XAPI runs one at a time. */
const SHARED_MS = 9000;
/** An activation waits 30 s for another host's owner, and opens the volume then. */
const COMMAND_MS = 60_000;
const commandMs: Readonly<Record<string, number>> = {
  sr_get_driver_info: SHARED_MS,
  sr_probe: SHARED_MS,
  sr_attach: SHARED_MS,
  sr_detach: SHARED_MS,
  sr_content_type: SHARED_MS,
  // It may make a cluster of the pool's hosts first (setup/ensure.ts).
  sr_create: 600_000,
  // XAPI takes its failure for success: it is not given up before all is lost (migration.ts).
  vdi_compose: 3_600_000,
  vdi_data_destroy: 110_000,
  vdi_list_changed_blocks: 110_000,
};

export class Driver {
  readonly #options: DriverOptions;
  readonly #commands: Commands;
  readonly #hostNote: HostNote;

  constructor(
    options: DriverOptions,
    commands: Commands = { ...srCommands, ...vdiCommands, ...staticCommands },
  ) {
    this.#options = options;
    this.#hostNote = new HostNote(new AgentClient({ socketPath: options.agentSocket }), options.log);
    this.#commands = {
      ...commands,
      sr_get_driver_info: async () => driverInfo(Object.keys(commands)),
    };
  }

  /** `gone`: who asked does not wait any more. */
  async handle(request: string, gone: AbortSignal): Promise<SmAnswer> {
    const { log } = this.#options;
    let call: SmCall | null = null;
    try {
      call = smCallOf(request);
      const value = await this.command(call, gone);
      return { xml: renderAnswer(value), command: call.command, target: targetOf(call), fault: null };
    } catch (error) {
      const command = call?.command ?? "unknown";
      const fault = faultOf(error, command);
      const target = call === null ? {} : targetOf(call);
      const facts = { command, ...target, fault: fault.code, reason: fault.text };
      if (fault.code === faultCodes.unexpected) log.error({ ...facts, stack: stackOf(error) }, "a bug");
      else log.warn(facts, "a command of XAPI failed");
      return { xml: renderFault(fault), command, target, fault };
    }
  }

  /** Does one, under its deadline; what it throws is for the caller to tell. */
  async command(call: SmCall, gone: AbortSignal): Promise<SmValue> {
    const { command } = call;
    const perform = Object.hasOwn(this.#commands, command) ? this.#commands[command] : undefined;
    if (perform === undefined) throw badRequest(`There is no command ${shown(command)}`);
    const { agentSocket, xapiSocket, datapath, newUuid, log, xapiMs } = this.#options;
    const timeoutMs = commandMs[command] ?? COMMAND_MS;
    const deadline = AbortSignal.any([AbortSignal.timeout(timeoutMs), gone]);
    const { sessionRef, subtaskOf } = call;
    const waits = xapiMs === undefined ? {} : { callMs: xapiMs };
    const context: SmContext = {
      call,
      agent: new AgentClient({ socketPath: agentSocket, timeoutMs }),
      xapi: new XenApi({ socketPath: xapiSocket, sessionRef, subtaskOf, deadline, ...waits }),
      ...datapathFor(call, datapath),
      newUuid,
      hostNote: this.#hostNote,
      deadline,
      log,
    };
    const work = patient(command, perform, this.#options.patienceMs ?? PATIENCE_MS)(context);
    return inTime(command, work, deadline, timeoutMs);
  }
}

function datapathFor(
  { command, deviceConfig }: SmCall,
  datapath: DatapathOf,
): Pick<SmContext, "datapath" | "refusedDatapath"> {
  try {
    return { datapath: datapath(deviceConfig), refusedDatapath: null };
  } catch (error) {
    if (command !== "sr_create" || !(error instanceof SmFault)) throw error;
    return { datapath: noDatapath, refusedDatapath: error };
  }
}

/** What is under way at the agent then goes on there, and is found by XAPI's next try. */
async function inTime<T>(command: string, work: Promise<T>, deadline: AbortSignal, ms: number): Promise<T> {
  const late = Promise.withResolvers<never>();
  const isLate = (): void => late.reject(tooLate(command, ms));
  deadline.addEventListener("abort", isLate, { once: true });
  if (deadline.aborted) isLate();
  try {
    return await Promise.race([work, late.promise]);
  } finally {
    deadline.removeEventListener("abort", isLate);
  }
}

function tooLate(command: string, ms: number): SmFault {
  return new SmFault(
    faultCodes.again,
    `${command} was not done within ${ms / 1000} s.`,
    "what was begun goes on, and the same call again finds it; weft status says what is away",
  );
}

function targetOf({ command, srUuid, vdiUuid, args }: SmCall): Readonly<Record<string, string>> {
  return {
    command: shown(command),
    ...(srUuid === null ? {} : { sr: shown(srUuid) }),
    ...(vdiUuid === null ? {} : { vdi: shown(vdiUuid) }),
    ...(args.length === 0 ? {} : { args: shown(args.join(" ")) }),
  };
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? "") : reasonOf(error);
}
