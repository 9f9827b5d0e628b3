/**
 * One host of a cluster on this machine: its processes, started and ended as a whole.
 *
 * Must always hold:
 * - what runs is found by looking (namespace or environment), never remembered: it is right after any crash of ours;
 * - a start after a kill is a boot: sockets and pid files are gone, the boot id is new, the state directory stays.
 */
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";

import { execa } from "execa";

import { nativeBin, repository, weftd } from "../lib/repository.ts";
import { until } from "../lib/until.ts";
import { AgentClient } from "../../src/core/wire/agent-client.ts";
import { DaemonClient } from "../../src/core/wire/daemon-client.ts";
import type { DaemonMethod, DaemonMethods } from "../../src/core/wire/daemon.gen.ts";
import { openFirstTrust } from "../../src/core/wire/signed-trust.ts";
import { namespaceOf, killAll, pidsInNetwork, pidsMarked, signal, statOf, wordsOf } from "./processes.ts";
import type { Network } from "./network.ts";

/** In CI nothing fails for being slow, up to here. */
const DEADLINE_MS = 30_000;

export type HostLayout = {
  readonly name: string;
  readonly address: string;
  /** Holds state/, run/ (unless its path is too long for sockets), log/, pool/ and boot-id. */
  readonly dir: string;
  readonly runDir: string;
  readonly pool: boolean;
  /** Its pool is an XFS of its own in `pool.img`, mounted for this host alone while it runs. */
  readonly xfs: boolean;
};

/** What a host runs from its boot on. */
export type Services = {
  /** By name; the name is also the name of its log. */
  readonly commands: (host: Host) => Readonly<Record<string, readonly string[]>>;
  readonly ready: (host: Host) => Promise<boolean>;
};

/** weft itself; `agentOptions` are put behind the agent's own, `daemon` is another weftd than that of this repository. */
export function weftServices(agentOptions: readonly string[] = [], daemon: string | null = null): Services {
  return {
    commands: (host) => {
      const places = [
        "--state-dir",
        host.stateDir,
        "--run-dir",
        host.layout.runDir,
        "--boot-id-file",
        host.bootIdFile,
      ];
      // The environment of a process that writes no core dump is root's to read, and without root the mark is in there.
      const cores = process.getuid?.() === 0 ? [] : ["--allow-core-dumps"];
      const holder = join(nativeBin(), "weft-holder");
      return {
        weftd: [daemon ?? weftd(), ...places, ...cores],
        // A build of the data path from before it has none: then guests ask weftd themselves.
        ...(existsSync(holder) ? { holder: [holder, "--run-dir", host.layout.runDir, ...cores] } : {}),
        agent: [
          process.execPath,
          join(repository, "src/resident/main.ts"),
          ...places,
          "--addon",
          join(nativeBin(), "libweft_node.so"),
          ...cores,
          ...agentOptions,
        ],
      };
    },
    ready: async (host) => {
      await host.agent().status();
      return existsSync(host.daemonSocket);
    },
  };
}

export type CommandOptions = {
  readonly env?: Readonly<Record<string, string>>;
  /** "inherit": the command has the terminal, and nothing of what it writes comes back. */
  readonly stdio?: "pipe" | "inherit";
};

/** A command that ends with an error is an answer here, not an exception. */
export type CommandResult = {
  /** Null when a signal ended it; in namespaces 128 and the signal's number, as a shell tells it. */
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
};

/** Wrapped, so that a function may start a command and return before its end. */
export type Running = { readonly result: Promise<CommandResult> };

export class Host {
  readonly layout: HostLayout;
  readonly #key: string;
  readonly #network: Network | null;
  readonly #services: Services;

  /** `network` is null without root: the host is then only an address and a mark in its processes' environment. */
  constructor(layout: HostLayout, key: string, network: Network | null, services: Services = weftServices()) {
    this.layout = layout;
    this.#key = key;
    this.#network = network;
    this.#services = services;
  }

  get name(): string {
    return this.layout.name;
  }

  get agentSocket(): string {
    return join(this.layout.runDir, "agent.sock");
  }

  get daemonSocket(): string {
    return join(this.layout.runDir, "weftd.sock");
  }

