/**
 * Plot: a cluster of three hosts is made and used, rightly and wrongly, and everything that it writes, says, stores and
 * shows of its processes meanwhile is searched for the secrets that went through it: tokens, a passphrase, private keys.
 *
 * Where a secret has to stand it is not looked for: STATE/identity and STATE/authority, the answer that shows a token
 * once, the files that a person carries a secret in.
 */
import { createPrivateKey, randomBytes, X509Certificate } from "node:crypto";
import {
  appendFileSync,
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import t from "tap";
import { z } from "zod";

import { Cluster } from "../../scripts/cluster/cluster.ts";
import type { CommandResult, Host } from "../../scripts/cluster/host.ts";
import { namespaceOf, pidsInNetwork } from "../../scripts/cluster/processes.ts";
import { until } from "../../scripts/lib/until.ts";
import { parseApiToken } from "../../src/core/model/api-token-text.ts";
import { decodeJoinToken } from "../../src/core/model/token-code.ts";
import { IdentityFiles } from "../../src/core/wire/identity-files.ts";
import { hits, ofBytes, ofText } from "./secrets.ts";
import type { Canary, Source } from "./secrets.ts";

/** Of a host's state: there to hold keys. */
const KEY_DIRECTORIES: readonly string[] = ["identity", "authority"];

/** What people see who may see it: each is also asked for as JSON. */
const looks: readonly (readonly string[])[] = [
  ["status"],
  ["host", "list"],
  ["pool", "list"],
  ["volume", "list"],
  ["volume", "show", "v"],
  ["why", "v"],
  ["trash", "list"],
  ["token", "list"],
  ["api-token", "list"],
  ["ca", "show"],
  ["audit"],
  ["audit", "verify"],
  ["context", "list"],
  ["context", "show"],
  ["metrics"],
];

class Stage {
  readonly cluster: Cluster;
  readonly canaries: Canary[] = [];
  readonly said: Source[] = [];
  readonly #dir: string;
  readonly #config: string;

  constructor(cluster: Cluster, dir: string) {
    this.cluster = cluster;
    this.#dir = dir;
    this.#config = join(dir, "contexts.json");
  }

  /** A file that a person keeps a secret in. */
  file(name: string, secret: string): string {
    const path = join(this.#dir, name);
    writeFileSync(path, secret, { mode: 0o600 });
    return path;
  }

  get config(): string {
    return this.#config;
  }

  /** Runs `weft`, and keeps what it said. */
  async weft(host: Host, ...args: readonly string[]): Promise<CommandResult> {
    const answer = await this.#run(host, args);
    const line = `${host.name}: weft ${args.join(" ")}`;
    this.said.push({ name: `${line} (stdout)`, bytes: Buffer.from(answer.stdout) });
    this.said.push({ name: `${line} (stderr)`, bytes: Buffer.from(answer.stderr) });
    return answer;
  }

  async shell(host: Host, line: string): Promise<void> {
    const { exitCode, stdout, stderr } = await this.#exec(host, ["sh", "-c", line]);
    this.said.push({ name: `${host.name}: ${line}`, bytes: Buffer.from(stdout + stderr) });
    if (exitCode !== 0) throw new Error(`${line}: status ${exitCode ?? "none"}: ${stderr}`);
  }

  async works(host: Host, ...args: readonly string[]): Promise<void> {
    const { exitCode, stderr } = await this.weft(host, ...args);
    if (exitCode !== 0) throw new Error(`weft ${args.join(" ")}: status ${exitCode ?? "none"}: ${stderr}`);
  }

  /** For people and for programs. */
  async refused(host: Host, ...args: readonly string[]): Promise<void> {
    for (const more of [[], ["--json"]]) {
      const { exitCode, stderr } = await this.weft(host, ...args, ...more);
      if (exitCode === 0 || !/E-[A-Z]+-\d\d/.test(stderr))
        throw new Error(`weft ${args.join(" ")}: status ${exitCode ?? "none"}, no error: ${stderr}`);
    }
  }

  /** The one answer that shows a token. */
  async token(host: Host, ...args: readonly string[]): Promise<string> {
    const { exitCode, stdout, stderr } = await this.#run(host, [...args, "--quiet"]);
    if (exitCode !== 0) throw new Error(`weft ${args.join(" ")}: ${stderr}`);
    return stdout.trim();
  }

  async joinToken(by: Host, name: string): Promise<string> {
    const text = await this.token(by, "token", "create", "--name", name);
    const decoded = decodeJoinToken(text);
    if (decoded.kind === "refused") throw new Error("a token of ours");
    const { fingerprint16, id4, secret12 } = decoded.value;
    // What stands behind version, authority and id: the secret's part of the text, whole characters of it only.
    const shown = text.replaceAll("-", "");
    const at = Math.ceil(((1 + fingerprint16.length + id4.length) * 8) / 5);
    const length = Math.floor((secret12.reveal().length * 8) / 5) - 1;
    this.canaries.push(ofText(`the join token of ${name}`, shown.slice(at, at + length)));
    this.canaries.push(ofBytes(`the secret of the join token of ${name}`, secret12.reveal()));
    return text;
  }

  async apiToken(by: Host, name: string, role: string): Promise<string> {
    const text = await this.token(by, "api-token", "create", name, "--role", role);
    const secret = parseApiToken(text)?.secret.reveal();
    if (secret === undefined) throw new Error("a token of ours");
    this.canaries.push(ofText(`the API token ${name}`, secret));
    this.canaries.push(ofBytes(`the secret of the API token ${name}`, Buffer.from(secret, "base64url")));
    return text;
  }

  /** The numbers that the private keys of a host are. */
  async keysOf(host: Host): Promise<void> {
    const files = new IdentityFiles(host.stateDir);
    const own = await files.readHostKey();
    if (own !== null) this.#add(ofKey(`the key of ${host.name}`, own.reveal()));
    const { host: authorities, store } = await files.readAuthorities();
    for (const { kid, keyPem } of [...authorities, ...store])
      this.#add(ofKey(`the key of authority ${kid.slice(0, 8)} on ${host.name}`, keyPem.reveal()));
  }

  #add(canary: Canary): void {
    if (!this.canaries.some(({ name }) => name === canary.name)) this.canaries.push(canary);
  }

  #run(host: Host, args: readonly string[]): Promise<CommandResult> {
    return this.#exec(host, ["weft", ...args]);
  }

  async #exec(host: Host, command: readonly string[]): Promise<CommandResult> {
    const { result } = await host.exec(command, { env: { WEFT_CONFIG: this.#config } });
    return result;
  }
}

function ofKey(name: string, pem: string): Canary {
  const { d } = createPrivateKey(pem).export({ format: "jwk" });
  if (d === undefined) throw new Error("a private key has a number");
  return ofBytes(name, Buffer.from(d, "base64url"));
}

/** What anybody on the hosts sees of their processes, as long as it is asked for. */
class Watcher {
  readonly #seen = new Map<string, Set<string>>();
  readonly #pids: () => readonly number[];
  #stopped = false;
  #end: Promise<void> = Promise.resolve();

  constructor(pids: () => readonly number[]) {
    this.#pids = pids;
  }

  start(): void {
    this.#end = (async () => {
      while (!this.#stopped) {
        this.#look();
        await new Promise((next) => {
          setTimeout(next, 10);
        });
      }
    })();
  }

  async stop(): Promise<readonly Source[]> {
    this.#stopped = true;
    await this.#end;
    return Array.from(this.#seen, ([name, texts]) => ({
      name: `/proc/*/${name}`,
      bytes: Buffer.from(Array.from(texts).join("\n")),
    }));
  }

  #look(): void {
    for (const pid of this.#pids()) {
      for (const name of ["cmdline", "environ"] as const) {
        const texts = this.#seen.get(name) ?? new Set();
        this.#seen.set(name, texts);
        try {
          texts.add(readFileSync(`/proc/${pid}/${name}`, "latin1"));
        } catch {
          // It ended, or is another user's.
        }
      }
    }
  }
}

