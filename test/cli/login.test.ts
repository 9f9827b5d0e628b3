/** Plot: a person on another machine logs in to a cluster, works with it by contexts, and leaves; with a real host behind. */
import { chmod, mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";

import t from "tap";

import { Console } from "../../src/cli/console.ts";
import { parseContexts, renderContexts } from "../../src/cli/context-file.ts";
import { runCommandLine } from "../../src/cli/program.ts";
import type { ApiTokenCreated } from "../../src/core/wire/agent-api.ts";
import { startHost, type TestHost } from "../core/agent/test-host.ts";
import { answer, FakeAgent, weft } from "./fake-agent.ts";

const silence = new AbortController().signal;

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

/** A machine of somebody's: nothing but a file of contexts. */
async function machine(t: Scope) {
  const home = await mkdtemp(join(tmpdir(), "weft-home-"));
  t.teardown(() => rm(home, { recursive: true, force: true }));
  const path = join(home, "weft", "contexts.json");
  const run = (...args: readonly string[]) => weft(args, silence, { XDG_CONFIG_HOME: home });
  return { home, path, run };
}

async function cluster(t: Scope, n: number, made: Parameters<TestHost["client"]["createApiToken"]>[0]) {
  const host = await startHost(t, n);
  await host.client.init({ name: "h1", address: host.address, clusterName: "lab" });
  const token = await host.client.createApiToken(made);
  return { host, token };
}

async function login(
  run: (...args: readonly string[]) => ReturnType<typeof weft>,
  host: TestHost,
  token: ApiTokenCreated,
  ...more: readonly string[]
): ReturnType<typeof weft> {
  const pinned = ["--fingerprint", token.authority, "--token", token.token];
  return run("login", `https://${host.address}:7400`, ...pinned, ...more);
}

void t.test("weft login: from then on commands go to the cluster, as what the token may do", async (t) => {
  const { host, token } = await cluster(t, 151, { name: "ci", role: "viewer" });
  const { path, run } = await machine(t);
  t.match(await login(run, host, token), {
    out: 'Logged in to "lab" as ci (viewer). Context "lab" is in use.\n',
  });
  t.equal((await stat(path)).mode & 0o777, 0o600);
  t.match(await run("pool", "list"), { code: 0 });
  t.match(await run("volume", "create", "db", "1GiB"), {
    code: 1,
    err: /^E-AUTH-02 .*takes the role operator/,
  });
  t.match(await run("--context", "local", "status"), { code: 4, err: /^E-AGENT-01/ });
  t.match(await run("--context", "other", "status"), { code: 1, err: /^E-CTX-01 .*"other"/ });
  t.match(
    await run("init", "--address", host.address),
    { code: 4, err: /agent\.sock/ },
    "is about this host",
  );

  const shown = await run("context", "show");
  t.match(
    shown.out,
    new RegExp(`^lab\n  host       https://${host.address}:7400\n  authority  ${token.authority}\n$`),
  );
  t.match(await run("context", "list"), { out: /lab \(in use\)  https:/ });
  await login(run, host, token, "--name", "second");
  t.match(await run("context", "use", "lab"), { code: 0 });
  t.match(await run("context", "list", "-q"), { out: "lab\nsecond\n" });
  t.match(await run("context", "remove", "lab"), { code: 0 });
  t.match(await run("pool", "list"), { code: 4, err: /agent\.sock/ }, "none is in use");
  t.match(await run("context", "use", "local"), { out: "Commands go to this host's own agent.\n" });
  t.match(await run("context", "use", "nothing"), { code: 1, err: /^E-CTX-01/ });
  const secret = token.token.split(".")[2] ?? "";
  for (const args of [
    ["context", "list", "--json"],
    ["context", "show", "second", "--json"],
  ])
    t.notOk((await run(...args)).out.includes(secret));
});

void t.test("weft login: the authority is compared before the token leaves", async (t) => {
  const { host, token } = await cluster(t, 152, { name: "ci", role: "viewer" });
  const { path, run } = await machine(t);
  const url = `https://${host.address}`;
  const other = await run("login", url, "--fingerprint", "0".repeat(64), "--token", token.token);
  t.match(other, { code: 2, err: /^E-CTX-02 .*not 0000 0000/ });
  // Nobody is there to say that it is the right one.
  const unasked = await run("login", url, "--token", token.token);
  t.match(unasked, { code: 1, err: /^E-ARG-04/ });
  t.ok(unasked.err.replaceAll(/\s/g, "").includes(token.authority), "it is shown whole");
  t.match(await run("login", url, "--token", "hunter2"), { code: 1 });
  const pinned = ["--fingerprint", token.authority];
  const password = await run("login", url, ...pinned, "--token", "hunter2");
  t.match(password, { code: 1, err: /^E-ARG-02/ });
  t.notMatch(password.err, /hunter2/);
  t.match(await run("login", "ftp://h1", ...pinned), { code: 1, err: /^E-ARG-02/ });
  t.match(await run("login", url, "--fingerprint", "abc"), { code: 1, err: /^E-ARG-02/ });
  const wrong = token.token.replace(/.$/, (last) => (last === "A" ? "B" : "A"));
  t.match(await run("login", url, ...pinned, "--token", wrong), { code: 1, err: /^E-AUTH-01/ });
  await t.rejects(stat(path), { code: "ENOENT" });

  // At a terminal: yes, and the token without echo.
  const [stdin, stdout, stderr] = [
    Object.assign(new PassThrough(), { isTTY: true }),
    new PassThrough(),
    Object.assign(new PassThrough(), { isTTY: true }),
  ];
  let asked = "";
  stderr.setEncoding("utf8").on("data", (text: string) => {
    asked += text;
    if (text.includes("[y/N]")) stdin.write("y\n");
    if (text.includes("Token")) setImmediate(() => stdin.write(`${token.token}\r`));
  });
  const environment = { WEFT_CONFIG: path };
  const code = await runCommandLine(["login", url, "--name", "mine"], {
    console: new Console({ stdin, stdout, stderr }, environment),
    environment,
    interruption: () => silence,
    protect: () => null,
  });
  t.equal(code, 0);
  t.notOk(asked.includes(token.token));
  t.match(parseContexts(await readFile(path, "utf8")), { current: "mine" });
});

void t.test("contexts: a file that others may read, or that is damaged, is not used", async (t) => {
  const { path, home, run } = await machine(t);
  await using agent = await FakeAgent.start({ "GET /v1/pools": answer([]) });
  const contexts = {
    current: "lab",
    contexts: {
      lab: {
        url: "https://10.0.0.1:7400",
        fingerprint: "0".repeat(64),
        token: `wft1.a81c04fe.${"x".repeat(43)}`,
      },
    },
  };
  const good = JSON.stringify(contexts);
  t.match(await run("context", "list"), { code: 0, out: /^No contexts/ });
  await mkdir(join(home, "weft"));
  await writeFile(path, good);
  for (const mode of [0o644, 0o640, 0o660, 0o602]) {
    await chmod(path, mode);
    t.match(await run("pool", "list"), { code: 2, err: /^E-CTX-03/ }, mode.toString(8));
  }
  await chmod(path, 0o600);
  t.match(await run("context", "list", "-q"), { out: "lab\n" });
  for (const bad of [
    "",
    "{}",
    good.slice(1),
    good.replace('"current":"lab"', '"current":"gone"'),
    good.replace("https://10.0.0.1:7400", "https://10.0.0.1/path"),
    good.replace('"lab":{', '"local":{').replace('"current":"lab"', '"current":"local"'),
    good.replace("wft1", "wft2"),
    good.replace("0000", "00"),
  ]) {
    await writeFile(path, bad);
    t.match(await run("pool", "list"), { code: 2, err: /^E-CTX-03/ }, bad);
    t.match(await run("context", "use", "local"), { code: 2 }, "and is not written over");
    t.equal(await readFile(path, "utf8"), bad);
  }
  // Where the sockets are named, this host is meant, and the file is not looked at.
  t.match(await agent.weft(["pool", "list"]), { code: 0 });
  t.equal(
    renderContexts(parseContexts(good) ?? { current: null, all: [] }),
    `${JSON.stringify(contexts, null, 2)}\n`,
  );
});

void t.test("weft api-token: is made with a role, shown once, listed and taken back", async (t) => {
  const made = {
    id: "a81c04fe",
    name: "ci",
    role: "operator",
    token: `wft1.a81c04fe.${"x".repeat(43)}`,
    expiresAt: "2027-02-20T00:00:00.000Z",
    address: "10.0.9.11",
    authority: "3f9c".repeat(16),
  };
  await using agent = await FakeAgent.start({
    "POST /v1/api-tokens": made,
    "GET /v1/api-tokens": [],
    "DELETE /v1/api-tokens/ci": {},
  });
  const shown = await agent.weft([
    "api-token",
    "create",
    "ci",
    "--role",
    "operator",
    "--for",
    "90d",
    "--volume",
    "db",
    "--volume",
    "web",
  ]);
  t.match(agent.asked, [
    `POST /v1/api-tokens {"name":"ci","role":"operator","volumes":["db","web"],"forMs":${90 * 86_400_000}}`,
  ]);
  t.match(shown.out, /^wft1\.a81c04fe\.x{43}\nValid until .*Shown once/);
  t.match(shown.out, new RegExp(`weft login https://10\\.0\\.9\\.11:7400 --fingerprint ${made.authority}`));
  t.equal((await agent.weft(["api-token", "create", "ci", "--role", "viewer", "-q"])).out, `${made.token}\n`);
  t.match(await agent.weft(["api-token", "create", "ci"]), { code: 1, err: /^E-ARG-03/ });
  t.match(await agent.weft(["api-token", "create", "ci", "--role", "king"]), { code: 1, err: /^E-ARG-02/ });
  t.match(await agent.weft(["api-token", "create", "C I", "--role", "viewer"]), {
    code: 1,
    err: /^E-ARG-02/,
  });
  t.match(await agent.weft(["api-token", "list"]), { out: /^No API tokens/ });
  t.match(await agent.weft(["api-token", "revoke", "ci"]), { out: "Token ci can't be used any more.\n" });
});
