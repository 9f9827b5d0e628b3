/**
 * The planned restart of this host's holder, which can't be replaced while guests' tapdisks are connected to it:
 *
 *     note ─▶ every tapdisk paused ─▶ holder restarted ─▶ the same offered again ─▶ every tapdisk goes on ─▶ note gone
 *
 * A tapdisk that is paused has its answers and no connection, so nothing is unanswered when the holder ends, and none is replayed.
 *
 * Must always hold:
 * - nothing is paused before it is known that each client is a tapdisk that can be paused;
 * - the old holder ends only after each has been seen paused: one that goes on would lose its disk with it;
 * - whatever fails, every tapdisk that was paused is let go on, or is named, and tried until it goes on, ends or is lost: the note
 *   stays as long, and an agent that ended in between goes on with it when it starts;
 * - what is offered again is of the same ownership, which weftd proves (R32): another one's disk is not offered, and named;
 * - a tapdisk that comes back is told the size that it knows: it refuses another.
 */
import { execa } from "execa";
import { setTimeout as delay } from "node:timers/promises";

import { isWeftError, reasonOf, WeftError } from "../../core/wire/errors.ts";
import { type HolderClient, isNoHolder } from "../../core/wire/holder-client.ts";
import type { HolderEntry, HolderHello } from "../../core/wire/holder.gen.ts";
import type { Log } from "../call.ts";
import { type HeldEntry, readHolderNote, removeHolderNote, writeHolderNote } from "./holder-note.ts";
import { letGoOn, socketOf } from "./mirror.ts";
import { TapCtl, type Tapdisk } from "./tap-ctl.ts";
import type { Turns } from "./turns.ts";

/** What one tapdisk may take to pause or to go on: meanwhile the others are paused. */
const TAPDISK_MS = 10_000;
/** What the unit may take to end and to start. */
const UNIT_MS = 60_000;
/** So long whoever asked waits for tapdisks to go on; so long they are looked at often. */
const GO_ON_MS = 30_000;
const OFTEN_MS = 600_000;
/** Between two looks at what doesn't go on, and between two when somebody has to mend something. */
const AGAIN_MS = 250;
const SELDOM_MS = 60_000;
/** weftd's word on an ownership that is over. */
const TAKEN = "E-VOL-21";

export type HolderRestartOptions = {
  readonly runDir: string;
  /** Put before dom0's paths; empty: none. */
  readonly dom0Root: string;
  readonly holder: HolderClient;
  readonly turns: Turns;
  readonly log: Log;
  /** How long {@link HolderRestart.run} waits for tapdisks to go on. */
  readonly goOnMs?: number;
  /** How long what doesn't go on is looked at often, and how often after that. */
  readonly oftenMs?: number;
  readonly seldomMs?: number;
};

export type HolderRestarted = {
  /** Of the holder that runs now. */
  readonly version: string;
  /** Disks whose tapdisk was paused. */
  readonly paused: number;
  /** From the first pause until the last one went on. */
  readonly pausedMs: number;
};

/** A disk whose tapdisk does not go on. */
type Left = { readonly entry: HeldEntry; readonly why: string; readonly isLost: boolean };

export class HolderRestart {
  readonly #options: HolderRestartOptions;
  readonly #tapCtl: TapCtl;
  readonly #goOnMs: number;
  readonly #oftenMs: number;
  readonly #seldomMs: number;

  constructor(options: HolderRestartOptions) {
    this.#options = options;
    this.#tapCtl = new TapCtl(`${options.dom0Root}/usr/sbin/tap-ctl`, TAPDISK_MS);
    this.#goOnMs = options.goOnMs ?? GO_ON_MS;
    this.#oftenMs = options.oftenMs ?? OFTEN_MS;
    this.#seldomMs = options.seldomMs ?? SELDOM_MS;
  }

  async run(): Promise<HolderRestarted> {
    const done = await this.#options.turns.alone(() => this.#run());
    if (done !== null) return done;
    throw notRestarted("it is being restarted already");
  }

