/** What the store says of a virtual disk's volume or snapshot, and what is left of those that were cut short. */
import t from "tap";

import {
  checkCompose,
  diskOf,
  HELPER_BY,
  HELPER_MS,
  helperName,
  isHelper,
  isLeftHelper,
  isLeftKey,
  isUntouched,
  snapshotDiskOf,
  stageOf,
  uuidOfName,
  vdiName,
  wholeBlocks,
} from "../../../src/core/model/vdi.ts";
import { member, record, snapshot, snapshotId, want } from "./world.ts";

const uuid = "d0000000-0000-4000-a000-000000000000";
const createdAt = "2026-11-22T21:00:00.000Z";
const given = { uuid, sr: uuid, label: "root", createdAt };
const disk = diskOf(given);
const taken = snapshotDiskOf({ ...given, uuid: snapshotId(1) }, disk.volume);
const none = { want: null, record: null, snapshot: null };
const there = record([member(0, 1)]);

void t.test("vdi: a disk is whole with its record, and gone only when the store says so", async (t) => {
  t.equal(stageOf(disk, { ...none, want: want([]) }), "making");
  t.equal(stageOf(disk, { ...none, want: want([]), record: there }), "whole");
  t.equal(stageOf(disk, { ...none, record: there }), "whole", "its wish was lost, it was not");
  t.equal(stageOf(disk, none), "gone");
  t.equal(stageOf(disk, { ...none, want: want([], { deletedAtMs: 5 }), record: there }), "gone");
  t.equal(stageOf(disk, { ...none, want: want([]), record: { ...there, deletedAtMs: 5 } }), "gone");
  const refused = { host: "h" as never, code: "E-POOL-06", message: "full" };
  t.equal(stageOf(disk, { ...none, want: want([], { refused }) }), "gone");
});

void t.test("vdi: a snapshot is whole when it is logged, and gone when it goes", async (t) => {
  t.equal(stageOf(taken, none), "making");
  t.equal(stageOf({ ...taken, settled: true }, none), "gone");
  t.equal(stageOf(taken, { ...none, snapshot: snapshot(1, [0], { isLogged: false }) }), "making");
  t.equal(stageOf(taken, { ...none, snapshot: snapshot(1, [0]) }), "whole");
  t.equal(stageOf(taken, { ...none, snapshot: snapshot(1, [0], { state: "DELETING" }) }), "gone");
});

void t.test("vdi: nothing was written to one that was made for it and never opened", async (t) => {
  const made = want([], { createdBy: `vdi-${uuid}` });
  const first = { ...none, want: made, record: { ...there, epoch: 1n } };
  t.equal(isUntouched(disk, first), true);
  t.equal(isUntouched(disk, { ...first, record: { ...there, epoch: 2n } }), false, "somebody has opened it");
  t.equal(isUntouched(disk, { ...first, want: want([], { createdBy: "root" }) }), false, "a person's volume");
  t.equal(isUntouched(disk, { ...first, record: null }), false);
  t.equal(isUntouched(taken, { ...first, snapshot: snapshot(1, [0]) }), false);
});

void t.test("vdi: sizes are whole blocks, upwards", async (t) => {
  t.strictSame([1n, 4096n, 4097n].map(wholeBlocks), [4096n, 4096n, 8192n]);
});

void t.test("vdi: what was left goes when nobody can wait for it any more", async (t) => {
  const nowMs = Date.parse(createdAt) + HELPER_MS;
  t.equal(isLeftKey(taken, none, HELPER_MS), true);
  t.equal(isLeftKey(taken, none, HELPER_MS - 1), false);
  t.equal(isLeftKey({ ...taken, settled: true }, none, 0), true);
  t.equal(isLeftKey(taken, { snapshot: snapshot(1, [0]) }, HELPER_MS), false);
  t.equal(isLeftKey(disk, none, HELPER_MS), false, "a disk's key goes with its volume");

  const helper = snapshot(2, [0], {
    name: helperName("clone", uuid),
    createdBy: HELPER_BY,
    createdMs: nowMs - HELPER_MS,
  });
  const left = (change: object, named: readonly number[] = []): boolean =>
    isLeftHelper({ ...helper, ...change }, new Set(named.map(snapshotId)), nowMs);
  t.equal(left({}), true);
  t.equal(left({ createdMs: helper.createdMs + 1 }), false);
  t.equal(left({}, [2]), false, "a disk goes back to it");
  t.equal(left({ createdBy: "root@h1" }), false, "a person's");
  t.equal(left({ name: `vdi-${uuid}` }), false, "a disk");
  t.equal(left({ name: "clone-of-db" }), false);
  t.equal(left({ state: "DELETING" }), false);
  t.equal(isHelper({ name: `reset-${uuid}`, createdBy: HELPER_BY }), true);
});

void t.test("vdi: a layer is laid over a disk of its repository that is not larger", async (t) => {
  const other = "d1000000-0000-4000-a000-000000000000";
  const leaf = { vdi: disk, sizeBytes: 8192n, isLayer: true };
  const parent = { vdi: diskOf({ ...given, uuid: other }), sizeBytes: 8192n, isLayer: false };
  const code = (of: Partial<typeof leaf>, over: Partial<typeof parent>): string | null =>
    checkCompose({ ...leaf, ...of }, { ...parent, ...over })?.code ?? null;
  t.equal(code({}, {}), null);
  t.equal(code({}, { sizeBytes: 4096n }), null, "it grows");
  t.equal(code({}, { sizeBytes: 12_288n }), "E-VDI-03");
  t.equal(code({}, { vdi: disk }), "E-VDI-03", "itself");
  t.equal(code({}, { vdi: { ...parent.vdi, sr: other } }), "E-VDI-03");
  t.equal(code({ isLayer: false }, {}), "E-VDI-08");
  t.equal(uuidOfName(vdiName(uuid)), uuid);
  for (const name of ["db", "vdi-", `vdi-${uuid}x`, `x-vdi-${uuid}`]) t.equal(uuidOfName(name), null, name);
});
