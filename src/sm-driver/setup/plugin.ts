/**
 * XAPI's plug-in "weft": what hosts of a pool ask of each other through XAPI, and what tools ask of a host.
 *
 *     host.call_plugin ──▶ XAPI of that host ──▶ /etc/xapi.d/plugins/weft (a stub) ──▶ POST /v1/plugin ──▶ here
 *
 * Must always hold:
 * - whatever comes in, one XML document with a Status goes out; a refusal has weft's code as its first word;
 * - arguments are words that anybody on the host may read: no function takes a secret, and none answers one.
 */
import { parseUuid } from "../../core/model/ids.ts";
import { summarise } from "../../core/model/summary.ts";
import { AgentClient } from "../../core/wire/agent-client.ts";
import type { StatusAnswer } from "../../core/wire/agent-api.ts";
import { isWeftError, reasonOf, WeftError } from "../../core/wire/errors.ts";
import type { Log } from "../call.ts";
import type { DatapathOf } from "../datapath/datapath.ts";
import { SmFault } from "../faults.ts";
import { MIRROR_SNAPSHOT, mirrorSnapshot } from "../mirrored-snapshot.ts";
import { isXapiError, XenApi } from "../xen-api.ts";
import { parseCall, renderAnswer, textsOf, XmlError, type XmlOut } from "../xml.ts";
import { inventoryText, takeInventory } from "./inventory.ts";
import { admitFromPool, type Newcomer } from "./join-pool.ts";
import { enterThroughPool, unsealForPool } from "./reclaim-host.ts";
import { uuidArg } from "./setup.ts";
import type { Toolstack } from "./toolstack.ts";

/** A file system on a large disk of a slow host. */
const CALL_MS = 300_000;
/** Shown in an audit's line, and in a message. */
const SHOWN_MAX = 100;

export type PluginOptions = {
  readonly agentSocket: string;
  readonly xapiSocket: string;
  readonly toolstack: Toolstack;
  readonly datapath: DatapathOf;
  readonly log: Log;
};

export type PluginAnswer = {
  readonly xml: string;
  readonly name: string;
  /** `ok`, or the code of the refusal. */
  readonly outcome: string;
};

type Asked = {
  readonly agent: AgentClient;
  readonly xapi: XenApi;
  readonly args: ReadonlyMap<string, string>;
  readonly toolstack: Toolstack;
  readonly datapath: DatapathOf;
  readonly log: Log;
};

const functions: Readonly<Record<string, (asked: Asked) => Promise<string>>> = {
  /** As `weft status --json` says it, with what counts in front. */
  health: async ({ agent }) => JSON.stringify(healthOf(await agent.status())),
  status: async ({ agent }) => shownJson(await agent.status()),
  inventory: async ({ agent }) => inventoryText(await takeInventory(agent)),
  "stop-check": async ({ agent }) => shownJson(await agent.stopCheck(0)),
  admit: ({ agent, xapi, args }) => admitFromPool({ agent, xapi }, newcomerOf(args)),
  "join-request": async ({ agent, args }) => {
    const name = args.get("name") ?? null;
    return JSON.stringify(await agent.requestAdmission({ name, address: wanted(args, "address") }));
  },
  unseal: ({ agent, xapi, args }) => {
    const of = {
      cluster: uuidArg(args.get("cluster")),
      host: uuidArg(wanted(args, "bundle")),
      kid: wanted(args, "kid"),
    };
    return unsealForPool({ agent, xapi }, { uuid: uuidArg(wanted(args, "host")), bundle: of });
  },
  join: async ({ agent, xapi, args, log }) => {
    const via = args.get("via");
    const status = await agent.status();
    if (status.kind === "no-cluster")
      await enterThroughPool({ agent, xapi, log }, newcomerOf(args), via === undefined ? null : uuidArg(via));
    return "true";
  },
  "pool-add": async ({ agent, args }) =>
    (await agent.createPool({ path: wanted(args, "device"), kind: "xfs" })).id,
  /** A guest's disk here begins to be migrated, or its migration is given up. */
  [MIRROR_SNAPSHOT]: ({ args, agent, datapath }) => {
    const of = { sr: uuidIn(args, "sr"), vdi: uuidIn(args, "vdi"), snapshot: uuidIn(args, "snapshot") };
    return mirrorSnapshot({ agent, datapath: datapath(args) }, { ...of, mirror: wanted(args, "mirror") });
  },
  "restart-toolstack": async ({ toolstack }) => {
    toolstack.restart();
    return "true";
  },
  "toolstack-restarted": async ({ toolstack }) => JSON.stringify(toolstack.state),
};

/** What changes nothing leaves a line in the audit only where it was refused. */
export const QUIET_FUNCTIONS: ReadonlySet<string> = new Set([
  "health",
  "status",
  "inventory",
  "stop-check",
  "toolstack-restarted",
]);

