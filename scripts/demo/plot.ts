/**
 * The demo's plot: a volume in two copies on h1 and h2, used from h3, which has none.
 *
 *     0        128 MiB                    240      256 MiB
 *     ├─ a file system ─┼─ load with checksums ─┼─ fight ─┤
 *
 * 1 The file system image is copied in and compared.
 * 2 A load with checksums runs while h1 is killed and brought back; h1 must end in sync, by a copy of what it missed.
 * 3 h3 is halted in the middle of its writes, h2 takes the volume over, h3 wakes up: nothing of h3's may arrive.
 *
 * Must always hold: a step waits for what it needs to have happened, never for time to pass.
 */
import { cpSync, createReadStream, mkdirSync, truncateSync } from "node:fs";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";

import { execa } from "execa";

import { attachAnswer, volumeAnswer } from "../../src/core/wire/agent-api.ts";
import { DaemonClient } from "../../src/core/wire/daemon-client.ts";
import type { SessionStatus } from "../../src/core/wire/daemon.gen.ts";
import type { Cluster } from "../cluster/cluster.ts";
import type { Host } from "../cluster/host.ts";
import { repository } from "../lib/repository.ts";
import { until, within } from "../lib/until.ts";
import { BLOCK, fioCommand, fioFigures } from "./fio.ts";
import { mib } from "./ledger.ts";
import type { Ledger } from "./ledger.ts";

const MIB = 2 ** 20;
const VOLUME = 256 * MIB;
const IMAGE = 128 * MIB;
const LOAD = { offset: IMAGE, size: 112 * MIB };
const FIGHT = { offset: 240 * MIB, size: 16 * MIB };

/** Parts of the load. */
const KILL_AT = 0.25;
const RETURN_AT = 0.55;
/** What the load may write until the host that came back is connected: two seconds of it. */
const RECONNECT = 16 * MIB;

/** The promise to a guest when a member dies (docs: p99 2 s, never above 5 s). */
const STALL_MS = 5000;

export type Stage = { readonly cluster: Cluster; readonly scratch: string; readonly ledger: Ledger };

export async function play(stage: Stage): Promise<void> {
  const { cluster, ledger } = stage;
  const [h2, h3] = [cluster.host("h2"), cluster.host("h3")];
  await h3.output(["weft", "volume", "create", "demo", "256MiB", "--copies", "2"]);
  const volume = volumeAnswer.parse(await h3.json(["weft", "volume", "show", "demo", "--json"]));
  const places = volume.replicas.map(({ hostName }) => hostName).toSorted();
  ledger.check("two copies on two hosts", places.join(" ") === "h1 h2", `copies on ${places.join(" and ")}`);

  const here = attachAnswer.parse(await h3.json(["weft", "attach", "demo", "--json"]));
  ledger.say(`h3, which has no copy, attached it: ${here.path}`);
  const daemon = new DaemonClient({ socketPath: h3.daemonSocket });
  const session = (): Promise<SessionStatus> => daemon.call("session.show", { volume: volume.id });
  try {
    const sealed = await sealedOn(cluster.host("h1"));
    const image = await copyImageIn(stage, here.path);
    await until(async () => ((await sealedOn(cluster.host("h1"))) > sealed ? true : null), {
      what: "the interval of the image to be sealed",
      deadlineMs: 10_000,
    });
    await surviveTheLossOfAHost(stage, here.path, session);
    await beTakenOver(stage, { oldPath: here.path, image, session });
  } finally {
    daemon.close();
  }
  await h2.output(["weft", "detach", "demo"]);
  ledger.say("h2 detached it");
}

async function copyImageIn({ cluster, scratch, ledger }: Stage, socket: string): Promise<string> {
  const h3 = cluster.host("h3");
  const files = join(scratch, "files");
  mkdirSync(files);
  for (const room of ["src", "docs", "scripts"])
    cpSync(join(repository, room), join(files, room), { recursive: true });
  const image = join(scratch, "image.ext4");
  await execa("mke2fs", ["-q", "-F", "-t", "ext4", "-d", files, image, `${IMAGE / MIB}M`]);
  await h3.output(["nbdcopy", image, uriOf(socket)]);
  const { result } = await h3.exec([
    "qemu-img",
    "compare",
    "-f",
    "raw",
    "-F",
    "raw",
    image,
    `nbd:unix:${socket}`,
  ]);
  const { exitCode, stdout, stderr } = await result;
  ledger.check(
    "a file system image reads back as it was written",
    exitCode === 0,
    (stdout || stderr).trim().split("\n").at(-1) ?? "",
  );
  ledger.figures.verified_bytes += IMAGE;
  return image;
}

