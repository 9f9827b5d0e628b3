/** Plot: everything that goes wrong between a keyboard and an agent. Each has a code, a sentence, and an exit code. */
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { parseCodeTable } from "../../src/cli/code-table.ts";
import { volume } from "./answers.ts";
import { FakeAgent, refusal, weft } from "./fake-agent.ts";

void t.test(
  "error: code, sentence, whether anything changed, what to do; indented under the code",
  async (t) => {
    await using agent = await FakeAgent.start({
      "DELETE /v1/volumes/db": refusal("E-VOL-12", '"db" is open on h2 (since 14:02). Not deleted.', 409, {
        safe: "Its data is unchanged.",
        do: [
          { why: "Detach it there", command: "weft detach db" },
          { why: "Who is it?", command: "weft volume show db" },
          { why: "Or wait", command: null },
        ],
      }),
    });
    const refused = await agent.weft(["volume", "delete", "db"]);
    t.equal(
      refused.err,
      [
        'E-VOL-12   "db" is open on h2 (since 14:02). Not deleted.',
        "           Its data is unchanged.",
        "           Detach it there:  weft detach db",
        "           Who is it?        weft volume show db",
        "           Or wait.",
        "",
      ].join("\n"),
    );
    t.equal(refused.out, "");
    t.equal(refused.code, 2, "refused for safety");
    t.match(JSON.parse((await agent.weft(["volume", "delete", "db", "--json"])).err), {
      error: { code: "E-VOL-12" },
    });
  },
);

void t.test("error: a mistyped volume gets the nearest name", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/volumes": [volume()],
    "DELETE /v1/volumes/bd": refusal("E-ARG-01", 'No volume "bd".', 404),
    "DELETE /v1/volumes/backup": refusal("E-ARG-01", 'No volume "backup".', 404),
  });
  const near = await agent.weft(["volume", "delete", "bd"]);
  t.equal(near.err, 'E-ARG-01   No volume "bd". Did you mean "db"?\n');
  t.equal(near.code, 1);
  t.equal((await agent.weft(["volume", "delete", "backup"])).err, 'E-ARG-01   No volume "backup".\n');
});

void t.test("error: a mistyped command or option gets the nearest one, at every depth", async (t) => {
  for (const [args, message] of [
    [["attahc", "db"], 'E-ARG-01   Unknown command "attahc". Did you mean "attach"?\n'],
    [["volume", "lits"], 'E-ARG-01   Unknown command "lits". Did you mean "list"?\n'],
    [["volume", "list", "--jsno"], 'E-ARG-01   Unknown option "--jsno". Did you mean "--json"?\n'],
    [["help", "volum"], 'E-ARG-01   No command "volum". Did you mean "volume"?\n'],
    [["frobnicate"], 'E-ARG-01   Unknown command "frobnicate".\n           See all commands:  weft help\n'],
  ] as const) {
    const outcome = await weft(args);
    t.equal(outcome.err, message);
    t.equal(outcome.code, 1);
  }
});

void t.test("error: bad values are refused at this door, before anything is asked", async (t) => {
  const create = ["volume", "create"];
  for (const [args, code, message] of [
    [[...create, "db", "lots"], "E-ARG-02", /"lots" is not a size/],
    [[...create, "db", "5000"], "E-ARG-02", /not a multiple of 4 KiB/],
    [[...create, "db", "100T"], "E-VOL-02", /above the limit of 64 TiB/],
    [[...create, "DB", "1G"], "E-ARG-02", /"db" would do/],
    [[...create, "db", "1G", "--copies", "9"], "E-VOL-08", /9 copies wanted, a volume has 1 to 8/],
    [[...create, "db", "1G", "--copies", "two"], "E-ARG-02", /--copies "two" is not a whole number/],
    [
      [...create, "db", "1G", "--copies", "2", "--min-isr", "3"],
      "E-VOL-06",
      /--min-isr 3 is more than the 2 copies/,
    ],
    [[...create, "db", "1G", "--host", "h1", "--host", "h1"], "E-ARG-02", /named twice/],
    [[...create, "db", "1G", "--host", "h1", "--copies", "2"], "E-ARG-03", /do not agree/],
    [[...create, "db", "1G", "--ack", "cached"], "E-VOL-05", /cached is not offered/],
    [[...create, "db", "1G", "--ack", "never"], "E-ARG-02", /"never" is not known/],
    [[...create, "db"], "E-ARG-03", /How large shall "db" be\? A size is missing, or --from/],
    [[...create, "db", "--from", "db"], "E-ARG-02", /"db" names no snapshot/],
    [[...create, "db", "--from", "a@b", "--thick"], "E-ARG-03", /exclude each other/],
    [
      [...create, "db", "--from", "a@b", "--copies", "1", "--min-isr", "2"],
      "E-VOL-06",
      /more than the 1 copy/,
    ],
    [["snapshot", "clone", "db", "web"], "E-ARG-02", /"db" names no snapshot/],
    [["snapshot", "clone", "db@a", "Web"], "E-ARG-02", /"web" would do/],
    [["snapshot", "clone", "db@a"], "E-ARG-03", /[Mm]issing required argument "name"/],
    [[...create, "db", "1G", "--copies"], "E-ARG-03", /argument missing/],
    [["attach", "db", "web"], "E-ARG-03", /[Tt]oo many arguments/],
    [["volume"], "E-ARG-03", /not complete/],
    [["join", "h1:7401", "--address", "10.0.9.12"], "E-ARG-02", /names port 7401/],
    [["join", "h1", "--address", "10.0.9.300"], "E-ARG-02", /is not an address/],
  ] as const) {
    const outcome = await weft(args);
    t.match(outcome.err, new RegExp(`^${code} `), args.join(" "));
    t.match(outcome.err, message);
    t.equal(outcome.code, code === "E-VOL-05" ? 2 : 1, args.join(" "));
  }
});

