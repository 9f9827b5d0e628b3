/**
 * What befalls the hosts of a life: one trouble at a time, struck into a call while it runs.
 *
 *     driver   XAPI's program ends in the middle of the call
 *     agent    kill -9, started again up to 2 s later
 *     weftd    the same, under its guests
 *     holder   replaced under its guests, as an administrator asks for it
 *     host     kill -9 of everything; XAPI says at once or later that it is dead; booted up to 8 s later, its SR plugged
 *
 * Must always hold: what was struck is healed by itself, within a time that the life knows.
 */
import { setTimeout as delay } from "node:timers/promises";

import { until } from "../../scripts/lib/until.ts";
import { isWeftError } from "../../src/core/wire/errors.ts";
import { endProgram, type PoolHost, type PoolHosts } from "./hosts.ts";

export const TROUBLES = ["driver", "agent", "weftd", "holder", "host"] as const;
export type TroubleKind = (typeof TROUBLES)[number];
/** Of a hundred. */
const WEIGHTS: Readonly<Record<TroubleKind, number>> = {
  driver: 36,
  agent: 20,
  weftd: 20,
  holder: 10,
  host: 14,
};
/** What a call takes that was not measured yet. */
const FIRST_MS = 100;
const HEALED_MS = 90_000;
const UNWELL: ReadonlySet<string> = new Set(["degraded", "paused", "unavailable"]);

export type TroubleOptions = {
  readonly hosts: PoolHosts;
  readonly random: () => number;
  /** How many of a hundred calls are struck. */
  readonly perCent: number;
  readonly kinds: readonly TroubleKind[];
  /** Its guests have ended with it. */
  readonly died: (host: PoolHost) => Promise<void>;
  /** XAPI plugs what it has there. */
  readonly booted: (host: PoolHost) => Promise<void>;
  readonly say: (line: string) => void;
  readonly broken: (what: string) => void;
};

export class Trouble {
  readonly struck = new Map<string, number>();
  /** How often there was one. */
  count = 0;
  isOver = false;
  readonly #options: TroubleOptions;
  readonly #took = new Map<string, number>();
  #healing: Promise<void> | null = null;

  constructor(options: TroubleOptions) {
    this.#options = options;
  }

  get isCalm(): boolean {
    return this.#healing === null;
  }

  async calm(): Promise<void> {
    while (this.#healing !== null) await this.#healing;
  }

  /** What a call took, so that the next ones are struck in the middle of it. */
  took(command: string, ms: number): void {
    const known = this.#took.get(command) ?? ms;
    this.#took.set(command, known * 0.7 + ms * 0.3);
  }

  /** Before a call on that host: perhaps something will happen to it. */
  maybe(command: string, host: PoolHost): void {
    const { random, perCent, hosts, kinds, broken } = this.#options;
    if (this.isOver || this.#healing !== null || random() * 100 >= perCent) return;
    const kind = this.#draw(kinds);
    const isElsewhere = kind !== "driver" && random() < 0.3;
    const others = hosts.hosts.filter((each) => each !== host);
    const victim = isElsewhere ? (others[Math.floor(random() * others.length)] ?? host) : host;
    const afterMs = Math.floor(random() * 1.2 * (this.#took.get(command) ?? FIRST_MS));
    const what = `${kind} of ${victim.name}, ${afterMs} ms into ${command} on ${host.name}`;
    this.count += 1;
    this.struck.set(`${kind} in ${command}`, (this.struck.get(`${kind} in ${command}`) ?? 0) + 1);
    this.#healing = this.#strike(kind, victim, afterMs, what)
      .catch((error: unknown) => broken(`${what}: it did not heal: ${String(error)}`))
      .finally(() => {
        this.#healing = null;
      });
  }

  #draw(kinds: readonly TroubleKind[]): TroubleKind {
    let at = this.#options.random() * kinds.reduce((sum, kind) => sum + WEIGHTS[kind], 0);
    for (const kind of kinds) {
      at -= WEIGHTS[kind];
      if (at < 0) return kind;
    }
    return kinds[0] ?? "driver";
  }

  async #strike(kind: TroubleKind, victim: PoolHost, afterMs: number, what: string): Promise<void> {
    const { random, say } = this.#options;
    await delay(afterMs);
    say(`strike: ${what}`);
    const backMs = Math.floor(random() * 2000);
    const { cluster } = victim;
    switch (kind) {
      case "driver":
        for (const pid of victim.sm.programs) endProgram(pid);
        return;
      case "agent":
        await cluster.killAgent();
        await delay(backMs);
        await cluster.restartAgent();
        break;
      case "weftd":
        await cluster.killProgram("weftd");
        await delay(backMs);
        await cluster.restartDaemon();
        break;
      case "holder":
        await cluster
          .agent()
          .restartHolder()
          .catch((error: unknown) => {
            // A tapdisk may be paused for something else just then; a disk that stays paused is none that heals.
            if (!isWeftError(error, "E-HOLD-05")) throw error;
          });
        break;
      case "host":
        await this.#killHost(victim);
        break;
    }
    await this.#whole();
    say(`healed: ${what}`);
  }

  async #killHost(victim: PoolHost): Promise<void> {
    const { random, died, booted } = this.#options;
    const saysSoMs = random() < 0.5 ? 0 : Math.floor(random() * 6000);
    await victim.kill();
    // XAPI believes that a host lives until its own heartbeat says otherwise.
    victim.sm.host.live = saysSoMs > 0;
    await died(victim);
    await delay(saysSoMs);
    victim.sm.host.live = false;
    await delay(Math.floor(random() * 8000));
    await victim.boot();
    await booted(victim);
  }

  /** All copies in sync, and every agent has its store: what fails from then on fails for no reason. */
  async #whole(): Promise<void> {
    await until(
      async () => {
        for (const { cluster } of this.#options.hosts.hosts) {
          const status = await cluster.agent().status();
          if (status.kind !== "cluster" || !status.store.writable || !status.daemon.reachable) return null;
          if (status.volumes.some(({ health }) => UNWELL.has(health))) return null;
        }
        return true;
      },
      { what: "all hosts and copies to be whole", deadlineMs: HEALED_MS, everyMs: 200 },
    );
  }
}
