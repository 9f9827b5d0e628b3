/**
 * Which blocks differ between two snapshots of a volume, as ranges of bytes.
 *
 * Must always hold:
 * - ranges are in order, touch each other nowhere, and end where the snapshot does;
 * - every block whose bit is set is in a range, and no other;
 * - pages that are put together have a bit where one of them has, and none besides.
 */

/** What one bit of a bitmap stands for. */
export const CHANGED_GRAIN = 64 * 1024;

export type ByteRange = { readonly offset: bigint; readonly len: bigint };

export type ChangedPage = {
  /** One bit a block of `grain` bytes from `offset` on, the highest bit of each byte first. */
  readonly bitmap: Uint8Array;
  readonly grain: number;
  readonly offset: bigint;
  readonly len: bigint;
};

/** The ranges of a page put behind those of the pages before it. */
export function addRanges(ranges: ByteRange[], { bitmap, grain, offset, len }: ChangedPage): void {
  const end = offset + len;
  const count = Number((len + BigInt(grain) - 1n) / BigInt(grain));
  let begin: number | null = null;
  const close = (block: number): void => {
    if (begin === null) return;
    const from = offset + BigInt(begin) * BigInt(grain);
    const to = offset + BigInt(block) * BigInt(grain);
    add(ranges, from, to < end ? to : end);
    begin = null;
  };
  for (let block = 0; block < count; block += 1) {
    const byte = bitmap[block >> 3] ?? 0;
    if (((byte >> (7 - (block & 7))) & 1) === 1) begin ??= block;
    else close(block);
  }
  close(count);
}

function add(ranges: ByteRange[], from: bigint, to: bigint): void {
  const last = ranges.at(-1);
  if (last === undefined || last.offset + last.len !== from) ranges.push({ offset: from, len: to - from });
  else ranges[ranges.length - 1] = { offset: last.offset, len: to - last.offset };
}

/** Pages as one bitmap of `size` bytes, a bit for `CHANGED_GRAIN`; a page of another grain sets the bits that it touches. */
export function joinPages(size: bigint, pages: readonly ChangedPage[]): Uint8Array {
  const ranges: ByteRange[] = [];
  for (const page of pages) addRanges(ranges, page);
  const grain = BigInt(CHANGED_GRAIN);
  const blocks = (size + grain - 1n) / grain;
  const bitmap = new Uint8Array(Number((blocks + 7n) / 8n));
  for (const { offset, len } of ranges) {
    const [first, last] = [Number(offset / grain), Number((offset + len - 1n) / grain)];
    for (let block = first; block <= last; block += 1) {
      const byte = block >> 3;
      bitmap[byte] = (bitmap[byte] ?? 0) | (0x80 >> (block & 7));
    }
  }
  return bitmap;
}

export function bytesIn(ranges: readonly ByteRange[]): bigint {
  return ranges.reduce((sum, { len }) => sum + len, 0n);
}
