/** Plot: what people type and read: sizes, names, addresses, typing mistakes, lengths of time. */
import * as fc from "fast-check";
import t from "tap";

import { formatDuration, parseDuration } from "../../../src/core/model/duration.ts";
import { parseHostId, parseRid, parseUuid } from "../../../src/core/model/ids.ts";
import { VOLUME_BYTES_MAX } from "../../../src/core/model/limits.ts";
import { parseAddress, parseName } from "../../../src/core/model/name.ts";
import {
  checkSize,
  formatSize,
  formatSizeExact,
  parseRate,
  parseSize,
} from "../../../src/core/model/size.ts";
import { distance, suggest } from "../../../src/core/model/suggest.ts";

void t.test("size: is read with and without iB, in either case, with a fraction", async (t) => {
  for (const [text, bytes] of [
    ["4096", 4096n],
    ["256MiB", 256n << 20n],
    ["200G", 200n << 30n],
    ["200g", 200n << 30n],
    ["3 TiB", 3n << 40n],
    ["1.5T", 3n << 39n],
    ["64TiB", 64n << 40n],
  ] as const) {
    t.strictSame(parseSize(text), { kind: "ok", value: bytes }, text);
  }
});

void t.test("size: what can't be a volume's size is refused with its reason", async (t) => {
  for (const [text, code, message] of [
    ["", "E-ARG-02", /is not a size/],
    ["lots", "E-ARG-02", /is not a size/],
    ["-1G", "E-ARG-02", /is not a size/],
    ["1e9", "E-ARG-02", /is not a size/],
    ["1.5", "E-ARG-02", /is not a size/],
    ["200GB", "E-ARG-02", /write "200GiB" for powers of 1024/],
    ["0", "E-VOL-02", /not more than zero/],
    ["65T", "E-VOL-02", /above the limit of 64 TiB/],
    ["99999999999999999999P", "E-VOL-02", /above the limit/],
    ["5000", "E-ARG-02", /not a multiple of 4 KiB. The next one is 8192/],
  ] as const) {
    t.match(parseSize(text), { kind: "refused", finding: { code, message } }, text);
  }
});

void t.test(
  "size: what is written exactly is read back, and any size is either taken as it is or refused",
  async (t) => {
    fc.assert(
      fc.property(fc.bigInt({ min: 1n, max: VOLUME_BYTES_MAX / 4096n }), (blocks) => {
        const bytes = blocks * 4096n;
        t.strictSame(parseSize(formatSizeExact(bytes)), { kind: "ok", value: bytes });
        t.equal(checkSize(bytes + 1n).kind, "refused");
      }),
    );
  },
);

void t.test("size: is shown with three digits that matter", async (t) => {
  t.equal(formatSize(0n), "0 B");
  t.equal(formatSize(4096n), "4 KiB");
  t.equal(formatSize(894n << 30n), "894 GiB");
  t.equal(formatSize(1792n << 30n), "1.75 TiB");
  t.equal(formatSize((1n << 30n) + (1n << 20n) * 51n), "1.04 GiB");
});

void t.test("name: letters, digits, dot, underscore, hyphen; the reason is named otherwise", async (t) => {
  for (const good of ["db", "web1", "9", "a.b_c-d", "a".repeat(63)])
    t.equal(parseName("volume", good).kind, "ok", good);
  for (const [name, reason] of [
    ["", /it is empty/],
    ["a".repeat(64), /has 64 characters, at most 63/],
    ["DB", /contains "D".*"db" would do/],
    ["a b", /contains " "/],
    ["../x", /contains "\/"/],
    ["é", /contains "é"/],
    ["-x", /must begin with/],
    ["..", /must begin with/],
    ["d0000000-0000-4000-a000-000000000000", /looks like an identifier/],
  ] as const) {
    t.match(
      parseName("volume", name),
      { kind: "refused", finding: { code: "E-ARG-02", message: reason } },
      name,
    );
  }
});

void t.test("address: IPv4, IPv6 and names are taken, half ones are not", async (t) => {
  for (const good of ["10.0.9.11", "fd00::11", "[fd00::11]", "h1", "h1.example.org"]) {
    t.equal(parseAddress(good).kind, "ok", good);
  }
  for (const bad of ["", "10.0.9", "10.0.9.256", "h1:7400", "a b", "-h"])
    t.equal(parseAddress(bad).kind, "refused", bad);
});

void t.test("suggestion: only for a typing mistake", async (t) => {
  t.equal(suggest("bd", ["db", "web"]), "db");
  t.equal(suggest("attahc", ["attach", "detach"]), "attach");
  t.equal(suggest("volum", ["volume", "pool"]), "volume");
  t.equal(suggest("x", ["db", "a"]), null);
  t.equal(suggest("replica", ["volume", "pool"]), null);
});

void t.test(
  "suggestion: the distance is symmetric, zero only for equals, and within the lengths",
  async (t) => {
    const word = fc.string({ maxLength: 8 });
    fc.assert(
      fc.property(word, word, (a, b) => {
        t.equal(distance(a, b), distance(b, a));
        t.equal(distance(a, b) === 0, a === b);
        t.ok(distance(a, b) <= Math.max(a.length, b.length));
        t.ok(distance(a, b) >= Math.abs(a.length - b.length));
      }),
    );
    t.equal(distance("ab", "ba"), 1, "two neighbours swapped are one mistake");
  },
);

void t.test("identifier: any spelling of a UUID becomes the same text, else nothing", async (t) => {
  t.equal(parseUuid("D0000000000040008000000000000001"), "d0000000-0000-4000-8000-000000000001");
  t.equal(parseHostId("d0000000-0000-4000-8000-00000000000"), null);
  t.equal(parseRid(4_294_967_296), null);
  t.equal(parseRid(-1), null);
  t.equal(parseRid(7), 7);
});

void t.test("duration: is read with one unit, and nothing else is one", async (t) => {
  t.equal(parseDuration("90s"), 90_000);
  t.equal(parseDuration(" 30m "), 30 * 60_000);
  t.equal(parseDuration("30 min"), 30 * 60_000);
  t.equal(parseDuration("2h"), 2 * 3_600_000);
  t.equal(parseDuration("90d"), 90 * 86_400_000);
  for (const text of ["", "2", "h", "-2h", "1.5h", "2 hours", "1h30m", "9999999s", "2y"])
    t.equal(parseDuration(text), null, text);
});

void t.test("duration: two units at most", async (t) => {
  t.equal(formatDuration(-5), "0 s");
  t.equal(formatDuration(45_000), "45 s");
  t.equal(formatDuration(130_000), "2 min 10 s");
  t.equal(formatDuration(3_600_000), "1 h");
  t.equal(formatDuration(25 * 3_600_000), "25 h");
  t.equal(formatDuration(50 * 3_600_000), "2 days 2 h");
});

void t.test("rate: bytes a second, with or without the second", async (t) => {
  for (const [text, bytes] of [
    ["100MiB/s", 100n << 20n],
    ["100 MiB / s", null],
    ["1.5K/s", 1536n],
    ["65537", 65_537n],
    ["0", 0n],
    ["100MB/s", null],
    ["-1MiB/s", null],
    ["/s", null],
    ["NaN", null],
  ] as const) {
    const parsed = parseRate(text);
    if (bytes === null) t.match(parsed, { finding: { code: "E-ARG-02" } }, text);
    else t.strictSame(parsed, { kind: "ok", value: bytes }, text);
  }
});
