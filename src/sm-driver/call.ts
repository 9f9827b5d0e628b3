/**
 * One call of XAPI, as its request says it (design xapi.md 1.5), and what commands are made of.
 *
 * Must always hold: what a command needs and the request lacks, or has as something else, is a fault that names it.
 */
import type { AgentClient } from "../core/wire/agent-client.ts";
import type { Datapath } from "./datapath/datapath.ts";
import { badRequest, faultCodes, SmFault } from "./faults.ts";
import type { HostNote } from "./host-note.ts";
import { isStruct, memberOf, parseCall, textsOf, XmlError, type XmlStruct, type XmlValue } from "./xml.ts";
import type { XenApi } from "./xen-api.ts";

export type Texts = ReadonlyMap<string, string>;

export type SmCall = {
  readonly command: string;
  readonly args: readonly string[];
  /** Of the PBD, without `SRmaster`. */
  readonly deviceConfig: Texts;
  readonly isMaster: boolean;
  readonly hostRef: string | null;
  readonly sessionRef: string | null;
  readonly srRef: string | null;
  readonly srUuid: string | null;
  readonly srSmConfig: Texts;
  readonly vdiRef: string | null;
  readonly vdiUuid: string | null;
  readonly vdiLocation: string | null;
  readonly vdiType: string | null;
  readonly vdiSmConfig: Texts;
  readonly driverParams: Texts;
  readonly newUuid: string | null;
  readonly subtaskOf: string | null;
  readonly onBoot: "persist" | "reset";
  readonly allowCaching: boolean;
};

/** What a command answers: null is XAPI's unit. Numbers are text, as XAPI wants them. */
export type SmValue = null | string | boolean | { readonly [member: string]: SmValue } | readonly SmValue[];

export type Log = {
  info(facts: object, text: string): void;
  warn(facts: object, text: string): void;
  error(facts: object, text: string): void;
  debug(facts: object, text: string): void;
};

export type SmContext = {
  readonly call: SmCall;
  readonly agent: AgentClient;
  readonly xapi: XenApi;
  readonly datapath: Datapath;
  /** Why the device-config's `datapath` is none; only `sr_create` gets so far, which tells it with all else. */
  readonly refusedDatapath: SmFault | null;
  readonly newUuid: () => string;
  readonly hostNote: Pick<HostNote, "learn">;
  /** Aborted when the command's time is over: XAPI itself waits for ever. */
  readonly deadline: AbortSignal;
  readonly log: Log;
};

export type Command = (context: SmContext) => Promise<SmValue>;
export type Commands = Readonly<Record<string, Command>>;

export function smCallOf(text: string): SmCall {
  const { method, params } = parsed(text);
  const [asked, ...more] = params;
  if (asked === undefined || more.length > 0 || !isStruct(asked))
    throw badRequest(`${shown(method)}: the request has not one struct as its parameter`);
  const command = textOf(asked, "command") ?? method;
  if (command !== method)
    throw badRequest(`The request is named ${shown(method)} and asks for ${shown(command)}`);
  const deviceConfig = new Map(textsIn(asked, "device_config"));
  const isMaster = deviceConfig.get("SRmaster") === "true";
  deviceConfig.delete("SRmaster");
  return {
    command,
    args: argsOf(asked),
    deviceConfig,
    isMaster,
    hostRef: textOf(asked, "host_ref"),
    sessionRef: textOf(asked, "session_ref"),
    srRef: textOf(asked, "sr_ref"),
    srUuid: textOf(asked, "sr_uuid"),
    srSmConfig: textsIn(asked, "sr_sm_config"),
    vdiRef: textOf(asked, "vdi_ref"),
    vdiUuid: textOf(asked, "vdi_uuid"),
    vdiLocation: textOf(asked, "vdi_location"),
    vdiType: textOf(asked, "vdi_type"),
    vdiSmConfig: textsIn(asked, "vdi_sm_config"),
    driverParams: textsIn(asked, "driver_params"),
    newUuid: textOf(asked, "new_uuid"),
    subtaskOf: textOf(asked, "subtask_of"),
    onBoot: textOf(asked, "vdi_on_boot") === "reset" ? "reset" : "persist",
    allowCaching: textOf(asked, "vdi_allow_caching") === "true",
  };
}

