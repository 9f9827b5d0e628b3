/** Plot: a command is given a secret, and nobody else on the machine gets it from its memory: it is protected before it has it. */
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { nativeBin, repository } from "../../scripts/lib/repository.ts";
import { weft } from "./fake-agent.ts";

const silence = new AbortController().signal;

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

async function scratch(t: Scope): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "weft-protect-"));
  t.teardown(() => rm(directory, { recursive: true }));
  return directory;
}

void t.test(
  "weft: whatever takes or makes a secret is protected first, once; what doesn't is not",
  async (t) => {
    const directory = await scratch(t);
    const [token, contexts] = [join(directory, "token"), join(directory, "contexts.json")];
    await writeFile(token, "04F6-0000");
    await writeFile(contexts, JSON.stringify({ current: null, contexts: {} }), { mode: 0o600 });
    const without = { WEFT_CONFIG: join(directory, "none") };
    const join1 = ["join", "10.0.9.11", "--address", "10.0.9.12"];
    const login = ["login", "10.0.9.11", "--fingerprint", "0".repeat(64)];
    const cases: readonly (readonly [
      args: readonly string[],
      times: number,
      environment?: NodeJS.ProcessEnv,
    ])[] = [
      [[...join1, "--token", "-"], 1],
      [[...join1, "--token-file", token], 1],
      [[...join1, "--token", "04F6-0000"], 1],
      [[...login, "--token", "-"], 1],
      [["ca", "restore", "/file", "--passphrase-file", token], 1],
      [["ca", "backup", "/file"], 1],
      [["token", "create"], 1],
      [["api-token", "create", "ci", "--role", "viewer"], 1],
      [["volume", "list"], 1, { WEFT_CONFIG: contexts }],
      [[...login, "--token", "-"], 1, { WEFT_CONFIG: contexts }],
      [["volume", "list"], 0],
      [["help"], 0],
    ];
    for (const [args, times, environment = without] of cases) {
      let count = 0;
      const { err } = await weft(args, silence, environment, "a secret\n", (stdin) => {
        count += 1;
        t.notOk(stdin.readableDidRead, `${args.join(" ")}: before it is read`);
        return null;
      });
      t.equal(count, times, `${args.join(" ")}: ${err}`);
    }
  },
);

void t.test("weft: where a command can't be protected it says so and goes on", async (t) => {
  const args = ["join", "10.0.9.11", "--address", "10.0.9.12", "--token", "-", "--run-dir", "/nowhere"];
  const { err } = await weft(args, silence, {}, "04F6-SECRET", () => "The addon /x.so can't be used.");
  t.match(err, /^A core dump of this command, .*: The addon \/x\.so can't be used\.\nE-AGENT-01 /);
  t.notMatch(err, /SECRET/);
});

void t.test("bin: the kernel writes no core dump of a command that has a token", async (t) => {
  const directory = await scratch(t);
  const main = join(repository, "src/cli/main.ts");
  const words = ["--run-dir", directory, "join", "10.0.9.11", "--address", "10.0.9.12", "--token", "-"];
  let limits = "";
  const server = createServer((request, response) => {
    request.resume();
    const look = async (): Promise<void> => {
      limits = await readFile(`/proc/${child.pid}/limits`, "utf8");
      response.writeHead(503).end("{}");
    };
    void look();
  });
  await new Promise<void>((resolve) => server.listen(join(directory, "agent.sock"), resolve));
  t.teardown(() => new Promise<void>((resolve) => server.close(() => resolve())));
  // As much as it may: the shell of bin/weft would have said 0 already.
  const script = 'ulimit -S -c "$(ulimit -H -c)"; ulimit -S -c; exec "$@"';
  const child = spawn("sh", ["-c", script, "sh", process.execPath, main, ...words], {
    env: {
      ...process.env,
      WEFT_NODE: join(nativeBin(), "libweft_node.so"),
      WEFT_CONFIG: join(directory, "none"),
    },
    stdio: ["pipe", "pipe", "pipe"],
  });
  let [out, err] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (err += text));
  child.stdin.end("04F6-0000");
  await new Promise((resolve) => child.once("close", resolve));
  t.match(limits, /Max core file size +0 +0 /, err);
  t.not(out.split("\n")[0], "0", "before, it might have");
  t.notMatch(err, /core dump/);
});
