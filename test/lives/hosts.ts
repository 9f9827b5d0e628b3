/**
 * Three hosts of an XAPI pool on this machine: namespaces with real etcd, agent, weftd and holder, each with the program that XAPI
 * runs and a double of tap-ctl; and XAPI itself, as the tests' server.
 *
 * Must always hold: what XAPI runs on a host ends with that host; a host that boots has nothing left of what lies in memory.
 */
import { realpathSync, rmSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { join } from "node:path";

import { Cluster } from "../../scripts/cluster/cluster.ts";
import { type Host, type Services, weftServices } from "../../scripts/cluster/host.ts";
import { withoutIoUring } from "../../scripts/lib/without-io-uring.ts";
import { stubFor } from "../sm-driver/lib/driver-for-tests.ts";
import { installSystemctl } from "../sm-driver/lib/systemctl.ts";
import { installTapCtl } from "../sm-driver/lib/tap-ctl.ts";
import { Pool, type SmHost } from "../sm-driver/lib/world.ts";

/** By any of XAPI's programs, when the toolstack of a host is there again. */
export const DEVICE_CONFIG = { copies: "2" } as const;

export type XapiHostsOptions = {
  /** Names of the hosts with a pool. */
  readonly pools: readonly string[];
  /** Bytes of each pool. */
  readonly xfsBytes: number;
  /** Its system calls are answered ENOSYS, as by dom0's kernel 4.19. */
  readonly hasIoUring: boolean;
};

export class PoolHost {
  readonly cluster: Host;
  readonly sm: SmHost;
  /** Before dom0's paths. */
  readonly root: string;
  isUp = true;
  /** How often it has been killed. */
  deaths = 0;

  constructor(cluster: Host, sm: SmHost, root: string) {
    this.cluster = cluster;
    this.sm = sm;
    this.root = root;
  }

  get name(): string {
    return this.cluster.name;
  }

  /** The guest's end of tapdisk; what XAPI is told is a link to it, too long for a socket's path below a directory of a test. */
  pathOf(uuid: string): string {
    return realpathSync(this.sm.sockets.get(uuid) ?? "");
  }

  /** At once, with all that XAPI runs there. */
  async kill(): Promise<void> {
    this.isUp = false;
    this.deaths += 1;
    this.sm.host.live = false;
    await this.cluster.kill();
    for (const pid of this.sm.programs) endProgram(pid);
  }

  /** As far as its services answer: XAPI's part is to plug its SRs. */
  async boot(): Promise<void> {
    for (const name of ["run", "dev"]) rmSync(join(this.root, name), { recursive: true, force: true });
    await this.cluster.start(30_000);
    this.sm.forgetAll();
    this.sm.host.live = true;
    this.isUp = true;
  }
}

export function endProgram(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}

export class PoolHosts {
  readonly cluster: Cluster;
  readonly pool: Pool;
  readonly hosts: readonly PoolHost[];
  readonly #dir: string;
  readonly #ends: (() => Promise<void>)[];

  private constructor(
    cluster: Cluster,
    pool: Pool,
    hosts: readonly PoolHost[],
    dir: string,
    ends: (() => Promise<void>)[],
  ) {
    this.cluster = cluster;
    this.pool = pool;
    this.hosts = hosts;
    this.#dir = dir;
    this.#ends = ends;
  }

  static async up({ pools, xfsBytes, hasIoUring }: XapiHostsOptions): Promise<PoolHosts> {
    // Sockets' paths are short.
    const dir = await mkdtemp("/tmp/wx-");
    const ends: (() => Promise<void>)[] = [];
    try {
      const xapiSocket = join(dir, "xapi");
      const rootOf = (name: string): string => join(dir, name);
      const weft = weftServices();
      const services: Services = {
        ...weft,
        commands: (host) => {
          const own = ["--xapi-socket", xapiSocket, "--dom0-root", rootOf(host.name)];
          const commands = Object.entries(weftServices(own).commands(host));
          return Object.fromEntries(
            commands.map(([name, command]) => [name, hasIoUring ? command : withoutIoUring(command)]),
          );
        },
      };
      const cluster = await Cluster.up({ dir: join(dir, "c"), services, xfsBytes, pools });
      const sockets = cluster.hosts.map(({ agentSocket }) => agentSocket);
      const pool = await Pool.of({ teardown: (end) => void ends.push(end) }, sockets, xapiSocket);
      const hosts = cluster.hosts.map((host, n) => new PoolHost(host, pool.host(n), rootOf(host.name)));
      for (const { cluster: host, root, sm } of hosts) {
        installTapCtl(root);
        installSystemctl(root, host.layout.runDir);
        sm.executable = await stubFor(host.layout.runDir, root);
      }
      return new PoolHosts(cluster, pool, hosts, dir, ends);
    } catch (error) {
      await Cluster.down(join(dir, "c"));
      for (const end of ends) await end();
      rmSync(dir, { recursive: true, force: true });
      throw error;
    }
  }

  host(n: number): PoolHost {
    const host = this.hosts[n];
    if (host === undefined) throw new Error(`there is no host ${n}`);
    return host;
  }

  /** The last lines of what the hosts wrote. */
  logs(lines: number): string {
    return this.hosts
      .flatMap(({ cluster }) =>
        Object.entries(cluster.logs()).map(
          ([name, text]) => `==> ${cluster.name} ${name} <==\n${text.split("\n").slice(-lines).join("\n")}`,
        ),
      )
      .join("\n");
  }

  async down(): Promise<void> {
    await this.cluster.down();
    for (const end of this.#ends) await end();
    rmSync(this.#dir, { recursive: true, force: true });
  }
}
