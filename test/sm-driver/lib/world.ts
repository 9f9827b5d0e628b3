/**
 * A pool as a driver sees it: XAPI's database, the store, and on each host an agent, a driver and a datapath. The store is one
 * of maps, or what agents that a test has started keep.
 *
 * Must always hold: a call goes to the driver as XAPI sends it and its reply is taken as XAPI takes it (client.ts), in a session
 * of its own; after each of them what a driver broke in XAPI's database is thrown.
 */
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { type IncomingMessage, request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { Datapath } from "../../../src/sm-driver/datapath/datapath.ts";
import { TapdiskDatapath } from "../../../src/sm-driver/datapath/tapdisk.ts";
import { Driver, type SmAnswer } from "../../../src/sm-driver/driver.ts";
import { Plugin } from "../../../src/sm-driver/setup/plugin.ts";
import { Toolstack } from "../../../src/sm-driver/setup/toolstack.ts";
import { type DriverCall, type DriverRun, replyOf, requestOf, runDriver } from "./client.ts";
import { MemoryHolder, MemoryVolumes } from "./memory-holder.ts";
import { PlainDatapath } from "./plain-datapath.ts";
import { PlainStore } from "./plain-store.ts";
import { Steps } from "./steps.ts";
import { type StrictValue, structOf } from "./strict-xml.ts";
import { installTapCtl } from "./tap-ctl.ts";
import { startXapi, type XapiHost, type XapiServer } from "./xapi-server.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };
/** A storage repository, as XAPI names it. */
export type Sr = { readonly uuid: string; readonly ref: string };
/** `sr`: it is about another one than the pool's first. */
type Call = Omit<DriverCall, "hostRef" | "sessionRef" | "srRef" | "srUuid" | "command"> & {
  readonly sr?: Sr;
};

export const MIB = 1n << 20n;

/** sm.ml's `srmaster_only`. */
const MASTERS: ReadonlySet<string> = new Set(
  [
    "sr_scan vdi_create vdi_delete vdi_snapshot vdi_clone vdi_resize vdi_resize_online vdi_compose",
    "vdi_enable_cbt vdi_disable_cbt vdi_data_destroy vdi_list_changed_blocks",
  ].flatMap((line) => line.split(" ")),
);

/** What all hosts of a pool have in common. */
export class Pool {
  readonly srUuid = randomUUID();
  readonly xapi: XapiServer;
  readonly srRef: string;
  readonly hosts: SmHost[] = [];
  /** What the drivers log: warnings and errors. */
  readonly warnings: string[] = [];
  /** Whose session it is. */
  readonly sessions = new Map<string, Steps>();

  constructor(xapi: XapiServer) {
    this.xapi = xapi;
    this.srRef = xapi.addSr(this.srUuid);
    xapi.plugin = async (host, argument) => {
      const found = this.hosts.find((each) => each.host === host);
      if (found === undefined) throw new Error("a plug-in on a host that isn't there");
      return found.callPlugin(argument);
    };
    xapi.intercept = async ({ method, params: [session] }) => {
      if (typeof session === "string") await this.sessions.get(session)?.step(method, () => undefined);
    };
  }

  /** `agentSockets`: of a host each. */
  static async of(
    t: Scope,
    agentSockets: readonly string[],
    xapiSocket: string | null = null,
  ): Promise<Pool> {
    const pool = new Pool(await xapiFor(t, agentSockets.length, xapiSocket));
    for (const [n, agentSocket] of agentSockets.entries()) pool.addHost(n, agentSocket, new Steps());
    return pool;
  }

  addHost(n: number, agentSocket: string, steps: Steps, datapath: Datapath | null = null): void {
    const host = this.xapi.hosts[n];
    if (host === undefined) throw new Error(`XAPI has no host ${n}`);
    this.hosts.push(new SmHost(this, host, agentSocket, steps, datapath));
  }

  host(n: number): SmHost {
    const host = this.hosts[n];
    if (host === undefined) throw new Error(`there is no host ${n}`);
    return host;
  }

  /** What XAPI has of a disk. */
  record(uuid: string): Readonly<Record<string, unknown>> {
    return Object.fromEntries(this.xapi.record(this.xapi.vdiRef(uuid)));
  }

  /** Another SR, with PBDs of all hosts. */
  addSr(): Sr {
    const uuid = randomUUID();
    return { uuid, ref: this.xapi.addSr(uuid, {}, "other") };
  }

  /** The SR of the VDI, where XAPI has it; else the pool's first. */
  srOf(vdiRef: string | undefined): Sr {
    const ref = vdiRef === undefined ? undefined : this.xapi.record(vdiRef).get("SR");
    if (typeof ref !== "string") return { uuid: this.srUuid, ref: this.srRef };
    return { uuid: String(this.xapi.record(ref).get("uuid")), ref };
  }

  knows(uuid: string): boolean {
    return this.xapi.vdis(this.srRef).some((record) => record.get("uuid") === uuid);
  }
}

/** A pool with a store of maps. */
export class World extends Pool {
  readonly store = new PlainStore();
  readonly volumes = new MemoryVolumes();

  static async start(t: Scope, hostCount = 1): Promise<World> {
    const world = new World(await xapiFor(t, hostCount));
    t.teardown(() => world.store.stop());
    world.store.addSr(world.srUuid);
    for (const [n, { uuid }] of world.xapi.hosts.entries()) {
      const steps = new Steps();
      world.addHost(n, await world.store.serve(uuid, steps), steps);
    }
    return world;
  }

  /** With tapdisks' doubles on each host, over volumes in memory. */
  static async startWithTapdisks(t: Scope, hostCount: number): Promise<World> {
    const world = new World(await xapiFor(t, hostCount));
    t.teardown(() => world.store.stop());
    world.store.addSr(world.srUuid);
    world.store.data = world.volumes;
    const log = { info: () => {}, debug: () => {}, warn: () => {}, error: () => {} };
    for (const [n, { uuid }] of world.xapi.hosts.entries()) {
      const dom0Root = await mkdtemp(join(tmpdir(), "taps-"));
      installTapCtl(dom0Root);
      const holder = new MemoryHolder(world.volumes);
      t.teardown(async () => {
        for (const disk of await datapath.users()) await datapath.deactivate({ sr: "", vdi: disk.vdi });
        await rm(dom0Root, { recursive: true, force: true });
      });
      const options = { runDir: join(dom0Root, "run/weft"), dom0Root, holder, log };
      const datapath = new TapdiskDatapath(options);
      const steps = new Steps();
      world.addHost(n, await world.store.serve(uuid, steps), steps, datapath);
    }
    return world;
  }

  /** Another SR of the same store. */
  override addSr(): Sr {
    const sr = super.addSr();
    this.store.addSr(sr.uuid);
    return sr;
  }

  /** Of a guest on that host, through the device that it has. */
  write(n: number, uuid: string, content: string): void {
    const { host, datapath } = this.host(n);
    if (datapath.active.get(uuid)?.writable !== true)
      throw new Error(`${uuid} has no device to write through`);
    this.store.write(host.uuid, uuid, content);
  }

  /** What differs between XAPI's disks and the store's: nothing, but for what a scan will take away. */
  differences(): readonly string[] {
    const known = this.xapi.vdis(this.srRef).map((record) => String(record.get("uuid")));
    const kept = [...this.store.disks.values()].filter(({ sr }) => sr === this.srUuid);
    return [
      ...known.filter((uuid) => !this.store.disks.has(uuid)).map((uuid) => `XAPI alone has ${uuid}`),
      ...kept
        .filter(({ uuid, settled }) => settled && !known.includes(uuid))
        .map(({ uuid }) => `the store alone has ${uuid}`),
      ...kept
        .filter(
          ({ uuid, size }) => known.includes(uuid) && this.record(uuid)["virtual_size"] !== String(size),
        )
        .map(({ uuid }) => `the sizes of ${uuid} differ`),
    ];
  }
}

async function xapiFor(t: Scope, hostCount: number, path: string | null = null): Promise<XapiServer> {
  const dir = await mkdtemp(join(tmpdir(), "weft-xapi-"));
  const xapi = await startXapi(path ?? join(dir, "xapi"), hostCount);
  t.teardown(async () => {
    await xapi.close();
    await rm(dir, { recursive: true, force: true });
  });
  return xapi;
}

export class SmHost {
  readonly host: XapiHost;
  readonly steps: Steps;
  readonly datapath: PlainDatapath;
  readonly #pool: Pool;
  readonly #agentSocket: string;
  readonly plugin: Plugin;
  /** What XAPI runs; null: the driver is in this process, on a datapath without devices. */
  executable: string | null = null;
  /** Processes of it that run. */
  readonly programs = new Set<number>();
  /** By disk: what the last attach said is its NBD socket. */
  readonly sockets = new Map<string, string>();
  /** Of a driver in this process. */
  readonly waits = { patienceMs: 1000, xapiMs: 10_000 };
  readonly #driver: Driver;

  /** `withDevices`: the datapath; null: the plain one. */
  constructor(pool: Pool, host: XapiHost, agentSocket: string, steps: Steps, withDevices: Datapath | null) {
    this.#pool = pool;
    this.#agentSocket = agentSocket;
    this.host = host;
    this.steps = steps;
    this.datapath = new PlainDatapath(steps);
    const warn = (facts: object, text: string): void =>
      void pool.warnings.push(`${text} ${JSON.stringify(facts)}`);
    const silent = (): void => undefined;
    const log = { info: silent, debug: silent, warn, error: warn };
    const datapath = (): Datapath => withDevices ?? this.datapath;
    const parts = { agentSocket, xapiSocket: pool.xapi.socketPath, datapath, log };
    this.#driver = new Driver(Object.assign(this.waits, { ...parts, newUuid: randomUUID }));
    this.plugin = new Plugin({ ...parts, toolstack: new Toolstack("/bin/false", log) });
  }

  /** As XAPI makes it; what the driver refuses is thrown as a DriverFailure. */
  async call(command: string, { sr, ...call }: Call = {}): Promise<StrictValue> {
    const { xapi } = this.#pool;
    const vdiRef = call.vdiRef ?? (call.vdiUuid === undefined ? undefined : xapi.vdiRef(call.vdiUuid));
    const { ref: srRef, uuid: srUuid } = sr ?? this.#pool.srOf(vdiRef);
    const note = xapi.places.step(this.host.ref, { command, ...call });
    const isMaster = call.isMaster ?? this.host === xapi.hosts[0];
    // Anywhere else XAPI hands it on to the master.
    if (MASTERS.has(command) && !isMaster) throw new Error(`XAPI asks the master alone for ${command}`);
    const session = xapi.openSession(srRef);
    this.#pool.sessions.set(session, this.steps);
    const before = xapi.violations.length;
    const text = requestOf({
      isMaster,
      subtaskOf: "OpaqueRef:task",
      ...call,
      command,
      hostRef: this.host.ref,
      sessionRef: session,
      srRef,
      srUuid,
      ...(vdiRef === undefined ? {} : { vdiRef, vdiLocation: call.vdiLocation ?? call.vdiUuid ?? "" }),
    });
    try {
      const run = await this.#run(text);
      const broken = xapi.violations.slice(before);
      if (broken.length > 0) throw new Error(broken.join("; "));
      const value = replyOf(command, run);
      note();
      return value;
    } finally {
      xapi.closeSession(session);
    }
  }

  /** It was started anew. */
  forgetAll(): void {
    this.#pool.xapi.places.forget(this.host.ref);
    this.sockets.clear();
  }

  /** As XAPI's stub for plug-ins does it. */
  async callPlugin(argument: string): Promise<string> {
    if (this.executable === null)
      return (await this.plugin.handle(argument, new AbortController().signal)).xml;
    const options = { socketPath: this.#agentSocket, path: "/v1/plugin", method: "POST" };
    const asked = request({ ...options, headers: { "content-type": "text/xml" } });
    asked.end(argument);
    const [response] = (await once(asked, "response")) as [IncomingMessage];
    const chunks: Buffer[] = [];
    for await (const chunk of response) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks).toString();
  }

  async #run(call: string): Promise<DriverRun> {
    if (this.executable !== null) return runDriver(this.executable, call, this.programs);
    const { xml } = await this.#driver.handle(call, new AbortController().signal);
    return { stdout: xml, stderr: "", exitCode: 0, ms: 0 };
  }

  /** What comes back for any text. */
  answer(request: string): Promise<SmAnswer> {
    return this.#driver.handle(request, new AbortController().signal);
  }

  /** Of a command that makes or changes a disk: its uuid. XAPI reads the record next, and refuses a disk that is too small. */
  async uuid(command: string, call: Call = {}): Promise<string> {
    const { uuid, location } = structOf(await this.call(command, call));
    if (typeof uuid !== "string" || uuid !== location) throw new Error("uuid and location differ");
    const { location: known, virtual_size: size, SR: sr } = this.#pool.record(uuid);
    const of = call.vdiUuid === undefined ? undefined : this.#pool.xapi.vdiRef(call.vdiUuid);
    if (known !== location || sr !== (call.sr ?? this.#pool.srOf(of)).ref)
      throw new Error(`XAPI has no VDI at ${uuid}`);
    const isSized = command === "vdi_create" || command.startsWith("vdi_resize");
    if (isSized && BigInt(String(size)) < BigInt(call.args?.[0] ?? "0")) throw new Error("Disk too small");
    return uuid;
  }

  /** `vdi_create` with what a user says, and XAPI's words for the rest. */
  async create(size: bigint | string, label = "data", call: Call = {}): Promise<string> {
    const args = [String(size), label, "", "OpaqueRef:NULL", "false", "19700101T00:00:00Z", "", "false"];
    return this.uuid("vdi_create", { args, vdiType: "user", ...call });
  }

  /** What XAPI does when a VM with this disk starts. */
  async start(vdiUuid: string, onBoot: "persist" | "reset" = "persist"): Promise<void> {
    await this.call("vdi_epoch_begin", { vdiUuid, onBoot });
    await this.plug(vdiUuid, true, onBoot);
  }

  async plug(vdiUuid: string, writable = true, onBoot: "persist" | "reset" = "persist"): Promise<void> {
    await this.attach(vdiUuid, writable, onBoot);
    await this.call("vdi_activate", { vdiUuid, onBoot, args: [String(writable)] });
  }

  async attach(vdiUuid: string, writable = true, onBoot: "persist" | "reset" = "persist"): Promise<void> {
    const answer = await this.call("vdi_attach", { vdiUuid, onBoot, args: [String(writable)] });
    const { params_nbd: nbd } = structOf(answer);
    const socket = typeof nbd === "string" ? /^nbd:unix:(.*):exportname=/.exec(nbd)?.[1] : undefined;
    if (socket === undefined) throw new Error("params_nbd names no socket");
    this.sockets.set(vdiUuid, socket);
  }

  async unplug(vdiUuid: string): Promise<void> {
    await this.call("vdi_deactivate", { vdiUuid });
    await this.call("vdi_detach", { vdiUuid });
  }

  async stop(vdiUuid: string): Promise<void> {
    await this.unplug(vdiUuid);
    await this.call("vdi_epoch_end", { vdiUuid });
  }

  /**
   * What XAPI does around `vdi_snapshot` and `vdi_clone` (storage_smapiv1.ml): the disk's sm_config goes along as driver_params, and the
   * new record, found by its location, gets names and what it is, before vdi_update.
   */
  async copy(command: "vdi_snapshot" | "vdi_clone", vdiUuid: string, call: Call = {}): Promise<string> {
    const { xapi } = this.#pool;
    const source = this.#pool.record(vdiUuid);
    const smConfig = structOf(source["sm_config"] as StrictValue) as Readonly<Record<string, string>>;
    const made = await this.uuid(command, {
      ...call,
      vdiUuid,
      driverParams: { ...smConfig, ...call.driverParams },
    });
    const ref = xapi.vdiRef(made);
    const own = this.#pool.record(made);
    for (const member of ["name_label", "name_description", "type"]) xapi.set(ref, member, source[member]);
    xapi.set(ref, "is_a_snapshot", command === "vdi_snapshot");
    xapi.set(ref, "snapshot_time", `${new Date().toISOString().slice(0, 19).replaceAll("-", "")}Z`);
    xapi.set(ref, "other_config", { content_id: randomUUID() });
    const { base_mirror: mirror } = smConfig;
    if (mirror !== undefined)
      xapi.set(ref, "sm_config", { ...structOf(own["sm_config"] as StrictValue), base_mirror: mirror });
    await this.call("vdi_update", { vdiUuid: made });
    if (command === "vdi_snapshot") xapi.set(ref, "snapshot_of", xapi.vdiRef(vdiUuid));
    return made;
  }
}
