/** Values of the store are read with distrust, and written without losing what newer software put there. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { assert, constantFrom, json, jsonValue, property, string } from "fast-check";
import t from "tap";

import { repository } from "../../../scripts/lib/repository.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import {
  parseHostLabels,
  parsePool,
  parseRecord,
  parseRecordExtra,
  parseScrubResult,
  parseSnapshot,
  parseStore,
  parseWant,
  renderScrubResult,
  renderWant,
} from "../../../src/core/wire/record.ts";

const V = "11111111-1111-4111-8111-111111111111";
const H = "22222222-2222-4222-8222-222222222222";
const P = "33333333-3333-4333-8333-333333333333";

const record = {
  fmt: 1,
  min_reader: 1,
  vol: V,
  size: "18446744073709551615",
  region_shift: 20,
  mode: "excl",
  policy: { copies: 2, min_isr: 1, ack: "durable", on_loss: "pause", spread: "host" },
  epoch: "549755813887",
  rev: "12",
  next_rid: 2,
  deleted: null,
  created_by: "t",
  nonce: "n",
  owner: { node: H, session: P },
  next: null,
  clean: false,
  closed_gen: "0",
  replicas: [
    {
      rid: 1,
      node: H,
      pool: P,
      pool_inc: "1",
      state: "STALE",
      base: "0",
      reason: "SILENT",
      since: "1700000000000",
    },
    {
      rid: 0,
      node: H,
      pool: P,
      pool_inc: "1",
      state: "INSYNC",
      base: "0",
      reason: null,
      since: "1700000000000",
    },
  ],
  snaps: { count: 0, newest: null },
  parent: null,
  lineage: [],
  wait: false,
};
const want = {
  id: V,
  name: "db",
  size: "4096",
  copies: 2,
  minIsr: 1,
  placements: [{ rid: 0, host: H, pool: P, weight: 7 }],
  deletedAt: null,
  createdBy: "t",
  colour: "green",
};

void t.test("record: 64-bit numbers keep every bit, replicas come in order of rid", async (t) => {
  const read = parseRecord("k", JSON.stringify(record));
  t.equal(read.sizeBytes, 18446744073709551615n);
  t.equal(read.epoch, 549755813887n);
  t.same(
    read.replicas.map((r) => [r.rid, r.state, r.reason, r.sinceMs]),
    [
      [0, "INSYNC", null, 1700000000000],
      [1, "STALE", "SILENT", 1700000000000],
    ],
  );
});

void t.test("record: damage is named with its key and place", async (t) => {
  const broken = [
    [{ ...record, epoch: 7 }, "epoch"],
    [{ ...record, replicas: [{ ...record.replicas[0], state: "FINE" }] }, "replicas.0.state"],
    [{ ...record, owner: { node: "h1", session: P } }, "owner.node"],
    [{ ...record, size: "18446744073709551616" }, "size"],
    [{ ...record, deleted: "18446744073709551615" }, "deleted"],
    [{ ...record, epoch: "549755813888" }, "epoch"],
    [{ ...record, rev: "281474976710657" }, "rev"],
    [
      { ...record, replicas: [{ ...record.replicas[0], pool_inc: "18446744073709551615" }] },
      "replicas.0.pool_inc",
    ],
  ] as const;
  for (const [value, path] of broken) {
    t.throws(() => parseRecord("/weft/v1/vol/x/state", JSON.stringify(value)), {
      code: "E-STORE-07",
      facts: { key: "/weft/v1/vol/x/state", path },
    });
  }
  t.throws(() => parseStore("k", "{"), { code: "E-STORE-07" });
  const store = (incarnation: string): string => JSON.stringify({ cluster: V, incarnation });
  t.equal(parseStore("k", store("281474976710656")).incarnation, 1n << 48n);
  t.throws(() => parseStore("k", store("281474976710657")), { code: "E-STORE-07" });
  const pool = (inc: string): string => JSON.stringify({ node: H, inc });
  t.equal(parsePool("k", pool("281474976710656")).inc, 1n << 48n);
  t.throws(() => parsePool("k", pool("18446744073709551615")), { code: "E-STORE-07" });
  // A day later, when the trash is emptied, it would be no date that anybody can write.
  const late = JSON.stringify({ ...want, deletedAt: "9999-12-31T23:59:59.999Z" });
  t.throws(() => parseWant("k", late), { code: "E-STORE-07", facts: { path: "deletedAt" } });
  const first = { ...record.replicas[0], since: "18446744073709551615" };
  const sinceNever = parseRecord("k", JSON.stringify({ ...record, replicas: [first] }));
  t.equal(sinceNever.replicas[0]?.sinceMs, null, "for people only: it refuses nothing");
});

void t.test("record: one of newer software asks for newer software, whatever else is in it", async (t) => {
  t.equal(parseRecord("k", JSON.stringify({ ...record, fmt: 2, extra: 1 })).rev, 12n, "it still may be read");
  const newer = JSON.stringify({ ...record, fmt: 5, min_reader: 5, epoch: { hi: 1, lo: 2 } });
  t.throws(() => parseRecord("k", newer), { code: "E-STORE-13", exitCode: 2 });
});

void t.test("record: of a layer it says so, as weftd writes it", async (t) => {
  const specimen = readFileSync(join(repository, "native/weft-proto/specimens/record-v4.json"), "utf8");
  t.equal(parseRecordExtra("k", specimen).layer, true);
  t.equal(parseRecord("k", specimen).rev, 12n);
  t.equal(parseRecordExtra("k", JSON.stringify({ ...record, region_shift: 20 })).layer, false);
  t.throws(() => parseRecordExtra("k", JSON.stringify({ ...record, region_shift: 20, layer: 7 })), {
    code: "E-STORE-07",
  });
});

void t.test("record: of a volume that is taken back to a snapshot it says to which", async (t) => {
  t.equal(parseRecord("k", JSON.stringify(record)).reverting, null, "of older software");
  t.equal(parseRecord("k", JSON.stringify({ ...record, reverting: null })).reverting, null);
  const reverting = { snap: P, gen: "7", attempt: "1", since: "1763820127311" };
  const marked = { ...record, fmt: 2, min_reader: 2, reverting };
  t.same(parseRecord("k", JSON.stringify(marked)).reverting, { snapshot: P, sinceMs: 1_763_820_127_311 });
  t.equal(parseRecordExtra("k", JSON.stringify({ ...marked, region_shift: 20 })).regionShift, 20);
  for (const wrong of [{ snap: "x" }, P, {}])
    t.throws(() => parseRecord("k", JSON.stringify({ ...marked, reverting: wrong })), { code: "E-STORE-07" });
  const specimen = join(repository, "native/weft-proto/specimens/record-v2.json");
  t.not(parseRecord("k", readFileSync(specimen, "utf8")).reverting, null, "as weftd writes it");
});

void t.test(
  "record: of a volume whose head is deleted it says since when, and what became of that",
  async (t) => {
    t.equal(parseRecord("k", JSON.stringify(record)).head, null, "of older software");
    const specimen = join(repository, "native/weft-proto/specimens/record-v3.json");
    const text = readFileSync(specimen, "utf8");
    const { head, snapshots, reverting } = parseRecord("k", text);
    t.same(head, { deletedAtMs: 1_790_000_003_000, data: "releasing" }, "as weftd writes it");
    t.equal(snapshots, 1);
    t.equal(reverting, null);
    for (const wrong of [{ deleted: "77", data: "lost" }, { data: "kept" }, "kept"])
      t.throws(() => parseRecord("k", JSON.stringify({ ...(JSON.parse(text) as object), head: wrong })), {
        code: "E-STORE-07",
      });
    const headDeletedAt = "2025-11-22T14:02:07.311Z";
    const wish = JSON.stringify({ ...want, headDeletedAt });
    t.equal(parseWant("k", wish).headDeletedAtMs, 1_763_820_127_311);
    t.same(JSON.parse(renderWant(parseWant("k", wish), wish)), { ...want, headDeletedAt });
    const back = { ...parseWant("k", wish), headDeletedAtMs: null };
    t.same(JSON.parse(renderWant(back, wish)), want, "as it was for older software");
  },
);

void t.test("record: the snapshot that a volume began as is kept beside its wish", async (t) => {
  const createdFrom = {
    volume: V,
    volumeName: "db",
    snapshot: P,
    snapshotName: "nightly",
    taken: "2025-11-22T14:02:07.311Z",
    gen: "18446744073709551615",
    epoch: "7",
    regionShift: 20,
    rids: [0, 1],
    later: 1,
  };
  const text = JSON.stringify({ ...want, createdFrom });
  const read = parseWant("k", text);
  t.match(read.createdFrom, { generation: 18446744073709551615n, epoch: 7n, takenMs: 1_763_820_127_311 });
  t.same(JSON.parse(renderWant(read, text)), { ...want, createdFrom });
  t.equal(parseWant("k", JSON.stringify(want)).createdFrom, null, "of older software");
  for (const wrong of [{ rids: [] }, { regionShift: 60 }, { gen: 7 }, { snapshot: "x" }]) {
    const bad = JSON.stringify({ ...want, createdFrom: { ...createdFrom, ...wrong } });
    t.throws(() => parseWant("k", bad), { code: "E-STORE-07" }, Object.keys(wrong).join());
  }
});

void t.test("record: why a volume could not be made is kept beside its wish", async (t) => {
  const refused = { host: H, code: "E-POOL-06", message: "no room" };
  const read = parseWant("k", JSON.stringify({ ...want, refused }));
  t.same(read.refused, refused);
  t.same(JSON.parse(renderWant(read, JSON.stringify(want))), { ...want, refused });
  t.equal(parseWant("k", JSON.stringify(want)).refused, null, "of older software");
  t.throws(() => parseWant("k", JSON.stringify({ ...want, refused: "no" })), { code: "E-STORE-07" });
});

void t.test("record: unknown fields of want survive a change, also those of a placement", async (t) => {
  const text = JSON.stringify(want);
  const read = parseWant("k", text);
  const [place] = read.placements;
  if (place === undefined) throw new Error("a placement");
  const written: unknown = JSON.parse(
    renderWant({ ...read, placements: [{ ...place, remove: true }] }, text),
  );
  t.same(written, { ...want, placements: [{ rid: 0, host: H, pool: P, weight: 7, remove: true }] });
  t.same(JSON.parse(renderWant(read, renderWant(read, text))), want);
});

void t.test("record: limits are written as they are read; impossible ones are damage", async (t) => {
  const wanted = { iops: 2000, bps: "1048576", burstS: 5 };
  const limited = (limits: unknown): string => JSON.stringify({ ...want, limits });
  const parsed = parseWant("k", limited(wanted));
  t.strictSame(parsed.limits, { iops: 2000, bps: 1_048_576n, burstS: 5 });
  t.equal(parseWant("k", JSON.stringify(want)).limits, null, "of older software");
  const before = limited({ ...wanted, later: 1 });
  t.strictSame(JSON.parse(renderWant(parsed, before)), JSON.parse(before));
  t.same(JSON.parse(renderWant({ ...parsed, limits: null }, before)), want, "none are no field");
  for (const wrong of [
    { iops: 0 },
    { iops: "2000" },
    { bps: "1" },
    { burstS: 1e9 },
    { iops: null, bps: null },
  ])
    t.throws(() => parseWant("k", limited({ ...wanted, ...wrong })), { code: "E-STORE-07" });
});

void t.test(
  "record: what copies must not share is the host where nothing is said, also after it was more",
  async (t) => {
    const text = JSON.stringify(want);
    const read = parseWant("k", text);
    t.equal(read.spread, "host");
    const apart = renderWant({ ...read, spread: "rack" }, text);
    t.equal(parseWant("k", apart).spread, "rack");
    t.same(JSON.parse(renderWant({ ...read, spread: "host" }, apart)), want);
    t.throws(() => parseWant("k", JSON.stringify({ ...want, spread: "row" })), { code: "E-STORE-07" });
    const said = parseRecord("k", JSON.stringify({ ...record, policy: { ...record.policy, spread: "row" } }));
    t.equal(said.spread, "row", "a record of newer software is read");
  },
);

void t.test("record: where a host stands: what is not said is null", async (t) => {
  t.same(parseHostLabels("k", "{}"), { rack: null, site: null });
  t.same(parseHostLabels("k", '{"rack":"a","row":"7"}'), { rack: "a", site: null });
  t.throws(() => parseHostLabels("k", '{"rack":"A b"}'), { code: "E-STORE-07" });
});

void t.test("record: a wish to compare copies, and what came of it, are read with distrust", async (t) => {
  const scrub = { id: "a", at: "2026-11-21T14:00:00.000Z", by: "root@h1", rate: "33554432", session: null };
  const asked = (rest: object): string => JSON.stringify({ ...want, scrub: { ...scrub, ...rest } });
  const parsed = parseWant("k", asked({ later: 1 }));
  t.match(parsed.scrub, { id: "a", by: "root@h1", rate: 33_554_432n, session: null });
  t.same(JSON.parse(renderWant(parsed, asked({ later: 1 }))), JSON.parse(asked({ later: 1 })));
  t.same(JSON.parse(renderWant({ ...parsed, scrub: null }, asked({}))), want, "none is no field");
  for (const wrong of [
    { rate: "0" },
    { rate: 5 },
    { at: "soon" },
    { at: "9999-12-31T23:59:59.999Z" },
    { id: "" },
  ])
    t.throws(() => parseWant("k", asked(wrong)), { code: "E-STORE-07" });
  const result = {
    startedAt: scrub.at,
    endedAt: scrub.at,
    host: H,
    whole: true,
    comparedBytes: "4096",
    rotten: "1",
    repaired: "1",
    divergent: "0",
    lost: "0",
    members: [{ rid: 0, host: H, pool: P, rotten: "1", repaired: "1" }],
  };
  const read = parseScrubResult("k", JSON.stringify(result));
  t.strictSame(JSON.parse(renderScrubResult(read)), result);
  t.throws(() => parseScrubResult("k", JSON.stringify({ ...result, rotten: -1 })), { code: "E-STORE-07" });
});

const snapshot = {
  fmt: 1,
  id: P,
  vol: V,
  name: "nightly",
  gen: "7",
  attempt: "7340033",
  epoch: "7",
  incarnation: "1",
  size: "1073741824",
  region_shift: 20,
  state: "READY",
  logged: true,
  members: [{ rid: 0, node: H, pool: P }],
  created: "1763820127311",
  created_by: "root@h1",
  group: null,
  protected: false,
  pins: [],
  nonce: "n",
};

void t.test("record: a snapshot's key", async (t) => {
  t.match(parseSnapshot("k", JSON.stringify({ ...snapshot, later: 1 })), {
    id: P,
    volume: V,
    name: "nightly",
    state: "READY",
    isLogged: true,
    members: [{ rid: 0, host: H, pool: P }],
    generation: 7n,
    epoch: 7n,
    regionShift: 20,
    sizeBytes: 1n << 30n,
    createdMs: 1_763_820_127_311,
    createdBy: "root@h1",
    isProtected: false,
    data: "kept",
    group: null,
  });
  for (const data of ["destroying", "destroyed"])
    t.equal(parseSnapshot("k", JSON.stringify({ ...snapshot, fmt: 2, min_reader: 2, data })).data, data);
  const { group: _, ...older } = snapshot;
  t.equal(parseSnapshot("k", JSON.stringify(older)).group, null);
  const group = { id: P, volumes: [V, H] };
  t.strictSame(parseSnapshot("k", JSON.stringify({ ...snapshot, group })).group, group);
  for (const wrong of [
    { id: "x" },
    { name: "" },
    { size: 5 },
    { epoch: 7 },
    { region_shift: 60 },
    { state: "BITMAP" },
    { logged: null },
    { members: null },
    { created: "253402300799999" },
    { protected: 1 },
    { data: "kept" },
    { group: { id: P, volumes: ["x"] } },
    { group: { volumes: [V] } },
  ])
    t.throws(() => parseSnapshot("k", JSON.stringify({ ...snapshot, ...wrong })), { code: "E-STORE-07" });
  t.throws(() => parseSnapshot("k", JSON.stringify({ ...snapshot, min_reader: 3 })), { code: "E-STORE-13" });
});

void t.test("record: any text is parsed or refused with a code", async (t) => {
  const check = (text: string): void => {
    try {
      parseRecord("k", text);
      parseWant("k", text);
      parseSnapshot("k", text);
    } catch (error) {
      if (!(error instanceof WeftError)) throw error;
    }
  };
  assert(property(string(), check));
  assert(property(json(), check));
  const names = constantFrom(...Object.keys(record));
  assert(property(names, jsonValue(), (name, value) => check(JSON.stringify({ ...record, [name]: value }))));
  t.pass();
});
