/**
 * An agent that answers what a test gives it, over HTTP on a real unix socket, and remembers what it was asked.
 * The command line's own client talks to it: what is tested is the way from words to requests and back.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { IncomingMessage, ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";

import { Console } from "../../src/cli/console.ts";
import { runCommandLine } from "../../src/cli/program.ts";

export type Answer = { readonly status: number; readonly body: unknown };
/** By `METHOD /path`; a list is answered one after the other, its last one for ever. */
export type Routes = Readonly<Record<string, unknown>>;

export type Outcome = { readonly code: number; readonly out: string; readonly err: string };

export class FakeAgent implements AsyncDisposable {
  readonly asked: string[] = [];
  readonly #runDir: string;
  readonly #stop: () => Promise<void>;
  readonly #served = new Map<string, number>();

  private constructor(runDir: string, stop: () => Promise<void>) {
    this.#runDir = runDir;
    this.#stop = stop;
  }

  static async start(routes: Routes): Promise<FakeAgent> {
    const runDir = await mkdtemp(join(tmpdir(), "weft-cli-"));
    const server = createServer();
    const agent = new FakeAgent(runDir, async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      await rm(runDir, { recursive: true });
    });
    const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
      const text = await readText(request);
      const { status, body } = agent.#answer(routes, `${request.method} ${request.url}`, text);
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
    };
    server.on("request", (request, response) => void serve(request, response));
    await new Promise<void>((resolve) => server.listen(join(runDir, "agent.sock"), resolve));
    return agent;
  }

  /** Runs `weft ARGS…`; ^C comes when `signal` says so. */
  async weft(
    args: readonly string[],
    signal: AbortSignal = new AbortController().signal,
    input: string = "",
  ): Promise<Outcome> {
    return weft(["--run-dir", this.#runDir, ...args], signal, {}, input);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stop();
  }

  #answer(routes: Routes, key: string, text: string): Answer {
    this.asked.push(text === "" ? key : `${key} ${text}`);
    const route = routes[key];
    if (route === undefined) return refusal("E-ARG-01", `No ${key}.`, 404);
    if (!Array.isArray(route) || !isAnswer(route[0]))
      return isAnswer(route) ? route : { status: 200, body: route };
    const turn = this.#served.get(key) ?? 0;
    this.#served.set(key, turn + 1);
    return route[Math.min(turn, route.length - 1)] as Answer;
  }
}

/** One of several answers in turn. */
export function answer(body: unknown): Answer {
  return { status: 200, body };
}

export function refusal(code: string, message: string, status: number, rest: object = {}): Answer {
  return { status, body: { error: { code, message, facts: {}, safe: null, do: [], ...rest } } };
}

/** Runs the command line with streams that are no terminal. */
export async function weft(
  args: readonly string[],
  signal: AbortSignal = new AbortController().signal,
  environment: NodeJS.ProcessEnv = {},
  input: string = "",
  protect: (stdin: PassThrough) => string | null = () => null,
): Promise<Outcome> {
  const stdin = new PassThrough();
  stdin.end(input);
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const [out, err] = [collect(stdout), collect(stderr)];
  const code = await runCommandLine(args, {
    console: new Console({ stdin, stdout, stderr }, environment),
    environment,
    interruption: () => signal,
    protect: () => protect(stdin),
  });
  return { code, out: out(), err: err() };
}

function collect(stream: PassThrough): () => string {
  let text = "";
  stream.setEncoding("utf8").on("data", (chunk: string) => {
    text += chunk;
  });
  return () => text + String(stream.read() ?? "");
}

function isAnswer(value: unknown): value is Answer {
  return typeof value === "object" && value !== null && "status" in value && "body" in value;
}

async function readText(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}
