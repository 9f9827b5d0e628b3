/**
 * The etcd of this host: its configuration, its process. Detached: a restart of the agent never touches it.
 *
 * Must always hold:
 * - it listens on the host's cluster address only;
 * - a process is believed to be ours only if its command line names our configuration file (pids are reused);
 * - data of an old membership is moved aside, never deleted, before a new one begins.
 */
import { spawn } from "node:child_process";
import { chmod, mkdir, open, readFile, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";

import { WeftError } from "../wire/errors.ts";
import { pause } from "../wire/store-call.ts";
import { writeDurably } from "./host-file.ts";

export const AGENT_PORT = 7400;
export const CLIENT_PORT = 7402;
export const PEER_PORT = 7403;

/** A store's whole content is some MiB; the rest is history of an hour. */
export const QUOTA_BYTES = 1n << 30n;

export type EtcdIdentity = {
  readonly host: string;
  readonly address: string;
  readonly cluster: string;
};

export type EtcdStart = {
  readonly identity: EtcdIdentity;
  /** `name=peer url` of every member, this one included. */
  readonly initialCluster: string;
  readonly initialState: "new" | "existing";
};

const configJson = z.looseObject({ name: z.string(), "data-dir": z.string() });

export class EtcdProcess {
  readonly #stateDir: string;
  readonly #runDir: string;
  readonly #program: string;

  constructor(options: { readonly stateDir: string; readonly runDir: string; readonly program: string }) {
    this.#stateDir = options.stateDir;
    this.#runDir = options.runDir;
    this.#program = options.program;
  }

  get dataDir(): string {
    return join(this.#stateDir, "etcd");
  }

  get logPath(): string {
    return join(this.#stateDir, "etcd.log");
  }

  get #configPath(): string {
    return join(this.#stateDir, "etcd.conf.json");
  }

  get #pidPath(): string {
    return join(this.#runDir, "etcd.pid");
  }

  /** Whether this host was made a member once (and not removed since). */
  async isConfigured(): Promise<boolean> {
    try {
      configJson.parse(JSON.parse(await readFile(this.#configPath, "utf8")));
      return true;
    } catch (error) {
      if (isMissing(error)) return false;
      throw new WeftError({
        code: "E-STORE-09",
        message: `${this.#configPath} can't be understood.`,
        facts: { path: this.#configPath },
        cause: error,
      });
    }
  }

  /** Whether data of a member is there. */
  async hasData(): Promise<boolean> {
    try {
      return (await stat(join(this.dataDir, "member"))).isDirectory();
    } catch {
      return false;
    }
  }

  /** `client` is where clients reach it, when that is not the host's usual address. */
  async configure(start: EtcdStart, client: string = clientUrl(start.identity.address)): Promise<void> {
    const config = etcdConfig(start, this.dataDir, client);
    await writeDurably(this.#configPath, `${JSON.stringify(config, null, 2)}\n`);
  }

  /** Adopts the running process, or starts one. */
  async ensureRunning(): Promise<number> {
    return (await this.runningPid()) ?? this.#start();
  }

  async runningPid(): Promise<number | null> {
    let pid: number;
    try {
      pid = Number((await readFile(this.#pidPath, "utf8")).trim());
    } catch (error) {
      if (isMissing(error)) return null;
      throw error;
    }
    return Number.isInteger(pid) && pid > 1 && (await this.#isOurs(pid)) ? pid : null;
  }

  async stop(): Promise<void> {
    const pid = await this.runningPid();
    if (pid === null) return;
    signal(pid, "SIGTERM");
    const end = performance.now() + 5000;
    while (await this.#isOurs(pid)) {
      if (performance.now() > end) signal(pid, "SIGKILL");
      await pause(20);
    }
    await rm(this.#pidPath, { force: true });
  }

  /** This host isn't a member any more: its process ends, its data goes aside. */
  async retire(): Promise<void> {
    await this.stop();
    await rm(this.#configPath, { force: true });
    await this.setAside();
  }

  async setAside(): Promise<void> {
    try {
      await rename(this.dataDir, `${this.dataDir}.${new Date().toISOString().replaceAll(/[:.]/g, "-")}`);
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }

  async #start(): Promise<number> {
    await mkdir(this.dataDir, { recursive: true, mode: 0o700 });
    await chmod(this.dataDir, 0o700);
    await mkdir(this.#runDir, { recursive: true });
    const log = await open(this.logPath, "a", 0o600);
    try {
      const child = spawn(this.#program, ["--config-file", this.#configPath], {
        detached: true,
        stdio: ["ignore", log.fd, log.fd],
        env: { PATH: process.env["PATH"] ?? "" },
        cwd: this.#stateDir,
      });
      const pid = await new Promise<number>((resolve, reject) => {
        child.once("error", (error) => reject(cannotStart(this.#program, this.logPath, error)));
        child.once("spawn", () => resolve(child.pid ?? 0));
      });
      child.unref();
      await writeDurably(this.#pidPath, `${pid}\n`, 0o644);
      return pid;
    } finally {
      await log.close();
    }
  }

  async #isOurs(pid: number): Promise<boolean> {
    try {
      const state = (await readFile(`/proc/${pid}/stat`, "utf8")).split(") ").at(-1) ?? "";
      const args = (await readFile(`/proc/${pid}/cmdline`, "utf8")).split("\0");
      return !state.startsWith("Z") && args.includes(this.#configPath);
    } catch {
      return false;
    }
  }
}

/** As architecture.md decides it: heartbeat 100 ms, election 500 ms, compaction and quota from the start. */
export function etcdConfig(
  { identity, initialCluster, initialState }: EtcdStart,
  dataDir: string,
  client: string,
): unknown {
  const peer = peerUrl(identity.address);
  return {
    name: identity.host,
    "data-dir": dataDir,
    "listen-client-urls": client,
    "advertise-client-urls": client,
    "listen-peer-urls": peer,
    "initial-advertise-peer-urls": peer,
    "initial-cluster": initialCluster,
    "initial-cluster-state": initialState,
    "initial-cluster-token": identity.cluster,
    // etcd then refuses to add a voter until all members have been connected for 5 s: worth the wait.
    "strict-reconfig-check": true,
    // 2026-11: on by default as a flag, off by default in a configuration file (etcd 3.4.23): all our calls were 404.
    "enable-grpc-gateway": true,
    "heartbeat-interval": 100,
    "election-timeout": 500,
    "auto-compaction-mode": "periodic",
    "auto-compaction-retention": "1h",
    "quota-backend-bytes": Number(QUOTA_BYTES),
    logger: "zap",
    "log-level": "warn",
    "log-outputs": ["stderr"],
  };
}

export function clientUrl(address: string): string {
  return `http://${bracketed(address)}:${CLIENT_PORT}`;
}

export function peerUrl(address: string): string {
  return `http://${bracketed(address)}:${PEER_PORT}`;
}

export function bracketed(address: string): string {
  return address.includes(":") ? `[${address}]` : address;
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ENOENT";
}

function cannotStart(program: string, log: string, cause: Error): WeftError {
  return new WeftError({
    code: "E-STORE-09",
    message: `${program} can't be started: ${cause.message}.`,
    facts: { program, log },
    do: [{ why: "On Debian", command: "apt install etcd-server" }],
    cause,
  });
}
