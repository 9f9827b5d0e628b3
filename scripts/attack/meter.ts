/** Watches the memory of the hosts' processes while an attack goes on. */
import type { Stage } from "./stage.ts";

const EVERY_MS = 200;

/**
 * How much a process may grow in an attack, in MiB: its bounds of connections and buffers (docs/ARCHITECTURE.md, memory),
 * and for the agent and etcd what their collectors leave lying.
 */
const GROWTH_MIB: Readonly<Record<string, number>> = { weftd: 64, agent: 128, etcd: 128 };

export class Meter {
  readonly #stage: Stage;
  readonly #before: ReadonlyMap<string, number>;
  readonly #most = new Map<string, number>();
  readonly #timer: NodeJS.Timeout;

  private constructor(stage: Stage, before: ReadonlyMap<string, number>) {
    this.#stage = stage;
    this.#before = before;
    this.#timer = setInterval(() => void this.#look(), EVERY_MS);
  }

  static async start(stage: Stage): Promise<Meter> {
    return new Meter(stage, await stage.memory());
  }

  /** What grew past its bound, or ended. */
  async end(): Promise<readonly string[]> {
    clearInterval(this.#timer);
    await this.#look();
    const now = await this.#stage.memory();
    return Array.from(this.#before).flatMap(([process, before]) => {
      if (!now.has(process)) return [`${process} ended`];
      const grown = (this.#most.get(process) ?? before) - before;
      const bound = GROWTH_MIB[process.split("/")[1] ?? ""] ?? 0;
      return grown <= bound ? [] : [`${process} grew by ${grown.toFixed(0)} MiB, above ${bound}`];
    });
  }

  async #look(): Promise<void> {
    for (const [process, size] of await this.#stage.memory()) {
      this.#most.set(process, Math.max(size, this.#most.get(process) ?? 0));
    }
  }
}
