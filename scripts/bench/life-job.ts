/**
 * What a copy that was away costs to bring back: the bytes that its host receives, against those that a guest changed.
 *
 * Must always hold:
 * - bytes are counted by the kernel at the host's network, whatever they were sent for: what weft says of itself is not asked;
 * - the guest writes only while the copy is out, and its blocks differ, so that what it changed is known to the byte.
 */
import type { SessionStatus } from "../../src/core/wire/daemon.gen.ts";
import type { Cluster } from "../cluster/cluster.ts";
import type { Host } from "../cluster/host.ts";
import { until } from "../lib/until.ts";
import { attached, runFio } from "./fio.ts";
import { compared } from "./frame.ts";
import type { Figure } from "./frame.ts";

/** The owner stays, and knows what changed; or it is started anew, and asks the copies. */
const owners = ["same session", "owner restart"] as const;
type OwnerCase = (typeof owners)[number];

export type ResyncRun = {
  readonly owner: OwnerCase;
  readonly round: number;
  readonly changedBytes: number;
  readonly receivedBytes: number;
};

export type LifeJobOptions = {
  readonly cluster: Cluster;
  readonly rounds: number;
  /** Of the volume; all of it has data. A multiple of 4 KiB. */
  readonly size: bigint;
  readonly say: (line: string) => void;
};

const VOLUME = "life";
const BLOCK = 4096;
/** Of the volume's blocks, what the guest changes. */
const CHANGED_PERCENT = 1;
const DEADLINE_MS = 120_000;

export async function runLifeJob(options: LifeJobOptions): Promise<readonly ResyncRun[]> {
  const { cluster, rounds, size, say } = options;
  if (cluster.mode !== "namespaces") {
    throw new Error("life counts bytes at each host's own network, which only root can make");
  }
  const [owner, away] = [cluster.host("h3"), cluster.host("h2")];
  const { id } = await owner.agent().createVolume({ name: VOLUME, size, copies: 2 });
  await runFio(owner, {
    uri: await attached(owner, VOLUME),
    rw: "write",
    blockSize: "128k",
    depth: 8,
    size,
    seconds: null,
  });
  // What was written since the last seal counts as changed: closed and opened again, nothing of the filling does.
  await owner.agent().detach(VOLUME);
  say(`${VOLUME}: filled`);
  const requests = Math.floor((Number(size) / BLOCK) * (CHANGED_PERCENT / 100));
  const runs: ResyncRun[] = [];
  for (let round = 1; round <= rounds; round++) {
    for (const kind of owners) {
      const uri = await attached(owner, VOLUME);
      await inSync(owner, id);
      await away.killProgram("weftd");
      await isOut(owner, id);
      const seed = runs.length + 1;
      const job = {
        uri,
        rw: "randwrite",
        blockSize: "4k",
        depth: 32,
        size,
        seconds: null,
        requests,
        seed,
      } as const;
      const done = await runFio(owner, job);
      if (kind === "owner restart") {
        await owner.killProgram("weftd");
        await owner.restartDaemon();
        await attached(owner, VOLUME);
      }
      const before = await receivedBytes(away);
      await away.restartDaemon();
      await inSync(owner, id);
      const received = (await receivedBytes(away)) - before;
      runs.push({ owner: kind, round, changedBytes: done.requests * BLOCK, receivedBytes: received });
    }
    say(`round ${round} of ${rounds} done`);
  }
  return runs;
}

export function lifeFigures(runs: readonly ResyncRun[], size: bigint): readonly Figure[] {
  const gibibytes = Number(size) / 1024 ** 3;
  const note =
    `resync: ${gibibytes} GiB, filled with 128 KiB requests one after the other; then ${CHANGED_PERCENT} % of its 4 KiB blocks ` +
    "at random while a copy's weftd was down; bytes are all that its host received until the copy was in sync";
  return owners.flatMap((kind) => {
    const own = runs.filter(({ owner }) => owner === kind);
    const figure = compared({
      figure: `resync ${kind} ÷ changed bytes`,
      ours: new Map(own.map(({ round, receivedBytes }) => [round, receivedBytes])),
      against: new Map(own.map(({ round, changedBytes }) => [round, changedBytes])),
      bar: { kind: "at most", ratio: kind === "same session" ? 1.2 : 4 },
      note,
    });
    return figure === null ? [] : [figure];
  });
}

async function inSync(owner: Host, volume: string): Promise<void> {
  await members(owner, volume, "both copies to be in sync", (states) =>
    states.every((state) => state === "INSYNC"),
  );
}

async function isOut(owner: Host, volume: string): Promise<void> {
  await members(owner, volume, "a copy to be taken out", (states) =>
    states.some((state) => state !== "INSYNC"),
  );
}

async function members(
  owner: Host,
  volume: string,
  what: string,
  isIt: (states: readonly SessionStatus["members"][number]["state"][]) => boolean,
): Promise<void> {
  await until(
    async () => {
      const session = await owner.ask("session.show", { volume });
      const states = session.members.map(({ state }) => state);
      return session.phase === "serving" && states.length === 2 && isIt(states) ? true : null;
    },
    { what, deadlineMs: DEADLINE_MS, everyMs: 20 },
  );
}

/** By all of the host's links but the loopback, since they were made. */
async function receivedBytes(host: Host): Promise<number> {
  return parseReceived(await host.output(["cat", "/proc/net/dev"]));
}

/** Of a `/proc/net/dev`. */
export function parseReceived(text: string): number {
  const counts = text.split("\n").flatMap((line) => {
    const [, name, bytes] = /^\s*([^\s:]+):\s*(\d+)/.exec(line) ?? [];
    return name === undefined || name === "lo" ? [] : [Number(bytes)];
  });
  if (counts.length === 0) throw new Error("a host has no link");
  return counts.reduce((sum, count) => sum + count, 0);
}
