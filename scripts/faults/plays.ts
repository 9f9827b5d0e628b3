/**
 * How each fault of the catalogue is played: it strikes, what it promises is waited for, it is healed.
 *
 * Must always hold: a step waits for what it needs to have happened, never for time to pass.
 */
import { renameSync } from "node:fs";
import { join } from "node:path";

import { isWeftError } from "../../src/core/wire/errors.ts";
import type { Host } from "../cluster/host.ts";
import { until } from "../lib/until.ts";
import { DEADLINE_MS } from "./arena.ts";
import type { Arena } from "./arena.ts";
import type { FaultName } from "./catalogue.ts";
import type { Load } from "./load.ts";

export type Scene = {
  readonly arena: Arena;
  readonly load: Load;
  /** Where the guest is. */
  readonly owner: Host;
  /** The host that is faulty where the fault is a member's. Never the owner's. */
  readonly victim: Host;
  /** Where a guest goes that leaves its owner. Its host is whole. */
  readonly refuge: Host;
  /** The hosts whose members of the store are halted. */
  readonly halted: readonly [Host, Host];
  /** Counts the runs of this fault: what can be done in more ways than one takes turns. */
  readonly turn: number;
  /** A path that is this run's own. */
  readonly scratch: string;
};

export type Play = {
  readonly strike: (scene: Scene) => Promise<void>;
  /** What the fault promises; at its end the guest is served, unless `heal` is what brings service back. */
  readonly promise: (scene: Scene) => Promise<void>;
  readonly heal: (scene: Scene) => Promise<void>;
  /** The guest loses its volume, and goes on where it is attached next. In all others no request of it may fail. */
  readonly attachedAnew?: "owner" | "refuge";
};

/** Acknowledgements that show that a guest is served. */
const SERVED = 150;
/** The same through a link that carries some 25 a second. */
const SERVED_SLOWLY = 40;
/** So long waits who waits for the store: longer than for any member. */
const WAITS_MS = 2500;

export const plays: Readonly<Record<FaultName, Play>> = {
  kill: {
    strike: async ({ victim }) => victim.killProgram("weftd"),
    promise: outAndOn,
    heal: async ({ victim }) => victim.restartDaemon(),
  },
  stop: {
    strike: async ({ victim }) => victim.stop(),
    promise: outAndOn,
    heal: async ({ victim }) => victim.cont(),
  },
  drop: {
    strike: async (scene) => cutOff(scene, scene.victim),
    promise: outAndOn,
    heal: async ({ arena, victim }) => arena.cluster.clear(victim.name),
  },
  "power-off": {
    strike: async ({ arena, victim }) => powerOff(arena, [victim]),
    promise: outAndOn,
    heal: async ({ arena, victim }) => powerOn(arena, [victim]),
  },
  cut: {
    strike: async ({ arena, owner, victim, turn }) => {
      const [deaf, heard] = turn % 2 === 0 ? [owner, victim] : [victim, owner];
      await arena.cluster.deafen(deaf.name, heard.name);
    },
    promise: outAndOn,
    heal: async ({ arena, owner, victim }) => {
      await arena.cluster.clear(owner.name);
      await arena.cluster.clear(victim.name);
    },
  },
  "slow-link": {
    strike: async ({ arena, victim }) => arena.cluster.slow(victim.name, "1mbit"),
    promise: async ({ load }) => load.acknowledges(SERVED_SLOWLY),
    heal: async ({ arena, victim }) => arena.cluster.clear(victim.name),
  },
  "lossy-link": {
    strike: async ({ arena, victim, turn }) => {
      await arena.cluster.lose(victim.name, [0.05, 0.1, 0.2][turn % 3] ?? 0.1);
    },
    promise: goesOn,
    heal: async ({ arena, victim }) => arena.cluster.clear(victim.name),
  },
  "disk-full": {
    strike: async ({ arena, victim }) => arena.disk(victim).full(),
    promise: outAndOn,
    heal: async ({ arena, victim }) => arena.disk(victim).heal(),
  },
  "disk-error": {
    strike: async ({ arena, victim }) => arena.disk(victim).fail(),
    promise: outAndOn,
    heal: async ({ arena, victim }) => {
      await arena.disk(victim).heal();
      await victim.killProgram("weftd");
      await victim.restartDaemon();
    },
  },
  "disk-stall": {
    strike: async ({ arena, victim }) => arena.disk(victim).stall(),
    promise: outAndOn,
    heal: async ({ arena, victim }) => arena.disk(victim).heal(),
  },
  "store-member-kill": {
    strike: async ({ victim }) => victim.killProgram("etcd"),
    promise: goesOn,
    heal: storeReturns,
  },
  "store-majority-loss": {
    strike: haltStore,
    promise: goesOn,
    heal: async (scene) => {
      await resumeStore(scene);
      await storeReturns(scene);
    },
  },
  "store-majority-loss-kill": {
    strike: async (scene) => {
      await haltStore(scene);
      await scene.victim.killProgram("weftd");
    },
    promise: async ({ load }) => load.waits(WAITS_MS),
    heal: async (scene) => {
      await resumeStore(scene);
      await scene.load.acknowledges(SERVED);
      await scene.victim.restartDaemon();
    },
  },
  "store-restore": {
    strike: loseStore,
    promise: opensNowhere,
    heal: repairStore,
    attachedAnew: "owner",
  },
  "power-off-all": {
    strike: async ({ arena }) => powerOff(arena, arena.cluster.hosts),
    promise: async () => {},
    heal: async ({ arena, owner, load }) => {
      await powerOn(arena, arena.cluster.hosts);
      await load.moveTo(await attached(arena, owner));
      await load.acknowledges(SERVED);
    },
    attachedAnew: "owner",
  },
  "initiator-kill": {
    strike: async ({ owner }) => owner.killProgram("weftd"),
    promise: async ({ arena, refuge, load }) => {
      await load.moveTo(await attached(arena, refuge));
      await load.acknowledges(SERVED);
    },
    heal: async ({ owner }) => owner.restartDaemon(),
    attachedAnew: "refuge",
  },
  steal: {
    strike: takeOver,
    promise: async ({ load }) => load.acknowledges(SERVED),
    heal: async ({ load }) => load.oldGuestIsRefused(),
    attachedAnew: "refuge",
  },
  "steal-cut": {
    strike: async (scene) => {
      await cutOff(scene, scene.owner);
      await takeOver(scene);
    },
    promise: async ({ load }) => load.acknowledges(SERVED),
    heal: async ({ arena, owner, load }) => {
      await arena.cluster.clear(owner.name);
      await load.oldGuestIsRefused();
    },
    attachedAnew: "refuge",
  },
};

