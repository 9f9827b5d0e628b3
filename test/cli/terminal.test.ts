/** Plot: the command as a person meets it: found through a symbolic link, on a terminal and off it. */
import { execFile } from "node:child_process";
import { mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { promisify } from "node:util";
import t from "tap";

import { Console } from "../../src/cli/console.ts";
import { Context } from "../../src/cli/context.ts";

const run = promisify(execFile);
const bin = join(import.meta.dirname, "../../bin");

void t.test("bin/weft: works through a relative link of a link, from any directory", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "weft-bin-"));
  t.teardown(() => rm(directory, { recursive: true }));
  await symlink(join(bin, "weft"), join(directory, "first"));
  await symlink("first", join(directory, "weft"));
  const { stdout } = await run(join(directory, "weft"), ["help", "E-VOL-12"], { cwd: "/" });
  t.match(stdout, /^E-VOL-12 {3}The volume is open/);
});

void t.test("bin/weft: the exit code is the program's, errors go to stderr", async (t) => {
  const failure = run(join(bin, "weft"), ["volume", "lits"]);
  await t.rejects(failure, {
    code: 1,
    stdout: "",
    stderr: 'E-ARG-01   Unknown command "lits". Did you mean "list"?\n',
  });
});

void t.test("console: colours and a moving line on a terminal only, and not with NO_COLOR", async (t) => {
  const terminal = (environment: NodeJS.ProcessEnv): [Console, PassThrough] => {
    const [stdout, stderr] = [tty(), tty()];
    return [new Console({ stdin: new PassThrough(), stdout, stderr }, environment), stderr];
  };
  const [shown, stderr] = terminal({ TERM: "xterm" });
  t.equal(shown.colour("ok", "green"), "\u001b[32mok\u001b[39m");
  shown.progress("1 %");
  shown.progress("2 %");
  shown.error("done");
  t.equal(String(stderr.read()), "\r\u001b[K1 %\r\u001b[K2 %\r\u001b[Kdone\n");
  t.equal(terminal({ TERM: "xterm", NO_COLOR: "1" })[0].colour("ok", "green"), "ok");
  t.equal(terminal({ TERM: "dumb" })[0].colour("ok", "green"), "ok");
  const plain = new PassThrough();
  const quiet = new Console({ stdin: new PassThrough(), stdout: plain, stderr: plain }, {});
  t.equal(quiet.colour("ok", "green"), "ok");
  t.equal(await quiet.confirm("Sure?"), null, "nobody can be asked");
});

void t.test("console: a person answers yes or no, and anything else is no", async (t) => {
  for (const [typed, answer] of [
    ["y", true],
    ["YES", true],
    ["n", false],
    ["", false],
    ["yeah", false],
  ] as const) {
    const stdin = tty();
    const console = new Console({ stdin, stdout: tty(), stderr: tty() }, {});
    const asked = console.confirm("Sure?");
    stdin.write(`${typed}\n`);
    t.equal(await asked, answer, typed);
  }
});

void t.test("context: what loses data takes a name, and no y; --yes asks nobody", async (t) => {
  const surroundings = (stdin: PassThrough): ConstructorParameters<typeof Context>[0] => ({
    console: new Console({ stdin, stdout: tty(), stderr: tty() }, {}),
    environment: {},
    interruption: () => new AbortController().signal,
    protect: () => null,
  });
  const globals = { runDir: "/nowhere", stateDir: "/nowhere" };
  for (const [typed, isMeant] of [
    ["db", true],
    ["y", false],
    ["DB", false],
    ["", false],
  ] as const) {
    const stdin = tty();
    const asked = new Context(surroundings(stdin), globals, true).confirmName("Its name?", "db");
    stdin.write(`${typed}\n`);
    if (isMeant) await t.resolves(asked, typed);
    else await t.rejects(asked, { code: "E-ARG-04", message: `"${typed}" is not its name.` }, typed);
  }
  const nobody = surroundings(new PassThrough());
  await t.rejects(new Context(nobody, globals, true).confirmName("Its name?", "db"), {
    code: "E-ARG-04",
    message: "Its name? Nobody could be asked.",
  });
  await t.resolves(new Context(nobody, { ...globals, yes: true }, true).confirmName("Its name?", "db"));
});

void t.test("console: a secret is read without being shown, and nobody's is null", async (t) => {
  for (const [typed, answer] of [
    ["04F6-SECRET\n", "04F6-SECRET"],
    ["04F6\u007fA\n", "04FA"],
    ["\n", ""],
    ["04F6\u0003", null],
    ["\u0004", null],
  ] as const) {
    const [stdin, stdout, stderr] = [tty(), tty(), tty()];
    const console = new Console({ stdin, stdout, stderr }, {});
    const asked = console.secret("Token: ");
    stdin.write(typed);
    t.equal(await asked, answer, JSON.stringify(typed));
    t.equal(String(stderr.read()), "Token: \n", "the question, and nothing of what was typed");
    t.equal(stdout.read(), null);
  }
  const nobody = new Console({ stdin: new PassThrough(), stdout: tty(), stderr: tty() }, {});
  t.equal(await nobody.secret("Token: "), null);
});

function tty(): PassThrough & { isTTY: boolean } {
  return Object.assign(new PassThrough(), { isTTY: true });
}
