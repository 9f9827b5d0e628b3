/**
 * The packages' helpers, which change files that others own too: they put in what is wanted, and take out what they put in.
 *
 * Each is played by two shells: dash, and busybox's, which is a dom0's in spirit.
 */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

import { execa } from "execa";
import t from "tap";

import { repository } from "../../../scripts/lib/repository.ts";

const shells = [["sh"], ["busybox", "sh"]] as const;

type Scope = { readonly teardown: (fn: () => void) => void };
type Files = Readonly<Record<string, string>>;

function etcWith(t: Scope, files: Files): string {
  const etc = mkdtempSync(join(tmpdir(), "weft-etc-"));
  t.teardown(() => rmSync(etc, { recursive: true }));
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(etc, path)), { recursive: true });
    writeFileSync(join(etc, path), text);
  }
  return etc;
}

async function run(shell: readonly string[], helper: string, args: readonly string[], env: Files) {
  const [program = "sh", ...first] = shell;
  const path = join(repository, "packaging/libexec", helper);
  return execa(program, [...first, path, ...args], { env, reject: false });
}

const OURS = "xapi.conf.d/zz-weft.conf";
const plots: readonly (readonly [title: string, files: Files, list: string | null])[] = [
  [
    "the list of xapi.conf holds where no other file has one",
    { "xapi.conf": "log = x\nsm-plugins = ext nfs iscsi   # all\n#sm-plugins=none\n" },
    "ext nfs iscsi weft",
  ],
  [
    "the last file has the last word, and a line without its end is one",
    {
      "xapi.conf": "sm-plugins=ext\n",
      "xapi.conf.d/10-a.conf": "sm-plugins=ext nfs\nsm-plugins=nfs iso\n",
      "xapi.conf.d/99-enable-sm-driver-linstor.conf": "sm-plugins=ext nfs linstor",
      "xapi.conf.d/99-x.conf.rpmsave": "sm-plugins=old\n",
    },
    "ext nfs linstor weft",
  ],
  [
    "our own line of before does not count",
    { "xapi.conf": "sm-plugins=ext\n", [OURS]: "sm-plugins=gone weft\n" },
    "ext weft",
  ],
  ["everything is allowed already", { "xapi.conf": "sm-plugins=*\n", [OURS]: "sm-plugins=ext weft\n" }, null],
  ["somebody else has put weft in", { "xapi.conf": "sm-plugins=ext Weft nfs\n" }, null],
  ["no XAPI is here", { "other.conf": "" }, null],
];

for (const shell of shells) {
  for (const [title, files, list] of plots) {
    await t.test(`package: XAPI's drivers: ${title} (${shell.join(" ")})`, async (t) => {
      const etc = etcWith(t, files);
      const env = { WEFT_ETC: etc };
      for (const _ of ["once", "and again"]) {
        const { exitCode, stderr } = await run(shell, "weft-sm-plugins", ["add"], env);
        t.same([exitCode, stderr], [0, ""]);
        const line = existsSync(join(etc, OURS))
          ? /^sm-plugins=(.*)$/m.exec(readFileSync(join(etc, OURS), "utf8"))?.[1]
          : null;
        t.equal(line, list);
      }
      await run(shell, "weft-sm-plugins", ["remove"], env);
      t.notOk(existsSync(join(etc, OURS)), "nothing stays");
    });
  }

  // A list of weft alone would take every other storage repository of the host away.
  await t.test(`package: XAPI's drivers: no file says anything (${shell.join(" ")})`, async (t) => {
    const etc = etcWith(t, { "xapi.conf": "log=x\n" });
    await run(shell, "weft-sm-plugins", ["add"], { WEFT_ETC: etc });
    t.match(readFileSync(join(etc, OURS), "utf8"), /^sm-plugins=ext nfs iscsi .* largeblock weft$/m);
  });
}

const FILTER = '"r|^/dev/nbd[0-9]|", "r|^/dev/mapper/weft--|"';
const filters: readonly (readonly [title: string, before: string, after: string])[] = [
  [
    "a file without a global_filter gets a line",
    'config {\n}\ndevices {\n\tfilter = [ "r|/dev/xvd.|" ]\n\t# global_filter = [ "a|.*/|" ]\n}\n',
    `config {\n}\ndevices {\n\tglobal_filter = [ ${FILTER} ] # weft: volumes of guests\n\tfilter = [ "r|/dev/xvd.|" ]\n\t# global_filter = [ "a|.*/|" ]\n}\n`,
  ],
  [
    "one that is there is put behind ours",
    'devices {\n    global_filter = [ "r|^/dev/drbd.*|" ]\n}\n',
    `devices {\n    global_filter = [ ${FILTER}, "r|^/dev/drbd.*|" ] # weft: volumes of guests\n}\n`,
  ],
];

