/** What `npm run lab` makes of a guest: here a shell script plays the kernel. */
import { chmodSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import t from "tap";

import { type GuestOptions, runGuest } from "../../scripts/lab/guest.ts";

type Plot = { readonly teardown: (end: () => void) => void };
type Played = { readonly told: readonly string[]; readonly ended: number | string };

/** A kernel that does this in place of its init; $shared is the directory that both see. */
async function play(t: Plot, kernel: string, options: Partial<GuestOptions> = {}): Promise<Played> {
  const directory = mkdtempSync(join(tmpdir(), "weft-lab-test-"));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const path = join(directory, "kernel");
  const shared = `for word; do case $word in init=*) shared=$(dirname "\${word#init=}") ;; esac; done`;
  writeFileSync(path, `#!/bin/sh\n${shared}\necho "kernel: hello"\n${kernel}\n`);
  chmodSync(path, 0o755);
  const told: string[] = [];
  const whole = {
    program: ["true"],
    modules: [],
    memoryMiB: 64,
    seconds: 60,
    directory: "/",
    env: {},
    kernel: path,
    tell: (line: string) => void told.push(line),
    ...options,
  };
  const ended = await runGuest(whole).catch((error: unknown) => String(error));
  return { told, ended };
}

const guest = `: >"$shared/started"; echo "weft-lab: begins"; sh "$shared/run"; echo $? >"$shared/status"; echo "weft-lab: ends"; echo bye`;

await t.test(
  "lab: output and exit status of a guest's program come out, and nothing of its kernel",
  async (t) => {
    const program = ["sh", "-c", `printf '%s|' "$0" "$WHAT"; pwd; exit 7`, "it's $HOME"];
    const played = await play(t, guest, { program, directory: "/usr", env: { WHAT: "a 'b' $c" } });
    t.same(played, { told: [`it's $HOME|a 'b' $c|/usr`], ended: 7 });
  },
);

await t.test("lab: a module that can't be loaded ends it before the program", async (t) => {
  const modprobe = `printf '#!/bin/sh\\necho "$@"; exit 1' >"$shared/modprobe"; chmod 755 "$shared/modprobe"`;
  const played = await play(t, `${modprobe}; PATH="$shared:$PATH"; ${guest}`, {
    modules: ["brd rd_nr=1"],
    program: ["echo", "was run"],
  });
  t.same(played, { told: ["brd rd_nr=1"], ended: 125 });
});

await t.test(
  "lab: what did not run to its end has no exit status, and its last words are told",
  async (t) => {
    const never = await play(t, `echo "no memory"; exit 1`);
    t.match(never.ended, /This machine can't run the guest: its kernel, .*kernel: hello\nno memory$/s);
    const panic = await play(t, `: >"$shared/started"; echo "weft-lab: begins"; echo half; exit 0`);
    t.match(panic.ended, /The guest ended before its program did. .*half$/s);
    t.same(panic.told, ["half"]);
  },
);

await t.test("lab: a guest that hangs is ended in time, with all its processes", async (t) => {
  const mark = `9${process.pid}`;
  const { ended } = await play(t, `sleep ${mark} & sleep ${mark}`, { seconds: 1 });
  t.match(ended, "The guest was not done after 1 s, and was ended.");
  const { stdout } = await execa("ps", ["-eo", "args"]);
  t.notMatch(stdout, new RegExp(`sleep ${mark}`));
});

await t.test("lab: without a kernel the package is named, and nothing stays behind", async (t) => {
  const before = readdirSync(tmpdir()).filter((name) => /^weft-lab-......$/.test(name));
  const { ended } = await play(t, "", { kernel: "/no/linux.uml" });
  t.match(ended, "/no/linux.uml is missing: it comes with Debian's package user-mode-linux");
  await play(t, guest);
  const after = readdirSync(tmpdir()).filter((name) => /^weft-lab-......$/.test(name));
  t.same(
    after.filter((name) => !before.includes(name)),
    [],
  );
});
