/**
 * A pool's XAPI for tests: the database that a driver keeps its records in, on a unix socket, and the calls that it makes.
 *
 * Must always hold (design xapi.md 1.8, 1.10): a location is unique in its SR and a uuid everywhere; sizes are text, moments are
 * dates, each member of db_introduce is there; a session lives as long as the one call that it was made for, and may touch VDIs
 * of its SR alone; a VDI is attached on a host before it is activated there, and never from read-only to writable. What breaks
 * that is noted in `violations`, since a driver could swallow the refusal. Two hosts may activate one VDI at once here: XAPI would
 * not, but for a host that it believes dead, and the driver has to hold then.
 */
import { randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { once } from "node:events";

import { callDriver, type DriverCall, DriverFailure } from "./client.ts";
import { Places } from "./places.ts";
import {
  readCall,
  readReply,
  type StrictValue,
  structOf,
  writeStruct,
  writeText,
  writeValue,
} from "./strict-xml.ts";

export const NULL_REF = "OpaqueRef:NULL";
type Record_ = Map<string, unknown>;

/** As it stands in a message, or is a key by. */
function word(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}

class Failure extends Error {
  readonly words: readonly string[];

  constructor(...words: readonly string[]) {
    super(words.join(" "));
    this.words = words;
  }
}

export type XapiRequest = {
  readonly method: string;
  readonly params: readonly StrictValue[];
  readonly subtaskOf: string | null;
};

/** `hang`: no answer ever comes. */
export type Garbled = { readonly status: number; readonly body: string } | "hang";

export type XapiHost = { readonly ref: string; readonly uuid: string; live: boolean };

export type XapiServer = {
  readonly socketPath: string;
  readonly hosts: readonly XapiHost[];
  /** What it was asked, in order. */
  readonly requests: XapiRequest[];
  /** Where a driver broke what XAPI demands. */
  readonly violations: string[];
  readonly messages: { readonly name: string; readonly body: string }[];
  /** Where XAPI has its disks attached. */
  readonly places: Places;
  /** Called before each request is done; it may delay, throw to have the connection cut, or have it cut when it is done. */
  intercept: ((request: XapiRequest) => Promise<void | "lose the answer">) | null;
  /** What goes out in place of an answer: null for the answer itself. Asked before `intercept`, and nothing is done then. */
  garble: ((request: XapiRequest) => Garbled | null) | null;
  /** Runs a host's plug-in with the call as XAPI writes it; null: none of the hosts has one. */
  plugin: ((host: XapiHost, argument: string) => Promise<string>) | null;
  /** Calls that it answers besides, by name; the session is not among the parameters. */
  readonly methods: Map<string, (params: readonly StrictValue[]) => unknown>;
  /** A record of any class. */
  add(kind: string, fields: Readonly<Record<string, unknown>>): string;
  /** An SR's record with PBDs of all hosts, as SR.create makes it. */
  addSr(uuid: string, deviceConfig?: Readonly<Record<string, string>>, label?: string): string;
  /** What the database has under a ref. */
  record(ref: string): ReadonlyMap<string, unknown>;
  vdis(srRef: string): readonly ReadonlyMap<string, unknown>[];
  vdiRef(uuid: string): string;
  set(ref: string, member: string, value: unknown): void;
  forget(ref: string): void;
  openSession(srRef: string): string;
  closeSession(session: string): void;
  close(): Promise<void>;
};

const VDI_TYPES: ReadonlySet<string> = new Set(
  [
    "system user ephemeral suspend crashdump ha_statefile metadata redo_log rrd pvs_cache",
    "cbt_metadata",
  ].flatMap((line) => line.split(" ")),
);

/** XAPI's own: no call changes them. */
const FIXED: ReadonlySet<string> = new Set(["uuid", "SR", "location", "type", "class", "VBDs"]);

export async function startXapi(socketPath: string, hostCount = 1): Promise<XapiServer> {
  const database = new Map<string, Record_>();
  const sessions = new Map<string, string>();
  const requests: XapiRequest[] = [];
  const violations: string[] = [];
  const messages: { name: string; body: string }[] = [];
  const hosts = Array.from({ length: hostCount }, () => {
    const ref = `OpaqueRef:${randomUUID()}`;
    return { ref, uuid: randomUUID(), live: true };
  });
  for (const { ref, uuid } of hosts) {
    database.set(
      ref,
      new Map<string, unknown>([
        ["class", "host"],
        ["uuid", uuid],
        ["metrics", `${ref}-metrics`],
      ]),
    );
  }
  const poolRef = `OpaqueRef:${randomUUID()}`;
  database.set(
    poolRef,
    new Map<string, unknown>([
      ["class", "pool"],
      ["uuid", randomUUID()],
      ["master", hosts[0]?.ref],
      ["other_config", {}],
    ]),
  );

  const get = (ref: StrictValue | undefined, kind: string): Record_ => {
    const found = database.get(word(ref));
    if (found?.get("class") !== kind) throw new Failure("HANDLE_INVALID", kind, word(ref));
    return found;
  };
  const all = (kind: string): readonly (readonly [string, Record_])[] =>
    Array.from(database).filter(([, record]) => record.get("class") === kind);
  const broken = (what: string): Failure => {
    violations.push(what);
    return new Failure("INTERNAL_ERROR", what);
  };
  const shown = (ref: string, record: Record_): Map<string, unknown> => {
    if (record.get("class") === "host_metrics") return record;
    return new Map(Array.from(record).filter(([name]) => name !== "class" || ref === ""));
  };

  function introduce(params: readonly StrictValue[]): string {
    const names = [
      "uuid name_label name_description SR type sharable read_only other_config location",
      "xenstore_data sm_config managed virtual_size physical_utilisation metadata_of_pool",
      "is_a_snapshot snapshot_time snapshot_of cbt_enabled",
    ].flatMap((line) => line.split(" "));
    if (params.length !== names.length)
      throw broken(`db_introduce has ${params.length} parameters, not ${names.length}`);
    const record: Record_ = new Map<string, unknown>([["class", "VDI"]]);
    for (const [i, name] of names.entries()) record.set(name, params[i]);
    for (const name of ["sharable", "read_only", "managed", "is_a_snapshot", "cbt_enabled"]) {
      if (typeof record.get(name) !== "boolean") throw broken(`db_introduce: ${name} is no boolean`);
    }
    for (const name of ["virtual_size", "physical_utilisation"]) refuseUnlessSize(name, record.get(name));
    for (const name of ["other_config", "xenstore_data", "sm_config"])
      structOf(record.get(name) as StrictValue);
    if (!/^\d{8}T\d\d:\d\d:\d\dZ$/.test(word(record.get("snapshot_time"))))
      throw broken(`db_introduce: snapshot_time is "${word(record.get("snapshot_time"))}"`);
    if (!VDI_TYPES.has(word(record.get("type"))))
      throw broken(`db_introduce: type ${word(record.get("type"))}`);
    get(record.get("SR") as StrictValue, "SR");
    for (const [ref, known] of all("VDI")) {
      if (known.get("uuid") === record.get("uuid"))
        throw new Failure("UNIQUENESS_CONSTRAINT_VIOLATION", "VDI", "uuid", ref);
      if (known.get("SR") === record.get("SR") && known.get("location") === record.get("location"))
        throw broken(`two VDIs of one location: ${word(record.get("location"))}`);
    }
    const ref = `OpaqueRef:${randomUUID()}`;
    for (const name of ["VBDs", "tags"]) record.set(name, []);
    database.set(ref, record);
    return ref;
  }

  /** A driver's session is for one SR. */
  function refuseUnlessOf(session: string, srRef: unknown): void {
    const own = sessions.get(session);
    if (own !== NULL_REF && own !== srRef)
      throw broken(`a VDI of ${word(srRef)} by a session of ${own ?? "nobody"}`);
  }

  /** Of the type that the field has. */
  function refuseUnlessLike(method: string, before: unknown, value: unknown): void {
    const kindOf = (one: unknown): string => (Array.isArray(one) ? "list" : typeof one);
    if (before !== undefined && kindOf(before) !== kindOf(value))
      throw broken(`${method}: ${word(value)} is a ${kindOf(value)}, not a ${kindOf(before)}`);
  }

  function refuseUnlessSize(name: string, value: unknown): void {
    if (typeof value !== "string" || !/^[0-9]+$/.test(value))
      throw broken(`${name} is no size in text: ${word(value)}`);
  }

  function answer(method: string, [session, ...params]: readonly StrictValue[]): unknown {
    if (method === "session.login_with_password") return open_(NULL_REF);
    if (typeof session !== "string" || !sessions.has(session))
      throw new Failure("SESSION_INVALID", word(session));
    const besides = server.methods.get(method);
    if (besides !== undefined) return besides(params);
    const [kind = "", verb = ""] = method.split(".");
    const [ref, value, more] = params;
    switch (method) {
      case "session.get_this_host":
        return hosts[0]?.ref;
      case "session.logout":
        sessions.delete(session);
        return "";
      case "VDI.db_introduce":
        refuseUnlessOf(session, params[3]);
        return introduce(params);
      case "VDI.db_forget":
        refuseUnlessOf(session, get(ref, "VDI").get("SR"));
        database.delete(word(ref));
        return "";
      case "message.create":
        messages.push({ name: word(ref), body: word(params[4]) });
        return `OpaqueRef:${randomUUID()}`;
      case "secret.get_value":
        return get(ref, "secret").get("value");
    }
    if (verb === "get_by_uuid") {
      const found = all(kind).find(([, record]) => record.get("uuid") === ref);
      if (found === undefined) throw new Failure("UUID_INVALID", kind, word(ref));
      return found[0];
    }
    if (verb === "get_all") return all(kind).map(([each]) => each);
    if (verb === "get_all_records" || verb === "get_all_records_where") {
      if (kind === "host_metrics") {
        return new Map(
          hosts.map((host) => [`${host.ref}-metrics`, new Map<string, unknown>([["live", host.live]])]),
        );
      }
      const wanted = verb === "get_all_records" ? null : /^field "([A-Za-z_]+)" = "([^"]*)"$/.exec(word(ref));
      if (verb !== "get_all_records" && wanted === null)
        throw broken(`an expression that XAPI can't read: ${word(ref)}`);
      const matching = all(kind).filter(
        ([, record]) => wanted === null || record.get(wanted[1] ?? "") === wanted[2],
      );
      return new Map(matching.map(([each, record]) => [each, shown(each, record)]));
    }
    const record = get(ref, kind);
    const isRead = verb.startsWith("get_");
    if (kind === "VDI" && !isRead) refuseUnlessOf(session, record.get("SR"));
    if (kind === "SR" && !isRead) refuseUnlessOf(session, ref);
    if (verb === "get_record") return shown(word(ref), record);
    if (verb.startsWith("get_")) {
      if (record.has(verb.slice(4))) return record.get(verb.slice(4));
      throw broken(`${method}: no such field here`);
    }
    if (verb.startsWith("set_")) {
      const field = verb.slice(4);
      if (["virtual_size", "physical_utilisation", "physical_size", "virtual_allocation"].includes(field))
        refuseUnlessSize(field, value);
      else refuseUnlessLike(method, record.get(field), value);
      if (!record.has(field) || FIXED.has(field)) throw broken(`${method}: no such method`);
      record.set(field, value);
      return "";
    }
    const map = /^(add_to|remove_from)_(sm_config|other_config|xenstore_data)$/.exec(verb);
    if (map !== null) {
      const known = { ...structOf(record.get(map[2] ?? "") as StrictValue) };
      if (map[1] === "add_to") {
        if (Object.hasOwn(known, word(value))) throw new Failure("MAP_DUPLICATE_KEY", kind, word(value));
        known[word(value)] = more ?? "";
      } else {
        Reflect.deleteProperty(known, word(value));
      }
      record.set(map[2] ?? "", known);
      return "";
    }
    throw broken(`a method that this XAPI has not: ${method}`);
  }

  /** As xapi_plugins.ml: a methodCall of a session and a struct of texts, a Status back. */
  async function callPlugin([
    session,
    hostRef,
    plugin,
    name,
    args,
  ]: readonly StrictValue[]): Promise<unknown> {
    if (typeof session !== "string" || !sessions.has(session))
      throw new Failure("SESSION_INVALID", word(session));
    const host = hosts.find(({ ref }) => ref === hostRef);
    if (host === undefined) throw new Failure("HANDLE_INVALID", "host", word(hostRef));
    if (!host.live) throw new Failure("HOST_OFFLINE", word(hostRef));
    if (server.plugin === null) throw new Failure("XENAPI_MISSING_PLUGIN", word(plugin));
    const texts = Object.entries(structOf(args ?? ""));
    if (texts.some(([, text]) => typeof text !== "string"))
      throw broken("call_plugin: arguments that are no texts");
    // It lives as long as the plug-in.
    const own = open_(NULL_REF);
    const params = [
      writeText(own),
      writeStruct(texts.map(([key, text]) => [key, writeText(word(text))] as const)),
    ];
    const argument = `<methodCall><methodName>${word(name)}</methodName><params>${params.map((one) => `<param>${one}</param>`).join("")}</params></methodCall>`;
    let text: string;
    try {
      text = await server.plugin(host, argument);
    } catch (error) {
      // Of one that ends with an error, or whose agent is away.
      throw new Failure("XENAPI_PLUGIN_FAILURE", "non-zero exit", "", String(error));
    } finally {
      sessions.delete(own);
    }
    const reply = readReply(text);
    if (reply.kind === "fault") throw new Failure("XENAPI_PLUGIN_FAILURE", "fault", reply.text);
    const { Status: status, Value: value, ErrorDescription: words } = structOf(reply.value);
    if (status === "Success" && typeof value === "string") return value;
    if (status === "Failure" && Array.isArray(words)) throw new Failure(...words.map(word));
    throw new Failure("XENAPI_PLUGIN_FAILURE", "unexpected XMLRPC result");
  }

  function open_(srRef: string): string {
    const session = `OpaqueRef:${randomUUID()}`;
    sessions.set(session, srRef);
    return session;
  }

  async function serve(request: IncomingMessage): Promise<Garbled> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const { method, params } = readCall(Buffer.concat(chunks).toString());
    const subtask = request.headers["subtask-of"];
    const asked = { method, params, subtaskOf: typeof subtask === "string" ? subtask : null };
    requests.push(asked);
    const garbled = server.garble?.(asked) ?? null;
    if (garbled !== null) return garbled;
    const fate = await server.intercept?.(asked);
    let status: readonly (readonly [string, string])[];
    try {
      const value = method === "host.call_plugin" ? await callPlugin(params) : answer(method, params);
      status = [
        ["Status", writeValue("Success")],
        ["Value", writeValue(value)],
      ];
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      status = [
        ["Status", writeValue("Failure")],
        ["ErrorDescription", writeValue(error.words)],
      ];
    }
    if (fate === "lose the answer") throw new Error("the answer is lost");
    const body = `<?xml version="1.0"?><methodResponse><params><param>${writeStruct(status)}</param></params></methodResponse>`;
    return { status: 200, body };
  }

  async function respond(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const answer = await serve(request);
    if (answer === "hang") return;
    const headers = { "content-type": "text/xml", connection: "close" };
    response.writeHead(answer.status, headers).end(answer.body);
  }

  const http: Server = createServer((request, response) => {
    if (request.method !== "POST" || request.url !== "/") {
      violations.push(`${request.method ?? ""} ${request.url ?? ""}`);
      response.writeHead(404).end();
      return;
    }
    respond(request, response).catch(() => response.destroy());
  });
  await rm(socketPath, { force: true });
  http.listen(socketPath);
  await once(http, "listening");

  const server: XapiServer = {
    socketPath,
    hosts,
    requests,
    violations,
    messages,
    places: new Places(),
    intercept: null,
    garble: null,
    plugin: null,
    methods: new Map(),
    add: (kind, fields) => {
      const ref = `OpaqueRef:${randomUUID()}`;
      database.set(
        ref,
        new Map<string, unknown>([["class", kind], ["uuid", randomUUID()], ...Object.entries(fields)]),
      );
      return ref;
    },
    addSr: (uuid, deviceConfig = {}, label = "replicated") => {
      const ref = `OpaqueRef:${randomUUID()}`;
      const sizes = ["physical_size", "physical_utilisation", "virtual_allocation"];
      database.set(
        ref,
        new Map<string, unknown>([
          ["class", "SR"],
          ["uuid", uuid],
          ["name_label", label],
          ["name_description", ""],
          ["type", "weft"],
          ["shared", true],
          ["other_config", {}],
          ["sm_config", {}],
          ...sizes.map((name) => [name, "0"] as const),
        ]),
      );
      for (const host of hosts) {
        database.set(
          `OpaqueRef:${randomUUID()}`,
          new Map<string, unknown>([
            ["class", "PBD"],
            ["uuid", randomUUID()],
            ["SR", ref],
            ["host", host.ref],
            ["device_config", deviceConfig],
            ["currently_attached", false],
          ]),
        );
      }
      return ref;
    },
    record: (ref) => database.get(ref) ?? new Map(),
    vdis: (srRef) => all("VDI").flatMap(([, record]) => (record.get("SR") === srRef ? [record] : [])),
    vdiRef: (uuid) => all("VDI").find(([, record]) => record.get("uuid") === uuid)?.[0] ?? NULL_REF,
    set: (ref, member, value) => void database.get(ref)?.set(member, value),
    forget: (ref) => void database.delete(ref),
    openSession: open_,
    closeSession: (session) => void sessions.delete(session),
    close: async () => {
      http.close();
      http.closeAllConnections();
      await rm(socketPath, { force: true });
    },
  };
  return server;
}

