/**
 * The loop over volumes: facts in, the model's step, effects out. Decisions are the model's; nothing is decided here.
 *
 * Must always hold:
 * - each agent performs for its own host only; what belongs to nobody's host is performed by the placer;
 * - one effect of one volume is performed at most once at a time; one that failed is asked for again with a growing pause.
 */
import type { Cluster } from "../model/cluster.ts";
import type { HostId, SessionId, VolumeId } from "../model/ids.ts";
import { effectLine, initialVolume, stepVolume, wakeAt } from "../model/volume.ts";
import type { VolumeEffect, VolumeEvent, VolumeState } from "../model/volume.ts";
import { reasonOf, WeftError } from "../wire/errors.ts";
import { keys, parseKey } from "../wire/store-keys.ts";
import { parseVolumeId } from "../model/ids.ts";
import { snapshotsOf, type VolumeFacts, volumeIdsOf, volumeOf } from "./facts.ts";
import type { Log } from "./log.ts";
import type { Changed, Mirror } from "./mirror.ts";

const RETRY_MS = 500;
const RETRY_MAX_MS = 15_000;
/** A timer of Node holds 2^31 ms, and fires at once beyond: who waits longer looks again in between. */
const WAIT_MAX_MS = 24 * 60 * 60 * 1000;

export type KeeperOptions = {
  readonly self: HostId;
  readonly mirror: Mirror;
  readonly log: Log;
  readonly cluster: () => Cluster;
  readonly isPlacer: () => boolean;
  readonly perform: (volume: VolumeId, effect: VolumeEffect, state: VolumeState) => Promise<void>;
};

export class Keeper {
  readonly #options: KeeperOptions;
  readonly #volumes = new Map<VolumeId, VolumeState>();
  readonly #busy = new Set<string>();
  readonly #failures = new Map<string, number>();
  readonly #retries = new Set<NodeJS.Timeout>();
  #timer: NodeJS.Timeout | null = null;
  #forget: (() => void) | null = null;

  constructor(options: KeeperOptions) {
    this.#options = options;
  }

  start(): void {
    this.#forget ??= this.#options.mirror.onChange((changed) => this.#onChange(changed));
    this.stepAll();
  }

