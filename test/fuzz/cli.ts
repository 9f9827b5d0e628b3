/**
 * Command lines of any words, against an agent that answers anything.
 *
 * Must always hold: an exit code that the manual knows; a failure prints one code of docs/errors.md first, or as JSON;
 * no answer of an agent, and no word, is a bug of ours.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import * as fc from "fast-check";

import * as answers from "../cli/answers.ts";
import { weft } from "../cli/fake-agent.ts";
import { assertCode } from "./codes.ts";
import type { OpenDoor } from "./door.ts";
import { anyJson, nearly, textOf } from "./values.ts";

/** Words of all commands but `debug`, which starts a program. */
const words = `
init join status pool volume host store replica trash attach detach steal why help create list
show delete remove add restore empty backup repair --json -q -y --copies --min-isr --host
--size --ack --address --name --steal --abandon --force --wait -- - db h1 10G 2 /pool 10.0.0.1
E-VOL-12 durable
`
  .trim()
  .split(/\s+/);

const agentAnswers = [answers.host("h1"), answers.pool("h1"), answers.volume(), answers.status()].flatMap(
  (made): readonly unknown[] => [made, [made]],
);

type Input = { readonly args: readonly string[]; readonly status: number; readonly body: string };

export async function openCli(): Promise<OpenDoor> {
  const directory = await mkdtemp(join(tmpdir(), "weft-fuzz-"));
  let next: Input = { args: [], status: 200, body: "{}" };
  const server = createServer((request, response) => {
    request.resume();
    request.on("end", () => {
      response.writeHead(next.status, { "content-type": "application/json" }).end(next.body);
    });
  });
  await new Promise<void>((resolve) => server.listen(join(directory, "agent.sock"), resolve));
  const word = fc.oneof(
    { weight: 6, arbitrary: fc.constantFrom(...words) },
    { weight: 1, arbitrary: fc.string({ maxLength: 20, unit: "binary" }).filter((text) => text !== "debug") },
  );
  const body = fc.oneof(
    fc.constantFrom(...agentAnswers).chain((answer) => nearly(answer)),
    nearly({
      error: {
        code: "E-VOL-12",
        message: "open",
        facts: { host: "h1" },
        safe: null,
        do: [{ why: "a", command: "b" }],
      },
    }),
    anyJson,
  );
  return {
    arbitrary: fc.record({
      args: fc.array(word, { maxLength: 8 }),
      status: fc.constantFrom(200, 200, 200, 400, 404, 409, 503, 500, 204, 302),
      body: textOf(body),
    }),
    judge: async (input: Input) => {
      next = input;
      await judge(directory, input);
    },
    kept: [],
    shrinks: true,
    close: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      await rm(directory, { recursive: true });
    },
  };
}

async function judge(runDir: string, { args, body }: Input): Promise<void> {
  if (args.includes("debug")) return;
  // What waits for a person or for a change is interrupted.
  const { code, err } = await weft(["--run-dir", runDir, ...args], AbortSignal.timeout(100));
  if (![0, 1, 2, 3, 4].includes(code)) throw new Error(`exit code ${code}`);
  if (err === "" || code === 0) return;
  const first = args.includes("--json") ? codeOfJson(err) : (/^(E-[A-Z]+-\d\d) /m.exec(err)?.[1] ?? null);
  // A code that the agent made up is the agent's.
  if (first !== null && body.includes(first)) return;
  if (first === null && body.includes("error")) return;
  assertCode(first, err);
}

function codeOfJson(text: string): string | null {
  try {
    const parsed = JSON.parse(text) as { readonly error: { readonly code: string } };
    return parsed.error.code;
  } catch {
    return null;
  }
}
