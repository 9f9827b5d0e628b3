/** The driver as XAPI meets it: the real stub, the agent's socket, and what comes back for requests good and bad. */
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { once } from "node:events";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import t from "tap";

import { repository } from "../../scripts/lib/repository.ts";
import { AgentClient } from "../../src/core/wire/agent-client.ts";
import { noDatapath } from "../../src/sm-driver/datapath/none.ts";
import { Driver } from "../../src/sm-driver/driver.ts";
import { SmFault } from "../../src/sm-driver/faults.ts";
import { renderAnswer } from "../../src/sm-driver/xml.ts";
import { callDriver, requestOf, replyOf, runDriver } from "./lib/client.ts";
import { startBareDriver, stubFor } from "./lib/driver-for-tests.ts";
import { readReply, structOf } from "./lib/strict-xml.ts";
import { callSm, startXapi } from "./lib/xapi-server.ts";

const SR = "8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f01";
const quiet = { info: () => {}, warn: () => {}, error: () => {}, debug: () => {} };
const nobody = new AbortController().signal;

function driverWith(commands: ConstructorParameters<typeof Driver>[1]): Driver {
  const newUuid = (): string => SR;
  const options = {
    agentSocket: "/nowhere",
    xapiSocket: "/nowhere",
    datapath: () => noDatapath,
    newUuid,
    log: quiet,
  };
  return new Driver(options, commands);
}

await t.test("driver: says what it is, through the stub, also while no agent runs", async (t) => {
  const { executable, directory } = await startBareDriver(t);
  const info = structOf(await callDriver(executable, { command: "sr_get_driver_info" }));
  t.match(info, { name: "weft", required_api_version: "1.0" });
  const { version } = JSON.parse(readFileSync(join(repository, "package.json"), "utf8")) as {
    version: string;
  };
  t.equal(info["driver_version"], version);

  // The stub answers by itself: what the agent's driver says has to be the same.
  const own = await driverWith(undefined).handle(requestOf({ command: "sr_get_driver_info" }), nobody);
  t.strictSame(
    readReply(own.xml),
    { kind: "value", value: info },
    "FEATURES and CONFIGURATION in packaging/sm/WeftSR",
  );
  const away = await stubFor(join(directory, "nothing"), directory, { PATIENCE_S: 0.1 });
  t.strictSame(structOf(await callDriver(away, { command: "sr_get_driver_info" })), info);
});

await t.test(
  "driver: what XAPI's stub can't bring to the agent is fault 47, and says what to look at",
  async (t) => {
    const { directory } = await startBareDriver(t);
    const away = await stubFor(join(directory, "nothing"), directory, { PATIENCE_S: 0.1 });
    await t.rejects(callDriver(away, { command: "sr_attach", srUuid: SR }), {
      code: 47,
      text: /systemctl status weft-agent/,
    });
  },
);

await t.test("driver: an agent that does not answer, or half, doesn't hold XAPI", async (t) => {
  const { directory } = await startBareDriver(t);
  const executable = await stubFor(directory, directory);
  const server = createServer((socket) => {
    socket.once("data", () => socket.end("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n<methodResponse>"));
  });
  server.listen(join(directory, "agent.sock"));
  await once(server, "listening");
  t.teardown(() => server.close());
  await t.rejects(callDriver(executable, { command: "sr_scan", srUuid: SR }), { code: 47, text: /cut off/ });
});