export class Plugin {
  readonly #options: PluginOptions;

  constructor(options: PluginOptions) {
    this.#options = options;
  }

  async handle(request: string, gone: AbortSignal): Promise<PluginAnswer> {
    const { agentSocket, xapiSocket, toolstack, datapath, log } = this.#options;
    let name = "unknown";
    try {
      const call = parseCall(request);
      name = call.method.slice(0, SHOWN_MAX);
      const [session, given] = call.params;
      const args = given === undefined || given === null ? new Map<string, string>() : textsOf(given);
      if (typeof session !== "string" || args === null || call.params.length > 2)
        throw badRequest("a session and a struct of texts are what it takes");
      const perform = Object.hasOwn(functions, name) ? functions[name] : undefined;
      if (perform === undefined) throw badRequest(`there is no function "${name}"`);
      const deadline = AbortSignal.any([AbortSignal.timeout(CALL_MS), gone]);
      const agent = new AgentClient({ socketPath: agentSocket, timeoutMs: CALL_MS });
      const options = { socketPath: xapiSocket, sessionRef: session, subtaskOf: null, deadline };
      const xapi = new XenApi({ ...options, callMs: CALL_MS });
      const value = await perform({ agent, xapi, args, toolstack, datapath, log });
      return { xml: answered("Success", ["Value", value]), name, outcome: "ok" };
    } catch (error) {
      const words = refusalOf(error);
      const outcome = words[0] ?? "E-AGENT-06";
      const facts = { function: name, outcome, reason: words[1] };
      if (outcome === "E-AGENT-06") log.error({ ...facts, stack: stackOf(error) }, "a bug");
      else log.warn(facts, "the plug-in refused");
      return { xml: answered("Failure", ["ErrorDescription", words]), name, outcome };
    }
  }
}

/** For tools that ask whether all is well, and for nothing else. */
function healthOf(status: StatusAnswer): object {
  if (status.kind === "no-cluster")
    return { ok: false, level: "no-cluster", headline: "This host is in no cluster.", problems: [] };
  const { hosts, volumes, store, problems } = status;
  const { level, headline, lines } = summarise({
    hosts: hosts.map(({ name, alive }) => ({ name, alive, awayMs: null })),
    storeUp: store.writable,
    volumes: volumes.map(({ name, health, minIsr, replicas }) => ({
      name,
      health,
      minIsr,
      insyncOn: replicas.filter((one) => one.state === "INSYNC" && one.alive).map((one) => one.hostName),
    })),
  });
  return {
    ok: level === "healthy" && problems.length === 0,
    level,
    headline,
    lines,
    hosts: hosts.map(({ name, alive, store: vote }) => ({ name, alive, store: vote })),
    problems: problems.map(({ code, message }) => ({ code, message })),
  };
}

function newcomerOf(args: ReadonlyMap<string, string>): Newcomer {
  const network = args.get("network");
  return {
    uuid: uuidArg(wanted(args, "host")),
    network: network === undefined ? null : uuidArg(network),
    address: args.get("address") ?? null,
    name: args.get("name") ?? null,
  };
}

function uuidIn(args: ReadonlyMap<string, string>, name: string): string {
  const uuid = parseUuid(wanted(args, name));
  if (uuid === null) throw badRequest(`${name} is no UUID`);
  return uuid;
}

function wanted(args: ReadonlyMap<string, string>, name: string): string {
  const value = args.get(name);
  if (value !== undefined && value !== "") return value;
  throw badRequest(`the argument "${name}" is missing`);
}

function badRequest(what: string): WeftError {
  return new WeftError({
    code: "E-ARG-02",
    message: `The plug-in can't be asked so: ${what}.`,
    safe: "Nothing was changed.",
  });
}

/** What XAPI shows: a word and sentences. One that came from another host's plug-in stays as it was. */
function refusalOf(error: unknown): readonly string[] {
  if (isXapiError(error)) return [error.failure, ...error.params];
  if (isWeftError(error)) {
    const remedies = error.do.map(({ why, command }) => (command === null ? why : `${why}: ${command}`));
    return [error.code, error.message, ...(error.safe === null ? [] : [error.safe]), ...remedies];
  }
  if (error instanceof XmlError)
    return ["E-ARG-02", `The plug-in's request is no call in XML-RPC: ${error.message}.`];
  if (error instanceof SmFault) return [/^E-[A-Z]+-[0-9]+/.exec(error.text)?.[0] ?? "E-ARG-02", error.text];
  return ["E-AGENT-06", `The plug-in failed in a way that it believed impossible: ${reasonOf(error)}.`];
}

function answered(status: string, [member, value]: readonly [string, XmlOut]): string {
  return renderAnswer({ Status: status, [member]: value });
}

function shownJson(value: unknown): string {
  return JSON.stringify(value, (_, part: unknown) => (typeof part === "bigint" ? String(part) : part));
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? "") : "";
}