  async #run(): Promise<HolderRestarted> {
    const { holder, runDir, log } = this.#options;
    if ((await readHolderNote(runDir)) !== null) throw notRestarted("an earlier restart is being finished");
    const [before, { entries }] = await Promise.all([holder.call("hello", {}), holder.call("list", {})]);
    const tapdisks = entries.length === 0 ? new Map<string, Tapdisk>() : await this.#tapdisks();
    const obstacles = entries.flatMap((entry) => obstacleOf(entry, tapdisks));
    if (obstacles.length > 0) throw notRestarted(obstacles.join("; "));
    // A guest whose disk is lost has nothing to gain, and is left as it is; what nobody has open is offered by whoever activates it.
    const kept = entries.filter(({ lost, listen }) => lost === null && tapdisks.has(listen)).map(noted);
    const running = kept.flatMap(({ listen }) => tapdisks.get(listen) ?? []);
    log.info({ disks: kept.length, tapdisks: running.length }, "the holder is restarted");
    await writeHolderNote(runDir, kept);
    const begun = performance.now();
    let failed: unknown = null;
    try {
      await eachOf(running, async (tapdisk) => this.#tapCtl.pause(tapdisk));
      await this.#refuseUnlessPaused(kept);
      await this.#restartUnit(before);
    } catch (error) {
      failed = error;
    }
    const left = await this.#goOn(kept);
    const pausedMs = Math.round(performance.now() - begun);
    if (left.length > 0) void this.#goOnLater(left);
    else await removeHolderNote(runDir);
    if (left.length > 0) throw leftOver(left, failed);
    if (failed !== null) throw notRestarted(reasonOf(failed), failed);
    const { version } = await holder.call("hello", {});
    log.info({ version, pausedMs }, "the holder was restarted");
    return { version, paused: running.length, pausedMs };
  }

  /** What was asked to pause and answered may have been let go on since, by hand or by whatever else knows of it. */
  async #refuseUnlessPaused(kept: readonly HeldEntry[]): Promise<void> {
    const tapdisks = await this.#tapdisks();
    // One that has ended has nothing to lose.
    const going = kept.filter(({ listen }) => tapdisks.get(listen)?.isPaused === false);
    if (going.length === 0) return;
    const named = going.map(({ id }) => id).join(", ");
    throw new Error(`what was paused was let go on by something else: ${named}`);
  }

  /** At the agent's start: what one that ended in between had begun. */
  async finish(): Promise<void> {
    const { runDir, turns, log } = this.#options;
    const kept = await readHolderNote(runDir);
    if (kept === null) return;
    log.warn({ disks: kept.length }, "a restart of the holder was cut off; its guests are let go on");
    const left = await turns.alone(() => this.#goOn(kept));
    if (left === null) await this.#goOnLater(kept.map(notTried));
    else if (left.length > 0) await this.#goOnLater(left);
    else await removeHolderNote(runDir);
  }

  /** Until nothing is left but what is lost. Who paused one of them since has its turn, and lets it go on itself. */
  async #goOnLater(left: readonly Left[]): Promise<void> {
    const { runDir, turns, log } = this.#options;
    const oftenUntil = performance.now() + this.#oftenMs;
    let open = left.filter(({ isLost }) => !isLost);
    for (const one of left) if (one.isLost) logLost(log, one);
    try {
      while (open.length > 0) {
        const isOften = performance.now() < oftenUntil;
        if (!isOften) {
          for (const { entry, why } of open)
            log.error({ vdi: entry.id, why }, "a guest's disk stays paused; it is tried once a minute");
        }
        await delay(isOften ? AGAIN_MS : this.#seldomMs, undefined, { ref: false });
        const tried: Left[] = [];
        await eachOf(open, async ({ entry }) => {
          tried.push(...(await turns.ofDisk(entry.id, () => this.#tryToGoOn([entry]))));
        });
        for (const one of tried) if (one.isLost) logLost(log, one);
        open = tried.filter(({ isLost }) => !isLost);
      }
      await removeHolderNote(runDir);
    } catch (error) {
      log.error({ error: reasonOf(error) }, "guests' disks may be paused: see tap-ctl list");
    }
  }

  async #restartUnit(before: HolderHello): Promise<void> {
    const { dom0Root, holder } = this.#options;
    const ended = await execa(`${dom0Root}/usr/bin/systemctl`, ["restart", "weft-holder.service"], {
      reject: false,
      stdin: "ignore",
      timeout: UNIT_MS,
      maxBuffer: 1 << 16,
    });
    if (ended.failed) {
      const said =
        ended.stderr.trim() === "" ? (ended.shortMessage ?? "it says nothing") : ended.stderr.trim();
      throw new Error(`systemctl restart weft-holder failed: ${said.slice(-300)}`);
    }
    const end = performance.now() + UNIT_MS;
    for (;;) {
      const now = await holder.call("hello", {}).catch((error: unknown) => {
        if (isNoHolder(error)) return null;
        throw error;
      });
      if (now !== null && now.incarnation !== before.incarnation) return;
      if (performance.now() > end) throw new Error("no new holder answers");
      await delay(AGAIN_MS / 10);
    }
  }

  /** Offers again what has a tapdisk that is paused, and lets it go on; what is left when whoever asked has waited long enough. */
  async #goOn(kept: readonly HeldEntry[]): Promise<readonly Left[]> {
    const end = performance.now() + this.#goOnMs;
    let open = kept;
    const lost: Left[] = [];
    for (;;) {
      const left = (await this.#tryToGoOn(open)).filter((one) => {
        if (one.isLost) lost.push(one);
        return !one.isLost;
      });
      if (left.length === 0 || performance.now() > end) return [...lost, ...left];
      open = left.map(({ entry }) => entry);
      await delay(AGAIN_MS);
    }
  }

  async #tryToGoOn(kept: readonly HeldEntry[]): Promise<readonly Left[]> {
    if (kept.length === 0) return [];
    const tapdisks = await this.#tapdisks().catch((error: unknown) => reasonOf(error));
    if (typeof tapdisks === "string") return kept.map((entry) => ({ entry, why: tapdisks, isLost: false }));
    const left: Left[] = [];
    await eachOf(kept, async (entry) => {
      const tapdisk = tapdisks.get(entry.listen);
      try {
        // Ended meanwhile, or never paused: whoever activates the disk offers it.
        if (tapdisk === undefined || !(tapdisk.isPaused || tapdisk.isPausing)) return;
        if (!tapdisk.isPaused)
          throw new Error("it pauses when its last request is answered, which it waits for");
        await this.#offer(entry);
        await letGoOn(this.#tapCtl, tapdisk);
      } catch (error) {
        left.push({ entry, why: reasonOf(error), isLost: isWeftError(error, TAKEN) });
      }
    });
    return left;
  }

  async #offer({ told_size: bytes, ...entry }: HeldEntry): Promise<void> {
    const { holder } = this.#options;
    await holder.call("open", entry);
    if (bytes === null) return;
    try {
      await holder.call("keep_size", { id: entry.id, bytes });
    } catch (error) {
      // An older holder, at a step back: it tells the size of now, which is the same unless the disk grew.
      if (!isWeftError(error, "E-ARG-01")) throw error;
    }
  }

  /** By the socket that they are connected to. */
  async #tapdisks(): Promise<ReadonlyMap<string, Tapdisk>> {
    const tapdisks = await this.#tapCtl.list();
    return new Map(
      tapdisks.flatMap((tapdisk) => {
        const socket = socketOf(tapdisk.args);
        return socket === null ? [] : [[socket, tapdisk]];
      }),
    );
  }
}