async function pidsOf(hosts: readonly Host[]): Promise<() => readonly number[]> {
  if (process.getuid?.() !== 0) return () => hosts.flatMap((host) => host.pidsByMark());
  const networks = await Promise.all(
    hosts.map(async (host) => namespaceOf((await host.running("weftd")) ?? 0, "net") ?? ""),
  );
  return () => networks.flatMap((network) => pidsInNetwork(network));
}

type Ask = { readonly method: string; readonly path: string; readonly body?: string };

/** What a program says that was written wrongly. */
function rest(host: Host, { method, path, body }: Ask): Promise<Source> {
  const name = `${host.name}: ${method} ${path.slice(0, 20)} … (answer)`;
  return new Promise((done, fail) => {
    const headers = { "content-type": "application/json" };
    const call = request({ socketPath: host.agentSocket, method, path, headers }, (answer) => {
      const parts: Buffer[] = [];
      answer.on("data", (part: Buffer) => parts.push(part));
      answer.on("end", () => done({ name, bytes: Buffer.concat(parts) }));
    });
    call.on("error", fail);
    call.end(body);
  });
}

const dump = z.object({ kvs: z.array(z.object({ key: z.string(), value: z.string().default("") })) });

async function storeOf(host: Host): Promise<Source> {
  const { kvs } = dump.parse(JSON.parse(await host.etcdctl(["get", "--prefix", "/", "-w", "json"])));
  if (kvs.length < 10) throw new Error("a store in use has more keys");
  const text = (base64: string): string => Buffer.from(base64, "base64").toString("latin1");
  const lines = kvs.map(({ key, value }) => `${text(key)} ${text(value)}`);
  return { name: "the store", bytes: Buffer.from(lines.join("\n"), "latin1") };
}