void t.test("error: without an agent the command says where it looked and ends with 4", async (t) => {
  const outcome = await weft(["status"], undefined, { WEFT_RUN_DIR: "/nonexistent/run" });
  t.match(outcome.err, /^E-AGENT-01 .*\/nonexistent\/run\/agent\.sock/);
  t.equal(outcome.code, 4);
});

void t.test("error: an answer that is not the agent's is told apart from a refusal", async (t) => {
  await using agent = await FakeAgent.start({ "GET /v1/volumes": { volumes: "many" } });
  const outcome = await agent.weft(["volume", "list"]);
  t.match(outcome.err, /^E-AGENT-02 /);
  t.equal(outcome.code, 4);
});

void t.test("error: what can't be taken back is not done when nobody can be asked", async (t) => {
  await using agent = await FakeAgent.start({ "DELETE /v1/trash": {} });
  const outcome = await agent.weft(["trash", "empty"]);
  t.match(outcome.err, /^E-ARG-04 .*Nobody could be asked\.\n {11}Nothing was changed\.\n/);
  t.equal(outcome.code, 1);
  t.strictSame(agent.asked, []);
});

void t.test("error: text from elsewhere can't leave its line or colour the terminal", async (t) => {
  await using agent = await FakeAgent.start({
    "GET /v1/volumes": [volume({ name: "a\u001b[31m\nb" })],
    "DELETE /v1/volumes/x": refusal("E-VOL-14", "a\n\u001b[2Jb", 409),
  });
  t.equal((await agent.weft(["volume", "list"])).out.split("\n").length, 3);
  t.equal((await agent.weft(["volume", "delete", "x"])).err, "E-VOL-14   a [2Jb\n");
});

void t.test("weft help: a code prints its row of the document, a command its arguments", async (t) => {
  const row = await weft(["help", "e-vol-12"]);
  t.match(
    row.out,
    /^E-VOL-12 {3}The volume is open on another host.*\n {11}Detach it there.*weft steal VOLUME\.\n$/,
  );
  t.match(
    (await weft(["help", "volume", "create"])).out,
    /^Usage: weft volume create \[options\] <name> \[size\]/,
  );
  t.match((await weft([])).out, /^Usage: weft/);
  t.match((await weft(["help", "E-NONE"])).err, /^E-ARG-01 {3}No error code "E-NONE"/);
  t.match((await weft(["--version"])).out, /^\d+\.\d+\.\d+\n$/);
});

void t.test("code table: rows are read, other lines are not", async (t) => {
  t.strictSame(
    parseCodeTable(
      "# Errors\n| code | meaning |\n|---|---|---|\n| E-VOL-12 | Open `there`. | Do \\| wait. |\n",
    ),
    [{ code: "E-VOL-12", meaning: "Open there.", action: "Do | wait." }],
  );
});

void t.test("weft debug: runs the daemon's program and passes on its words and exit code", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "weft-cli-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const program = join(directory, "weftd");
  await writeFile(program, '#!/bin/sh\necho "$@"\necho damaged >&2\nexit 3\n');
  await chmod(program, 0o755);
  const outcome = await weft(["debug", "check", "/srv/weft"], undefined, { WEFTD: program });
  t.strictSame(outcome, { code: 3, out: "debug check /srv/weft\n", err: "damaged\n" });
  const missing = await weft(["debug", "dump", "/srv/weft"], undefined, { WEFTD: join(directory, "none") });
  t.match(missing.err, /^E-ARG-01 .*can't be started/);
});
