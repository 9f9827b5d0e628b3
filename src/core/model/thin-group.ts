/** Names and sizes of a pool's volume group. */

const MIB = 1n << 20n;
const GIB = 1n << 30n;

/** `weft-` and the first eight digits of the entry's id. */
export function groupName(id: string): string {
  return `weft-${id.slice(0, 8)}`;
}

/** Is it of a volume of a pool's group? As lsblk names it: `weft--1a2b3c4d-meta`. */
export function isOfGroup(title: string): boolean {
  return /^weft--[0-9a-f]{8}-/.test(title);
}

/**
 * In bytes, whole MiB. `meta` has the pool's directory: its log, 16 KiB and two checkpoints a copy; 2 %, 512 MiB to 16 GiB. `metadata`
 * has some 64 bytes for each chunk of 64 KiB, and more for snapshots: 2 %, beyond 1 GiB 0.2 %, of which LVM takes 15 GiB at most.
 */
export function thinSizes(deviceBytes: bigint): { readonly meta: bigint; readonly metadata: bigint } {
  const percent = deviceBytes / 100n;
  const meta = clamp(2n * percent, 512n * MIB, 16n * GIB);
  const metadata = clamp(2n * percent, 4n * MIB, clamp(percent / 5n, GIB, 15n * GIB));
  return { meta: (meta / MIB) * MIB, metadata: (metadata / MIB) * MIB };
}

function clamp(value: bigint, least: bigint, most: bigint): bigint {
  if (value < least) return least;
  return value > most ? most : value;
}