async function surviveTheLossOfAHost(
  stage: Stage,
  socket: string,
  session: () => Promise<SessionStatus>,
): Promise<void> {
  const { cluster, ledger } = stage;
  const [h1, h3] = [cluster.host("h1"), cluster.host("h3")];
  const before = (await session()).figures;
  const load = fioCommand({ name: "load", socket, ...LOAD, rate: 8 * MIB, kind: "write-and-verify" });
  const { result } = await h3.exec(load);
  ledger.say("fio writes with checksums on h3");

  const written = async (part: number): Promise<void> => {
    await until(
      async () => {
        const bytes = (Number((await session()).figures.writes) - Number(before.writes)) * BLOCK;
        return bytes >= LOAD.size * part ? true : null;
      },
      { what: `${part * 100} % of the load to be written`, deadlineMs: 60_000, everyMs: 100 },
    );
  };
  await written(KILL_AT);
  const atDeath = Number((await session()).figures.writes);
  await h1.kill();
  ledger.say("h1 killed with -9, all of it");
  await written(RETURN_AT);
  await h1.start();
  // The load writes every block once, so that what it wrote in between is what h1 missed.
  const missed = (Number((await session()).figures.writes) - atDeath) * BLOCK;
  ledger.say(`h1 is back, ${mib(missed)} behind; the load goes on`);

  const { stdout, stderr } = await within(result, { what: "the load to end", deadlineMs: 60_000 });
  const fio = fioFigures(stdout);
  const fioSays = fio.error === 0 ? `${mib(fio.readBytes)} verified` : `error ${fio.error}: ${stderr}`;
  ledger.check(
    "every write of the load reads back (crc32c)",
    fio.error === 0 && fio.readBytes >= LOAD.size,
    fioSays,
  );
  ledger.figures.verified_bytes += fio.readBytes;

  const states = await until(
    async () => {
      const now = volumeAnswer.parse(await h3.json(["weft", "volume", "show", "demo", "--json"]));
      return now.replicas.every(({ state }) => state === "INSYNC") ? now.replicas.length : null;
    },
    { what: "h1 to be in sync again", deadlineMs: 30_000, everyMs: 200 },
  );
  ledger.check("h1 is in sync again", states === 2, `${states} of 2 copies in sync`);

  const { figures } = await session();
  const resynced = Number(figures.resynced_bytes);
  ledger.figures.changed_bytes = missed;
  ledger.figures.resynced_bytes = resynced;
  ledger.figures.stall_ms_max = Math.max(fio.stallMs, Number(figures.stall_ms_max));
  // More than was missed is copied: what was written since the last seal before h1 died, which its owner can't tell from
  // what h1 lost, and what the load went on to write until h1 was connected.
  const isBounded = resynced > 0 && resynced <= missed + LOAD.size * KILL_AT + RECONNECT;
  ledger.check("what h1 missed was copied, and not all", isBounded, `${mib(resynced)} for ${mib(missed)}`);
  const stall = ledger.figures.stall_ms_max;
  ledger.check(
    "no request waited longer than promised",
    stall <= STALL_MS,
    `${stall} ms, promised ${STALL_MS} ms`,
  );
}

type TakeOver = {
  readonly oldPath: string;
  readonly image: string;
  readonly session: () => Promise<SessionStatus>;
};