async function outAndOn({ arena, owner, victim, load }: Scene): Promise<void> {
  await arena.isOut(owner, victim);
  await load.acknowledges(SERVED);
}

async function goesOn({ load }: Scene): Promise<void> {
  await load.acknowledges(SERVED);
}

async function cutOff({ arena }: Scene, host: Host): Promise<void> {
  for (const other of arena.others(host)) await arena.cluster.cut(host.name, other.name);
}

/**
 * In this order all ends in one moment: what the disk is asked from now on never happens, with the link down nobody is told
 * of it, and the host, which finds no disk, has nobody to tell either until it is killed.
 */
async function powerOff(arena: Arena, hosts: readonly Host[]): Promise<void> {
  await each(withDisk(hosts), async (host) => arena.disk(host).stall());
  await each(hosts, async ({ name }) => arena.cluster.unplug(name));
  await each(withDisk(hosts), async (host) => arena.disk(host).powerCut());
  await each(hosts, async (host) => host.kill());
}

async function powerOn(arena: Arena, hosts: readonly Host[]): Promise<void> {
  await each(withDisk(hosts), async (host) => arena.disk(host).powerOn());
  await each(hosts, async ({ name }) => arena.cluster.clear(name));
  await each(hosts, async (host) => arena.boot(host));
}

function withDisk(hosts: readonly Host[]): readonly Host[] {
  return hosts.filter(({ layout }) => layout.pool);
}

async function each(hosts: readonly Host[], work: (host: Host) => Promise<void>): Promise<void> {
  await Promise.all(hosts.map(work));
}

/** Its owner is dead or was, so that it is taken over: asked again until the hosts that it takes are there. */
async function attached(arena: Arena, host: Host): Promise<string> {
  const { path } = await until(async () => arena.attach(host, true), {
    what: `the volume to be attached on ${host.name}`,
    deadlineMs: DEADLINE_MS,
    everyMs: 20,
  });
  return path;
}

async function takeOver({ arena, refuge, load }: Scene): Promise<void> {
  await load.takeOver(async () => (await arena.attach(refuge, true)).path);
}

async function haltStore({ halted }: Scene): Promise<void> {
  for (const host of halted) await host.signal("etcd", "SIGSTOP");
}

async function resumeStore({ halted }: Scene): Promise<void> {
  for (const host of halted) await host.signal("etcd", "SIGCONT");
}

async function storeReturns({ arena }: Scene): Promise<void> {
  await arena.storeIsWhole();
}

/**
 * The backup says of a copy that it is in sync, and it is not any more; and it knows one start less of the copy's pool
 * than the disk (R10).
 */
async function loseStore({ arena, owner, victim, scratch, turn }: Scene): Promise<void> {
  const backup = join(scratch, "store.backup");
  await owner.agent().backupStore(backup);
  await victim.killProgram("weftd");
  await victim.restartDaemon();
  await arena.allInSync(owner);
  await victim.killProgram("weftd");
  await arena.isOut(owner, victim);
  // All at once: an agent starts a member again that has its data, and replaces one that has not, while there is a majority.
  const { hosts } = arena.cluster;
  for (const host of hosts) await host.signal("etcd", "SIGSTOP");
  for (const { stateDir } of hosts) renameSync(join(stateDir, "etcd"), join(stateDir, `etcd.lost-${turn}`));
  await Promise.all(hosts.map((host) => host.killProgram("etcd")));
  await victim.restartDaemon();
  await until(
    async () => {
      await owner.agent().restoreStore(backup);
      return true;
    },
    { what: "the store to be restored", deadlineMs: DEADLINE_MS },
  );
}

async function opensNowhere({ arena, refuge, load }: Scene): Promise<void> {
  await load.acknowledges(SERVED);
  const answer = await until(
    async () => {
      try {
        await arena.attach(refuge, true);
        return "opened";
      } catch (error) {
        if (isWeftError(error, "E-STORE-02")) return "refused";
        throw error;
      }
    },
    { what: "an open to be refused for the restored store", deadlineMs: DEADLINE_MS },
  );
  if (answer === "opened") throw new Error(`${refuge.name} opened the volume from a store that went back`);
}

/** The repair takes the volume away from its owner: the guest is attached anew, when the owner knows. */
async function repairStore({ arena, owner, load }: Scene): Promise<void> {
  await owner.agent().repairStore();
  await until(async () => ((await arena.session(owner)).phase === "ended" ? true : null), {
    what: "the end of the session from before the repair",
    deadlineMs: DEADLINE_MS,
    everyMs: 20,
  });
  await load.moveTo(await attached(arena, owner));
  await load.acknowledges(SERVED);
  await arena.storeIsWhole();
}