/** Every file below, but for those that are there to hold keys. */
function filesBelow(path: string, name: string): readonly Source[] {
  const stat = lstatSync(path);
  if (stat.isFile()) return [{ name, bytes: readFileSync(path) }];
  if (!stat.isDirectory()) return [];
  return readdirSync(path).flatMap((entry) => filesBelow(join(path, entry), `${name}/${entry}`));
}

function pathsBelow(path: string): readonly string[] {
  const below = lstatSync(path).isDirectory() ? readdirSync(path) : [];
  return [path, ...below.flatMap((entry) => pathsBelow(join(path, entry)))];
}

function stateOf(host: Host): readonly Source[] {
  return readdirSync(host.stateDir)
    .filter((name) => !KEY_DIRECTORIES.includes(name))
    .flatMap((name) => filesBelow(join(host.stateDir, name), `${host.name}: STATE/${name}`));
}

function logsOf(hosts: readonly Host[]): readonly Source[] {
  return hosts.flatMap((host) =>
    Object.entries(host.logs()).map(([name, text]) => ({
      name: `${host.name}: log/${name}`,
      bytes: Buffer.from(text),
    })),
  );
}

async function enters(stage: Stage, host: Host, tokenFile: string): Promise<readonly string[]> {
  const { address } = stage.cluster.host("h1").layout;
  return ["join", address, "--token-file", tokenFile, "--address", host.layout.address, "--name", host.name];
}

