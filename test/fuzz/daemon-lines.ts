/**
 * Lines that a daemon's socket may bring, at the agent's client: in any pieces, answers to what was asked and to what was
 * not.
 *
 * Must always hold: a call ends, with an answer or with an error that has a code; a line that is none ends the
 * connection and never the process.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import * as fc from "fast-check";
import { z } from "zod";

import { DaemonClient } from "../../src/core/wire/daemon-client.ts";
import { isWeftError } from "../../src/core/wire/errors.ts";
import type { OpenDoor } from "./door.ts";
import { anyJson, nearly, textOf } from "./values.ts";

const good = [
  { id: 1, result: { pools: [] } },
  {
    id: 1,
    error: { code: "E-VOL-12", message: "open elsewhere", facts: { host: "h1", list: [1, { a: 1 }] } },
  },
  { id: null, error: { code: "E-ARG-02", message: "no line", facts: {} } },
  { event: "session.changed", data: { volume: "6c1f0a52-3b1d-4e0b-9d52-6f3a0c9e1b77" } },
] as const;

const errorLine = z.object({ error: z.object({ code: z.string() }) });

type Input = { readonly lines: readonly string[]; readonly cut: number; readonly end: boolean };

export async function openDaemonLines(): Promise<OpenDoor> {
  const directory = await mkdtemp(join(tmpdir(), "weft-fuzz-"));
  const socketPath = join(directory, "weftd.sock");
  let next: Input = { lines: [], cut: 1, end: true };
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    socket.once("data", () => void answer(socket, next));
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  const line = fc.oneof(
    textOf(fc.constantFrom(...good).chain((value) => nearly(value))),
    textOf(anyJson),
    fc.string(),
  );
  return {
    arbitrary: fc.record({
      lines: fc.array(line, { maxLength: 4 }),
      cut: fc.integer({ min: 1, max: 40 }),
      end: fc.boolean(),
    }),
    judge: async (input: Input) => {
      next = input;
      await call(socketPath, input);
    },
    kept: [],
    shrinks: true,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      await closed(server);
      await rm(directory, { recursive: true });
    },
  };
}

async function call(socketPath: string, input: Input): Promise<void> {
  const client = new DaemonClient({ socketPath, deadlineMs: 50 });
  try {
    await client.call("pool.list", {});
  } catch (error) {
    if (!isWeftError(error)) throw error;
    const passed = arrived(input.lines).some((line) => codeOf(line) === error.code);
    if (!passed && !/^E-AGENT-05$/.test(error.code)) throw error;
  } finally {
    client.close();
  }
}

/** The lines as the client has them: what is no UTF-8 was replaced on the way. */
function arrived(lines: readonly string[]): readonly string[] {
  return lines.join("\n").toWellFormed().split("\n");
}

function codeOf(line: string): unknown {
  try {
    return errorLine.safeParse(JSON.parse(line)).data?.error.code;
  } catch {
    return undefined;
  }
}

async function answer(socket: Socket, { lines, cut, end }: Input): Promise<void> {
  const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(""));
  for (let at = 0; at < bytes.length && !socket.destroyed; at += cut)
    socket.write(bytes.subarray(at, at + cut));
  if (end) socket.end();
}

function closed(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
  });
}