/** The SR that the call is about. */
export function srOf({ command, srRef, srUuid }: SmCall): { readonly ref: string; readonly uuid: string } {
  return { ref: wanted(command, "sr_ref", srRef), uuid: uuidOf(command, "sr_uuid", srUuid) };
}

/** The VDI that the call is about. */
export function vdiOf({ command, vdiRef, vdiUuid, vdiLocation }: SmCall): {
  readonly ref: string;
  readonly uuid: string;
  readonly location: string;
} {
  const uuid = uuidOf(command, "vdi_uuid", vdiUuid);
  return { ref: wanted(command, "vdi_ref", vdiRef), uuid, location: vdiLocation ?? uuid };
}

export function sessionOf({ command, sessionRef }: SmCall): string {
  return wanted(command, "session_ref", sessionRef);
}

/** The argument at this place; `what`: its name in the message. */
export function argOf({ command, args }: SmCall, at: number, what: string): string {
  const value = args[at];
  if (value === undefined) throw badRequest(`${command} has no argument ${at + 1} (${what})`);
  return value;
}

/** Bytes. */
export function sizeArg(call: SmCall, at: number, what = "size in bytes"): bigint {
  const text = argOf(call, at, what);
  // 2^63 has 19 digits; whatever is larger is refused by its size, not by its length.
  if (!/^[0-9]{1,19}$/.test(text))
    throw badRequest(`${call.command}: the ${what} "${shown(text)}" is no number`);
  return BigInt(text);
}

export function flagArg(call: SmCall, at: number, what: string): boolean {
  const text = argOf(call, at, what);
  if (text === "true") return true;
  if (text === "false") return false;
  throw badRequest(`${call.command}: ${what} is "${shown(text)}", neither true nor false`);
}

/** A key of the PBD's device-config that has to be there. */
export function configOf({ deviceConfig }: SmCall, key: string): string {
  const value = deviceConfig.get(key);
  if (value !== undefined && value !== "") return value;
  throw new SmFault(
    faultCodes.configParamsMissing,
    `The device-config has no "${key}".`,
    `give it: xe sr-create type=weft device-config:${key}=…`,
  );
}

/** As it may stand in a message. */
export function shown(text: string): string {
  return text.length <= 80 ? text : `${text.slice(0, 80)}…`;
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

function uuidOf(command: string, member: string, value: string | null): string {
  const text = wanted(command, member, value).toLowerCase();
  if (!UUID.test(text)) throw badRequest(`${command}: ${member} is "${shown(text)}", which is no UUID`);
  return text;
}

function wanted(command: string, member: string, value: string | null): string {
  if (value === null || value === "") throw badRequest(`${command}: the request has no ${member}`);
  return value;
}

function parsed(text: string): ReturnType<typeof parseCall> {
  try {
    return parseCall(text);
  } catch (error) {
    if (error instanceof XmlError) throw badRequest(`The request is no call in XML-RPC: ${error.message}`);
    throw error;
  }
}

function argsOf(asked: XmlStruct): readonly string[] {
  const args = memberOf(asked, "args");
  if (args === null || args === "") return [];
  if (!isTextList(args)) throw badRequest("args is no array of texts");
  return args;
}

function isTextList(value: XmlValue): value is readonly string[] {
  return Array.isArray(value) && value.every((item) => typeof item === "string");
}

function textOf(asked: XmlStruct, member: string): string | null {
  const value = memberOf(asked, member);
  if (value === null) return null;
  if (typeof value === "string") return value;
  throw badRequest(`${member} is no text`);
}

function textsIn(asked: XmlStruct, member: string): Texts {
  const value = memberOf(asked, member);
  if (value === null || value === "") return new Map();
  const texts = textsOf(value);
  if (texts === null) throw badRequest(`${member} is no struct of texts`);
  return texts;
}
