/**
 * By which UUID XAPI knows this host, noted in the store: an activation elsewhere asks XAPI whether this host is dead.
 *
 * Must always hold: nobody waits for it. While the store can't be written it is tried again, until it is there or another UUID is.
 */
import type { AgentClient } from "../core/wire/agent-client.ts";
import { reasonOf } from "../core/wire/errors.ts";
import type { Log } from "./call.ts";

const AGAIN_MS = 10_000;

export class HostNote {
  readonly #agent: Pick<AgentClient, "setXapiHost">;
  readonly #log: Log;
  readonly #againMs: number;
  /** The last one that was learned. */
  #wanted: string | null = null;
  #timer: NodeJS.Timeout | null = null;

  constructor(agent: Pick<AgentClient, "setXapiHost">, log: Log, againMs: number = AGAIN_MS) {
    this.#agent = agent;
    this.#log = log;
    this.#againMs = againMs;
  }

  learn(uuid: string): void {
    this.#wanted = uuid;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#agent.setXapiHost(uuid).catch((error: unknown) => {
      if (this.#wanted !== uuid || this.#timer !== null) return;
      this.#log.debug({ uuid, reason: reasonOf(error) }, "which host XAPI takes this one for is noted later");
      this.#timer = setTimeout(() => this.learn(uuid), this.#againMs).unref();
    });
  }
}