function noted({ id, listen, volume, first, snapshot, writable, told_size }: HolderEntry): HeldEntry {
  // An older holder tells no size: it knows none but that of now.
  return { id, listen, volume, session: first, snapshot, writable, told_size: told_size ?? null };
}

function notTried(entry: HeldEntry): Left {
  return { entry, why: "it was not tried yet", isLost: false };
}

function logLost(log: Log, { entry, why }: Left): void {
  log.error({ vdi: entry.id, why }, "a guest's disk stays paused: another host has taken it");
}

function obstacleOf(entry: HolderEntry, tapdisks: ReadonlyMap<string, Tapdisk>): readonly string[] {
  const { id, listen, connected, away_ms, lost } = entry;
  if (lost !== null) return [];
  const tapdisk = tapdisks.get(listen);
  if (tapdisk?.isPaused === true || tapdisk?.isPausing === true)
    return [`the tapdisk of ${id} is paused by something else`];
  if (!connected) return [];
  if (tapdisk === undefined) return [`${id} has a client that is no tapdisk and can't be paused`];
  return away_ms === null ? [] : [`weftd has been away from ${id} for ${away_ms} ms, and its guest waits`];
}

/** All of them, 16 at a time; an error comes when each has ended. */
async function eachOf<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const left = [...items];
  const ended: PromiseSettledResult<void>[] = [];
  const lane = async (): Promise<void> => {
    for (let item = left.shift(); item !== undefined; item = left.shift()) {
      ended.push(...(await Promise.allSettled([work(item)])));
    }
  };
  await Promise.all(Array.from({ length: 16 }, lane));
  const failure = ended.find((one) => one.status === "rejected");
  if (failure !== undefined) throw failure.reason;
}

function notRestarted(why: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-HOLD-05",
    message: `The holder was not restarted: ${why.replace(/\.$/, "")}.`,
    safe: "Every guest's disk goes on.",
    ...(cause === undefined ? {} : { cause }),
  });
}

function leftOver(left: readonly Left[], failed: unknown): WeftError {
  const named = left.map(({ entry, why, isLost }) => `${entry.id}${isLost ? " (lost)" : ""}: ${why}`);
  const first = failed === null ? "" : ` The restart itself failed: ${reasonOf(failed)}.`;
  return new WeftError({
    code: "E-HOLD-06",
    message: `${left.length === 1 ? "One disk stays" : `${left.length} disks stay`} paused: ${named.join("; ").replace(/\.$/, "")}.${first}`,
    safe: "They are tried until they go on; what is lost has been taken by another host, and its VM has to be started again.",
    facts: { disks: left.map(({ entry }) => entry.id) },
    do: [{ why: "What the tapdisks are like", command: "tap-ctl list" }],
  });
}
