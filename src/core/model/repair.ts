/**
 * Which copy of a volume's record a repair of the store builds on (protocol.md 4.15, R11; docs/adr/0007).
 *
 * Must always hold:
 * - the highest (epoch, rev) wins, unless no changes can have led there: any host can write a record near the end of its
 *   range into the store, and so lead a copy astray that has nothing to compare it with;
 * - what a copy that counted knows is never left out: whoever changed the volume since had the promise of one of them.
 */
import type { Rid } from "./ids.ts";
import { insync } from "./volume-record.ts";
import type { VolumeRecord } from "./volume-record.ts";

/** So many epochs no honest changes make while a copy is away: 128 repairs, or one a second for four years. */
export const EPOCH_BELIEF = 1n << 27n;
/** A copy follows so far at once (native/weft-proto/src/replica.rs, RISE_AT_ONCE). */
const RISE_AT_ONCE = 1n << 28n;
/** No store is repaired so often while a host is away (native/weftd/src/store.rs, INCARNATION_RISE_MAX). */
const INCARNATION_RISE_MAX = 1n << 16n;
/** No pool is started so often (native/weft-proto/src/superblock.rs, POOL_RISE_MAX). */
const POOL_RISE_MAX = 1n << 32n;

/** What the copies on one host keep. */
export type Kept = { readonly record: VolumeRecord; readonly host: string };

export function isNewer(a: VolumeRecord, b: VolumeRecord): boolean {
  return a.epoch > b.epoch || (a.epoch === b.epoch && a.rev > b.rev);
}

/** The best of a volume's copies: above a gap that no changes make only if a member that counted below it is there too. */
export function bestKept<T extends Kept>(copies: readonly T[]): T | null {
  const sorted = copies.toSorted((a, b) =>
    isNewer(a.record, b.record) ? -1 : isNewer(b.record, a.record) ? 1 : 0,
  );
  let from = 0;
  for (const [index, below] of sorted.entries()) {
    const above = sorted[index - 1];
    if (above === undefined || above.record.epoch - below.record.epoch <= EPOCH_BELIEF) continue;
    const counted = new Set<string>(insync(below.record).map(({ host }) => host));
    if (sorted.slice(from, index).some(({ host }) => counted.has(host))) break;
    from = index;
  }
  return sorted[from] ?? null;
}

/** Whether changes may have led the store's own record there since `kept`. */
export function mayFollow(kept: VolumeRecord, stored: VolumeRecord): boolean {
  return stored.epoch <= kept.epoch + EPOCH_BELIEF;
}

/** The epoch that is raised: no copy that can be followed has promised more, also one that was led astray. */
export function epochToRaise(best: VolumeRecord, copies: readonly Kept[]): bigint {
  return copies
    .map(({ record }) => record.epoch)
    .filter((epoch) => epoch <= best.epoch + RISE_AT_ONCE)
    .reduce((a, b) => (a > b ? a : b), best.epoch);
}

/** A copy's image of a snapshot. `isNoted`: its snapshot was logged there once, with what names it. */
export type KeptImage = {
  readonly snap: string;
  readonly attempt: bigint;
  readonly generation: bigint;
  readonly state: "prepared" | "ready" | "deleting" | "destroyed";
  readonly isNoted: boolean;
};

/** What one copy of a volume tells of its images. */
export type CopyImages<Image extends KeptImage> = {
  readonly rid: Rid;
  readonly images: readonly Image[];
  readonly gone: readonly { readonly snap: string; readonly attempt: bigint }[];
};

export type BestSnapshot<Image extends KeptImage> = {
  readonly image: Image;
  /** A copy has deleted it, or was about to. */
  readonly isGoing: boolean;
  /** A copy has nothing but hashes of it: so it shall be everywhere. */
  readonly isDestroyed: boolean;
  /** Copies that have this very image. */
  readonly rids: readonly Rid[];
};

/**
 * The snapshots that the copies of a volume know of: of each the last attempt that was logged anywhere. What was only
 * prepared was reported to nobody. A copy that has deleted that attempt says that the snapshot shall go: gone beats ready,
 * for it was ready before (protocol.md R15); one of an earlier attempt says nothing.
 */
export function bestSnapshots<Image extends KeptImage>(
  copies: readonly CopyImages<Image>[],
): readonly BestSnapshot<Image>[] {
  const best = new Map<string, Image>();
  for (const image of copies.flatMap(({ images }) => images)) {
    if (!image.isNoted) continue;
    const known = best.get(image.snap);
    if (known === undefined || isLater(image, known)) best.set(image.snap, image);
  }
  return [...best.values()].map((image) => ({
    image,
    isGoing: isGoing(copies, image),
    isDestroyed: copies.some(({ images }) =>
      images.some(
        ({ snap, attempt, state }) =>
          snap === image.snap && attempt === image.attempt && state === "destroyed",
      ),
    ),
    rids: copies
      .filter(({ images }) =>
        images.some(
          ({ snap, attempt, isNoted }) => isNoted && snap === image.snap && attempt === image.attempt,
        ),
      )
      .map(({ rid }) => rid),
  }));
}

/** Whether a copy has deleted this attempt at a snapshot or a later one, or was about to. */
export function isGoing(
  copies: readonly CopyImages<KeptImage>[],
  { snap, attempt }: Pick<KeptImage, "snap" | "attempt">,
): boolean {
  return copies.some(
    ({ images, gone }) =>
      gone.some((one) => one.snap === snap && one.attempt >= attempt) ||
      images.some((one) => one.snap === snap && one.attempt >= attempt && one.state === "deleting"),
  );
}

function isLater(a: KeptImage, b: KeptImage): boolean {
  return a.attempt > b.attempt || (a.attempt === b.attempt && a.generation > b.generation);
}

/** The store's incarnation after a repair: above all that are known, and that repairs can have led to since `own`. */
export function nextIncarnation(own: bigint, known: readonly bigint[]): bigint {
  return (
    known
      .filter((incarnation) => incarnation < own + INCARNATION_RISE_MAX)
      .reduce((a, b) => (a > b ? a : b), own) + 1n
  );
}

/** The highest incarnation of a pool among those that starts can have led to since `disk`; null: its disk is not here. */
export function knownIncarnation(disk: bigint | null, others: readonly bigint[]): bigint {
  return others
    .filter((inc) => disk === null || inc <= disk + POOL_RISE_MAX)
    .reduce((a, b) => (a > b ? a : b), disk ?? 0n);
}
