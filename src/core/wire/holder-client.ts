/**
 * Client of weft-holder's control socket: a connection for each call, which are few.
 *
 * Must always hold:
 * - a call is answered, refused with the holder's code, or fails with E-AGENT-05, within its deadline;
 * - that no holder runs is told apart from one that says nothing: what one that ended had offered is gone with it.
 */
import { connect } from "node:net";
import { z } from "zod";

import { isWeftError, reasonOf, WeftError } from "./errors.ts";
import type { HolderMethod, HolderMethods } from "./holder.gen.ts";

/** A thousand guests take a few hundred KiB. */
const ANSWER_BYTES_MAX = 4 << 20;
/** The holder asks weftd, which may be opening the volume. */
const DEADLINE_MS = 20_000;

const answerLine = z.union([
  z.object({ id: z.literal(1), result: z.unknown() }).refine((line) => "result" in line),
  z.object({ id: z.literal(1), error: z.object({ code: z.string(), message: z.string() }) }),
]);

export type HolderClient = {
  call<M extends HolderMethod>(
    method: M,
    params: HolderMethods[M]["params"],
    deadlineMs?: number,
  ): Promise<HolderMethods[M]["result"]>;
};

export function holderClient(socketPath: string): HolderClient {
  return {
    call: async (method, params, deadlineMs = DEADLINE_MS) => {
      const line = `${JSON.stringify({ id: 1, method, params })}\n`;
      const text = await answerOf(socketPath, line, deadlineMs).catch((error: unknown) => {
        throw silent(socketPath, reasonOf(error), error);
      });
      const parsed = answerLine.safeParse(jsonOf(text));
      if (!parsed.success) throw silent(socketPath, "its answer is none that this version understands");
      if ("error" in parsed.data) throw new WeftError({ ...parsed.data.error, facts: { method } });
      // The types are generated from the holder's own, and both ship together.
      return parsed.data.result as HolderMethods[typeof method]["result"];
    },
  };
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function answerOf(path: string, line: string, deadlineMs: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    const chunks: Buffer[] = [];
    let bytes = 0;
    const settle = (done: () => void): void => {
      clearTimeout(timer);
      socket.destroy();
      done();
    };
    const timer = setTimeout(
      () => settle(() => reject(new Error(`no answer within ${deadlineMs} ms`))),
      deadlineMs,
    );
    socket.once("connect", () => socket.write(line));
    socket.once("error", (error) => settle(() => reject(error)));
    socket.once("end", () => settle(() => reject(new Error("it closed the connection"))));
    socket.on("data", (chunk: Buffer) => {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes > ANSWER_BYTES_MAX) settle(() => reject(new Error("its answer is too long")));
      else if (chunk.includes(0x0a)) settle(() => resolve(Buffer.concat(chunks).toString().trim()));
    });
  });
}

function silent(socketPath: string, reason: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-AGENT-05",
    message: `The holder doesn't answer on ${socketPath}: ${reason}.`,
    facts: { socket: socketPath, reason, runs: !isAbsence(cause) },
    do: [{ why: "Is it running?", command: "systemctl status weft-holder" }],
    ...(cause === undefined ? {} : { cause }),
  });
}

/** Nobody listens there. */
function isAbsence(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const { code } = error as NodeJS.ErrnoException;
  return code === "ENOENT" || code === "ECONNREFUSED";
}

/** Was it said so because no holder runs? */
export function isNoHolder(error: unknown): boolean {
  return isWeftError(error, "E-AGENT-05") && error.facts["runs"] === false;
}