await t.test("secrets: none is in what is written, said, stored or shown", async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "weft-canaries-"));
  t.teardown(async () => {
    await Cluster.down(join(dir, "d"));
    rmSync(dir, { recursive: true, force: true });
  });
  const cluster = await Cluster.create({ dir: join(dir, "d"), pools: ["h1", "h2"] });
  const [h1, h2, h3] = [cluster.host("h1"), cluster.host("h2"), cluster.host("h3")];
  const { hosts } = cluster;
  await Promise.all(hosts.map((host) => host.start()));
  const people = join(dir, "people");
  mkdirSync(people);
  const stage = new Stage(cluster, people);
  const watcher = new Watcher(await pidsOf(hosts));
  t.teardown(() => watcher.stop());
  watcher.start();

  // Made, and joined by a token each; h3 tries everything wrong first.
  await stage.works(h1, "init", "--address", h1.layout.address, "--name", "h1");
  const second = stage.file("h2.token", await stage.joinToken(h1, "h2"));
  await stage.works(h2, ...(await enters(stage, h2, second)));
  const token = await stage.joinToken(h1, "h3");
  const third = stage.file("h3.token", token);
  const withdrawn = stage.file("withdrawn.token", await stage.joinToken(h1, "h4"));
  const [last] = z
    .array(z.object({ id: z.string(), name: z.string().nullable() }))
    .parse(await h1.json(["weft", "token", "list", "--json"]))
    .filter(({ name }) => name === "h4");
  await stage.works(h1, "token", "revoke", last?.id ?? "");
  const admin = await stage.apiToken(h1, "ops", "admin");
  const viewer = await stage.apiToken(h1, "eyes", "viewer");
  const adminFile = stage.file("ops.token", admin);
  const mistyped = token.replace(/.$/, (end) => (end === "0" ? "1" : "0"));
  for (const file of [
    second,
    withdrawn,
    adminFile,
    stage.file("mistyped", mistyped),
    stage.file("more", `${token} ${token}`),
  ])
    await stage.refused(h3, ...(await enters(stage, h3, file)));
  await stage.works(h3, ...(await enters(stage, h3, third)));
  await stage.refused(h3, ...(await enters(stage, h3, third)));

  // Used.
  for (const host of [h1, h2]) await stage.works(host, "pool", "add", host.poolDir);
  await stage.works(h3, "volume", "create", "v", "64MiB", "--copies", "2");
  await stage.works(h3, "attach", "v");

  // People on other machines.
  const url = `https://${h1.layout.address}:7400`;
  const { authorities } = await h1.agent().authorities();
  const fingerprint = authorities.find(({ kind }) => kind === "host")?.kid ?? "";
  const login = (file: string, by = fingerprint): readonly string[] => [
    "login",
    url,
    "--fingerprint",
    by,
    "--token-file",
    file,
  ];
  await stage.refused(h3, ...login(third));
  await stage.refused(h3, ...login(adminFile, "0".repeat(64)));
  const eyes = stage.file("eyes.token", viewer);
  await stage.works(h3, ...login(eyes), "--name", "eyes");
  await stage.works(h3, "volume", "list", "--context", "eyes");
  await stage.refused(h3, "volume", "create", "w", "64MiB", "--copies", "2", "--context", "eyes");
  await stage.refused(h3, "audit", "--context", "eyes");
  await stage.works(h3, ...login(adminFile), "--name", "ops");
  await stage.works(h3, "status", "--context", "ops");
  await stage.works(h3, "context", "use", "eyes");
  const piped = `weft login ${url} --fingerprint ${fingerprint} --name piped --token - <${eyes}`;
  await stage.shell(h3, piped);
  const header = stage.file("header", `Authorization: Bearer ${viewer}\n`);
  for (const path of ["metrics", "v1/audit", "v1/nowhere", "%00"])
    await stage.shell(h3, `curl -sk -i -H @${header} ${url}/${path}`);

  // The authority's keys under a passphrase.
  const passphrase = `canary ${randomBytes(12).toString("hex")}`;
  stage.canaries.push(ofText("the passphrase", passphrase));
  const phrase = ["--passphrase-file", stage.file("passphrase", `${passphrase}\n`)];
  const backup = join(people, "authority.backup");
  await stage.works(h1, "ca", "backup", backup, ...phrase);
  await stage.refused(h1, "ca", "backup", backup, ...phrase);
  await stage.refused(h1, "ca", "backup", join(people, "nowhere", "x"), ...phrase);
  await stage.refused(h1, "ca", "restore", second, ...phrase);
  await stage.works(h1, "ca", "restore", backup, ...phrase);
  const wrong = `wrong ${randomBytes(12).toString("hex")}`;
  stage.canaries.push(ofText("the wrong passphrase", wrong));
  const other = ["--passphrase-file", stage.file("other", wrong)];
  await stage.refused(h1, "ca", "restore", backup, ...other);
  stage.said.push(...filesBelow(backup, "the backup of the authority"));

  // Programs that were written wrongly: what they send is no JSON, of a wrong shape, or in the wrong place.
  const secrets = [passphrase, token, viewer];
  for (const secret of secrets) {
    const body = JSON.stringify({ passphrase: secret, token: secret, path: "relative", from: "" });
    for (const path of ["/v1/ca/backup", "/v1/ca/restore", "/v1/join", "/v1/tokens", "/v1/api-tokens"]) {
      for (const sent of [body, body.slice(0, -2), secret, `[${body}`, JSON.stringify([secret])])
        stage.said.push(await rest(h1, { method: "POST", path, body: sent }));
    }
  }
  const { length: answers } = stage.said.filter(({ name }) => name.includes("(answer)"));
  t.equal(answers, 75);

  for (const look of looks) {
    await stage.works(h1, ...look);
    await stage.works(h1, ...look, "--json");
  }
  await stage.refused(h1, "token", "revoke", "nothing");
  await stage.refused(h1, "api-token", "revoke", "nothing");
  await stage.refused(h1, "volume", "show", "nothing");
  chmodSync(stage.config, 0o644);
  await stage.refused(h3, "context", "list");
  chmodSync(stage.config, 0o600);
  await stage.works(h1, "api-token", "revoke", "eyes");
  await stage.refused(h3, "volume", "list", "--context", "eyes");
  await stage.works(h3, "detach", "v");
  appendFileSync(stage.config, "}");
  await stage.refused(h3, "context", "list");
  for (const host of hosts) stage.said.push(await rest(host, { method: "GET", path: "/metrics" }));
  for (const file of ["etcd.json", "host.json"])
    await stage.weft(h1, "debug", "check", join(h1.stateDir, file));

  // Another authority: its keys go to every member of the store.
  for (const host of hosts) await stage.keysOf(host);
  await stage.works(h1, "ca", "rotate", "--yes");
  await until(async () => ((await h1.agent().authorities()).rotation === null ? true : null), {
    what: "the end of the rotation",
    deadlineMs: 90_000,
    everyMs: 200,
  });
  for (const host of hosts) await stage.keysOf(host);
  const kinds = stage.canaries.map(({ name }) => name);
  for (const kind of [/join token/, /API token/, /passphrase/, /key of h3/, /key of authority .* on h1/])
    t.ok(
      kinds.some((name) => kind.test(name)),
      String(kind),
    );
  const processes = await watcher.stop();
  t.equal(processes.length, 2);
  t.ok(
    hits([ofText("an option", "--passphrase-file")], processes).length > 0,
    "commands were seen while they ran",
  );
  const sources = (): readonly Source[] => [
    ...stage.said,
    ...processes,
    ...logsOf(hosts),
    ...hosts.flatMap(stateOf),
  ];
  const store = await storeOf(h1);
  t.ok(
    sources().some(({ name }) => name.includes("STATE/audit/")),
    "the audit is among them",
  );
  t.same(hits(stage.canaries, [...sources(), store]), []);

  for (const host of hosts) {
    for (const path of KEY_DIRECTORIES.flatMap((name) => pathsBelow(join(host.stateDir, name))))
      t.equal(lstatSync(path).mode & 0o077, 0, `${path} is its owner's alone`);
  }

  // The search finds what it looks for, in a log as in everything else.
  const log = join(h1.layout.dir, "log", "agent.log");
  t.ok(existsSync(log));
  for (const secret of secrets) appendFileSync(log, `${JSON.stringify({ msg: `token ${secret}` })}\n`);
  const found = hits(stage.canaries, sources());
  t.same(
    found.toSorted(),
    ["the API token eyes", "the join token of h3", "the passphrase", "the secret of the API token eyes"].map(
      (name) => `${name} in h1: log/agent.log`,
    ),
  );
  const pem = readFileSync(join(h1.stateDir, "identity", "host.key"), "utf8");
  t.ok(new X509Certificate(readFileSync(join(h1.stateDir, "identity", "host.pem"))).subject !== "");
  t.same(hits(stage.canaries, [{ name: "a dump", bytes: Buffer.from(JSON.stringify({ pem })) }]), [
    "the key of h1 in a dump",
  ]);
});
