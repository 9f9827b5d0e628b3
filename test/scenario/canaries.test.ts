/**
 * Plot: a cluster with secrets whose text we know: keys, a join token, API tokens, a passphrase. They are used rightly and
 * wrongly, by every command that takes one. Then everything that anybody but their owner may see is searched for them: what
 * commands wrote, logs, the audit, the store, the state directories, figures, and what /proc shows of every process.
 */
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import t from "tap";
import type { z } from "zod";

import { Cluster } from "../../scripts/cluster/cluster.ts";
import type { CommandResult, Host } from "../../scripts/cluster/host.ts";
import { decodeJoinToken } from "../../src/core/model/token-code.ts";
import { apiTokenCreated, tokenCreated } from "../../src/core/wire/agent-api.ts";

/** Directories of a host's state that exist to hold keys; their modes keep others out. */
const KEYS = ["identity", "authority"];

type Secret = { readonly name: string; readonly forms: readonly Buffer[] };
type Place = { readonly name: string; readonly bytes: Buffer };

/** As it is, and in the ways in which bytes are written as text. */
function secretOf(name: string, value: string | Uint8Array): Secret {
  const bytes = Buffer.from(value);
  const texts = [bytes.toString("base64").replace(/=+$/, ""), bytes.toString("hex")];
  const own = typeof value === "string" ? [bytes] : [];
  return { name, forms: [...own, ...texts.map((text) => Buffer.from(text))] };
}

function found(secrets: readonly Secret[], places: readonly Place[]): readonly string[] {
  return places.flatMap((place) =>
    secrets
      .filter(({ forms }) => forms.some((form) => place.bytes.includes(form)))
      .map((secret) => `${secret.name} in ${place.name}`),
  );
}

/** What any user of the machine may read of others' processes, and what root reads besides. */
class Watched {
  readonly #seen = new Map<string, string>();
  readonly #timer = setInterval(() => this.#look(), 30);

  end(): readonly Place[] {
    clearInterval(this.#timer);
    return Array.from(this.#seen, ([text, name]) => ({ name, bytes: Buffer.from(text, "latin1") }));
  }

  #look(): void {
    for (const pid of readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name))) {
      for (const file of ["cmdline", "environ"]) {
        try {
          const text = readFileSync(`/proc/${pid}/${file}`, "latin1");
          if (!this.#seen.has(text)) this.#seen.set(text, `${file} of ${pid}`);
        } catch {
          // It has ended, or is not ours to look at.
        }
      }
    }
  }
}

function filesBelow(directory: string, except: readonly string[] = []): readonly Place[] {
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) return except.includes(entry.name) ? [] : filesBelow(path);
    return entry.isFile() ? [{ name: path, bytes: readFileSync(path) }] : [];
  });
}

/** The lines of base64 of every private key below. */
function keysBelow(directory: string): readonly Secret[] {
  return filesBelow(directory).flatMap(({ name, bytes }) =>
    Array.from(bytes.toString("latin1").matchAll(/-----BEGIN PRIVATE KEY-----\n([^-]+)-----END/g)).flatMap(
      ([, body = ""]) =>
        body
          .trim()
          .split("\n")
          // The first line begins like every key of its kind.
          .slice(1)
          .map((line) => ({ name: `a line of ${name}`, forms: [Buffer.from(line)] })),
    ),
  );
}

function metrics(host: Host): Promise<Buffer> {
  return new Promise((done, fail) => {
    const call = request({ socketPath: host.agentSocket, path: "/metrics" }, (answer) => {
      const parts: Buffer[] = [];
      answer.on("data", (part: Buffer) => parts.push(part));
      answer.on("end", () => done(Buffer.concat(parts)));
    });
    call.on("error", fail);
    call.end();
  });
}