  get stateDir(): string {
    return join(this.layout.dir, "state");
  }

  get bootIdFile(): string {
    return join(this.layout.dir, "boot-id");
  }

  /** Null: its pool lies on the file system of everything else. */
  get poolImage(): string | null {
    return this.layout.xfs ? join(this.layout.dir, "pool.img") : null;
  }

  get poolDir(): string {
    return join(this.layout.dir, "pool");
  }

  agent(): AgentClient {
    return new AgentClient({ socketPath: this.agentSocket });
  }

  /** Boots the host, and returns when its services answer. */
  async start(deadlineMs = 20_000): Promise<void> {
    if ((await this.pids()).length > 0) throw new Error(`${this.name} runs already`);
    const { dir, runDir } = this.layout;
    const log = join(dir, "log");
    rmSync(runDir, { recursive: true, force: true });
    for (const path of [runDir, this.stateDir, log]) mkdirSync(path, { recursive: true });
    if (this.layout.pool) mkdirSync(this.poolDir, { recursive: true });
    writeFileSync(this.bootIdFile, `${randomUUID()}\n`);

    const services = Object.keys(this.#services.commands(this));
    const lines = [this.#mountLine(), ...services.map((name) => this.#startLine(name))];
    writeFileSync(join(dir, "services"), lines.join(""));
    await this.#launch(["sh", join(import.meta.dirname, "host-init.sh"), join(dir, "services")]);
    const what = `${services.join(" and ")} of ${this.name} (see ${log})`;
    await until(async () => ((await this.#services.ready(this)) ? true : null), { what, deadlineMs });
  }

  /** The mount dies with the host. A device that a host of before has left is free a moment after its end. */
  #mountLine(): string {
    const image = this.poolImage;
    if (image === null) return "";
    const [file, directory] = [quoted(image), quoted(this.poolDir)];
    const mount = `mount -t xfs -o noatime "$disk" ${directory}`;
    const patient = `for _ in 1 2 3 4 5 6 7 8 9; do ${mount} && break; sleep 0.2; done`;
    return `disk=$(losetup --find --show --direct-io=on ${file})\n${patient}\nlosetup --detach "$disk"\n`;
  }

  /** Starts one service of the running host again, after its process has ended: no boot, the boot id stays. */
  async restart(service: string): Promise<void> {
    await this.output(["sh", "-c", this.#startLine(service)]);
  }

  #startLine(service: string): string {
    const command = this.#services.commands(this)[service];
    if (command === undefined) throw new Error(`${this.name} has no service "${service}"`);
    const log = join(this.layout.dir, "log", `${service}.log`);
    return `${command.map(quoted).join(" ")} >>${quoted(log)} 2>&1 &\n`;
  }

  /** SIGKILL to everything at once, and returns when nothing of it is left. */
  async kill(): Promise<void> {
    const inode = await this.#inode();
    await killAll(() => this.#pids(inode), this.name);
  }

  /** SIGSTOP to everything, what is started in the host by `exec` included. */
  async stop(): Promise<void> {
    await this.#toAll("SIGSTOP", (state) => state !== "T" && state !== "t");
  }

  async cont(): Promise<void> {
    await this.#toAll("SIGCONT", (state) => state === "T");
  }

  /** Sends a signal to one program of the host ("weftd", "etcd"): what an administrator's `kill` would do. */
  async signal(program: string, name: NodeJS.Signals): Promise<void> {
    const pid = await this.running(program);
    if (pid === null) throw new Error(`no ${program} runs on ${this.name}`);
    signal(pid, name);
  }

  /** SIGKILL to one program of the host, and returns when it has ended. */
  async killProgram(program: string): Promise<void> {
    const pid = await this.running(program);
    await this.signal(program, "SIGKILL");
    await until(async () => ((await this.running(program)) === pid ? null : true), {
      what: `the end of ${program} on ${this.name}`,
      deadlineMs: DEADLINE_MS,
      everyMs: 5,
    });
  }

  /** Starts weftd again after its end, and returns when it answers. */
  async restartDaemon(): Promise<void> {
    await this.restart("weftd");
    await this.daemonAnswers();
  }

  /** SIGKILL to the agent, which is one of many programs that Node runs; etcd goes on. Returns when it has ended. */
  async killAgent(): Promise<void> {
    const pid = await this.#agentPid();
    if (pid === null) throw new Error(`no agent runs on ${this.name}`);
    signal(pid, "SIGKILL");
    await until(async () => ((await this.#agentPid()) === pid ? null : true), {
      what: `the end of the agent on ${this.name}`,
      deadlineMs: DEADLINE_MS,
      everyMs: 5,
    });
  }

  /** Starts the agent again after its end, and returns when it answers. */
  async restartAgent(): Promise<void> {
    await this.restart("agent");
    await until(async () => this.agent().status(), {
      what: `the agent of ${this.name}`,
      deadlineMs: DEADLINE_MS,
      everyMs: 20,
    });
  }

  async #agentPid(): Promise<number | null> {
    const main = join(repository, "src/resident/main.ts");
    return (
      (await this.pids()).find((pid) => wordsOf(pid).includes(main) && statOf(pid)?.state !== "Z") ?? null
    );
  }

  async daemonAnswers(): Promise<void> {
    await until(async () => this.ask("hello", {}), {
      what: `weftd of ${this.name}`,
      deadlineMs: DEADLINE_MS,
      everyMs: 20,
    });
  }

  /** Asks the host's weftd. */
  async ask<M extends DaemonMethod>(
    method: M,
    params: DaemonMethods[M]["params"],
  ): Promise<DaemonMethods[M]["result"]> {
    const client = new DaemonClient({ socketPath: this.daemonSocket, deadlineMs: DEADLINE_MS });
    try {
      return await client.call(method, params);
    } finally {
      client.close();
    }
  }

  async running(program: string): Promise<number | null> {
    return (await this.pids()).find((pid) => statOf(pid)?.name === program) ?? null;
  }

  /** Starts a command on the host, with `weft` and everything else of the repository on its PATH. */
  async exec(command: readonly string[], options: CommandOptions = {}): Promise<Running> {
    const env = { ...this.environment(), ...options.env };
    const [file = "true", ...args] = await this.#enter(command);
    return { result: resultOf(execa(file, args, { env, reject: false, stdio: options.stdio ?? "pipe" })) };
  }

  /** Runs a command on the host and gives its standard output; an error shows what it wrote. */
  async output(command: readonly string[], options: CommandOptions = {}): Promise<string> {
    const { result } = await this.exec(command, options);
    const { exitCode, stdout, stderr } = await result;
    if (exitCode === 0) return stdout;
    const said = [stderr, stdout].filter((text) => text !== "").join("\n");
    throw new Error(`${this.name}: ${command.join(" ")}: status ${exitCode ?? "none"}\n${said}`);
  }

  async json(command: readonly string[], options: CommandOptions = {}): Promise<unknown> {
    return JSON.parse(await this.output(command, options));
  }

  /** Runs etcdctl against this host's member of the store, as the host itself. */
  async etcdctl(args: readonly string[]): Promise<string> {
    const identity = join(this.stateDir, "identity");
    const trust = openFirstTrust(readFileSync(join(identity, "trust.json"), "utf8"));
    if (trust.kind === "refused") throw new Error(trust.finding.message);
    // etcdctl wants the authorities as a file.
    const authorities = join(this.layout.dir, "store-authorities.pem");
    writeFileSync(authorities, trust.value.trust.storeAuthorities.map(({ pem }) => pem).join(""));
    const own = join(identity, "host.pem");
    const shown = ["--cacert", authorities, "--cert", own, "--key", own];
    const endpoint = `https://${this.layout.address}:7402`;
    return this.output(["etcdctl", "--endpoints", endpoint, ...shown, ...args], {
      env: { ETCDCTL_API: "3" },
    });
  }

  environment(): Readonly<Record<string, string>> {
    const path = [
      join(repository, "bin"),
      join(repository, "node_modules/.bin"),
      nativeBin(),
      process.env["PATH"],
    ];
    return {
      PATH: path.join(":"),
      WEFT_RUN_DIR: this.layout.runDir,
      WEFT_STATE_DIR: this.stateDir,
      WEFTD: join(nativeBin(), "weftd"),
      WEFT_CLUSTER_HOST: this.#mark(),
    };
  }

  logs(): Readonly<Record<string, string>> {
    const log = join(this.layout.dir, "log");
    const names = existsSync(log) ? readdirSync(log).toSorted() : [];
    return Object.fromEntries(names.map((name) => [name, readFileSync(join(log, name), "utf8")]));
  }

  async pids(): Promise<readonly number[]> {
    return this.#pids(await this.#inode());
  }

  /** Without namespaces. */
  pidsByMark(): readonly number[] {
    return pidsMarked({ setting: `WEFT_CLUSTER_HOST=${this.#mark()}`, below: this.stateDir });
  }

  #mark(): string {
    return `${this.#key}/${this.name}`;
  }

  async #inode(): Promise<string | null> {
    return this.#network?.inode(this.name) ?? null;
  }

  #pids(inode: string | null): readonly number[] {
    if (this.#network === null) return this.pidsByMark();
    return inode === null ? [] : pidsInNetwork(inode);
  }

  async #toAll(name: NodeJS.Signals, isMissing: (state: string) => boolean): Promise<void> {
    const inode = await this.#inode();
    await until(
      () => {
        const missing = this.#pids(inode).filter((pid) => {
          const state = statOf(pid)?.state;
          return state !== undefined && state !== "Z" && isMissing(state);
        });
        for (const pid of missing) signal(pid, name);
        return missing.length === 0 ? true : null;
      },
      { what: `${name} of everything on ${this.name}`, deadlineMs: 5000, everyMs: 5 },
    );
  }

  async #launch(command: readonly string[]): Promise<void> {
    const out = openSync(join(this.layout.dir, "log", "init.log"), "a");
    const [file = "true", ...args] =
      this.#network === null
        ? command
        : [
            "nsenter",
            `--net=${this.#network.path(this.name)}`,
            "unshare",
            ...unshareFlags,
            "sh",
            "-c",
            `hostname "$0" && exec "$@"`,
            this.name,
            ...command,
          ];
    // Detached: the host lives on when this program ends. Its end is `kill`.
    const child = spawn(file, args, {
      detached: true,
      env: { ...process.env, ...this.environment() },
      stdio: ["ignore", out, out],
    });
    closeSync(out);
    await new Promise<void>((done, fail) => {
      child.once("spawn", done);
      child.once("error", fail);
    });
    child.unref();
  }