await t.test(
  "driver: an agent that is just being started is waited for, since nothing was asked yet",
  async (t) => {
    const { directory } = await startBareDriver(t);
    const runDir = join(directory, "later");
    await mkdir(runDir);
    const asked = callDriver(await stubFor(runDir, directory), { command: "sr_content_type", srUuid: SR });
    // The stub has tried and failed by now: its process takes less than this to its first try.
    const answer = renderAnswer("user");
    const server = createServer((socket) => {
      socket.once("data", () =>
        socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${Buffer.byteLength(answer)}\r\n\r\n${answer}`),
      );
    });
    await new Promise((resolve) => setTimeout(resolve, 300));
    server.listen(join(runDir, "agent.sock"));
    await once(server, "listening");
    t.teardown(() => server.close());
    t.equal(await asked, "user");
  },
);

await t.test(
  "driver: an agent that ends while it composes a disk is asked again, for no other command",
  async (t) => {
    const { directory } = await startBareDriver(t);
    const answer = renderAnswer(null);
    let asked = 0;
    const server = createServer((socket) => {
      asked += 1;
      const isCut = asked % 3 !== 0;
      socket.once("data", () =>
        socket.end(
          isCut ? "" : `HTTP/1.1 200 OK\r\ncontent-length: ${Buffer.byteLength(answer)}\r\n\r\n${answer}`,
        ),
      );
    });
    server.listen(join(directory, "agent.sock"));
    await once(server, "listening");
    t.teardown(() => server.close());
    const call = { command: "vdi_compose", srUuid: SR };
    t.equal(await callDriver(await stubFor(directory, directory, { AGAIN_S: 0.05 }), call), null);
    t.equal(asked, 3);
    await t.rejects(callDriver(await stubFor(directory, directory), { ...call, command: "vdi_revert" }), {
      code: 47,
    });
    t.equal(asked, 4);
    const away = await stubFor(join(directory, "nothing"), directory, { PATIENCE_S: 0.05, AWAY_S: 0.2 });
    await t.rejects(callDriver(away, call), { code: 47, text: /systemctl status weft-agent/ });
  },
);

await t.test("driver: a host that starts all its VMs at once is answered for every disk", async (t) => {
  const { executable } = await startBareDriver(t);
  const calls = Array.from({ length: 70 }, () =>
    callDriver(executable, { command: "sr_attach", srRef: "r", srUuid: SR }),
  );
  const ends = await Promise.allSettled(calls);
  // What it says is that there is no weftd: the agent was reached by each of them, and by what each of them asks of it.
  const words = new Set(
    ends.map((end) => (end.status === "fulfilled" ? "done" : String(end.reason).slice(0, 50))),
  );
  t.strictSame(words.size, 1);
  t.match(Array.from(words)[0], /weftd, the data daemon/);
});

await t.test(
  "driver: an agent that says nothing at all holds nobody longer than the stub's limit",
  async (t) => {
    const { directory } = await startBareDriver(t);
    const server = createServer(() => undefined);
    server.listen(join(directory, "agent.sock"));
    await once(server, "listening");
    t.teardown(() => server.close());
    const text = readFileSync(join(repository, "packaging/sm/WeftSR"), "utf8");
    const limit = Number(/^SHARED_S = ([0-9.]+)$/m.exec(text)?.[1]);
    t.ok(limit < 10, `sr_attach ends after ${limit} s`);
    const executable = await stubFor(directory, directory, { SHARED_S: 0.3 });
    for (const command of ["sr_attach", "sr_detach", "sr_probe"]) {
      const begun = performance.now();
      await t.rejects(callDriver(executable, { command, srUuid: SR }), {
        code: 47,
        text: /no answer in time/,
      });
      t.ok(performance.now() - begun < 5000, command);
    }
  },
);

await t.test("driver: the stub runs under XAPI's observer, which loads it with runpy", async (t) => {
  const { executable } = await startBareDriver(t);
  const request = requestOf({ command: "sr_content_type", srUuid: SR });
  const observer =
    "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')";
  const { stdout } = await promisify(execFile)("/usr/bin/python3", ["-c", observer, executable, request]);
  t.strictSame(readReply(stdout), { kind: "value", value: "user" });
});

await t.test("driver: the stubs are Python 3.6's, which dom0 has", async (t) => {
  const stubs = ["packaging/sm/WeftSR", "packaging/smapiv3/volume/org.xen.xapi.storage.weft3/plugin"];
  const check =
    "import ast, sys; [ast.parse(open(path).read(), path, feature_version=(3, 6)) for path in sys.argv[1:]]";
  const paths = stubs.map((path) => join(repository, path));
  await t.resolves(promisify(execFile)("/usr/bin/python3", ["-c", check, ...paths]));
});

const bad: readonly (readonly [title: string, argument: string, code: number, text: RegExp])[] = [
  ["no XML", "x", 143, /no call in XML-RPC/],
  ["a call that is cut off", requestOf({ command: "sr_scan", srUuid: SR }).slice(0, -30), 143, /XML-RPC/],
  ["an unknown method", requestOf({ command: "sr_explode" }), 143, /no command sr_explode/],
  ["the method of an object", requestOf({ command: "constructor" }), 143, /no command constructor/],
  [
    "two methods in one",
    requestOf({ command: "sr_scan" }).replace("<methodName>sr_scan", "<methodName>sr_attach"),
    143,
    /named sr_attach and asks for sr_scan/,
  ],
  ["an answer", "<methodResponse><params/></methodResponse>", 143, /stands where/],
  [
    "members of a wrong kind",
    requestOf({ command: "sr_scan" }).replace("<name>args", "<name>session_ref"),
    143,
    /session_ref is no text/,
  ],
];

await t.test("driver: bad requests are faults that say what is wrong, with exit code 0", async (t) => {
  const { executable } = await startBareDriver(t);
  for (const [title, argument, code, text] of bad) {
    const run = await runDriver(executable, argument);
    t.equal(run.exitCode, 0, title);
    const reply = readReply(run.stdout);
    t.match(reply, { kind: "fault", code, text }, title);
  }
  const huge = `${requestOf({ command: "sr_scan" })}${" ".repeat(100_000)}`;
  t.match(readReply((await runDriver(executable, huge)).stdout), { kind: "fault" });
});

await t.test(
  "driver: what it does is in the audit, one line a call, and what changes nothing is not",
  async (t) => {
    const { executable, runDir } = await startBareDriver(t);
    await callDriver(executable, { command: "sr_content_type", srUuid: SR });
    await t.rejects(callDriver(executable, { command: "vdi_explode", srUuid: SR }), { code: 143 });
    const agent = new AgentClient({ socketPath: join(runDir, "agent.sock") });
    const { lines } = await agent.audit({
      host: null,
      since: null,
      volume: null,
      who: null,
      refused: null,
      limit: null,
    });
    const ours = lines.filter(({ what }) => what === "POST /v1/sm");
    t.match(ours, [
      {
        event: "end",
        who: { kind: "root" },
        target: { command: "vdi_explode", sr: SR },
        outcome: "fault 143",
      },
    ]);
  },
);

await t.test(
  "driver: a command that hangs ends by the driver's clock, one that throws is fault 1200",
  async (t) => {
    const hangs = driverWith({
      sr_attach: () => new Promise(() => undefined),
      sr_detach: async () => {
        throw new TypeError("x is not a function");
      },
      sr_delete: async () => {
        throw new SmFault(39, "The SR has VDIs.", "delete them");
      },
    });
    const gone = new AbortController();
    const waits = hangs.handle(requestOf({ command: "sr_attach", srUuid: SR }), gone.signal);
    gone.abort();
    t.match(readReply((await waits).xml), { kind: "fault", code: 201, text: /was not done within 9 s/ });
    const bug = await hangs.handle(requestOf({ command: "sr_detach" }), nobody);
    t.match(readReply(bug.xml), { kind: "fault", code: 1200, text: /believed impossible/ });
    const refused = await hangs.handle(requestOf({ command: "sr_delete" }), nobody);
    t.match(readReply(refused.xml), {
      kind: "fault",
      code: 39,
      text: "The SR has VDIs. [opterr=delete them]",
    });
  },
);

await t.test(
  "driver: XAPI that does not answer, refuses, or whose session has ended is a fault that says so",
  async (t) => {
    const { directory } = await startBareDriver(t);
    const xapi = await startXapi(join(directory, "xapi"));
    t.teardown(() => xapi.close());
    const srRef = xapi.addSr(SR);
    const newUuid = (): string => SR;
    const driver = new Driver(
      {
        agentSocket: "/nowhere",
        xapiSocket: xapi.socketPath,
        datapath: () => noDatapath,
        newUuid,
        log: quiet,
      },
      { sr_scan: async ({ xapi }) => xapi.text("SR.get_by_uuid", SR) },
    );
    const sessionRef = xapi.openSession(srRef);
    const asked = requestOf({ command: "sr_scan", sessionRef, subtaskOf: "OpaqueRef:task" });
    t.match(readReply((await driver.handle(asked, nobody)).xml), { kind: "value", value: srRef });
    t.match(xapi.requests, [{ method: "SR.get_by_uuid", subtaskOf: "OpaqueRef:task" }]);

    xapi.closeSession(sessionRef);
    t.match(readReply((await driver.handle(asked, nobody)).xml), {
      kind: "fault",
      code: 153,
      text: /SESSION_INVALID/,
    });
    t.match(readReply((await driver.handle(requestOf({ command: "sr_scan" }), nobody)).xml), {
      code: 143,
      text: /session_ref/,
    });
    xapi.intercept = async () => {
      throw new Error("cut");
    };
    t.match(readReply((await driver.handle(asked, nobody)).xml), {
      kind: "fault",
      code: 153,
      text: /did not answer/,
    });
    await xapi.close();
    t.match(readReply((await driver.handle(asked, nobody)).xml), {
      kind: "fault",
      code: 153,
      text: /did not answer/,
    });
  },
);

await t.test("driver: XAPI asks in its own order, and the tests' XAPI in no other", async (t) => {
  const { directory, executable } = await startBareDriver(t);
  const xapi = await startXapi(join(directory, "xapi"));
  t.teardown(() => xapi.close());
  const [host] = xapi.hosts;
  if (host === undefined) throw new Error("the pool has a host");
  const sr = { xapi, host, executable, srRef: xapi.addSr(SR), srUuid: SR };
  t.equal(await callSm(sr, { command: "sr_content_type" }), "user");
  await t.rejects(
    callSm(sr, { command: "vdi_activate", args: ["true"], vdiUuid: SR }),
    /does not ask for vdi_activate/,
  );
});

await t.test("driver: the strict client refuses what XAPI refuses", async (t) => {
  const run = (stdout: string, exitCode = 0, stderr = "") => ({ stdout, stderr, exitCode, ms: 0 });
  const answer = (value: string): string =>
    `<methodResponse><params><param>${value}</param></params></methodResponse>`;
  t.equal(replyOf("sr_scan", run(answer("<value><nil/></value>"))), null);
  t.throws(() => replyOf("sr_scan", run(answer("<value/>"))), /answers nil/);
  t.throws(() => replyOf("sr_scan", run(answer("<value><nil/></value>"), 1)), /non-zero/);
  t.throws(() => replyOf("sr_scan", run(`junk${answer("<value><nil/></value>")}`)), /is wanted/);
  t.throws(() => replyOf("sr_scan", run(answer("<value><nil/></value>"), 0, "a warning")), /standard error/);
  const vdi =
    "<value><struct><member><name>uuid</name><value>a</value></member><member><name>location</name><value><int>1</int></value></member></struct></value>";
  t.throws(() => replyOf("vdi_create", run(answer(vdi))), /texts/);
});
