/**
 * How many bytes of volumes fit on hosts of these sizes, when every volume has so many copies and no two on one host.
 *
 * Must always hold:
 * - it is the most that fits, not a guess: volumes are small beside hosts, so that the largest host counts only as far as
 *   the others have room for the second copies of what is on it;
 * - with fewer hosts than copies nothing fits.
 */

/** Bytes of volumes, each counted once. `capacities` are hosts', in bytes; `copies` from 1 on. */
export function placeableBytes(copies: number, capacities: readonly bigint[]): bigint {
  const rooms = capacities.filter((room) => room > 0n).toSorted((a, b) => (a < b ? 1 : a > b ? -1 : 0));
  if (copies < 1 || rooms.length < copies) return 0n;
  // A host has at most one copy of each byte, so of t bytes it takes t at most: the largest t with Σ min(room, t) ≥ copies·t.
  // Where the `big` largest are cut to t, the others have to hold what is left of the copies.
  let rest = rooms.reduce((sum, room) => sum + room, 0n);
  for (let big = 0; big < copies; big += 1) {
    const most = rest / BigInt(copies - big);
    const largest = rooms[big] ?? 0n;
    if (largest <= most) return most;
    rest -= largest;
  }
  throw new Error(
    `${copies} copies on ${rooms.length} hosts: the last host of all is larger than all that is left`,
  );
}
