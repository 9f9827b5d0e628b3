/**
 * A volume that has no record yet: which copies it waits for, and where else they can be made.
 *
 * Must always hold:
 * - a copy that was made stays; one whose host has died before is marked to go, since it may come after all, and its number is
 *   never another one's (R15);
 * - a clone keeps a copy that is made of its snapshot: nothing else knows what that has.
 */
import type { Cluster } from "./cluster.ts";
import type { HostId, Rid } from "./ids.ts";
import { placeCopies, roomOf } from "./placement.ts";
import { firstPlaces } from "./volume-record.ts";
import type { Made, Place, Want } from "./volume-record.ts";

/** What its first record waits for. */
export function missing(want: Want, made: readonly Made[]): readonly Place[] {
  return firstPlaces(want).filter((place) => !made.some(({ rid }) => rid === place.rid));
}

/** With other places for what the dead hosts were to make; null: there are none, or there is nothing of theirs. */
export function placedAnew(
  want: Want,
  made: readonly Made[],
  cluster: Cluster,
  dead: ReadonlySet<HostId>,
): Want | null {
  const lost = missing(want, made).filter(({ host }) => dead.has(host));
  const isLost = ({ rid }: Place): boolean => lost.some((place) => place.rid === rid);
  const isLeft = want.createdFrom === null || firstPlaces(want).some((place) => !isLost(place));
  if (lost.length === 0 || !isLeft || want.deletedAtMs !== null) return null;
  const kept = want.placements.filter((place) => !place.remove && !isLost(place));
  const found = placeCopies(cluster, {
    name: want.name,
    copies: lost.length,
    taken: want.placements.map(({ host }) => host),
    only: null,
    pool: null,
    spread: want.spread,
    beside: kept.map(({ host }) => host),
    roomBytes: roomOf(want),
  });
  if (found.kind === "refused") return null;
  const next = Math.max(...want.placements.map(({ rid }) => rid + 1));
  const added = found.value.map((spot, n) => ({ rid: (next + n) as Rid, ...spot, remove: false }));
  const left = want.placements.map((place) => (isLost(place) ? { ...place, remove: true } : place));
  return { ...want, placements: [...left, ...added] };
}
