/**
 * The etcd of this host: its plan, its process. Detached: a restart of the agent never touches it.
 *
 * The plan is a file of ours, `etcd.json`, and etcd is started by flags made from it. etcd's own `--config-file` is not
 * used: beside it all flags are ignored, and a revocation list (`--client-crl-file`) can be given by flag only
 * (2026-11, etcd 3.4.23: named in the file it was ignored without a word).
 *
 * Must always hold:
 * - it listens on the host's cluster address only, and answers nobody without a certificate of this cluster;
 * - what it is started with (its certificate, whom it believes, whom no more) is made right before each start;
 * - a process is believed to be ours only if its command line names our data directory (pids are reused);
 * - data of an old membership is moved aside, never deleted, before a new one begins.
 */
import { spawn } from "node:child_process";
import { chmod, mkdir, open, readFile, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";

import { writeDurably } from "../wire/durable-file.ts";
import { WeftError } from "../wire/errors.ts";
import { tlsDirectory } from "../wire/identity-files.ts";
import { pause } from "../wire/store-call.ts";

export const CLIENT_PORT = 7402;
export const PEER_PORT = 7403;

/** A store's whole content is some MiB; the rest is history of an hour. */
export const QUOTA_BYTES = 1n << 30n;

const CIPHER_SUITES = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";

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

const planJson = z.looseObject({
  name: z.string().min(1),
  /** Where it listens for clients, and what it tells them. */
  clientUrl: z.url(),
  peerUrl: z.url(),
  initialCluster: z.string().min(1),
  initialState: z.enum(["new", "existing"]),
  /** The cluster's id: members of another cluster are refused. */
  token: z.string().min(1),
});

/** How this host's etcd is started: `etcd.json` of the state directory (0600). Unknown fields are kept. */
export type EtcdPlan = z.output<typeof planJson>;

export class EtcdProcess {
  readonly #stateDir: string;
  readonly #runDir: string;
  readonly #program: string;
  #prepare: (() => Promise<void>) | null = null;

  constructor(options: { readonly stateDir: string; readonly runDir: string; readonly program: string }) {
    this.#stateDir = options.stateDir;
    this.#runDir = options.runDir;
    this.#program = options.program;
  }

  /** Makes the files that etcd is started with, in `STATE/authority/tls`: called before each start. */
  prepareBy(prepare: () => Promise<void>): void {
    this.#prepare = prepare;
  }

  get dataDir(): string {
    return join(this.#stateDir, "etcd");
  }

  get logPath(): string {
    return join(this.#stateDir, "etcd.log");
  }

  get #planPath(): string {
    return join(this.#stateDir, "etcd.json");
  }

  get #pidPath(): string {
    return join(this.#runDir, "etcd.pid");
  }

  /** Whether this host was made a member once (and not removed since). */
  async isConfigured(): Promise<boolean> {
    return (await this.#readPlan()) !== null;
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
    await writeDurably(this.#planPath, `${JSON.stringify(etcdPlan(start, client), null, 2)}\n`);
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

  /**
   * Ends it and starts it again, with the files of now. `at-once`: without giving the others notice, which takes a second
   * less (2026-11: 0.4 s); what it had promised is on its disk.
   */
  async restart(how: "in-order" | "at-once"): Promise<number> {
    const pid = await this.runningPid();
    // The pid file stays: where the start fails, nobody takes another process for ours.
    if (pid !== null && how === "at-once") await this.#end(pid, "SIGKILL");
    if (pid !== null && how === "in-order") await this.#end(pid, "SIGTERM");
    return this.#start();
  }

  async stop(): Promise<void> {
    const pid = await this.runningPid();
    if (pid === null) return;
    await this.#end(pid, "SIGTERM");
    await rm(this.#pidPath, { force: true });
  }

  async #end(pid: number, first: NodeJS.Signals): Promise<void> {
    signal(pid, first);
    const end = performance.now() + 5000;
    while (await this.#isOurs(pid)) {
      if (performance.now() > end) signal(pid, "SIGKILL");
      await pause(20);
    }
  }

  /** This host isn't a member any more: its process ends, its data goes aside. */
  async retire(): Promise<void> {
    await this.stop();
    await rm(this.#planPath, { force: true });
    await this.setAside();
  }

  async setAside(): Promise<void> {
    try {
      await rename(this.dataDir, `${this.dataDir}.${new Date().toISOString().replaceAll(/[:.]/g, "-")}`);
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }

  /** Null: this host has no member. */
  async #readPlan(): Promise<EtcdPlan | null> {
    let text: string;
    try {
      text = await readFile(this.#planPath, "utf8");
    } catch (error) {
      if (!isMissing(error)) throw cannotRead(this.#planPath, error);
      await this.#refuseOlder();
      return null;
    }
    let plan: EtcdPlan;
    try {
      plan = planJson.parse(JSON.parse(text));
    } catch (error) {
      throw cannotRead(this.#planPath, error);
    }
    if ([plan.clientUrl, plan.peerUrl].some((url) => !url.startsWith("https://")))
      throw servedAnybody(this.#planPath);
    return plan;
  }

  /**
   * A state directory of before the first release: its etcd was started by a configuration file, and may still run
   * where we would not know it by its command line. It is not taken over, and its data is not touched.
   */
  async #refuseOlder(): Promise<void> {
    const path = join(this.#stateDir, "etcd.conf.json");
    try {
      await stat(path);
    } catch (error) {
      if (isMissing(error)) return;
      throw cannotRead(path, error);
    }
    throw new WeftError({
      code: "E-STORE-09",
      message: `${path} is of an older weft, whose store this version can't take over.`,
      facts: { path },
      safe: "Nothing was changed.",
      do: [{ why: "End its etcd, move the state directory aside, and begin anew", command: "weft init" }],
    });
  }

  async #start(): Promise<number> {
    const plan = await this.#readPlan();
    // Who starts it has made it a member before.
    if (plan === null) throw new Error(`no ${this.#planPath}: this host is no member of the store`);
    if (this.#prepare === null) throw new Error("an etcd is started whose certificate nobody makes");
    await this.#prepare();
    await mkdir(this.dataDir, { recursive: true, mode: 0o700 });
    await chmod(this.dataDir, 0o700);
    await mkdir(this.#runDir, { recursive: true });
    const log = await open(this.logPath, "a", 0o600);
    try {
      const child = spawn(this.#program, etcdArguments(plan, this.dataDir, tlsDirectory(this.#stateDir)), {
        detached: true,
        stdio: ["ignore", log.fd, log.fd],
        // Its log is read (etcd-log.ts), and compared with the other logs of this host.
        env: { PATH: process.env["PATH"] ?? "", TZ: "UTC" },
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
      return !state.startsWith("Z") && args.includes(dataDirFlag(this.dataDir));
    } catch {
      return false;
    }
  }
}

function etcdPlan({ identity, initialCluster, initialState }: EtcdStart, client: string): EtcdPlan {
  return {
    name: identity.host,
    clientUrl: client,
    peerUrl: peerUrl(identity.address),
    initialCluster,
    initialState,
    token: identity.cluster,
  };
}

/**
 * The command line of etcd, each argument with its value (`--name=…`), so that no value can be read as a flag.
 *
 * As architecture.md decides it: heartbeat 100 ms, election 500 ms, compaction and quota from the start.
 */
export function etcdArguments(plan: EtcdPlan, dataDir: string, tlsDir: string): readonly string[] {
  const tls = (name: string): string => join(tlsDir, name);
  return [
    `--name=${plan.name}`,
    dataDirFlag(dataDir),
    `--listen-client-urls=${plan.clientUrl}`,
    `--advertise-client-urls=${plan.clientUrl}`,
    `--listen-peer-urls=${plan.peerUrl}`,
    `--initial-advertise-peer-urls=${plan.peerUrl}`,
    `--initial-cluster=${plan.initialCluster}`,
    `--initial-cluster-state=${plan.initialState}`,
    `--initial-cluster-token=${plan.token}`,
    `--cert-file=${tls("etcd.pem")}`,
    `--key-file=${tls("etcd.pem")}`,
    "--client-cert-auth=true",
    `--trusted-ca-file=${tls("clients.pem")}`,
    `--client-crl-file=${tls("crl.der")}`,
    `--peer-cert-file=${tls("etcd.pem")}`,
    `--peer-key-file=${tls("etcd.pem")}`,
    "--peer-client-cert-auth=true",
    `--peer-trusted-ca-file=${tls("peers.pem")}`,
    `--peer-crl-file=${tls("crl.der")}`,
    // For TLS 1.2, which etcd 3.4 can't be told to leave out.
    `--cipher-suites=${CIPHER_SUITES}`,
    // etcd then refuses to add a voter until all members have been connected for 5 s: worth the wait.
    "--strict-reconfig-check=true",
    // All our calls go there.
    "--enable-grpc-gateway=true",
    "--heartbeat-interval=100",
    "--election-timeout=500",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=1h",
    `--quota-backend-bytes=${QUOTA_BYTES}`,
    "--logger=zap",
    "--log-level=warn",
    "--log-outputs=stderr",
  ];
}

/** By this argument our process is known among all others. */
function dataDirFlag(dataDir: string): string {
  return `--data-dir=${dataDir}`;
}

export function clientUrl(address: string): string {
  return `https://${bracketed(address)}:${CLIENT_PORT}`;
}

export function peerUrl(address: string): string {
  return `https://${bracketed(address)}:${PEER_PORT}`;
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

function cannotRead(path: string, cause: unknown): WeftError {
  return new WeftError({
    code: "E-STORE-09",
    message: `${path} can't be read or understood.`,
    facts: { path },
    safe: "Nothing was changed.",
    cause,
  });
}

function servedAnybody(path: string): WeftError {
  return new WeftError({
    code: "E-HOST-11",
    message: `${path} is of a weft whose store served anybody: its hosts had no identity.`,
    facts: { path },
    safe: "Nothing was changed.",
    do: [{ why: "End its etcd, move the state directory aside, and begin anew", command: "weft init" }],
  });
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
