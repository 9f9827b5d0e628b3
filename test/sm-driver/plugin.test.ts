/** Plot: XAPI's plug-in is asked what it can't answer, by who knows no better or means no good; and while no agent runs. */
import { existsSync } from "node:fs";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { until } from "../../scripts/lib/until.ts";
import { noDatapath } from "../../src/sm-driver/datapath/none.ts";
import { Plugin } from "../../src/sm-driver/setup/plugin.ts";
import { Toolstack } from "../../src/sm-driver/setup/toolstack.ts";
import { runDriver } from "./lib/client.ts";
import { readReply, structOf } from "./lib/strict-xml.ts";

const log = { info: () => {}, warn: () => {}, error: () => {}, debug: () => {} };
const nobody = new AbortController().signal;

function call(name: string, ...values: readonly string[]): string {
  const params = values.map((value) => `<param><value>${value}</value></param>`).join("");
  return `<methodCall><methodName>${name}</methodName><params>${params}</params></methodCall>`;
}

/** The first word of the refusal. */
function refusal(xml: string): string {
  const reply = readReply(xml);
  const { Status: status, ErrorDescription: words } = structOf(reply.kind === "value" ? reply.value : null);
  if (status !== "Failure" || !Array.isArray(words)) throw new Error(xml);
  return String(words[0]);
}

void t.test("plug-in: whatever comes in, one refusal with weft's code goes out", async (t) => {
  const options = {
    datapath: () => noDatapath,
    agentSocket: "/nowhere",
    xapiSocket: "/nowhere",
    toolstack: new Toolstack("/nowhere", log),
    log,
  };
  const plugin = new Plugin(options);
  const none = "<struct></struct>";
  for (const [text, code] of [
    ["", "E-ARG-02"],
    ["<methodCall>", "E-ARG-02"],
    [call("health", "s", none).slice(0, -8), "E-ARG-02"],
    [`<!DOCTYPE x><methodCall/>`, "E-ARG-02"],
    [call("health"), "E-ARG-02"],
    [call("health", "s", none, none), "E-ARG-02"],
    [call("health", none, none), "E-ARG-02"],
    [call("health", "s", "<array><data></data></array>"), "E-ARG-02"],
    [
      call("health", "s", "<struct><member><name>a</name><value><int>1</int></value></member></struct>"),
      "E-ARG-02",
    ],
    [call("toString", "s", none), "E-ARG-02"],
    [call("no-such", "s", none), "E-ARG-02"],
    [call("pool-add", "s", none), "E-ARG-02"],
    [call("unseal", "s", none), "E-ARG-02"],
    [call("health", "s", none), "E-AGENT-01"],
    [call("x".repeat(200_000), "s", none), "E-ARG-02"],
  ] as const) {
    const { xml, outcome } = await plugin.handle(text, nobody);
    t.equal(refusal(xml), code, text.slice(0, 80));
    t.equal(outcome, code);
  }
});

const stubs = {
  weft: "xapi.d/plugins/weft",
  "xapi-hook": "libexec/xapi-hook",
  "SR.attach": "smapiv3/volume/org.xen.xapi.storage.weft3/plugin",
};

/** The stub as it is installed, but for where the agent's socket is, and for what a test changes. */
async function stubIn(
  directory: string,
  name: keyof typeof stubs,
  change: (text: string) => string = (text) => text,
): Promise<string> {
  const text = await readFile(join(import.meta.dirname, "../../packaging", stubs[name]), "utf8");
  const path = join(directory, name);
  await writeFile(path, change(text).replace('RUN = "/run/weft"', `RUN = ${JSON.stringify(directory)}`));
  await chmod(path, 0o755);
  return path;
}

async function scratch(t: { teardown: (end: () => unknown) => void }): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "weft-plugin-"));
  t.teardown(() => rm(directory, { recursive: true }));
  return directory;
}

void t.test("plug-in: while no agent runs its stub says so, with exit code 0", async (t) => {
  const directory = await scratch(t);
  const hasty = (text: string): string => text.replace("PATIENCE_S = 4.0", "PATIENCE_S = 0.1");
  const run = await runDriver(
    await stubIn(directory, "weft", hasty),
    call("health", "s", "<struct></struct>"),
  );
  t.equal(refusal(run.stdout), "E-AGENT-01");
  t.strictSame([run.exitCode, run.stderr], [0, ""]);
  // A hook keeps XAPI from nothing then.
  t.match(await runDriver(await stubIn(directory, "xapi-hook", hasty), "pool-eject"), {
    exitCode: 0,
    stdout: /was not told/,
  });
});

// An update restarts the agent, and hosts ask each other all the time.
for (const [name, word, said] of [
  ["weft", call("health", "s", "<struct></struct>"), /^told$/],
  ["xapi-hook", "pool-join", /^told$/],
  ["SR.attach", "dbg", /^"told"/],
] as const) {
  void t.test(`plug-in: ${name}: an agent that is being started again is waited for`, async (t) => {
    const directory = await scratch(t);
    // It says when it has found nobody, so that the agent comes after that.
    const telling = (text: string): string =>
      text.replace("time.sleep(0.05)", 'open(RUN + "/waits", "w").close() or time.sleep(0.05)');
    const path = await stubIn(directory, name, telling);
    const run = runDriver(path, word);
    const waits = await Promise.race([
      until(() => (existsSync(join(directory, "waits")) ? "it waits" : null), {
        what: "a stub that waits",
        deadlineMs: 10_000,
      }),
      run.then(({ stdout }) => `it gave up: ${stdout}`),
    ]);
    t.equal(waits, "it waits");
    const body = name === "weft" ? "told" : JSON.stringify({ text: "told", result: "told" });
    const agent = createServer((socket) => {
      socket.once("data", () =>
        socket.end(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`),
      );
    });
    agent.listen(join(directory, "agent.sock"));
    t.teardown(() => agent.close());
    const { exitCode, stdout, stderr } = await run;
    t.match(stdout, said);
    t.strictSame([exitCode, stderr], [0, ""]);
  });
}
