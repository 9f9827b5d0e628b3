/**
 * The host's toolstack, which takes up a new driver only when it starts anew.
 *
 * Must always hold: one restart at a time; who asked is answered before it begins, since the answer goes through what restarts.
 */
import { spawn } from "node:child_process";

import type { Log } from "../call.ts";

/** `running`: one was begun and has not ended. `failed` holds the program's end. */
export type ToolstackState = {
  readonly running: boolean;
  readonly done: number;
  readonly failed: string | null;
};

const ANSWER_FIRST_MS = 500;

export class Toolstack {
  readonly #program: string;
  readonly #log: Log;
  #state: ToolstackState = { running: false, done: 0, failed: null };

  /** `program`: dom0's `xe-toolstack-restart`. */
  constructor(program: string, log: Log) {
    this.#program = program;
    this.#log = log;
  }

  get state(): ToolstackState {
    return this.#state;
  }

  restart(): void {
    if (this.#state.running) return;
    this.#state = { ...this.#state, running: true, failed: null };
    setTimeout(() => this.#run(), ANSWER_FIRST_MS);
  }

  #run(): void {
    this.#log.info({ program: this.#program }, "the toolstack is restarted");
    const child = spawn(this.#program, [], { stdio: "ignore", detached: true });
    const end = (failed: string | null): void => {
      if (!this.#state.running) return;
      this.#state = { running: false, done: this.#state.done + 1, failed };
      this.#log.info({ failed }, "the toolstack was restarted");
    };
    child.once("error", (error) => end(error.message));
    child.once("exit", (code, signal) => end(code === 0 ? null : `it ended with ${code ?? signal}`));
    child.unref();
  }
}
