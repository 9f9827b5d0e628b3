/**
 * What all runs share: three hosts, pools on disks that can fail, one volume in two copies on h1 and h2.
 *
 * Must always hold:
 * - between two runs everything is healed and looked at: hosts, links, disks, store, copies;
 * - who owns the volume and where the store's leader is, is what the next run wants, or its wait names what is missing.
 */
import type { AttachAnswer, StoreStatus } from "../../src/core/wire/agent-api.ts";
import type { AgentClient } from "../../src/core/wire/agent-client.ts";
import type { SessionStatus } from "../../src/core/wire/daemon.gen.ts";
import { isWeftError } from "../../src/core/wire/errors.ts";
import { Cluster } from "../cluster/cluster.ts";
import type { Host } from "../cluster/host.ts";
import { until } from "../lib/until.ts";
import { differingBlocks } from "./copies.ts";
import type { Disk } from "./disk.ts";

/** In CI nothing fails for being slow, up to here. */
export const DEADLINE_MS = 30_000;

export const VOLUME = "v";
const SIZE = 64n * 1024n * 1024n;

export class Arena {
  readonly cluster: Cluster;
  readonly #disks: ReadonlyMap<string, Disk>;
  #volume = "";
  #nodes: ReadonlyMap<string, string> = new Map();

  private constructor(cluster: Cluster, disks: ReadonlyMap<string, Disk>) {
    this.cluster = cluster;
    this.#disks = disks;
  }

  /** `mount` puts a disk under the pool of a host that is not started yet. */
  static async up(options: {
    readonly dir: string;
    readonly mount: (host: Host) => Promise<Disk>;
    readonly say: (line: string) => void;
  }): Promise<Arena> {
    const disks = new Map<string, Disk>();
    const cluster = await Cluster.up({
      dir: options.dir,
      hosts: 3,
      pools: ["h1", "h2"],
      say: options.say,
      beforeStart: async ({ hosts }) => {
        for (const host of hosts) if (host.layout.pool) disks.set(host.name, await options.mount(host));
      },
    });
    const arena = new Arena(cluster, disks);
    const first = arena.host("h1").agent();
    arena.#volume = (await first.createVolume({ name: VOLUME, size: SIZE, copies: 2 })).id;
    arena.#nodes = new Map((await first.hosts()).map(({ id, name }) => [name, id]));
    await arena.storeIsWhole();
    return arena;
  }

  host(name: string): Host {
    return this.cluster.host(name);
  }

  disk(host: Host): Disk {
    const disk = this.#disks.get(host.name);
    if (disk === undefined) throw new Error(`${host.name} has no pool`);
    return disk;
  }

  others(...than: readonly Host[]): readonly Host[] {
    return this.cluster.hosts.filter((host) => !than.includes(host));
  }

  /** Between the copies, while nobody writes. */
  async differingBlocks(): Promise<number> {
    return differingBlocks(
      this.cluster.hosts.filter(({ layout }) => layout.pool).map(({ poolDir }) => poolDir),
      this.#volume,
    );
  }

  session(owner: Host): Promise<SessionStatus> {
    return owner.ask("session.show", { volume: this.#volume });
  }

  /** Returns when the owner has taken the copy on this host out. */
  async isOut(owner: Host, member: Host): Promise<void> {
    await until(
      async () => {
        const { members } = await this.session(owner);
        return members.some(({ node, state }) => node === this.#nodes.get(member.name) && state !== "INSYNC")
          ? true
          : null;
      },
      { what: `the copy on ${member.name} to be taken out`, deadlineMs: DEADLINE_MS, everyMs: 20 },
    );
  }

  async allInSync(owner: Host): Promise<void> {
    await until(
      async () => {
        const { members, phase } = await this.session(owner);
        const whole = members.length === 2 && members.every(({ state }) => state === "INSYNC");
        return whole && phase === "serving" ? true : null;
      },
      { what: "both copies to be in sync", deadlineMs: 2 * DEADLINE_MS },
    );
  }

  /** Opens the volume on a host, in place of whoever has it. */
  async attach(host: Host, steal = false): Promise<AttachAnswer> {
    return host.agent().attach(VOLUME, { steal });
  }

  /** The store's members all answer and follow one leader, which is returned. */
  async storeIsWhole(): Promise<Host> {
    return until(
      async () => {
        const agents = this.cluster.hosts.map((host) => host.agent());
        const stores = await Promise.all(agents.map(async (agent) => storeOf(agent)));
        const known = await Promise.all(
          agents.map(async (agent) => (await agent.cluster()).endpoints.length),
        );
        const [members = []] = stores.map((store) => store.members);
        const whole = members.length === 3 && members.every(({ answers, learner }) => answers && !learner);
        const ready = stores.every(({ writable }) => writable) && known.every((count) => count === 3);
        const leader = members.find((member) => member.leader);
        return whole && ready && leader !== undefined ? this.host(leader.name) : null;
      },
      { what: "three members of the store with a leader", deadlineMs: 3 * DEADLINE_MS, everyMs: 100 },
    );
  }

  /** Moves the store's leader. */
  async lead(wanted: Host): Promise<void> {
    const leader = await this.storeIsWhole();
    if (leader === wanted) return;
    const { members } = await storeOf(leader.agent());
    const id = members.find(({ name }) => name === wanted.name)?.id ?? "0";
    await leader.etcdctl(["move-leader", BigInt(id).toString(16)]);
    await until(async () => ((await this.storeIsWhole()) === wanted ? true : null), {
      what: `the store's leader to move to ${wanted.name}`,
      deadlineMs: DEADLINE_MS,
    });
  }

  async boot(host: Host): Promise<void> {
    await host.start(DEADLINE_MS);
    await host.daemonAnswers();
  }

  /** Everything as a run wants it; the volume's socket on the owner. */
  async settle(wish: { readonly owner: Host; readonly leader: Host }): Promise<string> {
    await this.#ownedBy(wish.owner);
    const { path } = await this.attach(wish.owner);
    await this.allInSync(wish.owner);
    await this.lead(wish.leader);
    return path;
  }

  async #ownedBy(wanted: Host): Promise<void> {
    const { owner } = await wanted.agent().volume(VOLUME);
    if (owner === null || owner.hostName === wanted.name) return;
    try {
      await this.host(owner.hostName).agent().detach(VOLUME);
    } catch (error) {
      // A caretaker's session, or one whose daemon was started anew: whoever attaches next takes it over.
      if (!isWeftError(error)) throw error;
      await this.attach(wanted, true);
    }
  }
}

async function storeOf(agent: AgentClient): Promise<StoreStatus> {
  const answer = await agent.status();
  if (answer.kind === "cluster") return answer.store;
  throw new Error("a host belongs to no cluster");
}
