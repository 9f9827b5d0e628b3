/**
 * Tells this host's weftd what its guests may take, as it is wanted: at an attach by the attach itself, and from here
 * whenever what is in force differs. A restart of this agent or of weftd, or a wish of another host, loses nothing.
 *
 * Must always hold: a session that can't be told now is told at the next change, or when weftd is back.
 */
import { parseVolumeId } from "../model/ids.ts";
import { sameLimits, type VolumeLimits } from "../model/volume-limits.ts";
import type * as daemonTypes from "../wire/daemon.gen.ts";
import { isWeftError } from "../wire/errors.ts";
import { parseKey } from "../wire/store-keys.ts";
import { volumeOf } from "./facts.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import type { Log } from "./log.ts";
import type { Changed, Mirror } from "./mirror.ts";
import { Rounds } from "./rounds.ts";

export type LimitKeeperOptions = {
  readonly mirror: Mirror;
  readonly daemon: Pick<LocalDaemon, "client">;
  readonly log: Log;
};

export class LimitKeeper {
  readonly #options: LimitKeeperOptions;
  readonly #rounds: Rounds;
  #forget: (() => void) | null = null;

  constructor(options: LimitKeeperOptions) {
    this.#options = options;
    this.#rounds = new Rounds("limits", options.log, () => this.#look());
  }

  start(): void {
    this.#forget ??= this.#options.mirror.onChange((changed) => {
      if (isAboutWishes(changed)) this.nudge();
    });
    this.nudge();
  }

  stop(): void {
    this.#forget?.();
    this.#forget = null;
  }

  /** A wish changed, a session opened, or weftd is back. */
  nudge(): void {
    if (this.#forget !== null) void this.settle();
  }

  /** All sessions were told what the mirror wants now, as far as weftd answers. */
  settle(): Promise<void> {
    return this.#rounds.settle();
  }

  async #look(): Promise<void> {
    const { mirror, daemon, log } = this.#options;
    const { sessions } = await daemon.client.call("session.list", {});
    for (const { volume, phase, caretaker, limits } of sessions) {
      const id = parseVolumeId(volume);
      const want = id === null ? null : volumeOf(mirror, id).want;
      if (want === null || caretaker || phase === "ended") continue;
      if (sameLimits(limitsOfDaemon(limits), want.limits)) continue;
      try {
        await daemon.client.call("session.limit", { volume, limits: limitsForDaemon(want.limits) });
      } catch (error) {
        // It was closed in the same moment: nothing is left to limit.
        if (!isWeftError(error, "E-VOL-13")) throw error;
        log.debug({ volume }, "closed before its limits were told");
      }
    }
  }
}

function isAboutWishes(changed: Changed): boolean {
  return changed === null || [...changed].some((key) => parseKey(key)?.kind === "want");
}

export function limitsForDaemon(limits: VolumeLimits | null): daemonTypes.VolumeLimits | null {
  if (limits === null) return null;
  const { iops, bps, burstS } = limits;
  return { iops, bps: bps === null ? null : String(bps), burst_s: burstS };
}

export function limitsOfDaemon(limits: daemonTypes.VolumeLimits | null): VolumeLimits | null {
  if (limits === null) return null;
  const { iops, bps, burst_s: burstS } = limits;
  return { iops, bps: bps === null ? null : BigInt(bps), burstS };
}