await t.test("canaries: no secret shows up where others may look, whatever is done with it", async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "weft-canary-"));
  const watched = new Watched();
  t.teardown(async () => {
    watched.end();
    await Cluster.down(dir);
    rmSync(dir, { recursive: true, force: true });
  });
  const cluster = await Cluster.up({ dir, hosts: 2 });
  const [h1, h2] = [cluster.host("h1"), cluster.host("h2")];
  const said: Place[] = [];
  const run = async (host: Host, command: readonly string[], env = {}): Promise<CommandResult> => {
    const { result } = await host.exec(command, { env });
    const ended = await result;
    said.push({ name: command.join(" "), bytes: Buffer.from(`${ended.stdout}\n${ended.stderr}`) });
    return ended;
  };
  /** A file that only its reader may read. */
  const kept = (name: string, text: string): string => {
    const path = join(dir, name);
    writeFileSync(path, text, { mode: 0o600 });
    chmodSync(path, 0o600);
    return path;
  };

  // Made, each shown this once.
  const joining = tokenCreated.parse(await h1.json(["weft", "token", "create", "--json"]));
  const decoded = decodeJoinToken(joining.token);
  if (decoded.kind === "refused") throw new Error(decoded.finding.message);
  const makeApi = async (name: string, role: string): Promise<z.output<typeof apiTokenCreated>> =>
    apiTokenCreated.parse(await h1.json(["weft", "api-token", "create", name, "--role", role, "--json"]));
  const admin = await makeApi("boss", "admin");
  const viewer = await makeApi("eye", "viewer");
  const passphrase = "correct-horse-battery-canary";
  const wrongPassphrase = "incorrect-horse-battery-canary";
  const [joinFile, adminFile, viewerFile] = [
    kept("join", joining.token),
    kept("admin", admin.token),
    kept("viewer", viewer.token),
  ];
  const [right, wrong] = [kept("right", passphrase), kept("wrong", wrongPassphrase)];

  // Used, rightly and wrongly.
  const contexts = { WEFT_CONFIG: join(dir, "contexts.json"), WEFT_CONTEXT: "c" };
  const url = `https://${h1.layout.address}:7400`;
  const pinned = ["--fingerprint", admin.authority, "--name", "c"];
  const login = (...rest: readonly string[]): Promise<CommandResult> =>
    run(h2, ["weft", "login", url, ...rest], contexts);
  t.equal((await login("--token-file", adminFile, ...pinned)).exitCode, 0);
  t.equal((await run(h2, ["weft", "status"], contexts)).exitCode, 0);
  t.equal(
    (await run(h2, ["weft", "volume", "create", "db", "16MiB", "--copies", "2"], contexts)).exitCode,
    0,
  );
  t.equal((await run(h2, ["weft", "context", "show", "--json"], contexts)).exitCode, 0);
  t.equal((await login("--token-file", viewerFile, ...pinned)).exitCode, 0);
  t.equal((await run(h2, ["weft", "volume", "delete", "db", "-y"], contexts)).exitCode, 1);
  t.equal((await login("--token-file", adminFile, "--fingerprint", "0".repeat(64))).exitCode, 2);
  t.equal((await login("--token-file", joinFile, ...pinned)).exitCode, 1);
  t.equal((await login("--token-file", right, ...pinned)).exitCode, 1);
  const pipe = ["sh", "-c", `weft login ${url} ${pinned.join(" ")} --token - <${viewerFile}`];
  t.equal((await run(h2, pipe, contexts)).exitCode, 0);
  const joins = ["weft", "join", h1.layout.address, "--address", h2.layout.address, "--token-file"];
  t.not((await run(h2, [...joins, joinFile])).exitCode, 0, "it is in the cluster already");
  t.not((await run(h2, [...joins, adminFile])).exitCode, 0, "no join token");
  const backup = join(dir, "authority.backup");
  t.equal((await run(h1, ["weft", "ca", "backup", backup, "--passphrase-file", right])).exitCode, 0);
  t.not((await run(h1, ["weft", "ca", "restore", backup, "--passphrase-file", wrong])).exitCode, 0);
  t.equal((await run(h1, ["weft", "api-token", "revoke", "boss"])).exitCode, 0);
  await run(h2, ["weft", "--context", "c", "status"], contexts);
  for (const command of [["status"], ["token", "list"], ["api-token", "list"], ["audit"], ["ca", "show"]])
    for (const format of [[], ["--json"]]) await run(h1, ["weft", ...command, ...format]);
  for (const file of ["etcd.json", "host.json"])
    await run(h1, ["weft", "debug", "check", join(h1.stateDir, file)]);

  // Searched for.
  const hosts = [h1, h2];
  const secrets = [
    ...hosts.flatMap(({ stateDir }) => KEYS.flatMap((name) => keysOf(join(stateDir, name)))),
    secretOf("the join token", joining.token),
    secretOf("the join token without hyphens", joining.token.replaceAll("-", "")),
    secretOf("the join token's secret", decoded.value.secret12.reveal()),
    ...[admin, viewer].flatMap(({ name, token }) => [
      secretOf(`the token of ${name}`, token),
      secretOf(`the secret of ${name}`, token.split(".")[2] ?? ""),
    ]),
    secretOf("the passphrase", passphrase),
    secretOf("the wrong passphrase", wrongPassphrase),
  ];
  t.ok(secrets.length > 12, `${secrets.length} secrets`);
  const places = [
    ...said,
    ...watched.end(),
    { name: "the store", bytes: Buffer.from(await h1.etcdctl(["get", "", "--from-key"])) },
    ...(await Promise.all(
      hosts.map(async (host) => ({ name: `figures of ${host.name}`, bytes: await metrics(host) })),
    )),
    ...hosts.flatMap(({ layout, stateDir }) => [
      ...filesBelow(join(layout.dir, "log")),
      ...filesBelow(stateDir, KEYS),
    ]),
    { name: "the authority's backup", bytes: readFileSync(backup) },
  ];
  t.ok(places.length > 60, `${places.length} places`);
  t.same(found(secrets, places), []);
  for (const { stateDir } of hosts) {
    for (const name of readdirSync(stateDir).filter((name) => KEYS.includes(name)))
      t.equal(statSync(join(stateDir, name)).mode & 0o077, 0, name);
  }

  // Would it be found?
  const key = readFileSync(join(h2.stateDir, "identity", "host.key"), "utf8");
  writeFileSync(join(h2.layout.dir, "log", "planted.log"), `{"token":"${viewer.token}"}\n${key}`);
  const planted = found(secrets, filesBelow(join(h2.layout.dir, "log")));
  const names = new Set(planted.map((line) => line.split(" in ")[0]));
  t.ok(names.has("the token of eye") && names.has("the secret of eye"), "a token would be found");
  t.ok(
    Array.from(names).some((name) => name?.endsWith("identity/host.key")),
    "a key would be found",
  );
});

function keysOf(directory: string): readonly Secret[] {
  try {
    return keysBelow(directory);
  } catch (error) {
    // Only members of the store have the authority's.
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return [];
    throw error;
  }
}
