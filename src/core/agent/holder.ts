/**
 * Which guests this host's holder has, asked once over its control socket (lines of JSON, as weftd's).
 *
 * Must always hold: no holder is an answer, one that says nothing is an error: who asks must not take a guest for gone.
 */
import { connect } from "node:net";
import { join } from "node:path";
import { z } from "zod";

import { reasonOf, WeftError } from "../wire/errors.ts";
import { uuid } from "../wire/json-types.ts";
import { readValue } from "./store-value.ts";

/** It answers from memory. */
const ANSWER_MS = 2000;
/** A thousand guests take a few hundred KiB. */
const ANSWER_BYTES_MAX = 4 << 20;

const heldJson = z.object({
  volume: uuid,
  /** Null: the volume itself. */
  snapshot: uuid.nullable(),
  /** A guest's end is connected. */
  connected: z.boolean(),
  /** Why that guest was told that its disk is gone; null: it was not. */
  lost: z.string().nullable(),
});
const answerJson = z.object({ result: z.object({ entries: z.array(heldJson) }) });
export type Held = z.output<typeof heldJson>;

/** Null: no holder runs here. */
export async function heldHere(runDir: string): Promise<readonly Held[] | null> {
  const socketPath = join(runDir, "holder.sock");
  const line = await firstLine(socketPath).catch((error: unknown) => {
    throw silent(socketPath, reasonOf(error), error);
  });
  if (line === null) return null;
  const answer = readValue(answerJson, line);
  if (answer === null) throw silent(socketPath, "its answer is none that this version understands");
  return answer.result.entries;
}

function firstLine(path: string): Promise<string | null> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    const chunks: Buffer[] = [];
    let bytes = 0;
    const settle = (done: () => void): void => {
      socket.destroy();
      done();
    };
    socket.setTimeout(ANSWER_MS, () => settle(() => reject(new Error(`no answer within ${ANSWER_MS} ms`))));
    socket.once("connect", () => socket.write('{"id":1,"method":"list","params":{}}\n'));
    socket.once("error", (error: NodeJS.ErrnoException) => {
      const isNone = error.code === "ENOENT" || error.code === "ECONNREFUSED";
      settle(() => (isNone ? resolve(null) : reject(error)));
    });
    socket.once("end", () => settle(() => reject(new Error("it closed the connection"))));
    socket.on("data", (chunk: Buffer) => {
      chunks.push(chunk);
      bytes += chunk.length;
      const isWhole = chunk.includes(0x0a);
      if (bytes > ANSWER_BYTES_MAX) settle(() => reject(new Error("its answer is too long")));
      else if (isWhole) settle(() => resolve(Buffer.concat(chunks).toString().split("\n")[0] ?? ""));
    });
  });
}

function silent(socketPath: string, reason: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-AGENT-05",
    message: `The holder doesn't answer on ${socketPath}: ${reason}.`,
    facts: { socket: socketPath, reason },
    do: [{ why: "Is it running?", command: "systemctl status weft-holder" }],
    ...(cause === undefined ? {} : { cause }),
  });
}
