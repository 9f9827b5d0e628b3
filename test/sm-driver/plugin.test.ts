/** Plot: XAPI's plug-in is asked what it can't answer, by who knows no better or means no good; and while no agent runs. */
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

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

void t.test("plug-in: while no agent runs its stub says so, with exit code 0", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "weft-plugin-"));
  t.teardown(() => rm(directory, { recursive: true }));
  for (const [name, from] of [
    ["weft", "xapi.d/plugins/weft"],
    ["xapi-hook", "libexec/xapi-hook"],
  ] as const) {
    const text = await readFile(join(import.meta.dirname, "../../packaging", from), "utf8");
    await writeFile(
      join(directory, name),
      text.replace('RUN = "/run/weft"', `RUN = ${JSON.stringify(directory)}`),
    );
    await chmod(join(directory, name), 0o755);
  }
  const run = await runDriver(join(directory, "weft"), call("health", "s", "<struct></struct>"));
  t.equal(refusal(run.stdout), "E-AGENT-01");
  t.strictSame([run.exitCode, run.stderr], [0, ""]);
  // A hook keeps XAPI from nothing then.
  t.match(await runDriver(join(directory, "xapi-hook"), "pool-eject"), {
    exitCode: 0,
    stdout: /was not told/,
  });
});
