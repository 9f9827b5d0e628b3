/**
 * Client of weftd's control socket: JSON lines, requests matched by id, events, reconnecting by itself.
 *
 * Must always hold:
 * - a request is answered, refused with the daemon's code, or fails with E-AGENT-05: it never hangs longer than its deadline;
 * - a request is sent once. After a lost connection the caller asks again: the daemon's methods are idempotent. Only one that a
 *   daemon of the version before could not read is sent again, without the member that says nothing: an update restarts the
 *   agent and leaves the daemon as it is.
 */
import { connect, type Socket } from "node:net";
import { z } from "zod";

import type { DaemonEvent, DaemonMethod, DaemonMethods } from "./daemon.gen.ts";
import { type Facts, isWeftError, reasonOf, WeftError } from "./errors.ts";

export type { DaemonEvent };

/** A line of the daemon is at most 16 MiB, as ours to it. */
const LINE_MAX = 16 * 1024 * 1024;
/** Between attempts to reach the daemon, while somebody waits for it or for its events. */
const RECONNECT_MS = 200;
/** Opening a session waits for replicas (1.5 s), a read lease (2 s) and swaps of the record. */
const DEADLINE_MS = 30_000;

const answerLine = z.union([
  z.object({ id: z.int(), result: z.unknown() }).refine((line) => "result" in line),
  z.object({
    id: z.int().nullable(),
    error: z.object({
      code: z.string(),
      message: z.string(),
      facts: z.record(z.string(), z.unknown()).default({}),
    }),
  }),
  z.object({ event: z.string(), data: z.unknown() }),
]);

type Waiter = { readonly resolve: (result: unknown) => void; readonly reject: (error: Error) => void };

export type DaemonClientOptions = {
  readonly socketPath: string;
  readonly deadlineMs?: number;
  /** Subscribes to events, for as long as the client lives. */
  readonly onEvent?: (event: DaemonEvent) => void;
  /** Told whenever a connection stands or is lost. */
  readonly onConnection?: (connected: boolean) => void;
};

export class DaemonClient {
  readonly #options: DaemonClientOptions;
  readonly #waiters = new Map<number, Waiter>();
  #socket: Socket | null = null;
  #connecting: Promise<Socket> | null = null;
  #nextId = 1;
  #rest = "";
  #closed = false;
  #reconnect: NodeJS.Timeout | null = null;

  constructor(options: DaemonClientOptions) {
    this.#options = options;
    if (options.onEvent !== undefined || options.onConnection !== undefined) this.#keepConnected();
  }

  async call<M extends DaemonMethod>(
    method: M,
    params: DaemonMethods[M]["params"],
    deadlineMs: number = this.#options.deadlineMs ?? DEADLINE_MS,
  ): Promise<DaemonMethods[M]["result"]> {
    const socket = await this.#connected();
    let asked: DaemonMethods[M]["params"] | object = params;
    for (;;) {
      try {
        return await this.#ask<M>(socket, method, asked, deadlineMs);
      } catch (error) {
        const name = unknownMember(error);
        if (name === null || !(name in asked) || Reflect.get(asked, name) !== null) throw error;
        asked = Object.fromEntries(Object.entries(asked).filter(([member]) => member !== name));
      }
    }
  }

