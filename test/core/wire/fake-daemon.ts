/** A control socket that answers as told: JSON lines, in this process. */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { DaemonEvent, DaemonMethod } from "../../../src/core/wire/daemon.gen.ts";

export type Refusal = {
  readonly code: string;
  readonly message: string;
  readonly facts: Record<string, unknown>;
};
export type Handler = (params: Record<string, unknown>) => unknown;
export type Handlers = Partial<Record<DaemonMethod, Handler>>;

export function refuse(code: string, message: string, facts: Record<string, unknown> = {}): never {
  throw Object.assign(new Error(message), { refusal: { code, message, facts } satisfies Refusal });
}

export class FakeDaemon {
  readonly socketPath: string;
  readonly calls: { readonly method: string; readonly params: Record<string, unknown> }[] = [];
  readonly #handlers: Handlers;
  readonly #sockets = new Set<Socket>();
  #server: Server | null = null;

  constructor(socketPath: string, handlers: Handlers) {
    this.socketPath = socketPath;
    this.#handlers = handlers;
  }

  async start(): Promise<void> {
    await rm(this.socketPath, { force: true });
    const server = createServer((socket) => this.#serve(socket));
    this.#server = server;
    await new Promise<void>((resolve) => server.listen(this.socketPath, resolve));
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    const server = this.#server;
    if (server !== null) await new Promise((resolve) => server.close(resolve));
    this.#server = null;
  }

  emit(event: DaemonEvent): void {
    for (const socket of this.#sockets) socket.write(`${JSON.stringify(event)}\n`);
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    let rest = "";
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => {
      const parts = (rest + text).split("\n");
      rest = parts.pop() ?? "";
      for (const part of parts) void this.#answer(socket, part);
    });
  }

  async #answer(socket: Socket, line: string): Promise<void> {
    const { id, method, params } = JSON.parse(line) as {
      id: number;
      method: DaemonMethod;
      params: Record<string, unknown>;
    };
    this.calls.push({ method, params });
    const handler = this.#handlers[method] ?? (method === "events" ? () => ({}) : undefined);
    try {
      if (handler === undefined) refuse("E-ARG-01", `no method ${method} in this test`);
      socket.write(`${JSON.stringify({ id, result: await handler(params) })}\n`);
    } catch (error) {
      const refusal =
        error instanceof Error && "refusal" in error
          ? error.refusal
          : { code: "E-TEST", message: String(error), facts: {} };
      socket.write(`${JSON.stringify({ id, error: refusal })}\n`);
    }
  }
}

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

export async function startFakeDaemon(t: Scope, handlers: Handlers): Promise<FakeDaemon> {
  const directory = await mkdtemp(join(tmpdir(), "weft-fake-"));
  const daemon = new FakeDaemon(join(directory, "weftd.sock"), handlers);
  await daemon.start();
  t.teardown(async () => {
    await daemon.stop();
    await rm(directory, { recursive: true, force: true });
  });
  return daemon;
}
