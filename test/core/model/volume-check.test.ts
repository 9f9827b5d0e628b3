/** Plot: volumes that are open, deleted or half made are asked for. A wrong yes fences a guest; a wrong no strands one. */
import t from "tap";

import { ATTACHED_PER_HOST_MAX, VOLUME_BYTES_MAX } from "../../../src/core/model/limits.ts";
import { checkAttach, checkDelete, checkDetach, checkResize } from "../../../src/core/model/volume-check.ts";
import type { AttachInput, ResizeInput } from "../../../src/core/model/volume-check.ts";
import { cluster, GIB, hostId, member, owner, place, pool, record, want } from "./world.ts";

const closed: AttachInput = {
  want: want([place(0, 1)]),
  record: record([member(0, 1)]),
  cluster: cluster([1, 2], [2]),
  ownerIsCaretaker: false,
  here: hostId(1),
  attachedHere: 0,
  steal: false,
};
const openThere = { ...closed, record: record([member(0, 1)], { owner: owner(2) }) };

void t.test(
  "attach: an open volume is refused with where it is open, though that host seems dead",
  async (t) => {
    t.equal(checkAttach(closed).kind, "ok");
    t.match(checkAttach(openThere), {
      finding: {
        code: "E-VOL-12",
        message: '"db" is open on h2. Not attached.',
        do: [{ command: "weft detach db" }, { command: "weft steal db" }],
      },
    });
    t.equal(checkAttach({ ...openThere, steal: true }).kind, "ok");
    t.equal(checkAttach({ ...openThere, ownerIsCaretaker: true }).kind, "ok", "a caretaker makes way");
    t.equal(
      checkAttach({ ...openThere, here: hostId(2) }).kind,
      "ok",
      "again on the same host: the same session",
    );
  },
);

void t.test("attach: the 501st volume, a deleted one and one without a record are refused", async (t) => {
  t.match(checkAttach({ ...closed, attachedHere: ATTACHED_PER_HOST_MAX }), { finding: { code: "E-VOL-04" } });
  t.match(checkAttach({ ...closed, want: { ...closed.want, deletedAtMs: 1 } }), {
    finding: { code: "E-VOL-11" },
  });
  t.match(checkAttach({ ...closed, record: null }), { finding: { code: "E-VOL-14" } });
});

void t.test("delete: an open volume is refused, one that is still being made can be given up", async (t) => {
  t.match(checkDelete(openThere), {
    finding: { code: "E-VOL-12", message: '"db" is open on h2. Not deleted.' },
  });
  t.equal(checkDelete({ ...openThere, ownerIsCaretaker: true }).kind, "ok");
  t.equal(checkDelete({ ...closed, record: null }).kind, "ok");
  t.match(checkDelete({ ...closed, want: { ...closed.want, deletedAtMs: 1 } }), {
    finding: { code: "E-VOL-11" },
  });
});

void t.test("detach: only where it is open", async (t) => {
  t.equal(checkDetach({ ...openThere, here: hostId(2) }).kind, "ok");
  t.match(checkDetach(openThere), {
    finding: { code: "E-VOL-13", message: '"db" is not attached on h1. It is open on h2.' },
  });
  t.match(checkDetach(closed), {
    finding: { message: '"db" is not attached on h1. It is not open anywhere.' },
  });
});

const resized = (rest: Partial<ResizeInput>): ReturnType<typeof checkResize> =>
  checkResize({ ...closed, sizeBytes: 4n * GIB, loseData: null, ...rest });
const there = openThere.record;

void t.test("resize: a volume grows whoever uses it, and keeps the size that it has", async (t) => {
  t.strictSame(resized({}), { kind: "ok", value: "grow" });
  t.strictSame(resized({ record: there }), { kind: "ok", value: "grow" });
  t.strictSame(resized({ sizeBytes: 3n * GIB }), { kind: "ok", value: "same" });
  t.strictSame(resized({ sizeBytes: VOLUME_BYTES_MAX }), { kind: "ok", value: "grow" });
});

void t.test("resize: what is no size is none, whatever the volume is", async (t) => {
  for (const [sizeBytes, code] of [
    [0n, "E-VOL-02"],
    [-4096n, "E-VOL-02"],
    [VOLUME_BYTES_MAX + 4096n, "E-VOL-02"],
    [4n * GIB + 1n, "E-ARG-02"],
  ] as const) {
    t.match(resized({ sizeBytes }), { finding: { code } }, `${sizeBytes}`);
  }
  t.match(resized({ record: null }), { finding: { code: "E-VOL-14" } });
  t.match(resized({ want: { ...closed.want, deletedAtMs: 1 } }), { finding: { code: "E-VOL-11" } });
});

void t.test("resize: it shrinks only closed, and only for who names it", async (t) => {
  const sizeBytes = 2n * GIB;
  t.match(resized({ sizeBytes }), {
    finding: {
      code: "E-VOL-15",
      message: '"db" would lose everything beyond 2GiB: it has 3 GiB. Not changed.',
      do: [{ command: "weft volume resize db 2GiB --lose-data db" }],
    },
  });
  t.match(resized({ sizeBytes, loseData: "bd" }), { finding: { code: "E-ARG-04" } });
  t.strictSame(resized({ sizeBytes, loseData: "db" }), { kind: "ok", value: "shrink" });
  t.match(resized({ sizeBytes, loseData: "db", record: there }), {
    finding: {
      code: "E-VOL-12",
      message: '"db" is open on h2. It shrinks only while nobody uses it. Not changed.',
    },
  });
  t.match(resized({ sizeBytes, loseData: "db", record: there, ownerIsCaretaker: true }), {
    finding: { code: "E-VOL-14" },
  });
});

void t.test("resize: it does not grow into a pool that takes nothing more", async (t) => {
  const full = { ...closed.cluster, pools: [pool(1, { freeBytes: GIB })] };
  t.match(resized({ cluster: full }), {
    finding: { code: "E-POOL-06", message: /on h1 that takes nothing more: 1 GiB of 900 GiB free/ },
  });
  const behind = record([member(0, 2), member(1, 1, "STALE")]);
  t.equal(resized({ cluster: full, record: behind }).kind, "ok", "a copy that is not in sync has time");
});
