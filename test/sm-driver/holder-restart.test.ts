/**
 * The planned restart of the holder under guests that go on writing: the real holder, doubles of tap-ctl, systemctl and weftd.
 *
 * Every plot is about the same question: does every guest's disk go on, whatever fails and wherever it is cut off?
 */
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import t from "tap";

import { nativeBin } from "../../scripts/lib/repository.ts";
import { holderClient } from "../../src/core/wire/holder-client.ts";
import { readHolderNote, writeHolderNote } from "../../src/sm-driver/datapath/holder-note.ts";
import { HolderRestart, type HolderRestartOptions } from "../../src/sm-driver/datapath/holder-restart.ts";
import { TapCtl } from "../../src/sm-driver/datapath/tap-ctl.ts";
import { TapdiskDatapath } from "../../src/sm-driver/datapath/tapdisk.ts";
import { Turns } from "../../src/sm-driver/datapath/turns.ts";
import { eventually } from "../core/agent/test-host.ts";
import { memoryDisk, NbdClient, nbdRead, nbdWrite, serveNbd } from "./lib/nbd.ts";
import { installTapCtl } from "./lib/tap-ctl.ts";

const SR = "11111111-1111-4111-8111-111111111111";
const VDIS = ["22222222-2222-4222-8222-222222222221", "22222222-2222-4222-8222-222222222222"] as const;
const SESSION = "33333333-3333-4333-8333-333333333333";
const SIZE = 1 << 20;
const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** A host without an agent: who asks for a restart is the test. */
class Host {
  readonly disks = new Map(VDIS.map((vdi) => [vdi as string, memoryDisk(SIZE)]));
  /** Volumes that another host has owned since. */
  readonly taken = new Set<string>();
  readonly root: string;
  readonly runDir: string;
  readonly tapCtl: TapCtl;
  readonly datapath: TapdiskDatapath;
  readonly turns = new Turns();

  constructor(root: string) {
    this.root = root;
    this.runDir = join(root, "run/weft");
    this.tapCtl = new TapCtl(join(root, "usr/sbin/tap-ctl"));
    this.datapath = new TapdiskDatapath({
      runDir: this.runDir,
      dom0Root: root,
      holder: this.holder,
      log,
      turns: this.turns,
      closeSeconds: 1,
    });
  }

  get holder(): ReturnType<typeof holderClient> {
    return holderClient(join(this.runDir, "holder.sock"));
  }

  restart(more: Partial<HolderRestartOptions> = {}): HolderRestart {
    const { runDir, root, holder, turns } = this;
    return new HolderRestart({ runDir, dom0Root: root, holder, turns, log, goOnMs: 3000, ...more });
  }

  /** As an agent left it that ended when all was paused. */
  async leavePaused(): Promise<void> {
    const { entries } = await this.holder.call("list", {});
    await writeHolderNote(
      this.runDir,
      entries.map(({ first, ...entry }) => ({ ...entry, session: first })),
    );
    for (const tapdisk of await this.tapCtl.list()) await this.tapCtl.pause(tapdisk);
  }

  /** What systemd does of it. */
  async restartUnit(): Promise<void> {
    await execa(join(this.root, "usr/bin/systemctl"), ["restart", "weft-holder.service"]);
    await eventually(
      "a holder",
      () => this.holder.call("hello", {}),
      () => true,
    );
  }

  async activate(vdi: string): Promise<NbdClient> {
    const offer = { writable: true, exportPath: "/unused", size: BigInt(SIZE), volume: vdi };
    await this.datapath.activate({ sr: SR, vdi, ...offer, session: SESSION, snapshot: null });
    const tapdisk = (await this.tapCtl.list()).find(({ args }) => args.includes(vdi));
    return NbdClient.connect(join(this.root, `run/blktap-control/nbd${tapdisk?.pid}.${tapdisk?.minor}`));
  }
}