  close(): void {
    this.#closed = true;
    if (this.#reconnect !== null) clearTimeout(this.#reconnect);
    this.#socket?.destroy();
  }

  #ask<M extends DaemonMethod>(
    socket: Socket,
    method: M,
    params: unknown,
    deadlineMs: number,
  ): Promise<DaemonMethods[M]["result"]> {
    const id = this.#nextId;
    this.#nextId += 1;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiters.delete(id);
        reject(away(this.#options.socketPath, `no answer to ${method} within ${deadlineMs} ms`));
      }, deadlineMs);
      this.#waiters.set(id, {
        resolve: (result) => {
          clearTimeout(timer);
          // The types are generated from the daemon's own; both ship together, and hello tells versions apart.
          resolve(result as DaemonMethods[M]["result"]);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      socket.write(`${JSON.stringify({ id, method, params })}\n`);
    });
  }

  async #connected(): Promise<Socket> {
    if (this.#socket !== null) return this.#socket;
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = null;
    });
    return this.#connecting;
  }

  #connect(): Promise<Socket> {
    const { socketPath } = this.#options;
    return new Promise((resolve, reject) => {
      if (this.#closed) {
        reject(away(socketPath, "the client was closed"));
        return;
      }
      const socket = connect(socketPath);
      socket.once("error", (error) => reject(away(socketPath, reasonOf(error), error)));
      socket.once("connect", () => {
        this.#socket = socket;
        this.#rest = "";
        socket.setEncoding("utf8");
        socket.on("data", (text: string) => this.#take(socket, text));
        socket.on("error", () => socket.destroy());
        socket.once("close", () => this.#lost(socket));
        resolve(socket);
      });
    });
  }

  #lost(socket: Socket): void {
    if (this.#socket !== socket) return;
    this.#socket = null;
    const waiters = [...this.#waiters.values()];
    this.#waiters.clear();
    for (const { reject } of waiters) reject(away(this.#options.socketPath, "the connection was lost"));
    this.#options.onConnection?.(false);
    if (this.#options.onEvent !== undefined || this.#options.onConnection !== undefined) this.#later();
  }

  #keepConnected(): void {
    this.#subscribe().catch(() => this.#later());
  }

  async #subscribe(): Promise<void> {
    const socket = await this.#connected();
    if (this.#options.onEvent !== undefined) await this.#ask(socket, "events", {}, DEADLINE_MS);
    this.#options.onConnection?.(true);
  }

  #later(): void {
    if (this.#closed || this.#reconnect !== null) return;
    this.#reconnect = setTimeout(() => {
      this.#reconnect = null;
      this.#keepConnected();
    }, RECONNECT_MS);
  }

  #take(socket: Socket, text: string): void {
    const parts = (this.#rest + text).split("\n");
    this.#rest = parts.pop() ?? "";
    if (this.#rest.length > LINE_MAX) socket.destroy(new Error(`a line of more than ${LINE_MAX} bytes`));
    for (const part of parts)
      if (part !== "" && !this.#takeLine(part)) socket.destroy(new Error("a line that is no answer"));
  }

  #takeLine(text: string): boolean {
    let json: unknown;
    try {
      json = JSON.parse(text);
    } catch {
      return false;
    }
    const parsed = answerLine.safeParse(json);
    if (!parsed.success) return false;
    const line = parsed.data;
    if ("event" in line) {
      this.#options.onEvent?.(line as DaemonEvent);
      return true;
    }
    if (line.id === null) return false;
    const waiter = this.#waiters.get(line.id);
    this.#waiters.delete(line.id);
    if ("error" in line) waiter?.reject(new WeftError({ ...line.error, facts: factsOf(line.error.facts) }));
    else waiter?.resolve(line.result);
    return true;
  }
}

/** Facts of the daemon are any JSON; ours are flat. */
function factsOf(facts: Readonly<Record<string, unknown>>): Facts {
  return Object.fromEntries(
    Object.entries(facts).map(([name, value]) => {
      if (
        value === null ||
        typeof value === "string" ||
        typeof value === "number" ||
        typeof value === "boolean"
      )
        return [name, value];
      return [name, JSON.stringify(value)];
    }),
  );
}

/** The member of the request that this daemon is too old to know; null: it was something else. Nothing was done then. */
export function unknownMember(error: unknown): string | null {
  if (!isWeftError(error, "E-ARG-02")) return null;
  return /^unknown field `([a-z_]+)`/.exec(String(error.facts["wrong"] ?? ""))?.[1] ?? null;
}

function away(socketPath: string, reason: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-AGENT-05",
    message: `weftd doesn't answer on ${socketPath}: ${reason}.`,
    facts: { socket: socketPath, reason },
    do: [{ why: "Is it running?", command: "systemctl status weftd" }],
    ...(cause === undefined ? {} : { cause }),
  });
}
