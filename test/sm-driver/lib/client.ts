/**
 * Runs a driver's executable as XAPI does (design xapi.md 1.3 to 1.6, 1.11), and takes from it only what XAPI takes.
 *
 * Must always hold: one argument, standard input that can't be read, files for both outputs, two variables in the environment,
 * `/` as the directory, a session of its own; the exit code is 0, and the reply is what the command's row in 1.6 says.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { readReply, type StrictValue, structOf, writeList, writeStruct, writeText } from "./strict-xml.ts";

type Texts = Readonly<Record<string, string>>;

/** What XAPI has to say in one call; what is left away is not in the request. */
export type DriverCall = {
  readonly command: string;
  readonly args?: readonly string[];
  readonly deviceConfig?: Texts;
  readonly isMaster?: boolean;
  readonly hostRef?: string;
  readonly sessionRef?: string;
  readonly srRef?: string;
  readonly srUuid?: string;
  readonly srSmConfig?: Texts;
  readonly vdiRef?: string;
  readonly vdiUuid?: string;
  readonly vdiLocation?: string;
  readonly vdiType?: string;
  readonly vdiSmConfig?: Texts;
  readonly driverParams?: Texts;
  readonly newUuid?: string;
  readonly subtaskOf?: string;
  readonly onBoot?: "persist" | "reset";
};

/** The error that a user of XAPI would see. */
export class DriverFailure extends Error {
  /** faultCode; 0: no fault, but something that XAPI can't take. */
  readonly code: number;
  readonly text: string;

  constructor(code: number, text: string) {
    super(`${code}: ${text}`);
    this.code = code;
    this.text = text;
  }
}

export type DriverRun = {
  readonly stdout: string;
  readonly stderr: string;
  readonly exitCode: number | null;
  readonly ms: number;
};

export function requestOf(call: DriverCall): string {
  const struct = (texts: Texts): string =>
    writeStruct(Object.entries(texts).map(([name, text]) => [name, writeText(text)]));
  const isInfo = call.command === "sr_get_driver_info";
  const config = isInfo ? {} : { SRmaster: String(call.isMaster ?? true), ...call.deviceConfig };
  const optional: readonly (readonly [string, string | undefined])[] = [
    ["session_ref", call.sessionRef],
    ["sr_ref", call.srRef],
    ["sr_uuid", call.srUuid],
    ["vdi_type", call.vdiType],
    ["vdi_ref", call.vdiRef],
    ["vdi_location", call.vdiLocation],
    ["vdi_uuid", call.vdiUuid],
    ["new_uuid", call.newUuid],
    ["subtask_of", call.subtaskOf],
    // Of a VDI that XAPI knows: the backup of a pool's database has a uuid before it has a ref.
    ["vdi_on_boot", call.onBoot ?? (call.vdiRef === undefined ? undefined : "persist")],
    ["vdi_allow_caching", call.vdiRef === undefined ? undefined : "false"],
  ];
  const structs: readonly (readonly [string, Texts | undefined])[] = [
    ["sr_sm_config", call.srSmConfig],
    ["driver_params", call.driverParams],
    ["vdi_sm_config", call.vdiSmConfig],
  ];
  const members: (readonly [string, string])[] = [
    ["host_ref", writeText(call.hostRef ?? "OpaqueRef:host")],
    ["command", writeText(call.command)],
    ["args", writeList((call.args ?? []).map(writeText))],
    ["device_config", struct(config)],
    ...optional.flatMap(([name, text]) => (text === undefined ? [] : [[name, writeText(text)] as const])),
    ...structs.flatMap(([name, texts]) => (texts === undefined ? [] : [[name, struct(texts)] as const])),
  ];
  const params = `<params><param>${writeStruct(members)}</param></params>`;
  return `<methodCall><methodName>${call.command}</methodName>${params}</methodCall>`;
}

/** The value that XAPI gets; a DriverFailure as it would show it. */
export async function callDriver(executable: string, call: DriverCall): Promise<StrictValue> {
  return replyOf(call.command, await runDriver(executable, requestOf(call)));
}