async function beTakenOver(stage: Stage, { oldPath, image, session }: TakeOver): Promise<void> {
  const { cluster, ledger } = stage;
  const [h2, h3] = [cluster.host("h2"), cluster.host("h3")];
  const before = await read(stage, h3, oldPath, "before");
  const writes = Number((await session()).figures.writes);
  const fight = fioCommand({
    name: "fight",
    socket: oldPath,
    ...FIGHT,
    rate: null,
    kind: "write-until-refused",
  });
  const { result } = await h3.exec(fight);
  await until(async () => (Number((await session()).figures.writes) > writes + 32 ? true : null), {
    what: "h3's writes to be under way",
    deadlineMs: 20_000,
  });
  await h3.stop();
  ledger.say("h3 halted in the middle of its writes (SIGSTOP, all of it)");

  const there = attachAnswer.parse(await h2.json(["weft", "steal", "demo", "--yes", "--json"]));
  ledger.say(`h2 took the volume over, epoch ${there.epoch}`);
  const mine = fioCommand({
    name: "mine",
    socket: there.path,
    ...FIGHT,
    rate: null,
    kind: "write-and-verify",
  });
  const fio = fioFigures(await h2.output(mine));
  ledger.check("h2 writes and reads back", fio.error === 0, `${mib(fio.readBytes)} verified`);
  const taken = await read(stage, h2, there.path, "taken");
  const same = (await sumOf(taken, FIGHT.offset)) === (await sumOf(before, FIGHT.offset));
  ledger.check("h2 reads what h3 had written", same, `${mib(FIGHT.offset)} compared`);
  ledger.figures.verified_bytes += fio.readBytes + FIGHT.offset;

  await h3.cont();
  ledger.say("h3 goes on (SIGCONT)");
  const refused = { what: "h3's load to be refused", deadlineMs: 20_000 };
  const { exitCode, stdout, stderr } = await within(result, refused);
  const refusal = /\berr=[^\n]*/.exec(`${stderr}\n${stdout}`)?.[0];
  ledger.check(
    "h3's load ends with an error",
    exitCode !== 0 && refusal !== undefined,
    refusal ?? `status ${exitCode ?? "none"} and no word of an error`,
  );
  // How many of its requests that was is chance: a session that hears of its successor while none is open, because all
  // were answered before the halt or wait unread in its socket, fails none and closes its door.
  const { phase, paused_reason: reason, epoch, figures } = await session();
  ledger.figures.fenced_writes = Number(figures.fenced_writes);
  const owner = (await h2.agent().hosts()).find(({ name }) => name === h2.name)?.id ?? "unknown";
  ledger.check(
    "h3's session ended as replaced by h2",
    phase === "ended" &&
      BigInt(epoch) < there.epoch &&
      reason?.includes(`its owner is host ${owner}`) === true,
    `${phase} at epoch ${epoch}, ${figures.fenced_writes} requests refused: ${reason ?? "no reason"}`,
  );

  const after = await read(stage, h2, there.path, "after");
  const untouched = (await sumOf(after, VOLUME)) === (await sumOf(taken, VOLUME));
  ledger.check("none of them arrived", untouched, `${mib(VOLUME)} unchanged`);
  ledger.figures.verified_bytes += VOLUME;

  truncateSync(after, IMAGE);
  const intact = (await sumOf(after, IMAGE)) === (await sumOf(image, IMAGE));
  const fsck = await execa("e2fsck", ["-f", "-n", after], { reject: false });
  ledger.check("the file system is whole", intact && fsck.exitCode === 0, "e2fsck found nothing");
}

/** Up to which generation a host's copy is known to be equal to the others (protocol.md R7). */
async function sealedOn(host: Host): Promise<bigint> {
  const daemon = new DaemonClient({ socketPath: host.daemonSocket });
  try {
    const { replicas } = await daemon.call("replica.list", {});
    return BigInt(replicas[0]?.sealed ?? 0);
  } finally {
    daemon.close();
  }
}

/** The whole volume as a file. */
async function read({ scratch }: Stage, host: Host, socket: string, name: string): Promise<string> {
  const file = join(scratch, `${name}.raw`);
  await host.output(["nbdcopy", uriOf(socket), file]);
  return file;
}

async function sumOf(file: string, bytes: number): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(file, { end: bytes - 1 }), hash);
  return hash.digest("hex");
}

function uriOf(socket: string): string {
  return `nbd+unix:///?socket=${socket}`;
}
