/** Bitmaps become ranges that have each set block and no other. */
import { array, assert, boolean, integer, property } from "fast-check";
import t from "tap";

import { addRanges, type ByteRange, bytesIn, joinPages } from "../../../src/core/model/changed-blocks.ts";

const KIB64 = 65_536n;
const grain = 65_536;

void t.test(
  "changed blocks: the highest bit comes first, and the last block ends with the snapshot",
  async (t) => {
    const ranges: ByteRange[] = [];
    const bitmap = Uint8Array.of(0b1100_0001, 0b1000_0000);
    addRanges(ranges, { bitmap, grain, offset: 0n, len: 8n * KIB64 + 4096n });
    t.strictSame(ranges, [
      { offset: 0n, len: 2n * KIB64 },
      { offset: 7n * KIB64, len: KIB64 + 4096n },
    ]);
    t.equal(bytesIn(ranges), 3n * KIB64 + 4096n);
  },
);

void t.test(
  "changed blocks: pages join where a range goes on, and what stands behind their end counts for nothing",
  async (t) => {
    const ranges: ByteRange[] = [];
    addRanges(ranges, { bitmap: Uint8Array.of(0b0001_1111), grain, offset: 0n, len: 4n * KIB64 });
    addRanges(ranges, { bitmap: Uint8Array.of(0b1010_0000), grain, offset: 4n * KIB64, len: 4n * KIB64 });
    addRanges(ranges, { bitmap: Uint8Array.of(), grain, offset: 8n * KIB64, len: KIB64 });
    t.strictSame(ranges, [
      { offset: 3n * KIB64, len: 2n * KIB64 },
      { offset: 6n * KIB64, len: KIB64 },
    ]);
  },
);

void t.test(
  "changed blocks: in ranges are the blocks of set bits and no others, whatever the pages",
  async () => {
    assert(
      property(
        array(boolean(), { minLength: 1, maxLength: 200 }),
        integer({ min: 1, max: 9 }),
        integer({ min: 0, max: 15 }),
        (bits, bytesAPage, short) => {
          const size = BigInt(bits.length) * KIB64 - BigInt(short) * 4096n;
          const ranges: ByteRange[] = [];
          for (let from = 0; from < bits.length; from += bytesAPage * 8) {
            const part = bits.slice(from, from + bytesAPage * 8);
            const bitmap = new Uint8Array(Math.ceil(part.length / 8));
            for (const [i, bit] of part.entries())
              if (bit) bitmap[i >> 3] = (bitmap[i >> 3] ?? 0) | (0x80 >> (i & 7));
            const offset = BigInt(from) * KIB64;
            const end = offset + BigInt(part.length) * KIB64;
            addRanges(ranges, { bitmap, grain, offset, len: (end < size ? end : size) - offset });
          }
          const has = (at: bigint): boolean =>
            ranges.some(({ offset, len }) => offset <= at && at < offset + len);
          return (
            bits.every((bit, i) => has(BigInt(i) * KIB64) === bit) &&
            ranges.every(({ offset, len }, i) => {
              const before = ranges[i - 1];
              return (
                len > 0n &&
                offset + len <= size &&
                (before === undefined || before.offset + before.len < offset)
              );
            })
          );
        },
      ),
    );
  },
);

void t.test("changed blocks: pages are one bitmap, whatever they covered", async (t) => {
  const page = (
    offset: bigint,
    len: bigint,
    ...bitmap: readonly number[]
  ): Parameters<typeof addRanges>[1] => ({
    bitmap: Uint8Array.from(bitmap),
    grain,
    offset,
    len,
  });
  const size = 11n * KIB64 + 1n;
  const pages = [
    page(0n, 3n * KIB64, 0b1011_1111),
    page(3n * KIB64, 8n * KIB64 + 1n, 0b1000_0001, 0b1000_0000),
  ];
  t.strictSame([...joinPages(size, pages)], [0b1011_0000, 0b0011_0000]);
  t.strictSame([...joinPages(size, [])], [0, 0]);
  const fine = { ...page(0n, size, 0b0000_0000, 0b1000_0000), grain: 4096 };
  t.strictSame([...joinPages(size, [fine])], [0b1000_0000, 0], "a finer page sets the block that it is in");
  assert(
    property(
      array(boolean(), { minLength: 1, maxLength: 64 }),
      integer({ min: 1, max: 20 }),
      (bits, step) => {
        const cut = [...Array(Math.ceil(bits.length / step)).keys()].map((n) => {
          const part = bits.slice(n * step, (n + 1) * step);
          return page(BigInt(n * step) * KIB64, BigInt(part.length) * KIB64, ...bytesOf(part));
        });
        t.strictSame([...joinPages(BigInt(bits.length) * KIB64, cut)], bytesOf(bits));
      },
    ),
  );
});

function bytesOf(bits: readonly boolean[]): readonly number[] {
  const bytes = Array.from({ length: Math.ceil(bits.length / 8) }, () => 0);
  for (const [n, bit] of bits.entries()) if (bit) bytes[n >> 3] = (bytes[n >> 3] ?? 0) | (0x80 >> (n & 7));
  return bytes;
}