async function startHost(scope: { teardown(done: () => Promise<void>): void }): Promise<Host> {
  // Paths of unix sockets are short.
  const root = await mkdtemp(join(tmpdir(), "hr-"));
  const host = new Host(root);
  for (const path of [host.runDir, join(root, "usr/bin")]) mkdirSync(path, { recursive: true });
  installTapCtl(root);
  const pid = join(root, "holder.pid");
  const program = `#!/bin/sh
[ ! -e ${root}/broken ] || { echo "Job failed." >&2; exit 1; }
[ ! -s ${pid} ] || kill "$(cat ${pid})"
WEFT_LOG=warn setsid ${join(nativeBin(), "weft-holder")} --run-dir ${host.runDir} >/dev/null 2>>${root}/holder.log &
echo $! >${pid}
`;
  writeFileSync(join(root, "usr/bin/systemctl"), program);
  chmodSync(join(root, "usr/bin/systemctl"), 0o755);
  const exports: (() => Promise<void>)[] = [];
  for (const [vdi, disk] of host.disks) exports.push(await serveNbd(join(root, `${vdi}.sock`), disk));
  const weftd = createServer((socket) => {
    socket.on("error", () => socket.destroy());
    socket.once("data", (line) => {
      const { params } = JSON.parse(line.toString()) as { readonly params: { readonly volume: string } };
      const { volume } = params;
      const opened = { session: SESSION, first: SESSION, epoch: "5", path: join(root, `${volume}.sock`) };
      const error = { code: "E-VOL-21", message: "Another host has owned it.", facts: {} };
      const answer = host.taken.has(volume) ? { id: 1, error } : { id: 1, result: opened };
      socket.end(`${JSON.stringify(answer)}\n`);
    });
  });
  weftd.listen(join(host.runDir, "weftd.sock"));
  scope.teardown(async () => {
    host.taken.clear();
    for (const vdi of VDIS) await host.datapath.deactivate({ sr: SR, vdi });
    process.kill(Number(readFileSync(pid, "utf8")));
    weftd.close();
    for (const stop of exports) await stop();
    await rm(root, { recursive: true });
  });
  await host.restartUnit();
  return host;
}

const bytes = (n: number): Buffer => Buffer.alloc(4096, n % 251);

/** Writes one block after the other until it is stopped; each of them must be answered. */
function writer(guest: NbdClient): { readonly stop: () => Promise<number> } {
  const end = new AbortController();
  let count = 0;
  const run = (async () => {
    while (!end.signal.aborted) {
      const { error } = await guest.ask(nbdWrite, BigInt((count % 256) * 4096), 4096, bytes(count));
      if (error !== 0) throw new Error(`write ${count} was answered with error ${error}`);
      count += 1;
    }
  })();
  return {
    stop: async () => {
      end.abort();
      await run;
      return count;
    },
  };
}

await t.test("holder: restarted under guests that write, their disks pause and go on", async (t) => {
  const host = await startHost(t);
  const [a, b] = VDIS;
  const guests = [await host.activate(a), await host.activate(b)];
  const writers = guests.map(writer);
  const before = await host.holder.call("hello", {});
  // A tapdisk refuses another size than it knows, and stays paused.
  const grown = host.disks.get(a);
  if (grown !== undefined) grown.bytes = Buffer.concat([grown.bytes, Buffer.alloc(SIZE)]);
  const done = await host.restart().run();
  t.equal(done.paused, 2);
  const after = await host.holder.call("hello", {});
  t.not(after.incarnation, before.incarnation);
  await eventually(
    "both are connected",
    async () => (await host.holder.call("list", {})).entries,
    (entries) => entries.length === 2 && entries.every((one) => one.connected && one.told_size === `${SIZE}`),
  );
  t.equal(await readHolderNote(host.runDir), null);
  for (const [i, one] of writers.entries()) {
    const count = await one.stop();
    t.ok(count > 0);
    const last = ((count - 1) % 256) * 4096;
    const found = host.disks.get(VDIS[i] ?? "")?.bytes.subarray(last, last + 4096);
    t.ok(found?.equals(bytes(count - 1)), `what guest ${i} wrote last is there`);
  }

  // A unit that does not start: the old holder goes on, and so do they.
  writeFileSync(join(host.root, "broken"), "");
  await t.rejects(host.restart().run(), { code: "E-HOLD-05", message: /Job failed/ });
  t.strictSame(await host.holder.call("hello", {}), after);
  for (const guest of guests) t.equal((await guest.ask(nbdRead, 0n, 4096, bytes(0))).error, 0);
  t.equal(await readHolderNote(host.runDir), null);

  // Somebody is connected who can't be paused: nobody is.
  await rm(join(host.root, "broken"));
  const listen = join(host.runDir, "tap", "other.sock");
  const offer = { id: "other", listen, volume: a, session: SESSION, snapshot: null, writable: true };
  await host.holder.call("open", offer);
  // weftd offers one connection at a time to a session: this one waits for its greeting.
  const other = NbdClient.connect(listen).catch(() => null);
  await eventually(
    "it is connected",
    async () => (await host.holder.call("list", {})).entries,
    (entries) => entries.some(({ id, connected }) => id === "other" && connected),
  );
  await t.rejects(host.restart().run(), { code: "E-HOLD-05", message: /no tapdisk/ });
  t.ok((await host.tapCtl.list()).every(({ isPaused }) => !isPaused));
  await host.holder.call("close", { id: "other" });
  (await other)?.close();
});