  stop(): void {
    this.#forget?.();
    this.#forget = null;
    if (this.#timer !== null) clearTimeout(this.#timer);
    for (const timer of this.#retries) clearTimeout(timer);
    this.#retries.clear();
  }

  stateOf(volume: VolumeId): VolumeState {
    return this.#volumes.get(volume) ?? initialVolume();
  }

  /** Hosts came or went, the daemon is back, or this agent places now. */
  stepAll(): void {
    for (const volume of new Set([...volumeIdsOf(this.#options.mirror), ...this.#volumes.keys()])) {
      this.#step(volume);
    }
    this.#rearm();
  }

  #onChange(changed: Changed): void {
    if (changed === null) {
      this.stepAll();
      return;
    }
    const volumes = new Set<VolumeId>();
    for (const key of changed) {
      const parsed = parseKey(key);
      const id = parsed !== null && "volume" in parsed ? parseVolumeId(parsed.volume) : null;
      if (id !== null) volumes.add(id);
    }
    for (const volume of volumes) this.#step(volume);
    this.#rearm();
  }

  #step(volume: VolumeId): void {
    const { mirror, log, self } = this.#options;
    const facts = volumeOf(mirror, volume);
    if (facts.unreadable !== null) {
      // Whoever can't read a volume keeps its hands off it; others may be newer.
      log.warn({ volume, code: facts.unreadable.code }, facts.unreadable.message);
      return;
    }
    const before = this.#volumes.get(volume) ?? initialVolume();
    const now = Date.now();
    const cluster = this.#options.cluster();
    const events: readonly VolumeEvent[] = [
      { kind: "record", record: facts.record },
      { kind: "made", made: facts.made },
      { kind: "want", want: facts.want },
      { kind: "snapshots", snapshots: snapshotsOf(mirror, volume).known },
      { kind: "caretaker", session: caretakerOf(facts) },
      { kind: mirror.get(keys.emptyTrash(volume)) === null ? "tick" : "empty-trash" },
    ];
    // All facts first, then one look: an effect of a half-told story would be asked for too early.
    let state = before;
    let effects: readonly VolumeEffect[] = [];
    for (const event of events) {
      [state, effects] = stepVolume({ ...state, asked: before.asked }, event, now, cluster);
    }
    if (facts.want === null && facts.record === null && facts.made.length === 0) {
      this.#volumes.delete(volume);
      return;
    }
    this.#volumes.set(volume, state);
    for (const effect of effects) {
      const by = performer(effect);
      if (by === self || (by === "placer" && this.#options.isPlacer())) this.#perform(volume, effect, state);
    }
  }

  #perform(volume: VolumeId, effect: VolumeEffect, state: VolumeState): void {
    const { log } = this.#options;
    const line = effectLine(effect);
    const key = `${volume} ${line}`;
    if (this.#busy.has(key)) return;
    this.#busy.add(key);
    log.debug({ volume }, line);
    this.#options
      .perform(volume, effect, state)
      .then(() => this.#failures.delete(key))
      .catch((error: unknown) => {
        if (!(error instanceof WeftError)) log.error({ volume, error: reasonOf(error) }, `${line}: a bug`);
        else
          log[levelOf(error)]({ volume, code: error.code, facts: error.facts }, `${line}: ${error.message}`);
        this.#retry(volume, line, key);
      })
      .finally(() => this.#busy.delete(key));
  }

  #retry(volume: VolumeId, line: string, key: string): void {
    // What was under way when the keeper stopped may fail later: nobody asks for it again.
    if (this.#forget === null) return;
    const count = (this.#failures.get(key) ?? 0) + 1;
    this.#failures.set(key, count);
    const timer = setTimeout(
      () => {
        this.#retries.delete(timer);
        const state = this.#volumes.get(volume);
        if (state === undefined) return;
        this.#volumes.set(volume, {
          ...state,
          asked: new Map([...state.asked].filter(([asked]) => asked !== line)),
        });
        this.#step(volume);
        this.#rearm();
      },
      Math.min(RETRY_MAX_MS, RETRY_MS * 2 ** (count - 1)),
    );
    this.#retries.add(timer);
  }

  /** One timer for the earliest deadline of all volumes. */
  #rearm(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#forget === null) return;
    const now = Date.now();
    const times = [...this.#volumes.values()].flatMap((state) => wakeAt(state, now) ?? []);
    if (times.length === 0) return;
    const wait = Math.min(WAIT_MAX_MS, Math.max(50, Math.min(...times) - now));
    this.#timer = setTimeout(() => this.stepAll(), wait);
  }
}

/** The owner's session if there is no guest behind it, on whatever host, by the record's own word. */
function caretakerOf({ record, extra }: VolumeFacts): SessionId | null {
  const owner = record?.owner ?? null;
  return owner !== null && extra?.caretaker === true ? owner.session : null;
}

/** weftd keeps a replica for up to a day after nobody wants it any more (R15): no news. */
function levelOf(error: WeftError): "debug" | "warn" {
  return error.code === "E-REPL-05" ? "debug" : "warn";
}

function performer(effect: VolumeEffect): HostId | "placer" {
  switch (effect.kind) {
    case "drop-place":
    case "forget":
      return "placer";
    case "make-replica":
    case "create-record":
    case "create-tombstone":
    case "add-member":
    case "remove-member":
    case "grow":
    case "set-policy":
    case "open-caretaker":
    case "close-caretaker":
    case "delete-record":
    case "restore-record":
    case "delete-head":
    case "restore-head":
    case "release-head":
    case "end-headless":
    case "trash-replica":
    case "untrash-replica":
    case "empty-trash":
      return effect.host;
  }
}