export type SrOnHost = {
  readonly xapi: XapiServer;
  readonly host: XapiHost;
  /** The stub of that host. */
  readonly executable: string;
  readonly srRef: string;
  readonly srUuid: string;
  readonly deviceConfig?: Readonly<Record<string, string>>;
};

/**
 * One call as XAPI makes it: a session of its own that ends with it, the records' refs, and for attach to detach the automaton
 * of 1.10. What a driver refuses is thrown as a DriverFailure.
 */
export async function callSm(
  { xapi, host, executable, srRef, srUuid, deviceConfig }: SrOnHost,
  call: Omit<DriverCall, "hostRef" | "sessionRef" | "srRef" | "srUuid">,
): Promise<StrictValue> {
  const note = xapi.places.step(host.ref, call);
  const session = xapi.openSession(srRef);
  const vdiRef = call.vdiRef ?? (call.vdiUuid === undefined ? undefined : xapi.vdiRef(call.vdiUuid));
  const location =
    call.vdiLocation ?? (vdiRef === undefined ? undefined : xapi.record(vdiRef).get("location"));
  const isProbe = call.command === "sr_probe";
  const before = xapi.violations.length;
  const refuseBroken = (): void => {
    const broken = xapi.violations.slice(before);
    if (broken.length > 0) throw new DriverFailure(0, broken.join("; "));
  };
  try {
    const value = await callDriver(executable, {
      isMaster: host === xapi.hosts[0],
      ...call,
      ...(deviceConfig === undefined ? {} : { deviceConfig: { ...deviceConfig, ...call.deviceConfig } }),
      hostRef: host.ref,
      sessionRef: session,
      subtaskOf: call.subtaskOf ?? "OpaqueRef:task",
      ...(isProbe ? {} : { srRef, srUuid }),
      ...(vdiRef === undefined ? {} : { vdiRef }),
      ...(typeof location === "string" ? { vdiLocation: location } : {}),
    });
    refuseBroken();
    note();
    return value;
  } catch (error) {
    refuseBroken();
    throw error;
  } finally {
    xapi.closeSession(session);
  }
}