await t.test("holder: a restart that its agent did not survive is finished by the next one", async (t) => {
  const host = await startHost(t);
  const [a, b] = VDIS;
  const guests = [await host.activate(a), await host.activate(b)];
  await host.leavePaused();
  await host.restartUnit();
  const writes = guests.map((guest, i) => guest.ask(nbdWrite, 0n, 4096, bytes(40 + i)));
  await t.rejects(host.restart().run(), { code: "E-HOLD-05", message: /earlier restart/ });

  // Meanwhile another host took one of them.
  host.taken.add(b);
  await host.restart().finish();
  t.equal((await writes[0])?.error, 0);
  t.ok(host.disks.get(a)?.bytes.subarray(0, 4096).equals(bytes(40)));
  t.ok(host.disks.get(b)?.bytes.subarray(0, 4096).equals(bytes(0)), "nothing of it is done any more");
  t.strictSame(
    new Map((await host.tapCtl.list()).map(({ args, isPaused }) => [args.includes(b) ? b : a, isPaused])),
    new Map([
      [a, false],
      [b, true],
    ]),
  );
  t.equal(await readHolderNote(host.runDir), null);
  t.ok(existsSync(host.root));
});

await t.test(
  "holder: a disk that another host took during a restart is named, and the others go on",
  async (t) => {
    const host = await startHost(t);
    const [a, b] = VDIS;
    const guest = await host.activate(a);
    await host.activate(b);
    host.taken.add(b);
    await t.rejects(host.restart().run(), {
      code: "E-HOLD-06",
      message: new RegExp(`One disk.*${b} \\(lost\\)`),
    });
    t.equal((await guest.ask(nbdWrite, 0n, 4096, bytes(7))).error, 0);
    await eventually(
      "nothing is tried any more",
      () => readHolderNote(host.runDir),
      (note) => note === null,
    );
  },
);

await t.test(
  "holder: what something else lets go on meanwhile keeps its holder, and what was told to mirror its name",
  async (t) => {
    const host = await startHost(t);
    const [vdi] = VDIS;
    const guest = await host.activate(vdi);
    t.equal((await guest.ask(nbdWrite, 0n, 4096, bytes(9))).error, 0);
    const isThere = async (): Promise<void> => {
      const { error, data } = await guest.ask(nbdRead, 0n, 4096, bytes(0));
      t.strictSame([error, data.equals(bytes(9))], [0, true]);
    };
    // Not paused it refuses a second place, and has been told of one.
    const refused = host.datapath.mirrored({ sr: SR, vdi }, "null", async () => {
      for (const tapdisk of await host.tapCtl.list()) await host.tapCtl.unpause(tapdisk);
    });
    await t.rejects(refused, /Invalid argument/);
    t.equal((await host.restart().run()).paused, 1);
    await isThere();

    const before = await host.holder.call("hello", {});
    const program = host.tapCtl.program;
    const paused = readFileSync(program, "utf8").replace("#!/bin/sh\nexec ", "");
    const lets = paused.replace('"$@"', 'unpause "$2" "$3" "$4" "$5"');
    writeFileSync(program, `#!/bin/sh\n${paused.trim()} || exit\n[ "$1" != pause ] || ${lets}`);
    await t.rejects(host.restart().run(), { code: "E-HOLD-05", message: /something else: 22222222-/ });
    t.strictSame(await host.holder.call("hello", {}), before);
    await isThere();
    t.equal(await readHolderNote(host.runDir), null);
  },
);

await t.test("holder: guests go on as soon as it does, however long it did not start", async (t) => {
  const host = await startHost(t);
  const [vdi] = VDIS;
  const guest = await host.activate(vdi);
  await host.leavePaused();
  process.kill(Number(readFileSync(join(host.root, "holder.pid"), "utf8")));
  await eventually(
    "no holder",
    () => host.holder.call("hello", {}).catch(() => null),
    (hello) => hello === null,
  );
  const said: string[] = [];
  const error = (_: object, text: string): void => void said.push(text);
  const often = { goOnMs: 100, oftenMs: 100, seldomMs: 300, log: { ...log, error } };
  const finished = host.restart(often).finish();
  await eventually(
    "it is tried seldom",
    async () => said.length,
    (times) => times > 1,
  );
  t.match(said[0], /stays paused/);
  t.not(await readHolderNote(host.runDir), null, "an agent that starts now goes on with it");
  const write = guest.ask(nbdWrite, 0n, 4096, bytes(3));
  writeFileSync(join(host.root, "holder.pid"), "");
  await host.restartUnit();
  await finished;
  t.equal((await write).error, 0);
  t.equal(await readHolderNote(host.runDir), null);
});