for (const shell of shells) {
  for (const [title, before, after] of filters) {
    await t.test(`package: LVM's filter: ${title} (${shell.join(" ")})`, async (t) => {
      const etc = etcWith(t, { "lvm/lvm.conf": before, "lvm/master/lvm.conf": before });
      const env = { WEFT_ETC: etc };
      chmodSync(join(etc, "lvm/lvm.conf"), 0o640);
      const texts = (): readonly string[] =>
        ["lvm/lvm.conf", "lvm/master/lvm.conf"].map((path) => readFileSync(join(etc, path), "utf8"));
      for (const _ of ["once", "and again"]) {
        t.equal((await run(shell, "weft-lvm-filter", ["add"], env)).exitCode, 0);
        t.same(texts(), [after, after]);
      }
      t.equal((await run(shell, "weft-lvm-filter", ["remove"], env)).exitCode, 0);
      t.same(texts(), [before, before], "every byte as it was");
      t.equal(statSync(join(etc, "lvm/lvm.conf")).mode & 0o777, 0o640);
    });
  }

  await t.test(
    `package: LVM's filter: what isn't understood is left, and named (${shell.join(" ")})`,
    async (t) => {
      const odd = 'devices {\n global_filter = [\n "a|.*|"\n ]\n}\n';
      const etc = etcWith(t, { "lvm/lvm.conf": odd });
      const { stderr } = await run(shell, "weft-lvm-filter", ["add"], { WEFT_ETC: etc });
      t.match(stderr, "lvm/lvm.conf has a global_filter");
      t.equal(readFileSync(join(etc, "lvm/lvm.conf"), "utf8"), odd);
    },
  );

  await t.test(
    `package: the firewall is asked for four ports, by members only (${shell.join(" ")})`,
    async (t) => {
      const etc = etcWith(t, { "xapi.d/plugins/firewall-port": `#!/bin/sh\necho "$@" >>"\${0%/*}/asked"\n` });
      chmodSync(join(etc, "xapi.d/plugins/firewall-port"), 0o755);
      const env = { WEFT_ETC: etc, WEFT_STATE: join(etc, "state") };
      const asked = join(etc, "xapi.d/plugins/asked");
      await run(shell, "weft-firewall", ["member"], env);
      t.notOk(existsSync(asked), "this host is in no cluster");
      mkdirSync(join(etc, "state"));
      writeFileSync(join(etc, "state/host.json"), "{}");
      await run(shell, "weft-firewall", ["member"], env);
      await run(shell, "weft-firewall", ["close"], env);
      const ports = [7400, 7401, 7402, 7403];
      const lines = ["open", "close"].flatMap((verb) => ports.map((port) => `${verb} ${port} tcp`));
      t.same(readFileSync(asked, "utf8").trim().split("\n"), lines);
    },
  );

  // XCP-ng 9 has XAPI's tool too, and it writes rules of iptables that nothing reads there.
  await t.test(
    `package: the firewall that runs is asked, whatever XAPI's tool does (${shell.join(" ")})`,
    async (t) => {
      const etc = etcWith(t, {
        "xapi.d/plugins/firewall-port": `#!/bin/sh\necho iptables "$@" >>"$WEFT_ETC/asked"\n`,
        "bin/firewall-cmd": `#!/bin/sh\n[ "$1" != --state ] || exit "$STATE"\necho firewalld "$@" >>"$WEFT_ETC/asked"\n`,
      });
      for (const path of ["xapi.d/plugins/firewall-port", "bin/firewall-cmd"])
        chmodSync(join(etc, path), 0o755);
      const env = { WEFT_ETC: etc, PATH: `${etc}/bin:${process.env["PATH"] ?? ""}` };
      const asked = async (state: string, what: string): Promise<readonly string[]> => {
        rmSync(join(etc, "asked"), { force: true });
        t.equal((await run(shell, "weft-firewall", [what], { ...env, STATE: state })).exitCode, 0);
        return readFileSync(join(etc, "asked"), "utf8").trim().split("\n");
      };
      t.same(await asked("0", "open"), [
        "firewalld --quiet --add-port=7400-7403/tcp",
        "firewalld --quiet --permanent --add-port=7400-7403/tcp",
      ]);
      t.same(await asked("0", "close"), [
        "firewalld --quiet --remove-port=7400-7403/tcp",
        "firewalld --quiet --permanent --remove-port=7400-7403/tcp",
      ]);
      t.match((await asked("252", "open")).join(), /^iptables open 7400 tcp,/);
    },
  );

  // While weftd is away its exports are, but the holder still has its guests.
  await t.test(`package: what a guest is connected to is not removed (${shell.join(" ")})`, async (t) => {
    const runDir = mkdtempSync(join(tmpdir(), "weft-run-"));
    t.teardown(() => rmSync(runDir, { recursive: true }));
    const socket = join(runDir, "holder/1.sock");
    mkdirSync(dirname(socket));
    const server = createServer().listen(socket);
    const guest = connect(socket);
    t.teardown(() => {
      guest.destroy();
      server.close();
    });
    const [accepted] = (await once(server, "connection")) as [Socket];
    t.teardown(() => accepted.destroy());
    const { exitCode, stderr } = await run(shell, "weft-scriptlet", ["removing"], { WEFT_RUN: runDir });
    t.equal(exitCode, 1);
    t.match(stderr, `volumes are attached on this host (${socket}). Nothing was removed.`);
    t.ok(existsSync(socket));
  });
}