/** `running` has its process while it runs. */
export async function runDriver(
  executable: string,
  argument: string,
  running: Set<number> = new Set(),
): Promise<DriverRun> {
  const directory = await mkdtemp(join(tmpdir(), "weft-sm-"));
  const files = await Promise.all([
    open("/dev/null", "w"),
    open(join(directory, "stdout"), "w"),
    open(join(directory, "stderr"), "w"),
  ]);
  try {
    const begun = performance.now();
    const child = spawn(executable, [argument], {
      cwd: "/",
      detached: true,
      env: { PATH: "/sbin:/usr/sbin:/bin:/usr/bin", ORIGINATOR: "SM" },
      stdio: files.map(({ fd }) => fd),
    });
    if (child.pid !== undefined) running.add(child.pid);
    const [exitCode] = (await once(child, "exit")) as [number | null];
    running.delete(child.pid ?? 0);
    const ms = performance.now() - begun;
    const [stdout, stderr] = await Promise.all(
      ["stdout", "stderr"].map((name) => readFile(join(directory, name), "utf8")),
    );
    return { stdout: stdout ?? "", stderr: stderr ?? "", exitCode, ms };
  } finally {
    await Promise.all(files.map((file) => file.close()));
    await rm(directory, { recursive: true });
  }
}

export function replyOf(command: string, { stdout, stderr, exitCode }: DriverRun): StrictValue {
  if (exitCode !== 0) throw new DriverFailure(0, `non-zero exit ${exitCode}: ${stdout}${stderr}`);
  // XAPI shows it to users with every error.
  if (stderr !== "") throw new DriverFailure(0, `standard error is not empty: ${stderr}`);
  const reply = readReply(stdout);
  if (reply.kind === "fault") throw new DriverFailure(reply.code, reply.text);
  checkShape(command, reply.value);
  return reply.value;
}

const UNIT: ReadonlySet<string> = new Set(
  [
    "sr_create sr_attach sr_detach sr_delete sr_scan sr_update vdi_update vdi_delete vdi_detach",
    "vdi_activate vdi_deactivate vdi_compose vdi_epoch_begin vdi_epoch_end vdi_enable_cbt",
    "vdi_disable_cbt vdi_data_destroy vdi_revert",
  ].flatMap((line) => line.split(" ")),
);
const TEXT: ReadonlySet<string> = new Set(
  "sr_probe sr_content_type vdi_generate_config vdi_list_changed_blocks".split(" "),
);
const VDI: ReadonlySet<string> = new Set(
  "vdi_create vdi_introduce vdi_snapshot vdi_clone vdi_resize vdi_resize_online".split(" "),
);

function checkShape(command: string, value: StrictValue): void {
  const bad = (wanted: string): DriverFailure =>
    new DriverFailure(
      0,
      `${command} answers ${wanted}, not ${JSON.stringify(value, (_, v: unknown) => (typeof v === "bigint" ? `int ${v}` : v))}`,
    );
  if (UNIT.has(command)) {
    if (value !== null) throw bad("nil");
  } else if (TEXT.has(command)) {
    if (typeof value !== "string") throw bad("a string");
  } else if (VDI.has(command)) {
    const members = structOf(value);
    const texts = Object.values(members).every((member) => typeof member === "string");
    if (!texts || members["uuid"] === undefined || members["location"] === undefined)
      throw bad("texts, uuid and location among them");
  } else if (command === "vdi_attach") {
    const {
      params,
      params_nbd: nbd,
      o_direct: direct,
      o_direct_reason: reason,
      xenstore_data: data,
    } = structOf(value);
    const given = [nbd, reason].every((member) => typeof member === "string");
    if (!given || typeof direct !== "boolean" || data === undefined) throw bad("the five members");
    // Without it the socket is what guests and dom0 get; anything else is taken for a path.
    if (params !== undefined && (typeof params !== "string" || !params.startsWith("/")))
      throw bad("a path, or no params");
    if (params === undefined && nbd === "") throw bad("a socket where there is no path");
    if (!Object.values(structOf(data)).every((member) => typeof member === "string"))
      throw bad("xenstore_data of texts");
  } else if (command === "sr_get_driver_info") {
    checkInfo(value);
  }
}

function checkInfo(value: StrictValue): void {
  const info = structOf(value);
  const texts = ["name", "description", "vendor", "copyright", "driver_version", "required_api_version"];
  for (const name of texts) {
    if (typeof info[name] !== "string") throw new DriverFailure(0, `sr_get_driver_info has no text ${name}`);
  }
  const { capabilities, configuration } = info;
  if (
    !Array.isArray(capabilities) ||
    !capabilities.every((name) => /^[A-Z_]+(?:\/[1-9])?$/.test(String(name)))
  )
    throw new DriverFailure(0, "capabilities are not FEATURE or FEATURE/N");
  if (!Array.isArray(configuration)) throw new DriverFailure(0, "configuration is no array");
  for (const entry of configuration as readonly StrictValue[]) {
    const { key, description } = structOf(entry);
    if (typeof key !== "string" || typeof description !== "string")
      throw new DriverFailure(0, "configuration is not of key and description");
  }
}
