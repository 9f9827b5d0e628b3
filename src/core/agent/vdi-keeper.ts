/**
 * What requests that were cut short left of virtual disks is taken away, by the elected agent: snapshots that were taken for a
 * moment, and keys of disks whose snapshot never came or went by another door.
 *
 * Must always hold:
 * - nothing goes that somebody may still wait for: it is older than any request;
 * - a disk's volume, and a snapshot that is a disk, are never touched.
 */
import type { SnapshotId } from "../model/ids.ts";
import type { Snapshot } from "../model/snapshot.ts";
import { HELPER_MS, isLeftHelper, isLeftKey, isNamed } from "../model/vdi.ts";
import { isWeftError } from "../wire/errors.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { snapshotsOf } from "./facts.ts";
import { Rounds } from "./rounds.ts";
import { lookAtVdis } from "./sr-facts.ts";
import { deleteIfThere, dropUnread } from "./vdi-helpers.ts";

const LOOK_MS = 60_000;

export type VdiKeeperOptions = {
  readonly context: MemberContext;
  readonly isPlacer: () => boolean;
};

export class VdiKeeper {
  readonly #options: VdiKeeperOptions;
  readonly #rounds: Rounds;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: VdiKeeperOptions) {
    this.#options = options;
    this.#rounds = new Rounds("disks", options.context.log, () => this.#look());
  }

  start(): void {
    this.#timer = setInterval(() => void this.#rounds.settle(), LOOK_MS);
  }

  stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
  }

  async #look(): Promise<void> {
    const { context, isPlacer } = this.#options;
    const { mirror } = context;
    if (!isPlacer() || mirror.entries(keys.vdis).length === 0) return;
    await dropLeft(context, Date.now());
  }
}

export async function dropLeft(context: MemberContext, nowMs: number): Promise<void> {
  const { mirror, store, log } = context;
  await mirror.sync();
  const { vdis, unread } = lookAtVdis(mirror);
  for (const { vdi, entry, snapshot } of vdis) {
    if (!isLeftKey(vdi, { snapshot }, nowMs - Date.parse(vdi.createdAt))) continue;
    const { key, modRevision } = entry;
    const { kind } = await store.txn([{ key, modRevision }], [{ kind: "delete", key }]);
    if (kind === "succeeded") log.info({ vdi: vdi.uuid }, "a disk whose snapshot is none is forgotten");
  }
  for (const { vdi } of vdis) {
    const reader = vdi.readOnly ? null : vdi.reader;
    const taken = snapshotsOf(mirror, vdi.volume).known.find(({ id }) => id === reader);
    if (taken !== undefined && nowMs - taken.createdMs >= HELPER_MS) await dropUnread(context, vdi.uuid);
  }
  const named = new Set<SnapshotId>(
    vdis.flatMap(({ vdi }) => [vdi.resetTo, vdi.reader].filter((id) => id !== null)),
  );
  const volumes = new Set(vdis.map(({ vdi }) => vdi.volume));
  const snapshots = [...volumes].flatMap((volume) => snapshotsOf(mirror, volume).known);
  // A key that can't be read may name any that disks name.
  const isLeft = (one: Snapshot): boolean =>
    isLeftHelper(one, named, nowMs) && (unread.length === 0 || !isNamed(one));
  for (const snapshot of snapshots.filter(isLeft)) {
    try {
      await deleteIfThere(context, snapshot.id);
      log.info(
        { volume: snapshot.volume, snapshot: snapshot.name },
        "a snapshot that nobody needs any more is deleted",
      );
    } catch (error) {
      // It is open or being cloned, or its owner does not answer: another time.
      if (!isWeftError(error)) throw error;
    }
  }
}