  /** What starts a command on the host, for callers who want its pipes. */
  entering(command: readonly string[]): Promise<readonly string[]> {
    return this.#enter(command);
  }

  async #enter(command: readonly string[]): Promise<readonly string[]> {
    if (this.#network === null) return command;
    const init = (await this.pids()).find(isInit);
    if (init === undefined) throw new Error(`${this.name} is not running`);
    const enter = ["nsenter", `--target=${init}`, "--net", "--uts", "--mount", "--pid", "--wd", "--no-fork"];
    return [...enter, "sh", "-c", FORK, "sh", ...command];
  }
}

// --kill-child: should the outer process be killed, the namespace's init dies too, and the kernel takes the rest.
const unshareFlags = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts"];

/**
 * A process enters a PID namespace by being born in it. nsenter would fork by itself, and then halt itself a moment after its
 * child was halted: `cont` may have been through by then, and who waits for the command waits for ever.
 */
const FORK = '"$@"; exit $?';

/** The first process of a PID namespace below ours. */
function isInit(pid: number): boolean {
  try {
    const line = /^NSpid:(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    return (
      line?.trim().split(/\s+/).at(-1) === "1" && namespaceOf(pid, "pid") !== namespaceOf(process.pid, "pid")
    );
  } catch {
    return false;
  }
}

async function resultOf(
  child: Promise<{ exitCode?: number; stdout?: unknown; stderr?: unknown }>,
): Promise<CommandResult> {
  const { exitCode, stdout, stderr } = await child;
  return { exitCode: exitCode ?? null, stdout: textOf(stdout), stderr: textOf(stderr) };
}

function textOf(output: unknown): string {
  return typeof output === "string" ? output : "";
}

/** One word of a shell. */
function quoted(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
